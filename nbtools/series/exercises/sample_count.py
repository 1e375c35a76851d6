"""The exercises of 11 · Sample count."""

from __future__ import annotations

import pandas as pd

from nbtools.defender.components import Components
from nbtools.defender.suspiciousness import Suspiciousness
from nbtools.series import checks

OWNED = 50
"""Images of which the second exercise asks how many more are needed."""


def spread(answer: object, alone: pd.DataFrame) -> None:
    """Exercise 1: a number for each amount of images, in the order of `alone`'s column `images`."""

    def expected() -> list[float]:
        groups = alone.groupby("images", sort=False).asr_after
        return (groups.max() - groups.min()).tolist()

    checks.same(
        answer, expected, "one number for each amount, in points: the highest ASR over its draws minus the lowest"
    )


def images_for(answer: object) -> None:
    """Exercise 2: two numbers of images."""
    checks.same(
        answer,
        lambda: [OWNED * 2**2, OWNED * 3**2],
        "how does the standard error of a mean of n independent numbers depend on n?",
    )


def found_again(answer: object, defence: Suspiciousness, few: Components, pool: Components) -> None:
    """Exercise 3: two shares, from the measurements on few images and on the whole pool."""

    def expected() -> list[float]:
        mask, wanted = defence.mask(few), defence.mask(pool)
        both = sum(int((mask.pruned[name] & wanted.pruned[name]).sum()) for name in mask.pruned)
        return [both / max(wanted.count, 1), both / max(mask.count, 1)]

    checks.same(
        answer, expected, "count over all layers, then divide: once by what the pool prunes, once by what the few do"
    )
