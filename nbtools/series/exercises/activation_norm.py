"""The exercises of 04 · Activation norm."""

from __future__ import annotations

import torch
from torch import Tensor

from nbtools.series import checks


def silent_share(answer: object, maps: Tensor) -> None:
    """Exercise 1: a function from maps `[images, filters, h, w]`, as `maps` are, to `[filters]` shares in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    # Two of three pictures are zeros, and of the third a part: filter 0 is never silent, filter 1 always.
    made = torch.rand(30, 5, 3, 4, generator=generator) * (torch.rand(30, 5, 1, 1, generator=generator) > 2 / 3)
    made = made * (torch.rand(made.shape, generator=generator) > 1 / 2)
    made[:, 0] += 1
    made[:, 1] = 0
    cases = [((given,), 1 - given.flatten(2).any(2).double().mean(0)) for given in (maps, made)]
    checks.function(
        answer,
        cases,
        "a map behind the ReLU is all zero where its largest value is; take the mean over the images last",
    )


def norm_by_class(answer: object, loudness: Tensor, labels: Tensor, classes: int) -> None:
    """Exercise 2: `[classes, filters]`, from `loudness` `[images, filters]` and the images' classes."""

    def expected() -> Tensor:
        member = torch.nn.functional.one_hot(labels, classes).double()
        return member.T @ loudness.double() / member.sum(0)[:, None]

    checks.same(answer, expected, "for each class: choose the images of that class, and take the mean over them")
