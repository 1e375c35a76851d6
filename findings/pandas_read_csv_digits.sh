#!/usr/bin/env bash
# Expected: a table that pandas wrote with to_csv has the same numbers when pandas reads it with read_csv.
# What happens: before pandas 3.1 about a third of random numbers in [0, 1) come back changed, and nearly all of those
#   in [0, 0.01). It is not only the last bit: read_csv takes 17 digits and counts the zeros at the front among them, so
#   0.0005715812345678912 loses three digits, and 5.715812345678912e-04, the same number, none.
#   float_precision="round_trip" reads exactly; it is deprecated since 3.1, where it is no longer needed.
# Versions: pandas 2.3.3 to 3.0.6; 3.1.0 and 3.1.1 read exactly.
# Seen on 2026-11-27:
#   pandas 3.0.6
#     0.0005715812345678912 is read as 0.0005715812345678
#     5.715812345678912e-04 is read as 0.0005715812345678912
#     random in [0, 1.0): 35.6% changed, by up to 6023 units in the last place
#     random in [0, 0.01): 98.2% changed, by up to 7287 units in the last place
#   pandas 3.1.0
#     0.0005715812345678912 is read as 0.0005715812345678912
#     5.715812345678912e-04 is read as 0.0005715812345678912
#     random in [0, 1.0): 0.0% changed, by up to 0 units in the last place
#     random in [0, 0.01): 0.0% changed, by up to 0 units in the last place
set -euo pipefail
source "$(dirname "$0")/common.bash"
for pandas in 3.0.6 3.1.0; do
    python_with pandas=="$pandas" numpy==2.3.5
    "$python" - <<'PYTHON'
import io

import numpy as np
import pandas as pd


def read(*texts, **options):
    return pd.read_csv(io.StringIO("\n".join(["x", *texts])), **options).x.to_numpy()


print("pandas", pd.__version__)
plain, scientific = "0.0005715812345678912", "5.715812345678912e-04"
for text in (plain, scientific):
    print(f"  {text} is read as {float(read(text)[0])!r}")
generator, changed = np.random.default_rng(0), {}
for top in (1.0, 0.01):
    numbers = generator.random(10_000) * top
    table = io.StringIO()
    pd.DataFrame({"x": numbers}).to_csv(table, index=False)
    texts = table.getvalue().split()[1:]
    back = read(*texts)
    units = abs(back - numbers) / np.spacing(numbers)
    changed[top] = (back != numbers).mean()
    print(f"  random in [0, {top}): {changed[top]:.1%} changed, by up to {units.max():.0f} units in the last place")
    if pd.__version__ < "3.1":
        assert (read(*texts, float_precision="round_trip") == numbers).all()

if pd.__version__ < "3.1":
    assert read(plain)[0] == 0.0005715812345678 and read(scientific)[0] == 0.0005715812345678912
    assert changed[1.0] > 0.2 and changed[0.01] > 0.8
else:
    assert read(plain)[0] == read(scientific)[0] and not any(changed.values())
PYTHON
done
