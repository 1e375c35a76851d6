#!/usr/bin/env bash
# Expected: in a torch.fx graph a batch norm is one call_module node, so pairs of convolution and batch norm can be
#   read from the graph.
# What happens: the tracer stops at modules whose class is defined in torch.nn, not at their subclasses. It looks into
#   a subclass of BatchNorm2d, such as timm's BatchNormAct2d, and leaves a dozen nodes, none of them a module that is a
#   batch norm. Of timm's EfficientNet the graph shows no batch norm at all. A Tracer of one's own, whose is_leaf_module
#   says yes to every BatchNorm2d, shows all.
# Versions: torch 2.15.0 with timm 1.0.31 and torchvision 0.29.2.
# Seen on 2026-11-27:
#   torch 2.15.0+cu132 timm 1.0.31 torchvision 0.29.2+cu132
#   torchvision efficientnet_b0   49 BatchNorm2d    in the graph:  49, by one's own tracer:  49
#   timm efficientnet_b0          49 BatchNormAct2d in the graph:   0, by one's own tracer:  49
#   timm densenet121             121 BatchNormAct2d in the graph:   0, by one's own tracer: 121
#   timm resnet18                 20 BatchNorm2d    in the graph:  20, by one's own tracer:  20
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" - <<'PYTHON'
import timm
import torch
import torchvision
from torch import fx, nn


class Leaves(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


def in_graph(model, tracer):
    modules, nodes = dict(model.named_modules()), tracer.trace(model).nodes
    return sum(n.op == "call_module" and isinstance(modules[n.target], nn.BatchNorm2d) for n in nodes)


print("torch", torch.__version__, "timm", timm.__version__, "torchvision", torchvision.__version__)
models = {
    "torchvision efficientnet_b0": torchvision.models.efficientnet_b0(),
    "timm efficientnet_b0": timm.create_model("efficientnet_b0", pretrained=False),
    "timm densenet121": timm.create_model("densenet121", pretrained=False),
    "timm resnet18": timm.create_model("resnet18", pretrained=False),
}
found = {}
for name, model in models.items():
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    kinds = ", ".join({type(norm).__name__ for norm in norms})
    found[name] = len(norms), in_graph(model, fx.Tracer()), in_graph(model, Leaves())
    _, plain, own = found[name]
    print(f"{name:<28} {len(norms):>3} {kinds:<14} in the graph: {plain:>3}, by one's own tracer: {own:>3}")

assert found["timm efficientnet_b0"] == (49, 0, 49) and found["timm densenet121"] == (121, 0, 121)
assert found["torchvision efficientnet_b0"] == (49, 49, 49) and found["timm resnet18"] == (20, 20, 20)
PYTHON
