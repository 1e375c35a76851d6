"""The exercises of 06 · Suspiciousness."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nbtools.defender.components import TERMS, Components, Scores
from nbtools.defender.pruning import Mask, threshold
from nbtools.evaluator.agreement import stability as rank_correlations
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks


def stands_out(answer: object, scores: Scores, mu: float) -> None:
    """Exercise 1: a function of a layer's score `[filters]` and `mu` that returns bool `[filters]`."""
    cases = [(torch.tensor([0.0, 0.0, 0.0, 1.0]), 1.5)]  # its last one lies exactly on the threshold: not above it
    cases += [(score, height) for score in scores.values() for height in (mu, mu / 2)]
    checks.function(
        answer,
        [((score, height), threshold({"": score}, height).pruned[""]) for score, height in cases],
        "std() of torch divides by n - 1; compare with a strict >, and return one value for each filter",
    )


def values_that_differ(answer: object, model: nn.Module, mask: Mask) -> None:
    """Exercise 2: two numbers, `[2]`: values of the state dict that differ while the mask is applied, and after."""

    def expected() -> list[int]:
        pruned = [unit for unit in prunable_units(model) if unit.conv in mask.pruned]
        zeroed = 0
        for unit, _, bn in layers_of(model, pruned):
            gone = mask.pruned[unit.conv]
            zeroed += int(bn.weight[gone].count_nonzero()) + int(bn.bias[gone].count_nonzero())
        return [zeroed, 0]

    checks.same(
        answer,
        expected,
        "count (value != other).sum() over all tensors of the state dict, before undo() and after it",
    )


def stability(answer: object, many: Components, few: Components) -> None:
    """Exercise 3: a dictionary from term to the mean over the layers of the rank correlation between two draws."""

    def expected() -> dict[str, float]:
        by_layer = {term: rank_correlations([many.of(term), few.of(term)]) for term in TERMS}
        return {term: float(np.nanmean(list(values.values()))) for term, values in by_layer.items()}

    checks.same(
        answer,
        expected,
        "spearmanr of the two draws in each layer, then the mean over the layers, for each term by its name",
    )
