"""The exercises of 02 · Spectral norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from nbtools.defender.components import Scores, spectral_norms
from nbtools.evaluator.agreement import agreement
from nbtools.series import checks


def largest_ratio(answer: object, weight: Tensor, patches: Tensor) -> None:
    """Exercise 1: a number, from `weight` `[c_in, k * k]` and `patches` `[k * k, patches]`."""
    checks.same(
        answer,
        lambda: ((weight @ patches).norm(dim=0) / patches.norm(dim=0)).max(),
        "divide the norm of each column of weight @ patches by the norm of the same column of patches",
    )


def bare_correlation(answer: object, model: nn.Module, truth: Scores, layers: Sequence[str]) -> None:
    """Exercise 2: a number in [-1, 1]; `truth` is TAC, convolution name to `[filters]`."""

    def expected() -> float:
        table = agreement(spectral_norms(model, fold_bn=False), truth)
        return float(np.mean([table[name]["spearman"] for name in layers]))

    checks.same(
        answer,
        expected,
        "agreement(scores, truth) gives one row for each layer; take the mean of 'spearman' over `last` only",
    )
