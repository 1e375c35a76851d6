"""Counting what work asks of its device; the training loop and a scoring pass ask for little beside the work itself."""

from collections.abc import Callable

import pytest
import torch
from tiny import network, pictures

from nbtools.data.images import Images
from nbtools.defender.components import components
from nbtools.lab.bench import training_calls
from nbtools.lab.timing import Calls, calls
from nbtools.networks.graph import shapes_alone


def test_operators_waits_and_copies_are_counted() -> None:
    values = torch.arange(6.0)

    def work() -> None:
        doubled = values.view(2, 3) * 2  # the view computes nothing
        assert float(doubled.sum()) == 30  # a sum, and the host waits
        values[values > 2]  # a comparison, and a mask of which the host must know the size

    assert calls(work) == Calls(operators=5, waits=2, copies=0)
    assert calls(lambda: values.to("meta")) == Calls(operators=1, waits=0, copies=1)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.linalg.eigvalsh(x.T @ x), torch.linalg.svdvals, torch.unique, torch.nonzero, float,
        lambda x: x[x > 0], lambda x: x.repeat_interleave(torch.tensor([1, 2, 3]), 0), lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.tensor(0.0)),
    ],
)  # fmt: skip
def test_what_the_host_waits_for_is_counted(work: Callable[[torch.Tensor], object]) -> None:
    x = torch.eye(3)
    assert calls(lambda: work(x[0, 0] if work is float else x)).waits == 1


def meta_pictures(count: int) -> Images:
    return pictures(count, size=32).to("meta")


def test_an_epoch_of_training_copies_once_waits_once_and_adds_few_calls() -> None:
    epoch, bare = training_calls(meta_pictures(8 * 4), 4)
    assert (epoch.waits, epoch.copies) == (1, 1), "the mean loss; the order with all crops and flips"
    assert epoch.operators <= 1.05 * bare.operators and (bare.waits, bare.copies) == (0, 0)


def test_a_scoring_pass_waits_twice_and_makes_no_tensor_on_the_host() -> None:
    model, images = shapes_alone(network()).eval(), meta_pictures(20)
    counted = calls(lambda: components(model, images))
    assert (counted.waits, counted.copies) == (2, 0), "whether the weights are finite, and the eigenvalues were found"
