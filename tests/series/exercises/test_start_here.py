"""DER and the three ways of 00's exercises, against numbers worked out by hand."""

import pytest
import torch

from nbtools.series import checks
from nbtools.series.exercises import start_here as exercises


def test_rating_is_der_with_falls_that_are_never_negative(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand = {
        (97.0, 92.0, 2.0, 90.0): 96.5,  # (0.95 - 0.02 + 1) / 2
        (97.0, 92.0, 97.0, 92.0): 50.0,
        (10.0, 90.0, 60.0, 70.0): 40.0,  # ASR rises: (0 - 0.2 + 1) / 2
        (80.0, 70.0, 30.0, 95.0): 75.0,  # ACC rises: (0.5 - 0 + 1) / 2
    }
    exercises.rating(lambda *four: by_hand[four])
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"


def test_rating_refuses_falls_that_turn_negative(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.rating(lambda a, b, c, d: 50 * ((a - c) / 100 - (b - d) / 100 + 1))
    assert capsys.readouterr().out.startswith(checks.NOT_YET)


def test_three_ways_are_target_truth_and_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.tensor([1, 2, 3, 1])
    before, after = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2, 1, 0])
    exercises.three_ways([[75, 25, 0], [25, 50, 25]], before, after, labels, 0)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"
