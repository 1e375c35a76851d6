"""What is expected of 07's exercises, counted by hand."""

import pytest
import torch

from nbtools.series import checks
from nbtools.series.exercises import feature_map_pruning as exercises


def test_rivals_are_counted_on_half_of_the_images_and_on_all(capsys: pytest.CaptureFixture[str]) -> None:
    matrix = torch.zeros(3, 8, dtype=torch.float64)
    matrix[1, 4:] = torch.tensor([1.0, 0.0, 1.0, 1.0])  # no right answer in the first half: a rival there, not over all
    matrix[2] = 1
    matrix[2, 7] = 0
    exercises.rivals([2, 2], matrix)  # over all: mean 3/8, standard error 0.183, two of them 0.366
    exercises.rivals([2, 1], matrix)
    assert capsys.readouterr().out.splitlines() == [f"{checks.NOT_YET}1 of its 2 values are off; "
        "one row for each channel; mean and std over the images, dimension 1", checks.RIGHT]  # fmt: skip


def test_a_channel_without_a_wrong_answer_has_the_concentration_0(capsys: pytest.CaptureFixture[str]) -> None:
    answers = torch.tensor([[0, 1, 2, 2], [1, 1, 2, 0], [0, 1, 2, 1]])
    right = answers == torch.tensor([0, 1, 2, 1])
    exercises.concentration([1, 1 / 2, 0], answers, right, 3)
    assert capsys.readouterr().out == f"{checks.RIGHT}\n"
