"""The suspiciousness score and its variants.

arXiv 2311.07417 names the components, the square root and the threshold; the formulas that join them are
reconstructed [ours], which is why every choice in them is a parameter here and is ablated in the notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from nbtools.defender.components import TERMS, Components, Scores

POWERS: Mapping[str, float] = {"sigma": 1, "saliency": -0.5, "activation": -0.5, "correlation": -0.5}
"""High sigma is suspicious; high saliency, activation and correlation speak for a filter [paper; the signs of
saliency and activation are ours]. A power of 0 leaves a term out."""

EPSILON = 0.01
"""Added to each normalised term beside sigma, so that a dead filter's score stays finite [ours]."""


def check_powers(powers: Mapping[str, float]) -> None:
    """Refuse powers that `suspiciousness` can't work with.

    Raises:
        ValueError: for an unknown term or a power that is not a finite number.
    """
    for term, power in powers.items():
        if term not in TERMS or not isinstance(power, int | float) or not math.isfinite(power):
            raise ValueError(f"powers take {', '.join(TERMS)} to a finite number, got {term!r}: {power!r}")


def suspiciousness(parts: Components, powers: Mapping[str, float] = POWERS, normalise: bool = True) -> Scores:
    """The suspiciousness score [ours; the components and the square root: arXiv 2311.07417].

    S_i = sigma~_i * sqrt( 1 / ((s~_i + e)(a~_i + e)(r~_i + e)) ), with z~ = z / mean over the layer and e = 0.01.

    Args:
        parts: see `components`.
        powers: term to its exponent in the product; see `POWERS`. Terms that are missing are left out.
        normalise: divide each term by its layer's mean.

    Returns:
        Convolution name to float64 `[filters]`; higher is more suspicious.

    Raises:
        ValueError: for an unknown term or a power that is not finite.
    """
    check_powers(powers)
    scores = {}
    for unit in parts.units:
        score = torch.ones_like(parts.sigma[unit.conv])
        for term, power in powers.items():
            value = parts.of(term)[unit.conv]
            value = value / value.mean().clamp_min(1e-30) if normalise else value
            score = score * (value if term == "sigma" else value + EPSILON) ** power
        scores[unit.conv] = score
    return scores
