"""RNP: unlearning that unlearns and stops, masks that stay in their range, pruning of the given model's gamma alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, ConvolutionGradients, bits, left_alone, network, pictures, plain, same_bits, taught
from torch import Tensor

from nbtools.data.images import Images
from nbtools.defender.learning import accuracy
from nbtools.defender.mnp import MNP
from nbtools.defender.repair import Repair
from nbtools.defender.rnp import RNP
from nbtools.defender.validation import Validation
from nbtools.networks.units import prunable_units

SHORT = RNP(unlearn_lr=0.05, unlearn_epochs=3, recover_epochs=3, thresholds=(0.2, 0.9, 1.0), batch_size=8)


def rows(repair: Repair, stage: str) -> list[dict[str, Any]]:
    return [row for row in repair.history if row["stage"] == stage]


@pytest.mark.parametrize("kind", [RNP, MNP])
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_only_gamma_of_the_given_model_is_pruned_and_only_where_masks_are_low(name: str, kind: type[RNP]) -> None:
    model, clean = network(name).train(), pictures(16, size=8)
    short = replace(SHORT, unlearn_epochs=1, recover_epochs=1, thresholds=(0.99,), validation=Validation(allowed=0.99))
    with left_alone(model, clean):
        repair = kind(**vars(short))(model, clean)
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
    model, clean = taught(), pictures(64)
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
    model, clean = taught(), pictures(40)
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
    model, clean = taught(), pictures(64)
    repair = replace(SHORT, unlearn_epochs=10, recover_epochs=8)(model, clean)
    losses = [row["loss"] for row in rows(repair, "recover")]
    assert losses[-1] < losses[0]
    values = torch.cat(list(repair.scores.values()))
    assert bool(((values >= 0) & (values <= 1)).all()) and 0 < int((values < 1).sum()) < len(values)


def test_no_gradient_of_a_convolution_is_made_while_masks_are_trained() -> None:
    model, clean = plain(), pictures(16)
    with ConvolutionGradients() as watch:
        replace(SHORT, until=1.0)(model, clean)  # which unlearns nothing
    assert watch.asked and not any(weight or bias for _, weight, bias in watch.asked)
    with ConvolutionGradients() as watch:
        SHORT.unlearn(model, prunable_units(model), clean)
    assert any(weight for _, weight, _ in watch.asked), "what is noted is noted"


def test_the_threshold_comes_from_images_that_were_held_back() -> None:
    model, clean = taught(), pictures(64)
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
    model, clean = taught(), pictures(64)
    repair = replace(SHORT, thresholds=(1.0,))(model, clean)
    assert repair.mask.count == 0 and same_bits(bits(repair.model), bits(model))
    assert [row["chosen"] for row in rows(repair, "threshold")] == [False]


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
