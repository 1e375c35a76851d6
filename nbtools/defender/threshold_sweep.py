"""One value a filter, pruned below rising thresholds: a sweep on one copy, and a choice by held-back clean images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.learning import accuracy
from nbtools.defender.validation import Validation
from nbtools.networks.graph import duplicate
from nbtools.networks.units import Units, layers_of


def sweep(
    model: nn.Module,
    units: Units,
    values: Tensor,
    thresholds: Sequence[float],
    measure: Callable[[nn.Module], float],
) -> list[dict[str, float]]:
    """Prune (gamma = 0, beta stays) where a filter's value is at or below a threshold, and measure at each.

    One copy of the model is pruned further and further: what a threshold prunes, every higher one prunes too.

    Args:
        model: is not changed.
        units: its convolution-BN pairs.
        values: `[filters]` of all units in one vector, in the order of the units; such as soft masks.
        thresholds: in any order; -inf prunes nothing.
        measure: a pruned copy in eval mode to a number. It must leave the copy as it is, and is asked once for equal
            copies.

    Returns:
        One row a threshold, ascending: threshold, pruned (number of filters), measured.

    Raises:
        ValueError: for no thresholds, a NaN among them, or values that do not fit the units.
    """
    check_thresholds(thresholds)
    sizes = [unit.filters for unit in units]
    if values.shape != (sum(sizes),) or bool(values.isnan().any()):
        raise ValueError(f"values must be [{sum(sizes)}], one a filter and none NaN, got {list(values.shape)}")
    twin = duplicate(model).eval()
    norms = [bn for _, _, bn in layers_of(twin, units)]
    rows: list[dict[str, float]] = []
    for threshold in sorted(thresholds):
        pruned = values <= threshold
        count = int(pruned.sum())
        if not rows or count > rows[-1]["pruned"]:
            with torch.no_grad():
                for bn, part in zip(norms, pruned.split(sizes), strict=True):
                    bn.weight.masked_fill_(part.to(bn.weight.device), 0)
            measured = measure(twin)
        else:
            measured = rows[-1]["measured"]
        rows.append({"threshold": float(threshold), "pruned": count, "measured": float(measured)})
    return rows


def choose_threshold(
    model: nn.Module,
    units: Units,
    values: Tensor,
    thresholds: Sequence[float],
    held: Images,
    validation: Validation,
) -> tuple[float | None, list[dict[str, Any]]]:
    """The highest threshold that the held-back clean images allow [ours]; see `Validation.choose`.

    Args:
        model: is not changed.
        units: its convolution-BN pairs.
        values: as for `sweep`.
        thresholds: as for `sweep`.
        held: held-back clean images.
        validation: says how much of their accuracy may be lost.

    Returns:
        The threshold, None where none passes (then prune nothing), and one row a threshold, ascending: threshold,
        pruned, held_back (accuracy in [0, 1]), chosen.

    Raises:
        ValueError: as `sweep`.
    """
    check_thresholds(thresholds)
    before, *rows = sweep(model, units, values, [-math.inf, *thresholds], lambda twin: accuracy(twin, held))
    best = validation.choose([row["measured"] for row in rows], before["measured"], len(held))
    record = [
        {"threshold": row["threshold"], "pruned": row["pruned"], "held_back": row["measured"], "chosen": k == best}
        for k, row in enumerate(rows)
    ]
    return (rows[best]["threshold"] if best >= 0 else None), record


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse what can't be swept.

    Raises:
        ValueError: for no thresholds, or a NaN among them.
    """
    if not len(thresholds) or any(math.isnan(value) for value in thresholds):
        raise ValueError(f"thresholds must be one number or more, none NaN, got {tuple(thresholds)}")
