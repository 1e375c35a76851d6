#!/usr/bin/env bash
# Expected: torch-pruning prunes a model whatever requires_grad says, since it trains nothing; models that are only
#   used, or whose first layers are frozen, have requires_grad=False.
# What happens: it reads the model from the autograd graph, so layers that no gradient reaches are not there. From a
#   frozen model the pruner takes nothing away and says nothing. Of a model with one frozen branch it prunes the other
#   branch alone, and the result no longer runs. Setting requires_grad=True on all parameters beforehand helps.
# Versions: torch-pruning 1.6.1 with torch 2.15.0.
# Seen on 2026-11-27:
#   torch 2.15.0+cu132 torch-pruning 1.6.1
#   ResNet-18, requires_grad=True: 3,055,880 parameters after pruning half of the channels
#   ResNet-18, requires_grad=False: 11,689,512 parameters after pruning half of the channels
#   two branches, one with requires_grad=True: (7, 7) channels
#       runs
#   two branches, one with requires_grad=False: (7, 8) channels
#       RuntimeError: The size of tensor a (7) must match the size of tensor b (8)
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" - <<'PYTHON'
import warnings
from importlib.metadata import version

import torch
import torch_pruning as tp
import torchvision
from torch import nn

warnings.simplefilter("error")
print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))
image, sizes = torch.randn(1, 3, 64, 64), {}
for trainable in (True, False):
    model = torchvision.models.resnet18().eval().requires_grad_(trainable)
    importance = tp.importance.MagnitudeImportance()
    tp.pruner.MagnitudePruner(model, image, importance, pruning_ratio=0.5, ignored_layers=[model.fc]).step()
    sizes[trainable] = sum(parameter.numel() for parameter in model.parameters())
    print(f"ResNet-18, requires_grad={trainable}: {sizes[trainable]:,} parameters after pruning half of the channels")


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.left(x) + self.right(x))


ends = {}
for trainable in (True, False):
    model = Branches()
    model.right.requires_grad_(trainable)
    graph = tp.DependencyGraph().build_dependency(model, image)
    graph.get_pruning_group(model.left, tp.prune_conv_out_channels, idxs=[0]).prune()
    try:
        model(image)
        ends[trainable] = "runs"
    except RuntimeError as error:
        ends[trainable] = f"RuntimeError: {str(error).split(' at ')[0]}"
    widths = model.left.out_channels, model.right.out_channels
    print(f"two branches, one with requires_grad={trainable}: {widths} channels")
    print("   ", ends[trainable])

assert sizes[False] == 11_689_512 and sizes[True] < sizes[False] / 3
assert ends[True] == "runs" and ends[False].startswith("RuntimeError")
PYTHON
