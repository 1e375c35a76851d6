"""What flows in a network's channels: what its layers give, and what pruned filters alone make of their inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from nbtools.networks.graph import duplicate

NOISE, DRAWS = 3.0, 8
"""The noise is normal with this standard deviation, in so many images: a gate that may close is open in some."""
TAKERS = (_ConvNd, nn.Linear)
OUTPUT = "the network's output"


def probes(example: Tensor) -> Tensor:
    """Two of the images, and two of noise: uniform in [0, 1], and normal around 0."""
    generator = torch.Generator().manual_seed(0)
    shape = example.shape[1:]
    noise = torch.stack([torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)])
    return torch.cat([example[:2].detach(), noise.to(example)])


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> dict[tuple[str, int], Tensor]:
    """What each convolution and linear layer gives at each of its calls, and the network itself."""
    found, calls = dict[tuple[str, int], Tensor](), Counter[str]()

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def kept(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name, calls[name]] = output.clone()  # what comes next may work in place
            calls[name] += 1

        return kept

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, TAKERS)]
    handles = [module.register_forward_hook(keep(name)) for name, module in layers]
    try:
        leaves = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]
    finally:
        for handle in handles:
            handle.remove()
    return found | {(OUTPUT, number): leaf for number, leaf in enumerate(leaves)}


@torch.no_grad()
def given(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each convolution and linear layer is given in each channel while all that is not pruned is noise.

    Returns:
        Name to float `[inputs]`: 0 or another constant, NaN where it is none.
    """
    generator = torch.Generator().manual_seed(0)
    twin, found = duplicate(model), dict[str, Tensor]()

    def noise(like: Tensor) -> Tensor:
        return NOISE * torch.randn(like.shape, generator=generator).to(like)

    def take(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def taken(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = inputs[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
            value = rows[:, 0].masked_fill(rows.amin(1) != rows.amax(1), torch.nan).cpu()
            found[name] = torch.where(value == found.get(name, value), value, torch.nan)
            return noise(output)

        return taken

    def normed(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(module.weight, Tensor):
            return noise(output)
        constant = (module.weight == 0).view(-1, *[1] * (output.ndim - 2))
        return torch.where(constant, output, noise(output))

    for name, module in twin.named_modules():
        if isinstance(module, TAKERS):
            module.register_forward_hook(take(name))
        elif isinstance(module, _BatchNorm):
            module.register_forward_hook(normed)
    twin(noise(images[:1].expand(DRAWS, *images.shape[1:])))
    return found
