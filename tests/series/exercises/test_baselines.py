"""The exercises of 09: what they expect, against what can be written down."""

from __future__ import annotations

import pytest
import torch

from nbtools.series import checks
from nbtools.series.exercises import baselines as exercises


def test_maps_that_light_up_elsewhere_are_apart_until_they_are_pooled(capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    student[:, 1, 0, 0], teacher[:, 2, 1, 1] = 5.0, 7.0  # each map's attention is 1 at one place, and not at the same
    exercises.after_pooling([2.0, 0.0], student, teacher)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"


def test_shares_in_common_are_of_ten_and_chance_is_ten_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    rising = torch.arange(40.0)
    scores = {"A": {"layer": rising}, "B": {"layer": rising.roll(4)}, "C": {"layer": -rising}}
    exercises.in_common([0.6, 0.0, 0.25], scores, "layer", [("A", "B"), ("A", "C")])
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"
