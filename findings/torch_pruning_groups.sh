#!/usr/bin/env bash
# Expected: where the channels that are pruned give 0 already, the smaller network answers as before; or an error.
# What happens: of a grouped convolution's inputs, each group loses the same columns. Where one channel of each group is
#   pruned, at different places within the groups, the wrong weights stay, and the network answers otherwise without a
#   word. At the same place within the groups all is right. torchvision's ShuffleNetV2, whose channels are split and
#   shuffled, can't be read at all: ZeroDivisionError, in each of its four sizes.
# Versions: torch-pruning 1.6.1 with torch 2.15.0 and torchvision 0.29.2.
# Seen on 2026-11-28:
#   torch 2.15.0+cu132 torch-pruning 1.6.1
#   channels 0 and 4 (place 0 of both groups): largest difference 0.000 of 0.804
#   channels 0 and 5 (places 0 and 1): largest difference 0.645 of 1.075
#   shufflenet_v2_x0_5: ZeroDivisionError
#   shufflenet_v2_x1_0: ZeroDivisionError
#   shufflenet_v2_x1_5: ZeroDivisionError
#   shufflenet_v2_x2_0: ZeroDivisionError
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import torch
import torch_pruning as tp
import torchvision
from torch import nn

print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))


@torch.no_grad()
def difference(channels):
    """Largest change of an answer when channels that are 0 are pruned, and the largest answer."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
    net, images = nn.Sequential(first, second).eval(), torch.rand(2, 3, 4, 4)
    first.weight[channels], first.bias[channels] = 0, 0
    before = net(images)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(net, (images,))
    graph.get_pruning_group(first, tp.prune_conv_out_channels, channels).prune()
    assert [len(conv.weight) for conv in net] == [6, 8]
    return float((net(images) - before).abs().max()), float(before.abs().max())


found = {}
for channels, where in (([0, 4], "place 0 of both groups"), ([0, 5], "places 0 and 1")):
    found[channels[1]] = difference(channels)
    print(f"channels 0 and {channels[1]} ({where}): largest difference {found[channels[1]][0]:.3f} of {found[channels[1]][1]:.3f}")
errors = []
for size in ("x0_5", "x1_0", "x1_5", "x2_0"):
    net = torchvision.models.get_model(f"shufflenet_v2_{size}").eval()
    try:
        tp.DependencyGraph().build_dependency(net, (torch.rand(1, 3, 64, 64),))
        errors.append("none")
    except Exception as error:
        errors.append(type(error).__name__)
    print(f"shufflenet_v2_{size}: {errors[-1]}")
assert found[4][0] < 1e-6 < 0.1 < found[5][0] and errors == ["ZeroDivisionError"] * 4
PYTHON
