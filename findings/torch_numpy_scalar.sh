#!/usr/bin/env bash
# Expected: torch.load reads what torch.save wrote, when it is weights and a few numbers.
# What happens: one numpy number beside the weights, such as the best accuracy so far, and the file is refused, weights
#   and all, since weights_only=True is the default. Numbers of eight numpy types and an array were tried,
#   and none passes. A mean of numpy's is such a
#   number, and so is what round() and max() make of it. The error names one function to allow; with it allowed the next
#   error comes, and a third: the last name is another one for each type of number.
# Versions: torch 2.15.0 with numpy 2.4.6; weights_only=True is the default since torch 2.6.
# Seen on 2026-11-27:
#   torch 2.15.0+cu132 numpy 2.4.6
#   max(round(np.mean(...), 3), 0.5) is np.float64(0.667)
#   numpy types that are refused: bool_, uint8, int64, float16, float32, float64, complex128, str_, array
#   Python types that load: bool, int, float, complex, str, bytes, set, tuple
#   loads with 0, 1, 2, 3 of scalar, dtype, Float64DType allowed: [False, False, False, True]
#   float32 with the same three: False
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" - <<'PYTHON'
import io

import numpy as np
import torch


def loads(value, *allowed):
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "best": value}, file)
    file.seek(0)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return bool(torch.load(file)["best"] == value)
    except Exception as error:
        assert type(error).__name__ == "UnpicklingError", error
        return False


print("torch", torch.__version__, "numpy", np.__version__)
best = max(round(np.mean([True, True, False]), 3), 0.5)
print("max(round(np.mean(...), 3), 0.5) is", repr(best))
kinds = ["bool_", "uint8", "int64", "float16", "float32", "float64", "complex128", "str_"]
refused = [kind for kind in kinds if not loads(getattr(np, kind)(1))] + ["array"] * (not loads(np.zeros(())))
print("numpy types that are refused:", ", ".join(refused))
passing = [type(value).__name__ for value in (True, 1, 0.5, 1j, "a", b"a", {1}, (1,)) if loads(value)]
print("Python types that load:", ", ".join(passing))
names = np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType
steps = [loads(best, *names[:count]) for count in range(4)]
print("loads with 0, 1, 2, 3 of", ", ".join(name.__name__ for name in names), "allowed:", steps)
print("float32 with the same three:", loads(np.float32(0.5), *names))

assert isinstance(best, np.float64) and refused == [*kinds, "array"]
assert steps == [False, False, False, True] and loads(float(best)) and not loads(np.float32(0.5), *names)
PYTHON
