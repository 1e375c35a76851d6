#!/usr/bin/env bash
# Expected: Client.scheduler_info()["workers"] holds every worker of the cluster, as it did for years; code that looks
#   there for a worker with a GPU finds it.
# What happens: from distributed 2025.4.0 to 2026.6.0 it holds five workers, whatever their number, without a warning.
#   scheduler_info(n_workers=-1) holds all, and so does Client.nthreads().
# Versions: 2025.4.0 to 2026.6.0 hold five; 2025.3.1 and 2026.7.1 hold all.
# Seen on 2026-11-27:
#   distributed 2026.6.0: of 7 workers scheduler_info() lists 5, with n_workers=-1 7
#   distributed 2026.7.1: of 7 workers scheduler_info() lists 7, with n_workers=-1 7
set -euo pipefail
source "$(dirname "$0")/common.bash"
for distributed in 2026.6.0 2026.7.1; do
    python_with distributed=="$distributed" dask=="$distributed"
    "$python" - <<'PYTHON'
from distributed import Client, LocalCluster, __version__

with LocalCluster(n_workers=7, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
    with Client(cluster) as client:
        client.wait_for_workers(7)
        listed, threads = len(client.scheduler_info()["workers"]), len(client.nthreads())
        every = len(client.scheduler_info(n_workers=-1)["workers"])
print(f"distributed {__version__}: of 7 workers scheduler_info() lists {listed}, with n_workers=-1 {every}")

assert (listed, every, threads) == (5 if __version__ == "2026.6.0" else 7, 7, 7)
PYTHON
done
