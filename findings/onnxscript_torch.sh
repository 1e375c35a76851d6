#!/usr/bin/env bash
# Expected: torch.onnx.export works with the onnxscript that the package index serves for the torch at hand; a version
#   that is too old is refused when it is installed, or named in the error.
# What happens: onnxscript has a module for each release of torch, and needs to be as new as torch is. Nothing declares
#   that: pip installs onnxscript 0.5.7 beside torch 2.11.0 without a word, and the export ends with ModuleNotFoundError
#   of a module that is onnxscript's own. onnxscript 0.6.0 knows torch 2.11.
# Versions: torch 2.11.0 with onnxscript 0.5.7 (and 0.5.0) and 0.6.0, onnx 1.19.0.
# Seen on 2026-11-28:
#   torch 2.11.0+cu130
#   onnxscript 0.5.7: ModuleNotFoundError: No module named 'onnxscript._framework_apis.torch_2_11'
#   onnxscript 0.6.0: exported
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.11.0 onnx==1.19.0 onnxscript==0.5.7
"$python" -m pip install -qq --target newer --no-deps onnxscript==0.6.0 onnx-ir==0.1.16
cat >export.py <<'PYTHON'
from importlib.metadata import version

import torch

try:
    program = torch.onnx.export(torch.nn.Linear(2, 1).eval(), (torch.zeros(1, 2),), dynamo=True, verbose=False)
    said = "exported" if program.model_proto.graph.node else "empty"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(f"onnxscript {version('onnxscript')}: {said.splitlines()[0]}")
PYTHON
"$python" -c 'import torch; print("torch", torch.__version__)'
"$python" -W ignore export.py | tee older
PYTHONPATH=newer "$python" -W ignore export.py 2>errors | tee newer.txt
grep -q "^onnxscript 0.5.7: ModuleNotFoundError" older
grep -q "^onnxscript 0.6.0: exported" newer.txt
