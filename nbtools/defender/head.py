"""The linear layer that a network ends in, and what it is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats


def linear_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a model.

    Raises:
        ValueError: where the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no linear layer; this defence works on the one that gives the logits"
        )
    return layers[-1]


@torch.no_grad()
def features(model: nn.Module, images: Images, batch_size: int = 500) -> Tensor:
    """What the head of a model in eval mode is given for each image: `[n, features]`."""
    kept: list[Tensor] = []
    handle = linear_head(model).register_forward_pre_hook(lambda _head, inputs: kept.append(inputs[0]))
    try:
        for batch in images.images.split(batch_size):
            model(to_floats(batch))
    finally:
        handle.remove()
    return torch.cat(kept)
