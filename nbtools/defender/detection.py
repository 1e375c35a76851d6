"""Is a model backdoored? A statistic of the magnitude-saliency correlation, its ROC curve, and a verdict on one model.

[paper] How far its backdoor neurons deviate from the correlation tells a backdoored model from a clean one (arXiv
2405.17750). The statistics are reconstructed [ours].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from scipy.optimize import root_scalar
from scipy.stats import binomtest, mannwhitneyu
from torch import nn

from nbtools.data.images import Images
from nbtools.defender.components import Scores
from nbtools.defender.magnitude import last_stage, magnitudes, rank_correlations, rank_residuals, saliencies

FORMS = ("last stage mean", "first half mean", "minimum", "largest residual")


def detector_statistic(
    model: nn.Module,
    clean: Images,
    form: str = "last stage mean",
    norm: str = "l1",
    fold_bn: bool = True,
    exact: bool = False,
) -> float:
    """One number for a model: how far it deviates from the magnitude-saliency correlation; higher is more suspicious.

    In a clean model large filters matter and the correlation is positive; filters that are large and matter to no
    clean image lower it [paper: "deviate"; that they lower it is our reading]. With rho the correlation of a layer:

    - "last stage mean": 1 - mean of rho over the last stage, in [0, 2].
    - "first half mean": the same over the first half of the layers, in the order of the data flow.
    - "minimum": 1 - the smallest rho of all layers, in [0, 2].
    - "largest residual": the largest of `rank_residuals`, in standard deviations: one filter that stands out.

    None of them told the narrow CIFAR-10 networks of notebook 08 apart (data/lab_notes.md).

    Args:
        model, clean, norm, exact: as in `magnitude_saliency`.
        form: one of the four.
        fold_bn: measure magnitudes with the batch norm's factor. The scale of the weights before a batch norm alone
            means nothing: the batch norm divides it out again.

    Raises:
        ValueError: for an unknown form, where no layer has a correlation, or as `magnitude_saliency`.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    magnitude, saliency = magnitudes(model, None, norm, fold_bn), saliencies(model, clean, exact)
    return statistic_of(magnitude, saliency, last_stage(model, clean), form)


def detector_statistics(
    model: nn.Module, clean: Images, norm: str = "l1", fold_bn: bool = True, exact: bool = False
) -> dict[str, float]:
    """Every form of `detector_statistic` by its name, from one measurement of the model."""
    magnitude, saliency = magnitudes(model, None, norm, fold_bn), saliencies(model, clean, exact)
    last = last_stage(model, clean)
    return {form: statistic_of(magnitude, saliency, last, form) for form in FORMS}


def statistic_of(magnitude: Scores, saliency: Scores, last: list[str], form: str = "last stage mean") -> float:
    """`detector_statistic` from what it is made of.

    Args:
        magnitude, saliency: see `nbtools.defender.magnitude`.
        last: names of the last stage's convolutions.
        form: one of the four.

    Raises:
        ValueError: where no layer has a correlation.
    """
    parts = {"first half mean": list(magnitude)[: max(1, len(magnitude) // 2)], "last stage mean": last}
    if form in parts:
        magnitude = {name: magnitude[name] for name in parts[form]}
    rho = list(rank_correlations(magnitude, saliency).values())
    if not rho:
        raise ValueError(
            "no layer has a magnitude-saliency correlation: all filters are alike; are the images too few?"
        )
    if form == "largest residual":
        return max(float(part.max()) for part in rank_residuals(magnitude, saliency).values())
    return 1 - (min(rho) if form == "minimum" else sum(rho) / len(rho))


def roc_auc(
    clean_values: Sequence[float], backdoored_values: Sequence[float], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Probability that a backdoored model's statistic is above a clean one's, ties counted half (Mann-Whitney).

    The interval holds every theta for which the estimate lies within z standard errors, with Hanley and McNeil's
    variance at theta (1982; in the form of Newcombe, 2006, method 5). Unlike a bootstrap's or DeLong's it keeps a width
    where a few models are told apart without error.

    Args:
        clean_values: statistics of clean models, at least one.
        backdoored_values: of backdoored models, at least one.
        level: of the interval, in (0, 1).

    Returns:
        The area, in [0, 1], and the interval's lower and upper end.

    Raises:
        ValueError: for no values, NaN, or a level out of range.
    """
    _check_values(clean_values)
    _check_values(backdoored_values)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    m, n = len(backdoored_values), len(clean_values)
    wins = mannwhitneyu(backdoored_values, clean_values, method="asymptotic").statistic  # the p-value is not used
    area = float(wins) / (m * n)
    z = NormalDist().inv_cdf((1 + level) / 2)

    def gap(theta: float, estimate: float) -> float:
        more = ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - estimate) ** 2 - z**2 * theta * (1 - theta) * (1 + more) / (m * n)

    def lower(estimate: float) -> float:
        edge = estimate * (1 - 1e-12)  # theta = 1 solves the equation too where the estimate is 1
        return float(root_scalar(gap, (estimate,), bracket=(0, edge)).root) if estimate > 0 else 0.0

    return area, (lower(area), 1 - lower(1 - area))  # the variance is the same at theta and 1 - theta


@dataclass(frozen=True)
class Verdict:
    """How one model's statistic stands among those of clean models.

    Args:
        statistic: see `detector_statistic`.
        models: clean models that it was compared with.
        quantile: share of them below it, in [0, 1].
        p_value: (1 + clean models at or above it) / (1 + clean models); whoever raises the alarm at p or below does so
            for a clean model with probability p at most. With few models it can't be small.
        interval: 95 % interval (Clopper-Pearson) for the share of all clean models at or above the statistic.
    """

    statistic: float
    models: int
    quantile: float
    p_value: float
    interval: tuple[float, float]


def judge(statistic: float, clean_values: Sequence[float]) -> Verdict:
    """Compare one model with clean models of the same kind (architecture, data, recipe, number of clean images).

    Args:
        statistic: the model's, see `detector_statistic`.
        clean_values: the same statistic of clean models, at least one.

    Raises:
        ValueError: for no values, or NaN.
    """
    _check_values([statistic])
    _check_values(clean_values)
    models = len(clean_values)
    above = sum(value >= statistic for value in clean_values)
    found = binomtest(above, models).proportion_ci(0.95, "exact")
    below = sum(value < statistic for value in clean_values) / models
    return Verdict(statistic, models, below, (1 + above) / (1 + models), (float(found.low), float(found.high)))


def _check_values(values: Sequence[float]) -> None:
    if not len(values) or any(math.isnan(value) for value in values):
        raise ValueError(f"give the statistic of at least one model of each kind, none NaN, got {list(values)}")
