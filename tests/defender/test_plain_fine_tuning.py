"""Plain fine-tuning, the control: what it trains is `Epochs`, on a copy, and nothing is pruned."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, network, pictures, plain, same_bits
from torch import nn

from nbtools.data.images import Images
from nbtools.defender.fine_tuning import FineTuning
from nbtools.defender.learning import Epochs
from nbtools.networks.training import DivergedError
from nbtools.networks.units import prunable_units

SHORT = FineTuning(Epochs(epochs=2, batch_size=8))
each_network = pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])


def loss(model: nn.Module, images: Images) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(images.floats()), images.labels))


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_and_the_random_state_are_left_alone(name: str, training: bool) -> None:
    model, clean = network(name).train(training).requires_grad_(training), pictures(12, size=8)
    before, random = bits(model), torch.get_rng_state()
    repair = SHORT(model, clean)
    assert same_bits(bits(model), before) and torch.get_rng_state().equal(random)
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad == training and p.grad is None for p in model.parameters())
    assert repair.untuned is not None
    models = [model, repair.model, repair.untuned]
    memory = [{value.data_ptr() for value in m.state_dict().values()} for m in models]
    assert not memory[0] & memory[1] and not memory[0] & memory[2] and not memory[1] & memory[2]
    assert not any(module.training for m in models[1:] for module in m.modules())


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


def test_the_same_call_gives_the_same_model_and_another_seed_another() -> None:
    model, clean = plain(), pictures(12)
    first, again = SHORT(model, clean), SHORT(model, clean)
    other = replace(SHORT, tune=replace(SHORT.tune, seed=1))(model, clean)
    assert same_bits(bits(first.model), bits(again.model)) and not same_bits(bits(first.model), bits(other.model))


def test_it_learns_the_clean_images() -> None:
    model, clean, unseen = plain(), pictures(64, seed=1), pictures(200, seed=2)
    repair = FineTuning(Epochs(epochs=15, lr=0.05, batch_size=16))(model, clean)
    assert loss(repair.model, unseen) < 0.7 * loss(model, unseen)


def test_a_repr_is_a_complete_record() -> None:
    defence = FineTuning(Epochs(epochs=3, lr=0.02, nesterov=True, cutout=4))
    assert eval(repr(defence), {"FineTuning": FineTuning, "Epochs": Epochs}) == defence
    assert FineTuning(replace(defence.tune, epochs=1))(plain(), pictures(4)).defence.startswith(
        "FineTuning(tune=Epochs("
    )


@pytest.mark.parametrize("clean", [pictures(1), pictures(2), pictures(16).of_class(2)], ids=["one", "two", "a class"])
def test_little_input_is_enough(clean: Images) -> None:
    repair = SHORT(network(), clean)
    assert bool(repair.model(clean.floats()).isfinite().all()) and repair.tuned_steps == 2


def test_bad_input_is_refused() -> None:
    broken = plain()
    broken.conv2.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="there are no clean images"):
        SHORT(plain(), pictures(4).subset(torch.arange(0)))
    with pytest.raises(ValueError, match=r"NaN or infinite values in conv2.weight"):
        SHORT(broken, pictures(4))
    with pytest.raises(ValueError, match="no convolution that is followed by a batch norm"):
        SHORT(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), pictures(4))


def test_a_training_that_diverges_is_reported() -> None:
    with pytest.raises(DivergedError, match="try an lr below"):
        FineTuning(Epochs(epochs=5, lr=1e10))(plain(), pictures(8))
