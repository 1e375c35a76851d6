"""RNP: unlearning that unlearns and stops, masks that stay in their range, pruning of the given model's gamma alone."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, bits, network, pictures, plain, same_bits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbtools.data.images import Images
from nbtools.defender.learning import Epochs, Validation, accuracy
from nbtools.defender.repair import Repair
from nbtools.defender.rnp import RNP
from nbtools.networks.training import DivergedError
from nbtools.networks.units import prunable_units

SHORT = RNP(unlearn_lr=0.05, unlearn_epochs=3, recover_epochs=3, thresholds=(0.2, 0.9, 1.0), batch_size=8)
NOTHING = pictures(4).subset(torch.arange(0))


@functools.cache
def _learned() -> nn.Module:
    model = plain()
    Epochs(epochs=12, lr=0.05, batch_size=16)(model, pictures(96))
    return model


def learned() -> nn.Module:
    """A `Plain` network that has learned the pictures' tints."""
    return copy.deepcopy(_learned())


def rows(repair: Repair, stage: str) -> list[dict[str, Any]]:
    return [row for row in repair.history if row["stage"] == stage]


class Convolutions(TorchDispatchMode):
    """Counts backward passes through convolutions, and those that make a gradient of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.of_weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution_backward" in str(func):
            self.all += 1
            self.of_weights += bool(args[-1][1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False], ids=["train mode", "eval mode"])
@pytest.mark.parametrize("wanted", [True, False], ids=["with gradients", "frozen"])
def test_the_given_model_is_not_changed(training: bool, wanted: bool) -> None:
    model, clean = plain().train(training).requires_grad_(wanted), pictures(16)
    before, random = bits(model), torch.get_rng_state()
    repair = SHORT(model, clean)
    assert same_bits(bits(model), before) and torch.get_rng_state().equal(random)
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad == wanted and p.grad is None for p in model.parameters())
    memory = {value.data_ptr() for value in model.state_dict().values()}
    assert not memory & {value.data_ptr() for value in repair.model.state_dict().values()}
    assert not any(module.training for module in repair.model.modules())


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_only_gamma_of_the_given_model_is_pruned_and_only_where_masks_are_low(name: str) -> None:
    model, clean = network(name), pictures(16, size=8)
    free = Validation(allowed=0.99)
    repair = replace(SHORT, unlearn_epochs=1, recover_epochs=1, thresholds=(0.99,), validation=free)(model, clean)
    before, after = bits(model), bits(repair.model)
    units = prunable_units(model)
    assert list(repair.scores) == list(repair.mask.pruned) == [unit.conv for unit in units]
    for unit in units:
        pruned = repair.mask.pruned[unit.conv]
        assert pruned.equal(1 - repair.scores[unit.conv] <= 0.99)
        assert after.pop(f"{unit.bn}.weight").equal(before.pop(f"{unit.bn}.weight").masked_fill(pruned, 0))
    assert same_bits(after, before)
    assert 0 < repair.mask.count < repair.mask.filters


def test_unlearning_raises_the_loss_and_stops_where_it_should() -> None:
    model, clean = learned(), pictures(64)
    for until in (0.8, 0.3):
        defence = replace(SHORT, until=until, unlearn_epochs=40)
        unlearned, history = defence.unlearn(model, prunable_units(model), clean)
        losses, accuracies = ([row[name] for row in history] for name in ("loss", "accuracy"))
        assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1
        assert accuracies[-1] <= until < min(accuracies[:-1])
        assert [row["epoch"] for row in history] == list(range(len(history))) and len(history) < 40
        assert history[-1]["steps"] == 8 * history[-1]["epoch"]
        assert not unlearned.training and not any(p.requires_grad for p in unlearned.parameters())


def test_the_row_of_an_epoch_is_what_the_unlearned_copy_does() -> None:
    model, clean = learned(), pictures(40)
    defence = replace(SHORT, batch_statistics=False, until=0)
    unlearned, history = defence.unlearn(model, prunable_units(model), clean)
    assert len(history) == 1 + defence.unlearn_epochs
    for twin, row in ((model, history[0]), (unlearned, history[-1])):
        assert row["accuracy"] == accuracy(twin.eval(), clean)
        assert row["loss"] == pytest.approx(F.cross_entropy(twin(clean.floats()), clean.labels).item(), rel=1e-5)


def test_a_model_that_knows_nothing_is_not_unlearned() -> None:
    model, clean = plain(), pictures(16)
    unlearned, history = replace(SHORT, until=1.0).unlearn(model, prunable_units(model), clean)
    assert len(history) == 1 and same_bits(bits(unlearned), bits(model))


def test_one_step_of_unlearning_is_a_step_uphill_with_weight_decay() -> None:
    model, clean = plain(), Images(torch.full((8, 3, 16, 16), 99, dtype=torch.uint8), torch.zeros(8).long(), CLASSES)
    defence = RNP(unlearn_lr=0.1, unlearn_epochs=1, weight_decay=0.01, batch_size=8, until=0, seed=3)
    model.fc.bias.data[0] = 9  # so that there is something to unlearn
    grey = Images(torch.zeros_like(clean.images), clean.labels, CLASSES)  # a crop or a flip of black is black
    unlearned, _ = defence.unlearn(model, prunable_units(model), grey)
    model.train()
    F.cross_entropy(model(grey.floats()), grey.labels).backward()
    after = dict(unlearned.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() + 0.1 * (parameter.grad - 0.01 * parameter.detach())
        torch.testing.assert_close(after[name].detach(), expected, rtol=1e-5, atol=1e-7)


def test_masks_start_at_one_go_downhill_and_stay_in_their_range() -> None:
    """A loss whose minimum is known: each mask's is its own number, some of them out of reach."""
    goal = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5])
    seen: list[Tensor] = []

    def objective(_inputs: Tensor, _labels: Tensor, masks: Tensor) -> Tensor:
        seen.append(masks.detach().clone())
        return (masks - goal).square().sum()

    masks, history = RNP(recover_epochs=60, recover_lr=0.05, batch_size=4).recover(objective, 5, pictures(8))
    assert bool((seen[0] == 1).all()) and all(bool(((m >= 0) & (m <= 1)).all()) for m in seen)
    torch.testing.assert_close(masks, goal.clamp(0, 1), rtol=0, atol=1e-3)
    assert len(seen) == 120 and [row["steps"] for row in history] == list(range(2, 121, 2))
    assert history[-1]["least_mask"] == 0 and history[-1]["mean_mask"] == pytest.approx(2.3 / 5, abs=1e-3)


def test_recovering_brings_the_clean_task_back_and_masks_lie_in_their_range() -> None:
    model, clean = learned(), pictures(64)
    repair = replace(SHORT, unlearn_epochs=10, recover_epochs=8)(model, clean)
    losses = [row["loss"] for row in rows(repair, "recover")]
    assert losses[-1] < losses[0]
    values = torch.cat(list(repair.scores.values()))
    assert bool(((values >= 0) & (values <= 1)).all()) and 0 < int((values < 1).sum()) < len(values)


def test_no_gradient_of_a_convolution_is_made_while_masks_are_trained() -> None:
    model, clean = plain(), pictures(16)
    with Convolutions() as counted:
        replace(SHORT, until=1.0)(model, clean)  # which unlearns nothing
    assert counted.all > 0 and counted.of_weights == 0
    with Convolutions() as counted:
        SHORT.unlearn(model, prunable_units(model), clean)
    assert counted.of_weights > 0, "what is counted is counted"


def test_the_threshold_comes_from_images_that_were_held_back() -> None:
    model, clean = learned(), pictures(64)
    seen: list[Tensor] = []

    class Watched(RNP):
        def recover(self, objective: Any, filters: int, images: Images) -> Any:
            seen.append(images.images)
            return super().recover(objective, filters, images)

    repair = Watched(**vars(SHORT))(model, clean)
    learn, held = SHORT.validation.split(clean)
    assert seen[0].equal(learn.images) and len(learn) + len(held) == 64
    found = rows(repair, "threshold")
    assert [row["threshold"] for row in found] == [0.2, 0.9, 1.0] and found[-1]["pruned"] == repair.mask.filters
    chosen = [row for row in found if row["chosen"]]
    assert len(chosen) <= 1 and repair.mask.count == (chosen[0]["pruned"] if chosen else 0)
    assert accuracy(repair.model, held) >= accuracy(model, held) - SHORT.validation.allowed - 1e-9


def test_where_no_threshold_passes_nothing_is_pruned() -> None:
    model, clean = learned(), pictures(64)
    repair = replace(SHORT, thresholds=(1.0,))(model, clean)
    assert repair.mask.count == 0 and same_bits(bits(repair.model), bits(model))
    assert [row["chosen"] for row in rows(repair, "threshold")] == [False]


def test_the_same_seed_gives_the_same_repair() -> None:
    model, clean = plain(), pictures(24)
    first, again, other = SHORT(model, clean), SHORT(model, clean), replace(SHORT, seed=1)(model, clean)
    assert same_bits(first.scores, again.scores) and same_bits(bits(first.model), bits(again.model))
    assert first.history == again.history and not same_bits(first.scores, other.scores)
    assert first.defence == repr(SHORT) and eval(first.defence) == SHORT


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("clean", [pictures(1, size=8), pictures(16, size=8).of_class(2), pictures(9)], ids=len)
def test_little_input_is_enough(clean: Images, batch_statistics: bool) -> None:
    repair = replace(SHORT, batch_statistics=batch_statistics)(plain(), clean)
    assert all(score.isfinite().all() for score in repair.scores.values())
    assert bool(repair.model(clean.floats()).isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlearn_lr": 1e30, "until": 0.0}, "the loss is (nan|inf) after epoch 1 of unlearning; try an unlearn_lr"),
        ({"recover_share": 3e38, "until": 1.0}, "the masks' loss is (nan|inf) in epoch"),
    ],
)
def test_divergence_is_reported_and_nothing_is_handed_out(changes: dict[str, float], message: str) -> None:
    with pytest.raises(DivergedError, match=message):
        replace(SHORT, **changes)(plain(), pictures(16))


def nan_model() -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    ("model", "clean", "message"),
    [
        (plain, NOTHING, "there are no clean images; give at least one"),
        (nan_model, pictures(8), "NaN or infinite values in conv2.weight"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), pictures(8), "no convolution that is followed by a ba"),
    ],
    ids=["no images", "NaN weights", "no batch norm"],
)
def test_bad_input_is_refused(model: Callable[[], nn.Module], clean: Images, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SHORT(model(), clean)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unlearn_lr", 0, "must be above 0"),
        ("recover_lr", math.nan, "must be above 0"),
        ("recover_share", math.inf, "must be above 0"),
        ("momentum", 1, r"momentum in \[0, 1\)"),
        ("weight_decay", -1, "weight_decay >= 0"),
        ("until", math.nan, r"until in \[0, 1\]"),
        ("until", 1.5, r"until in \[0, 1\]"),
        ("unlearn_epochs", 0, "unlearn_epochs and recover_epochs >= 1"),
        ("recover_epochs", 0, "unlearn_epochs and recover_epochs >= 1"),
        ("batch_size", 1, "batch_size >= 2"),
        ("thresholds", (), "thresholds must be one number or more"),
        ("thresholds", (0.1, math.nan), "none NaN"),
    ],
)
def test_settings_are_checked_before_any_work(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RNP(**{name: value})
