"""The threshold's exercise takes the unbiased deviation and a strict comparison, and nothing near them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nbtools.series import checks
from nbtools.series.exercises import suspiciousness as exercises

SCORES = {"conv1": torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (lambda score, mu: score > score.mean() + mu * score.std(), True),
        (lambda score, mu: (score - score.mean()) / score.std() > mu, True),
        (lambda score, mu: score >= score.mean() + mu * score.std(), False),
        (lambda score, mu: score > score.mean() + mu * score.std(unbiased=False), False),
        (lambda score, mu: torch.zeros_like(score), False),
    ],
)
def test_the_threshold_is_strict_and_unbiased(
    answer: Callable[[Tensor, float], Tensor], right: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    exercises.stands_out(answer, SCORES, 1.0)
    assert (capsys.readouterr().out == f"{checks.RIGHT}\n") is right
