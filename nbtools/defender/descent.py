"""torch.optim's own steps, by its functions: its classes load torch's compiler, 120 MB that no step needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

Step = Callable[[Tensor, float], None]
"""A loss and a learning rate; the weights are moved once, and no gradient is left behind."""


def sgd_steps(weights: Sequence[Tensor], momentum: float) -> Step:
    """The steps of `torch.optim.SGD(weights, lr, momentum)`, to the bit.

    Args:
        weights: those that want a gradient; one that the loss does not depend on stays as it is.
        momentum: in [0, 1).
    """
    velocities: list[Tensor | None] = [None for _ in weights]

    def step(loss: Tensor, lr: float) -> None:
        used, gradients = _gradients(loss, weights)
        moving = [velocities[k] for k in used]
        with torch.no_grad():
            sgd(
                [weights[k] for k in used], gradients, moving, weight_decay=0.0, momentum=momentum, lr=lr,
                dampening=0.0, nesterov=False, maximize=False,
            )  # fmt: skip
        for k, velocity in zip(used, moving, strict=True):
            velocities[k] = velocity

    return step


def adam_steps(weights: Sequence[Tensor]) -> Step:
    """The steps of `torch.optim.Adam(weights, lr)` with its default betas, to the bit; arguments as in `sgd_steps`."""
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    counts = [torch.tensor(0.0) for _ in weights]

    def step(loss: Tensor, lr: float) -> None:
        used, gradients = _gradients(loss, weights)
        given, means, squares, steps = ([every[k] for k in used] for every in (weights, first, second, counts))
        with torch.no_grad():
            adam(
                given, gradients, means, squares, [], steps, amsgrad=False, beta1=0.9, beta2=0.999, lr=lr,
                weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip

    return step


def _gradients(loss: Tensor, weights: Sequence[Tensor]) -> tuple[list[int], list[Tensor]]:
    """Which weights the loss depends on, and their gradients."""
    found = [(k, g) for k, g in enumerate(torch.autograd.grad(loss, list(weights), allow_unused=True)) if g is not None]
    return [k for k, _ in found], [gradient for _, gradient in found]
