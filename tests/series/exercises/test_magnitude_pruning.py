"""The exercises of 08: what they expect, against what can be written down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nbtools.defender.mnp import MNP
from nbtools.series import checks
from nbtools.series.exercises import magnitude_pruning as exercises


def test_the_penalty_pushes_as_a_sum_of_velocities_says(capsys: pytest.CaptureFixture[str]) -> None:
    defence = MNP(recover_lr=0.1, momentum=0.5, recover_share=0.2, penalty=3.0)
    price = torch.tensor([0.7, 0.2, 0.1])
    gradient = 0.2 * 3.0 / 3  # the mean over three filters, whose prices add up to 1
    exercises.pushed_by_the_penalty(0.1 * gradient * (1 + 1.5 + 1.75), defence, price, steps=3)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"
    exercises.pushed_by_the_penalty(0.1 * gradient * 3, defence, price, steps=3)  # without momentum
    assert capsys.readouterr().out.startswith(f"{checks.NOT_YET}it is too small")


def test_areas_and_differences_are_those_of_the_two_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = {("l2", True): [1.0, 3.0, 2.0, 4.0], ("l1", False): [4.0, 1.0, 5.0, 2.0]}
    zoo: Any = [
        SimpleNamespace(name=name, model=number)
        for number, name in enumerate(("clean", "badnets 10 %", "clean", "blended 10 %"))
    ]
    monkeypatch.setattr(
        exercises, "detector_statistic", lambda model, _clean, *, norm, fold_bn: statistics[norm, fold_bn][model]
    )
    images: Any = None
    exercises.other_areas([[1.0, 2.0], [0.0, -3.0]], iter(zoo), images)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"
    exercises.other_areas([[0.0, -3.0], [1.0, 2.0]], iter(zoo), images)
    assert capsys.readouterr().out.startswith(checks.NOT_YET)
