"""Plain fine-tuning, the control: what it trains is `Epochs`, on a copy, and nothing is pruned."""

import copy

import torch
import torch.nn.functional as F
from tiny import bits, pictures, plain, same_bits
from torch import nn

from nbtools.data.images import Images
from nbtools.defender.fine_tuning import FineTuning
from nbtools.defender.learning import Epochs
from nbtools.networks.units import prunable_units

SHORT = FineTuning(Epochs(epochs=2, batch_size=8))


def loss(model: nn.Module, images: Images) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(images.floats()), images.labels))


def test_the_repair_is_the_training_on_a_copy() -> None:
    model, clean = plain(), pictures(12)
    repair = SHORT(model, clean)
    expected = copy.deepcopy(model)
    rows = SHORT.tune(expected, clean)
    assert same_bits(bits(repair.model), bits(expected)) and repair.history == rows
    assert not same_bits(bits(repair.model), bits(model))
    assert repair.untuned is not None and same_bits(bits(repair.untuned), bits(model))
    assert repair.tuned_steps == 4 == rows[-1]["steps"] and repair.seconds > 0
    assert repair.mask.count == 0 and repair.scores == {}
    assert list(repair.mask.pruned) == [unit.conv for unit in prunable_units(model)]


def test_it_learns_the_clean_images() -> None:
    model, clean, unseen = plain(), pictures(64, seed=1), pictures(200, seed=2)
    repair = FineTuning(Epochs(epochs=15, lr=0.05, batch_size=16))(model, clean)
    assert loss(repair.model, unseen) < 0.7 * loss(model, unseen)
