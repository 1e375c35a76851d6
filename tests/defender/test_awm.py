"""AWM against its perturbation and mask steps written out, and its traps."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, network, pictures, plain
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.awm import AWM
from nbtools.networks.training import augment
from nbtools.networks.units import prunable_units

SHORT = AWM(rounds=2, passes=2, batch_size=5, tau=20, lr=0.3, seed=3)
NETWORKS = ["resnet18", "preact_resnet18"]


def orders(generator: torch.Generator, count: int, defence: AWM) -> list[list[int]]:
    """The batches of one loop over the images, as plain lists."""
    found = []
    for _ in range(defence.passes):
        order = torch.randperm(count, generator=generator).tolist()
        found += [order[k : k + defence.batch_size] for k in range(0, count, defence.batch_size)]
    return found


def by_hand(
    defence: AWM, model: nn.Module, clean: Images, stop: bool = False
) -> tuple[dict[str, Tensor], list[Tensor], list[float]]:
    """Masks, perturbations and mean losses, image by image, on full copies, with Adam written out.

    With `stop` the masks never move, so that all perturbations are those of the model as it was given.
    """
    convs = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    original = {name: model.get_parameter(name).detach().clone() for name in convs}
    masks = {name: torch.ones_like(weight) for name, weight in original.items()}
    first, second = ({name: torch.zeros_like(weight) for name, weight in original.items()} for _ in range(2))
    generator = torch.Generator().manual_seed(defence.seed)
    pictures_, labels = [clean.images], clean.labels.tolist() * (defence.copies + 1)
    pictures_ += [augment(clean.images, generator) for _ in range(defence.copies)]
    x = (torch.cat(pictures_).float() / 255).unbind()
    deltas, means, step = [], [], 0
    for number in range(defence.rounds):
        twin = masked(model, original, masks)
        answers = [int(twin(image[None]).argmax()) for image in x]
        delta = torch.zeros_like(x[0])
        for batch in orders(generator, len(x), defence):
            delta = delta.clone().requires_grad_(True)
            loss = sum(cross_entropy(twin, x[k] + delta, answers[k]) for k in batch) / len(batch)
            assert isinstance(loss, Tensor)
            loss.backward()
            assert delta.grad is not None
            delta = (delta + defence.ascent * delta.grad).detach()
        norm = float(delta.abs().sum())
        delta = delta * min(1.0, defence.tau / norm)
        deltas.append(delta)
        losses = []
        for batch in orders(generator, len(x), defence):
            twin = masked(model, original, masks)
            loss = torch.zeros(())
            for k in batch:
                shaken = (x[k] + delta).clamp(0, 1)
                loss = loss + defence.share * cross_entropy(twin, x[k], labels[k]) / len(batch)
                loss = loss + (1 - defence.share) * cross_entropy(twin, shaken, labels[k]) / len(batch)
            loss.backward()
            losses.append(float(loss.detach()) + defence.penalty * sum(float(mask.sum()) for mask in masks.values()))
            step += 1
            for name in convs:
                weight = twin.get_parameter(name)
                assert weight.grad is not None
                gradient = weight.grad * original[name] + defence.penalty
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                moved = defence.lr * defence.decay**number * mean / (square.sqrt() + 1e-8)
                if not stop:
                    masks[name] = (masks[name] - moved).clamp(0, 1)
        means.append(sum(losses) / len(losses))
    return masks, deltas, means


def masked(model: nn.Module, original: dict[str, Tensor], masks: dict[str, Tensor]) -> nn.Module:
    """A full copy whose convolution weights are weight * mask, each of them a parameter of its own."""
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    with torch.no_grad():
        for name, weight in original.items():
            twin.get_parameter(name).copy_(weight * masks[name])
    return twin


def cross_entropy(model: nn.Module, image: Tensor, label: int) -> Tensor:
    logits = model(image[None])[0]
    return logits.exp().sum().log() - logits[label]


@pytest.mark.parametrize(
    "defence",
    [
        SHORT,
        replace(SHORT, tau=1e9, share=0.3, decay=1),
        replace(SHORT, penalty=1e-3, rounds=3, passes=1, lr=0.3),
        replace(SHORT, rounds=1, copies=2, batch_size=7),
    ],
    ids=["plain", "no bound", "penalty", "copies"],
)
def test_masks_and_losses_are_those_written_out(defence: AWM) -> None:
    model, clean = plain(), pictures(8)
    wanted, deltas, losses = by_hand(defence, model, clean)
    masks, history = defence.masks(model, prunable_units(model), clean)
    for name, mask in wanted.items():
        assert torch.allclose(masks[name], mask, atol=2e-3), name
    assert any(bool((mask == 0).any()) for mask in wanted.values())
    total = sum(mask.numel() for mask in wanted.values())
    for number, row in enumerate(history):
        assert row["round"] == number + 1 and row["lr"] == pytest.approx(defence.lr * defence.decay**number)
        assert row["loss"] == pytest.approx(losses[number], rel=1e-3)
        assert row["norm"] == pytest.approx(float(deltas[number].abs().sum()), rel=1e-3)
    assert history[-1]["mean_mask"] == pytest.approx(sum(float(m.sum()) for m in wanted.values()) / total, rel=1e-4)
    assert len(history) == defence.rounds and (history[0]["norm"] > 20 * 1.001) == (defence.tau > 20)


@pytest.mark.parametrize("tau", [5.0, 1e9], ids=["scaled", "within the bound"])
def test_the_perturbation_is_the_one_written_out(tau: float) -> None:
    model, clean = network(), pictures(6)
    defence = replace(SHORT, rounds=1, passes=1, batch_size=4, tau=tau)
    _, (wanted,), _ = by_hand(defence, model, clean, stop=True)
    generator = torch.Generator().manual_seed(defence.seed)
    delta, changed = defence._perturbation(model, {}, clean.floats(), generator)
    assert delta.shape == (1, 3, 16, 16) and torch.allclose(delta[0], wanted, rtol=1e-3, atol=1e-4)
    assert (float(delta.abs().sum()) == pytest.approx(5, rel=1e-4)) == (tau == 5)
    shaken = (clean.floats() + wanted).clamp(0, 1)
    flips = [int(model(a[None]).argmax()) != int(model(b[None]).argmax()) for a, b in zip(clean.floats(), shaken)]  # noqa: B905
    assert changed == pytest.approx(sum(flips) / 6)


def test_the_perturbation_makes_the_models_own_answers_less_likely() -> None:
    model, clean = network(), pictures(8)
    inputs = clean.floats()
    delta, _ = replace(SHORT, tau=1000)._perturbation(model, {}, inputs, torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = model(inputs).argmax(1)
        assert F.cross_entropy(model(inputs + delta), answers) > F.cross_entropy(model(inputs), answers) + 0.5


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_is_masked_and_nothing_else_changes(name: str) -> None:
    model, clean = network(name), pictures(4)
    units = prunable_units(model)
    repair = replace(SHORT, rounds=1, passes=1)(model, clean)
    before, after = bits(model), bits(repair.model)
    convs = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {n for n in before if not before[n].equal(after[n])} == convs
    assert name == "resnet18" or len(units.without_bn) == 12
    for weight in convs:  # a factor in [0, 1]
        assert bool((before[weight].abs() >= after[weight].abs()).all())
        assert bool((before[weight] * after[weight] >= 0).all())
    assert repair.mask.count == 0 and list(repair.mask.pruned) == list(repair.scores) == [u.conv for u in units]
    for unit in units:
        weight = f"{unit.conv}.weight"
        for k in (0, unit.filters - 1):
            faded = 1 - (after[weight][k] / before[weight][k]).mean()
            assert float(repair.scores[unit.conv][k]) == pytest.approx(float(faded), abs=1e-5)


def test_few_is_the_ten_image_mode() -> None:
    few = AWM.few(seed=4)
    assert (few.share, few.tau, few.batch_size, few.copies, few.seed) == (0.99, 100, 32, 9, 4)
    assert replace(few, share=0.9, tau=1000, batch_size=128, copies=0, seed=0) == AWM()
    assert (few.rounds, few.passes, few.penalty, few.lr) == (20, 5, 1e-8, 0.01)
    inputs, labels = few._examples(pictures(4), torch.Generator().manual_seed(0))
    clean = pictures(4)
    assert inputs[:4].equal(clean.floats()) and len(inputs) == 40 and labels.equal(clean.labels.repeat(10))
    flat = inputs.flatten(1)
    assert len(flat.unique(dim=0)) >= 38, "the copies differ from each other, or nearly all of them do"


def test_weights_that_a_planted_shortcut_runs_through_fade_most() -> None:
    model, clean = plain(), pictures(24)
    with torch.no_grad():  # filter 6 of the second layer answers to filter 2 of the first alone, and shouts "red"
        model.conv2.weight[6] = 0
        model.conv2.weight[6, 2] = 0.5
        model.fc.weight[:, 6] = torch.tensor([6.0, 0, 0, 0])
    repair = AWM(rounds=6, passes=3, batch_size=8, lr=0.05, share=0.5)(model, clean)
    before, after = model.conv2.weight.detach(), repair.model.get_parameter("conv2.weight").detach()
    others = [float((1 - after[k] / before[k]).mean()) for k in range(6)]
    planted = float((1 - after[6, 2] / before[6, 2]).mean())
    assert planted > 0.5 and planted > max(others)


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 0},
        {"passes": 0},
        {"batch_size": 0},
        {"copies": -1},
        {"share": -0.1},
        {"share": math.nan},
        {"tau": -1},
        {"tau": math.inf},
        {"penalty": math.nan},
        {"penalty": -1e-8},
        {"lr": 0},
        {"lr": math.nan},
        {"decay": 0},
        {"decay": 1.1},
        {"ascent": -1},
    ],
    ids=str,
)
def test_settings_are_checked_before_any_work(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* are needed, got AWM"):
        replace(AWM(), **settings)
