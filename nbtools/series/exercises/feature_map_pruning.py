"""The exercises of 07 · Feature map pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nbtools.networks.units import Units
from nbtools.series import checks


def pruned_at(answer: object, units: Units, width: int) -> None:
    """Exercise 1: three numbers, `[3]`: channels that p = 64 prunes at the widths 16, 32 and 64; `width` is now's."""
    checks.same(
        answer,
        lambda: [sum(unit.filters * other // width // 64 for unit in units) for other in (16, 32, 64)],
        "round down in each layer, before you sum over the layers",
    )


def rivals(answer: object, matrix: Tensor) -> None:
    """Exercise 2: two numbers, `[2]`, from `matrix`, float `[channels, images]`: its first half, and all of it."""

    def expected() -> list[int]:
        counts = []
        for part in (matrix[:, : matrix.shape[1] // 2], matrix):
            worst = part[part.mean(1).argmin()]
            difference = part - worst
            error = difference.std(1) / part.shape[1] ** 0.5
            counts.append(int((difference.mean(1) <= 2 * error).sum()))
        return counts

    checks.same(answer, expected, "one row for each channel; mean and std over the images, dimension 1")


def concentration(answer: object, answers: Tensor, right: Tensor, classes: int) -> None:
    """Exercise 3: `[channels]`, in [0, 1], from `answers` and `right`, `[channels, images]`."""

    def expected() -> Tensor:
        wrong = F.one_hot(answers, classes) * (~right).unsqueeze(2)
        of_class = wrong.sum(1)
        return torch.where(of_class.any(1), of_class.amax(1) / of_class.sum(1).clamp_min(1), 0)

    checks.same(
        answer,
        expected,
        "count the wrong answers of each class (torch.bincount, or F.one_hot), then divide the largest by their sum",
    )
