#!/usr/bin/env bash
# Expected: safetensors.torch.load and safetensors.numpy.load give the tensors of the same bytes in the same order, that
#   of the file or that in which they were saved, so that code may pair two models' layers by their position.
# What happens: load gives them in another order with every call, within one process too. load_file gives the file's
#   order, which is not that of saving but sorted by type and name. Whoever needs an order has to keep it elsewhere.
# Versions: safetensors 0.4.5, 0.6.2 and 0.8.0.
# Seen on 2026-11-27:
#   safetensors 0.8.0
#   saved:     stem layer1 layer2 layer3 layer4 layer10 fc
#   load:      layer10 layer4 layer2 layer1 stem layer3 fc
#   load:      layer2 layer3 layer4 stem fc layer10 layer1
#   load_file: fc layer1 layer10 layer2 layer3 layer4 stem
#   in 100 calls: 98 orders from load, 1 from load_file
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with safetensors==0.8.0 numpy==2.4.6
"$python" - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file

print("safetensors", safetensors.__version__)
saved = {name: np.zeros(2, np.float32) for name in ["stem", "layer1", "layer2", "layer3", "layer4", "layer10", "fc"]}
data = save(saved)
save_file(saved, "a.safetensors")
print("saved:    ", *saved)
print("load:     ", *load(data))
print("load:     ", *load(data))
print("load_file:", *load_file("a.safetensors"))
orders = {tuple(load(data)) for _ in range(100)}
file_orders = {tuple(load_file("a.safetensors")) for _ in range(100)}
print(f"in 100 calls: {len(orders)} orders from load, {len(file_orders)} from load_file")

assert len(orders) > 10 and file_orders == {tuple(sorted(saved))}
PYTHON
