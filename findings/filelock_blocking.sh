#!/usr/bin/env bash
# Expected: what acquire() takes, the lock itself takes as well: with FileLock(path, blocking=False) as with timeout.
# What happens: before filelock 3.14, `blocking` is an argument of acquire() alone, though `timeout` is one of both. The
#   lock's TypeError comes with the traceback of a second error, an AttributeError from the half-made lock's __del__.
# Versions: filelock 3.13.0 to 3.13.4; 3.14.0 and 4.3.1 take it.
# Seen on 2026-11-27:
#   filelock 3.13.4: acquire(blocking=False) and FileLock(..., timeout=0) work
#   filelock 3.13.4: FileLock(..., blocking=False):
#       TypeError("BaseFileLock.__init__() got an unexpected keyword argument 'blocking'")
#       AttributeError("'UnixFileLock' object has no attribute '_context'")
#   filelock 3.14.0: acquire(blocking=False) and FileLock(..., timeout=0) work
#   filelock 3.14.0: FileLock(..., blocking=False):
#       works
set -euo pipefail
source "$(dirname "$0")/common.bash"
for filelock in 3.13.4 3.14.0; do
    python_with filelock=="$filelock"
    "$python" - <<'PYTHON'
import sys

from filelock import FileLock, __version__

second = []
sys.unraisablehook = lambda about: second.append(repr(about.exc_value))
with FileLock("a.lock").acquire(blocking=False), FileLock("b.lock", timeout=0):
    print(f"filelock {__version__}: acquire(blocking=False) and FileLock(..., timeout=0) work")
try:
    with FileLock("c.lock", blocking=False):
        found = "works"
except TypeError as error:
    found = repr(error)
print(f"filelock {__version__}: FileLock(..., blocking=False):")
for line in (found, *second):
    print("   ", line)

assert (found != "works") == bool(second) == (__version__ == "3.13.4")
PYTHON
done
