"""The exercises of 13 · Open questions."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from nbtools.series import checks

FILTERS, MOVED = 64, 4
"""Of the first exercise's layer: how many filters it has, and how many of them the trigger moves."""

SURE = 0.999
"""Probability of the right class in the second exercise."""


def spread_penalty(answer: object) -> None:
    """Exercise 1: a number."""
    checks.same(
        answer,
        lambda: math.log(FILTERS * sum((1 / MOVED) ** 2 for _ in range(MOVED))),
        "which share of the trigger's change has each of the moved filters? The natural logarithm",
    )


def gradient_length(answer: object) -> None:
    """Exercise 2: a number."""
    checks.same(
        answer,
        lambda: math.hypot(SURE - 1, 1 - SURE),
        "softmax minus one-hot has two entries that are not zero; the length is the root of the sum of their squares",
    )


def hidden_by_stage(answer: object, placed: pd.DataFrame, mu: float) -> None:
    """Exercise 3: a dictionary from stage to points, from each filter's place in both models."""

    def caught(model: str, stage: str) -> float:
        stages = placed.layer.str.split(".").str[0]
        part: Any = placed[(placed.model == model) & (stages == stage)]
        moved = part["times its even share"]
        return 100 * float(moved[part.height > mu].sum() / moved.sum())

    def expected() -> dict[str, float]:
        stages = dict.fromkeys(placed.layer.str.split(".").str[0])
        return {stage: caught("plain", stage) - caught("hiding", stage) for stage in stages}

    checks.same(
        answer,
        expected,
        "for each model: in the stage's layers, what lies above mu, divided by all; plain minus hiding",
    )
