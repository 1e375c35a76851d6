"""What is expected of the exercises of notebook 10."""

import pandas as pd
import pytest

from nbtools.evaluator import evaluation
from nbtools.evaluator.evaluation import Evaluation
from nbtools.series import checks
from nbtools.series.exercises import comparison


@pytest.mark.parametrize(
    ("points", "right"),
    [
        ([(10, 1), (5, 2), (10, 2), (5, 3)], [True, True, False, False]),
        ([(5, 2), (5, 2)], [True, True]),  # neither is better than the other in anything
        ([(5, 2), (5, 1), (4, 1)], [False, False, True]),
    ],
)
def test_a_row_is_beaten_by_one_that_is_as_good_in_both_and_better_in_one(
    points: list[tuple[float, float]], right: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame(points, columns=["asr", "acc_lost"])
    comparison.unbeaten(right, table)
    comparison.unbeaten([not value for value in right], table)
    first, second = capsys.readouterr().out.splitlines()
    assert first == checks.RIGHT and second.startswith(checks.NOT_YET)


@pytest.mark.parametrize(("numbers", "der"), comparison.RATED)
def test_the_ratings_are_those_of_the_package(numbers: tuple[float, float, float, float], der: float) -> None:
    acc_before, acc_after, asr_before, asr_after = numbers
    wide = (0.0, 100.0)
    before, after = (
        Evaluation(acc, asr, 0.0, wide, wide, wide) for acc, asr in ((acc_before, asr_before), (acc_after, asr_after))
    )
    assert der == pytest.approx(evaluation.der(before, after))
