"""The exercises of 03 · Saliency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nbtools.series import checks


def length_at_logits(answer: object, logits: Tensor, labels: Tensor) -> None:
    """Exercise 1: `[images]`, from `logits` `[images, classes]` and the true classes `[images]`."""

    def expected() -> Tensor:
        free = logits.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(free, labels, reduction="sum"), free)
        return gradient.norm(dim=1)

    checks.same(answer, expected, "section 4 names the two parts of the difference; its length is a norm for each row")


def removal(answer: object, weight: Tensor, gradient: Tensor) -> None:
    """Exercise 2: `[filters]`, from a layer's weights and its gradient, both `[filters, c_in, k, k]`."""
    checks.same(
        answer,
        lambda: torch.einsum("fcij,fcij->f", weight.detach(), gradient).abs(),
        "the inner product of two filters is a sum over all of their entries; take the absolute value last",
    )
