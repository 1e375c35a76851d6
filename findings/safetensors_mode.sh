#!/usr/bin/env bash
# Expected: save_file makes a file that others may read where the umask lets them (022 gives 644), as open() does, and as
#   safetensors did up to 0.7.0; a file that is written anew keeps the mode that it had.
# What happens: with 0.8.0 the file has the mode 600 whatever the umask, and one that had 644 has 600 afterwards: a
#   model that was shared with a group can suddenly be read by its owner alone. Writing the bytes of save() does not.
# Versions: 0.7.0 (old behaviour) and 0.8.0. Reported as safetensors issue 782, open on 2026-11-27.
# Seen on 2026-11-27:
#   safetensors 0.7.0: new file 0o644, written anew 0o644, bytes of save() 0o644
#   safetensors 0.8.0: new file 0o600, written anew 0o600, bytes of save() 0o644
set -euo pipefail
source "$(dirname "$0")/common.bash"
script='
import os, stat, sys
import numpy as np
import safetensors
from safetensors.numpy import save, save_file

os.umask(0o022)
tensors = {"a": np.zeros(3, np.float32)}
mode = lambda path: stat.S_IMODE(os.stat(path).st_mode)
save_file(tensors, "new.safetensors")
with open("shared.safetensors", "wb") as file:
    file.write(save(tensors))
by_bytes = mode("shared.safetensors")
save_file(tensors, "shared.safetensors")
new, again = mode("new.safetensors"), mode("shared.safetensors")
print(f"safetensors {safetensors.__version__}: new file {new:#o}, written anew {again:#o}, bytes of save() {by_bytes:#o}")
assert [new, again, by_bytes] == [int(value, 8) for value in sys.argv[1:]]
'
here=$PWD
for pair in "0.7.0 644 644 644" "0.8.0 600 600 644"; do
    set -- $pair
    cd "$here"
    python_with "safetensors==$1" numpy==2.4.6
    rm -f ./*.safetensors
    "$python" -c "$script" "$2" "$3" "$4"
done
