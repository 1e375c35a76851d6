"""The steps of torch.optim's functions against those of its classes."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import pictures, plain
from torch import Tensor, nn

from nbtools.defender.descent import Step, adam_steps, sgd_steps

CLEAN = pictures(12)


@pytest.mark.parametrize(
    ("steps", "optimiser"),
    [
        (lambda weights: sgd_steps(weights, 0.9), lambda weights: torch.optim.SGD(weights, 1.0, 0.9)),
        (lambda weights: sgd_steps(weights, 0.0), lambda weights: torch.optim.SGD(weights, 1.0)),
        (adam_steps, torch.optim.Adam),
    ],
)
def test_steps_are_those_of_the_class_to_the_bit(
    steps: Callable[[Sequence[Tensor]], Step], optimiser: Callable[[Sequence[Tensor]], torch.optim.Optimizer]
) -> None:
    mine, theirs = plain(), plain()
    mine.unused, theirs.unused = (nn.Parameter(torch.ones(3)) for _ in range(2))
    go, optimizer = steps(list(mine.parameters())), optimiser(list(theirs.parameters()))
    for number in range(5):
        rate = 0.05 / (1 + number)
        go(nn.functional.cross_entropy(mine(CLEAN.floats()), CLEAN.labels), rate)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(CLEAN.floats()), CLEAN.labels).backward()
        optimizer.step()
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None, name
    assert torch.equal(mine.unused, torch.ones(3))
    assert not torch.equal(mine.conv1.weight, plain().conv1.weight)
