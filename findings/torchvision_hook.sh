#!/usr/bin/env bash
# Expected: what a forward hook on a batch norm keeps is what the batch norm gave.
# What happens: torchvision's ResNet adds the shortcut to the second batch norm's output in place and puts an in-place
#   ReLU behind it, so the tensor that the hook kept is the block's output by the time that the forward pass has ended:
#   another size of numbers, and none below zero. Nothing warns. A hook has to clone, or to compute at once.
# Versions: torchvision 0.29.2 with torch 2.15.0.
# Seen on 2026-11-27:
#   torch 2.15.0+cu132 torchvision 0.29.2+cu132
#   cloned  least  -2.091  mean   0.050  most   2.002
#   kept    least   0.000  mean   0.548  most   2.540
#   block   least   0.000  mean   0.548  most   2.540
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" - <<'PYTHON'
import warnings

import torch
import torchvision

warnings.simplefilter("error")
print("torch", torch.__version__, "torchvision", torchvision.__version__)
torch.manual_seed(0)
model, seen = torchvision.models.resnet18().eval(), {}
block = model.layer1[0]
block.bn2.register_forward_hook(lambda module, given, gave: seen.update(kept=gave, cloned=gave.clone()))
block.register_forward_hook(lambda module, given, gave: seen.update(block=gave.clone()))
with torch.no_grad():
    model(torch.randn(4, 3, 64, 64))
for name in ("cloned", "kept", "block"):
    print(f"{name:<7} least {seen[name].min():7.3f}  mean {seen[name].mean():7.3f}  most {seen[name].max():7.3f}")

assert torch.equal(seen["kept"], seen["block"]) and not torch.equal(seen["kept"], seen["cloned"])
assert seen["cloned"].min() < 0 <= seen["kept"].min()
PYTHON
