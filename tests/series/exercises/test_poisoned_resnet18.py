"""The intervals of 01's exercise, against Wilson's formula with the rounded 1.96 that the notebook prints."""

import math

import pytest

from nbtools.series import checks
from nbtools.series.exercises import poisoned_resnet18 as exercises


def wilson(hits: int, trials: int, under_the_root: bool = True) -> tuple[float, float]:
    share, square = hits / trials, 1.96**2
    middle = share + square / (2 * trials)
    spread = 1.96 * math.sqrt(share * (1 - share) / trials + under_the_root * square / (4 * trials**2))
    return 100 * (middle - spread) / (1 + square / trials), 100 * (middle + spread) / (1 + square / trials)


def test_interval_takes_the_formula_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.interval(wilson)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"


def test_interval_refuses_a_term_that_was_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.interval(lambda hits, trials: wilson(hits, trials, under_the_root=False))
    assert capsys.readouterr().out.startswith(checks.NOT_YET)
