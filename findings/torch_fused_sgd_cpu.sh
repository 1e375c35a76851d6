#!/usr/bin/env bash
# Expected: equal weights with equal gradients stay equal: an optimiser's step does not depend on where in a tensor a
#   weight stands. And fused=True is a faster way to the bits of the plain loop.
# What happens: on a CPU the fused SGD rounds what is left over behind the last full vector register otherwise than the
#   rest. Of 31 equal weights with equal gradients, in two runs of five the last ones end with another value than the
#   first; of 32 none does. So a training with fused=True is not bit for bit the one without it. foreach=True gives the
#   plain loop's bits.
# Versions: torch 2.15.0, on an Intel Xeon with AVX-512.
# Seen on 2026-11-28:
#   torch 2.15.0+cu132
#   plain: of 200 runs, 0 end with several values in 31 weights, 0 in 32
#   foreach: of 200 runs, 0 end with several values in 31 weights, 0 in 32
#   fused: of 200 runs, 82 end with several values in 31 weights, 0 in 32
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" -W ignore - <<'PYTHON'
import torch

print("torch", torch.__version__)


def trained(count, seed, **how):
    """So many equal weights after eight steps with gradients that are equal within a step."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.nn.Parameter(torch.randn(1, generator=generator).expand(count).clone())
    optimizer = torch.optim.SGD([weights], 0.1, momentum=0.9, weight_decay=5e-4, **how)
    for _ in range(8):
        weights.grad = torch.randn(1, generator=generator).expand(count).clone()
        optimizer.step()
    return weights.detach()


seeds, found = range(200), {}
for name, how in (("plain", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
    found[name] = [sum(len(trained(count, seed, **how).unique()) > 1 for seed in seeds) for count in (31, 32)]
    print(f"{name}: of 200 runs, {found[name][0]} end with several values in 31 weights, {found[name][1]} in 32")
assert found["plain"] == found["foreach"] == [0, 0] and found["fused"][0] > 20 and found["fused"][1] == 0
assert all(trained(31, seed, foreach=False).equal(trained(31, seed, foreach=True)) for seed in seeds)
PYTHON
