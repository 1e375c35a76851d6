#!/usr/bin/env bash
# Expected: torch.load reads what torch.save wrote, with each of the pickle_protocol values that torch.save takes.
# What happens: with its default, weights_only=True, it reads protocols 2 and 3 alone; the error advises to load unsafely.
#   A file of protocol 0 can't be read at all, weights_only=False neither: torch.save wrote it without a word.
#   Tensors alone in a dict were tried, nothing else.
# Versions: torch 2.15.0; the default is weights_only=True since torch 2.6.
# Seen on 2026-11-28:
#   torch 2.15.0+cu132
#   protocols that torch.save takes: [0, 1, 2, 3, 4, 5]
#   read with the default: [2, 3]
#   read with weights_only=False: [1, 2, 3, 4, 5]
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" -W ignore - <<'PYTHON'
import io
import pickle

import torch

weights = {"weight": torch.arange(3.0)}


def reads(file, **options):
    file.seek(0)
    try:
        return bool(torch.load(file, **options)["weight"].equal(weights["weight"]))
    except (pickle.UnpicklingError, AssertionError):
        return False


files = {}
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    files[protocol] = io.BytesIO()
    torch.save(weights, files[protocol], pickle_protocol=protocol)
safe = [protocol for protocol, file in files.items() if reads(file)]
unsafe = [protocol for protocol, file in files.items() if reads(file, weights_only=False)]
print("torch", torch.__version__)
print("protocols that torch.save takes:", list(files))
print("read with the default:", safe)
print("read with weights_only=False:", unsafe)
assert safe == [2, 3] and unsafe == [1, 2, 3, 4, 5]
PYTHON
