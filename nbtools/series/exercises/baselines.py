"""The exercises of 09 · Baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nbtools.defender.components import Scores
from nbtools.defender.nad import attention
from nbtools.evaluator.agreement import agreement
from nbtools.series import checks


def after_pooling(answer: object, student: Tensor, teacher: Tensor) -> None:
    """Exercise 1: two numbers, from maps `[n, channels, h, w]` as they are, and pooled to `[n, channels, 1, 1]`."""

    def apart(pool: Callable[[Tensor], Tensor]) -> Tensor:
        return (attention(pool(student)) - attention(pool(teacher))).square().sum(1).mean()

    checks.same(
        answer,
        lambda: torch.stack([apart(lambda maps: maps), apart(lambda maps: F.adaptive_avg_pool2d(maps, 1))]),
        "attention of both, the squared difference, its sum over the positions, its mean over the images",
    )


def dormant_and_moved(answer: object, activation: Tensor, truth: Tensor) -> None:
    """Exercise 2: a number in [-1, 1]; mean activation and TAC of one layer's channels, `[channels]`."""
    checks.same(
        answer,
        lambda: agreement({"layer": -activation}, {"layer": truth})["layer"]["spearman"],
        "minus `activation` against truth[last.conv]; scipy.stats.spearmanr takes numpy arrays on the CPU",
    )


def in_common(answer: object, scores: Mapping[str, Scores], layer: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Exercise 3: a share for each pair of defences, then that of chance; `scores` is defence to filters' scores."""

    def expected() -> list[float]:
        tables = [agreement({layer: scores[a][layer]}, {layer: scores[b][layer]})[layer] for a, b in pairs]
        return [*(table["precision"] for table in tables), tables[0]["chance"]]

    checks.same(answer, expected, "topk(10).indices of each, as sets; chance: ten of how many filters?")
