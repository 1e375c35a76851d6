"""The exercises of 12 · Mu."""

from __future__ import annotations

import math

import pandas as pd

from nbtools.series import checks


def normal_count(answer: object, filters: int) -> None:
    """Exercise 1: how many of so many filters a `mu` of 2 would prune, were all scores normally distributed."""
    checks.same(
        answer,
        lambda: filters * math.erfc(2 / math.sqrt(2)) / 2,
        "only filters above the mean fall: the tail beyond two standard deviations, on one side",
        0.02,
    )


def gain_unseen(answer: object, tuned: pd.DataFrame) -> None:
    """Exercise 2: points of DER, from the rows of the whole defence."""

    def expected() -> float:
        unseen = tuned[(tuned.seed == 1) & (tuned.attack != "none")].groupby("who").der.mean()
        return float(unseen["mu 2"] - unseen["mu 2.5"])

    checks.same(
        answer, expected, "seed 1 only, no clean models, the two fixed thresholds; the higher DER minus the other", 0.01
    )


def passing_share(answer: object, images: int = 100, right: int = 85, allowed: int = 3, truly: float = 0.82) -> None:
    """Exercise 3: the share of draws in which a copy that has truly lost too much passes the rule."""
    checks.same(
        answer,
        lambda: sum(
            math.comb(images, count) * truly**count * (1 - truly) ** (images - count)
            for count in range(right - allowed, images + 1)
        ),
        "how many of the images must it get right? Then the binomial distribution, from that number upwards",
        0.02,
    )
