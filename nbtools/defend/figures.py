"""The page's one drawn figure: every filter's score, and what was pruned."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nbtools.defender.pruning import Mask

BLUE, PRUNED, GREY = "#0173b2", "#d55e00", "#949494"
"""Of the series' figures, and of the page's style."""
ROUNDING = 1e-3
"""Standard deviations within which a score, computed in another precision, may lie on the other side of a threshold."""


def score_figure(
    scores: Mapping[str, Tensor], mask: Mask, names: Mapping[str, str], mu: float | None, scope: str
) -> str:
    """Each filter's score by layer, crosses for the pruned ones, as a PNG in a data URL.

    Args:
        scores: convolution name to `[filters]`.
        mask: what was pruned.
        names: the layers' names for the axis.
        mu: the threshold in standard deviations above the mean, where the defence has one; the scores are then drawn
            in these units, and the threshold with them. Else they are drawn as they are, and so they are where this
            threshold over all filters is not what pruned: taken in several rounds, or over some of the filters.
        scope: whether mean and deviation are those of the "layer" or of all filters, "global".
    """
    figure = Figure(figsize=(10.5, 4.3), dpi=150, layout="constrained")
    axis, rng = figure.add_subplot(), np.random.default_rng(0)
    values = {name: score.detach().double().cpu() for name, score in scores.items()}
    units = _in_deviations(values, mask, scope) if mu is not None else {}
    if mu is not None and not _separates(mu, units, mask):
        mu = None
    if mu is not None:
        values = units
        axis.axhline(mu, color=PRUNED, ls="--", lw=1, zorder=1)
        place = {"xytext": (4, 0), "textcoords": "offset points", "annotation_clip": False}
        axis.annotate(f"mu = {mu:g}", (len(values) - 0.3, mu), color=PRUNED, fontsize=9, va="center", **place)
    for column, (name, value) in enumerate(values.items()):
        x, y = column + rng.uniform(-0.28, 0.28, len(value)), value.numpy()
        gone = mask.pruned[name].cpu().numpy() if name in mask.pruned else np.zeros(len(value), bool)
        axis.scatter(x[~gone], y[~gone], s=8, color=BLUE, alpha=0.4, linewidth=0, label="kept" if not column else None)
        axis.scatter(x[gone], y[gone], s=34, color=PRUNED, marker="X", linewidth=0.4, edgecolor="white", zorder=3)
    axis.set_xticks(
        range(len(values)),
        [names.get(name, name) for name in values],
        rotation=90,
        fontsize=8 if len(values) < 30 else 5,
    )
    axis.set_xlim(-0.7, len(values) - 0.3)
    if mu is None:
        axis.set_ylabel("score")
    else:
        axis.set_ylabel("score, standard deviations\nabove the " + ("mean" if scope == "global" else "layer's mean"))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=GREY, alpha=0.2, lw=0.6)
    axis.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _in_deviations(scores: Mapping[str, Tensor], mask: Mask, scope: str) -> dict[str, Tensor]:
    """All scores in standard deviations above the mean, over the layers that the mask is about where it is "global"."""
    pool = torch.cat([score for name, score in scores.items() if name in mask.pruned]) if scope == "global" else None
    return {name: _standardised(score, score if pool is None else pool) for name, score in scores.items()}


def _separates(mu: float, units: Mapping[str, Tensor], mask: Mask) -> bool:
    """Whether all that lies above the threshold was pruned and nothing else, rounding left aside."""
    beyond = {name: pruned.cpu() for name, pruned in mask.pruned.items() if name in units}
    return all(
        not bool(((units[name] > mu + ROUNDING) & ~gone | (units[name] < mu - ROUNDING) & gone).any())
        for name, gone in beyond.items()
    )


def _standardised(score: Tensor, pool: Tensor) -> Tensor:
    """In standard deviations of the pool above its mean; 0 where the pool has no spread."""
    spread = len(pool) > 1 and bool(pool.amax() > pool.amin())
    return (score - pool.mean()) / pool.std() if spread else torch.zeros_like(score)
