"""The exercises of 10 · Comparison."""

from __future__ import annotations

import pandas as pd

from nbtools.series import checks

RATED = (
    ((80.0, 78.0, 95.0, 5.0), 94.0),
    ((80.0, 82.0, 95.0, 5.0), 95.0),  # accuracy rose
    ((80.0, 79.0, 90.0, 96.0), 49.5),  # the attack grew stronger
    ((80.0, 81.0, 90.0, 96.0), 50.0),
    ((70.0, 40.0, 60.0, 20.0), 55.0),
)
"""ACC before and after and ASR before and after in percent, to the DER in percent; worked out on paper."""

CLASSES, HELD_BACK, FORGIVEN = 10, 0.2, 2.0
"""Of the third exercise: the share of the images that is held back, and the points that are forgiven."""


def rating(answer: object) -> None:
    """Exercise 1: a function of acc_before, acc_after, asr_before and asr_after that returns the DER, in percent."""
    checks.function(answer, RATED, "neither fall may count below zero; and mind which numbers are percent")


def unbeaten(answer: object, table: pd.DataFrame) -> None:
    """Exercise 2: a boolean for each row of `table`, from its columns `asr` and `acc_lost`."""

    def expected() -> list[bool]:
        asr, lost = table.asr.to_numpy(), table.acc_lost.to_numpy()
        as_good = (asr[:, None] <= asr) & (lost[:, None] <= lost)  # [by, row]
        better = (asr[:, None] < asr) | (lost[:, None] < lost)
        return [not beaten for beaten in (as_good & better).any(axis=0).tolist()]

    checks.same(answer, expected, "a row does not beat itself; compare each with all others in both numbers")


def images_needed(answer: object) -> None:
    """Exercise 3: a number of images of each class."""
    checks.same(
        answer,
        lambda: 100 / FORGIVEN / HELD_BACK / CLASSES,
        "how many points does one of the held-back images weigh, and how many classes share them?",
    )
