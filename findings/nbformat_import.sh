#!/usr/bin/env bash
# Expected: importing nbformat, which every tool for notebooks does, takes as long alone as in an environment with
#   JupyterLab.
# What happens: nbformat imports jsonschema, and jsonschema imports every checker of formats that it finds. JupyterLab's
#   jupyter-events asks for jsonschema[format-nongpl], which brings rfc3987-syntax, and that builds a parser of a whole
#   grammar at import. So each process that reads a notebook pays for checks of addresses that no notebook asks for.
# Versions: nbformat 5.11.1, jsonschema 4.26.0, rfc3987-syntax 1.1.0, lark 1.3.1.
# Seen on 2026-11-27:
#   jsonschema: import nbformat takes 0.51 s
#   jsonschema[format-nongpl]: import nbformat takes 3.57 s
#   ratio 7.0
set -euo pipefail
source "$(dirname "$0")/common.bash"
times() {
    "$python" - "$1" <<'PYTHON'
import statistics
import subprocess
import sys
import time

def seconds():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import nbformat"], check=True)
    return time.perf_counter() - started

seconds()
median = statistics.median(seconds() for _ in range(5))
print(f"{sys.argv[1]}: import nbformat takes {median:.2f} s")
open("seconds", "a").write(f"{median}\n")
PYTHON
}
here=$work
python_with nbformat==5.11.1 jsonschema==4.26.0
times "jsonschema"
mv seconds "$here/alone"
python_with nbformat==5.11.1 'jsonschema[format-nongpl]==4.26.0' rfc3987-syntax==1.1.0 lark==1.3.1
times "jsonschema[format-nongpl]"
"$python" - "$here/alone" seconds <<'PYTHON'
import sys

alone, together = (float(open(path).read()) for path in sys.argv[1:])
print(f"ratio {together / alone:.1f}")
assert together > 2 * alone, "the import no longer takes twice as long"
PYTHON
