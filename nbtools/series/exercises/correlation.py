"""The exercises of 05 · Correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nbtools.defender.components import Components
from nbtools.evaluator.agreement import stability
from nbtools.series import checks


def by_chance(answer: object, shuffled: Tensor, alive: np.ndarray) -> None:
    """Exercise 1: a number, from `shuffled` `[filters, positions]` and the rows of it that count."""

    def expected() -> float:
        rows = shuffled[alive] - shuffled[alive].mean(1, keepdim=True)
        rows = rows / rows.norm(dim=1, keepdim=True)
        absolute = (rows @ rows.T).abs()
        return float(absolute.fill_diagonal_(0).sum() / (len(absolute) * (len(absolute) - 1)))

    checks.same(
        answer, expected, "correlate the rows in `alive`, take absolute values, and leave the diagonal out of the mean"
    )


def redundancy(answer: object, parts: Components, layers: Sequence[str]) -> None:
    """Exercise 2: a number in [-1, 1], from both terms of one model."""

    def expected() -> float:
        both = [{name: term[name] for name in layers} for term in (parts.activation, parts.correlation)]
        return float(np.mean(list(stability(both).values())))

    checks.same(
        answer, expected, "one rank correlation for each layer in `last`, over its filters; then the mean of these"
    )
