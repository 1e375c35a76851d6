"""The shared ground of the defences that learn: their door and their epochs."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, bits, labelled, mask_of, network, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import (
    Epochs,
    accuracy,
    batches,
    check_inputs,
    check_learned,
    cutout,
    nothing_pruned,
)
from nbtools.networks.training import DivergedError, augment
from nbtools.networks.units import prunable_units


def by_hand(model: nn.Module, clean: Images, epochs: Epochs) -> list[float]:
    """SGD with momentum, Nesterov or not, and weight decay, written out; the mean loss of each epoch."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not epochs.frozen_bn)
    generator, means = torch.Generator().manual_seed(epochs.seed), []
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for epoch in range(epochs.epochs):
        turn = math.cos(math.pi * epoch / (epochs.epochs - 1))
        lr = epochs.final_lr + 0.5 * (epochs.lr - epochs.final_lr) * (1 + turn)
        order, losses = torch.randperm(len(clean), generator=generator), []
        for start in range(0, len(clean), epochs.batch_size):
            part = order[start : start + epochs.batch_size]
            inputs = to_floats(augment(clean.images[part], generator))
            if epochs.cutout:
                inputs = cutout(inputs, epochs.cutout, generator)
            loss = F.cross_entropy(model(inputs), clean.labels[part])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                    decayed = gradient + epochs.weight_decay * p
                    velocity[name] = epochs.momentum * velocity[name] + decayed
                    p -= lr * (decayed + epochs.momentum * velocity[name] if epochs.nesterov else velocity[name])
        means.append(sum(losses) / len(losses))
    return means


@pytest.mark.parametrize(
    "epochs",
    [
        Epochs(epochs=3, lr=0.02, batch_size=4),
        Epochs(epochs=3, lr=0.05, final_lr=0.05, nesterov=True, weight_decay=0.1, batch_size=5, seed=4),
        Epochs(epochs=2, lr=0.01, momentum=0, batch_size=64, cutout=5),
        Epochs(epochs=2, lr=0.01, batch_size=4, frozen_bn=True),
    ],
    ids=["plain", "nesterov", "cutout", "frozen"],
)
def test_epochs_are_the_sgd_of_a_written_out_loop(epochs: Epochs) -> None:
    clean, model = pictures(10), plain()
    twin, random = copy.deepcopy(model), torch.get_rng_state()
    rows = epochs(model, clean)
    means = by_hand(twin, clean, epochs)
    assert torch.get_rng_state().equal(random)
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-4)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    steps = -(-len(clean) // epochs.batch_size)
    assert [row["steps"] for row in rows] == [steps * (n + 1) for n in range(epochs.epochs)]
    assert [row["epoch"] for row in rows] == list(range(1, epochs.epochs + 1))


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norms_keep_their_statistics(frozen: bool) -> None:
    model = plain()
    before = copy.deepcopy(model.state_dict())
    Epochs(epochs=1, frozen_bn=frozen)(model, pictures(6))
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    statistics = {name for name in before if "running" in name}
    assert statistics and (statistics <= kept) is frozen


def test_the_learning_rate_is_a_cosine_from_its_first_to_its_final_value() -> None:
    rates = [row["lr"] for row in Epochs(epochs=5, lr=0.02, final_lr=0.004)(plain(), pictures(4))]
    assert rates == pytest.approx([0.02, 0.02 - 0.008 * (1 - 0.5**0.5), 0.012, 0.004 + 0.008 * (1 - 0.5**0.5), 0.004])
    assert [row["lr"] for row in Epochs(epochs=1, lr=0.02)(plain(), pictures(4))] == [0.02]


def test_a_given_learning_rate_takes_the_place_of_the_cosine() -> None:
    longer, shorter = plain(), plain()
    rows = Epochs(epochs=3)(longer, pictures(8), lr_of=lambda epoch: (0.03, 0.02, 0.0)[epoch])
    assert [row["lr"] for row in rows] == [0.03, 0.02, 0.0]
    Epochs(epochs=2)(shorter, pictures(8), lr_of=lambda epoch: (0.03, 0.02)[epoch])
    pairs = zip(longer.parameters(), shorter.parameters(), strict=True)
    assert all(p.equal(q) for p, q in pairs), "at a rate of 0 no weight moves"


def test_a_given_loss_is_what_is_made_small() -> None:
    model, seen = plain(), []

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append((inputs.shape, inputs.dtype, float(inputs.min()), float(inputs.max()), labels.tolist()))
        return model(inputs)[:, 0].mean()

    clean = pictures(6)
    before = float(model(clean.floats())[:, 0].mean().detach())
    rows = Epochs(epochs=4, lr=0.01, batch_size=3)(model, clean, loss)
    assert rows[-1]["loss"] < rows[0]["loss"] and float(model(clean.floats())[:, 0].mean().detach()) < before
    assert {(shape, kind) for shape, kind, *_ in seen} == {((3, 3, 16, 16), torch.float32)}
    assert all(0 <= low < high <= 1 for _, _, low, high, _ in seen)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert sorted(first[4] + second[4]) == clean.labels.sort().values.tolist(), "an epoch sees each image once"


def test_the_mask_holds_after_every_step() -> None:
    model, steps = plain(), []
    mask = mask_of(model, {"conv1": [0, 5], "conv2": [1]})

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        for bn, gone in zip((model.bn1, model.bn2), mask.pruned.values(), strict=True):
            steps.append(float((bn.weight.detach()[gone].abs() + bn.bias.detach()[gone].abs()).sum()))
        return F.cross_entropy(model(inputs), labels)

    was = bits(model)
    Epochs(epochs=2, lr=0.1, weight_decay=0, batch_size=4)(model, pictures(8), loss, mask)
    assert steps[0] > 0 and steps[1] > 0, "the model that was given is not pruned yet"
    assert len(steps) == 8 and not any(steps[2:])
    for bn, gone in zip((model.bn1, model.bn2), mask.pruned.values(), strict=True):
        assert not bn.weight[gone].any() and not bn.bias[gone].any() and bool(bn.weight[~gone].all())
    assert not model.bn1.weight[~mask.pruned["conv1"]].equal(was["bn1.weight"][~mask.pruned["conv1"]])


@pytest.mark.parametrize("flags", [True, False])
def test_the_model_is_in_eval_mode_and_as_trainable_as_before(flags: bool) -> None:
    model = plain().train().requires_grad_(flags)
    model.fc.requires_grad_(not flags)
    wanted, was = [p.requires_grad for p in model.parameters()], bits(model)
    Epochs(epochs=1)(model, pictures(8))
    assert [p.requires_grad for p in model.parameters()] == wanted and len(set(wanted)) == 2
    assert not any(module.training for module in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(not value.equal(was[name]) for name, value in model.state_dict().items() if "normalise" not in name)


@pytest.mark.parametrize("epochs", [Epochs(epochs=5, lr=1e10), Epochs(epochs=1, lr=3e38, weight_decay=5)])
def test_a_training_that_diverges_is_reported_and_not_returned(epochs: Epochs) -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) in epoch|NaN or infinite values in"):
        epochs(plain(), pictures(8))


def test_a_broken_weight_or_statistic_is_reported() -> None:
    model = plain()
    check_learned(model)
    assert model.bn2.running_var is not None
    model.bn2.running_var[1] = math.inf
    with pytest.raises(DivergedError, match=r"the defence's training diverged: .* infinite values in bn2.running_var"):
        check_learned(model)


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("size", [2, 3, 4, 12, 100])
def test_batches_hold_every_image_once_and_never_one_alone(count: int, size: int) -> None:
    parts = batches(count, size, torch.Generator().manual_seed(count))
    assert all(2 <= len(part) <= size + 1 for part in parts)
    if count == 1:
        assert [part.tolist() for part in parts] == [[0, 0]]
    else:
        assert torch.cat(parts).sort().values.equal(torch.arange(count))
        assert sum(len(part) == size for part in parts) >= len(parts) - 1


def test_the_order_is_new_in_each_pass_and_the_same_for_the_same_seed() -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    orders = [torch.cat(batches(20, 6, generator)).tolist() for generator in (first, first, second)]
    assert orders[0] == orders[2] != orders[1]


def test_one_image_whose_last_maps_are_one_pixel_can_be_learned() -> None:
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        assert model.get_submodule("layer4")(torch.zeros(1, 64, 2, 2)).shape[2:] == (1, 1)
    rows = Epochs(epochs=2)(model, pictures(1, size=8))
    assert [row["steps"] for row in rows] == [1, 2] and math.isfinite(rows[-1]["loss"])
    assert bool(model(pictures(1, size=8).floats()).isfinite().all())


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": n} for n in (0, -1, math.nan)),
        *({"batch_size": n} for n in (1, 0, math.nan)),
        *({"lr": n} for n in (0, -0.1, math.nan, math.inf)),
        *({name: n} for name in ("final_lr", "momentum", "weight_decay", "cutout") for n in (-1, math.nan, math.inf)),
    ],
    ids=str,
)
def test_epochs_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"epochs >= 1, batch_size >= 2, lr > 0, .* got Epochs\("):
        Epochs(**values)  # pyright: ignore[reportArgumentType]


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="Nesterov's momentum needs a momentum above 0"):
        Epochs(nesterov=True, momentum=0)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 6, 40])
def test_cutout_is_a_grey_square_around_a_drawn_pixel(size: int, shape: tuple[int, int]) -> None:
    count, (height, width) = 6, shape
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    was = images.clone()
    got = cutout(images, size, torch.Generator().manual_seed(5))
    centre = torch.rand(2, count, 1, generator=torch.Generator().manual_seed(5))
    expected = images.clone()
    for n in range(count):
        top = int(centre[0, n] * height) - size // 2
        left = int(centre[1, n] * width) - size // 2
        for row in range(max(top, 0), min(top + size, height)):
            for column in range(max(left, 0), min(left + size, width)):
                expected[n, :, row, column] = 0.5
    assert got.equal(expected) and images.equal(was)
    changed = (got != images).any(1).sum((1, 2))
    assert bool((changed >= 1).all()) and bool((changed <= size * size).all())


def test_accuracy_counts_what_is_classified_as_labelled() -> None:
    images = pictures(11)

    def first_half_right(inputs: Tensor) -> Tensor:
        return F.one_hot(torch.where(inputs[:, 0, 0, 0] > 0.5, 0, 1), len(CLASSES)).float()

    wanted = sum(
        int((0 if pixel > 127 else 1) == label)
        for pixel, label in zip(images.images[:, 0, 0, 0].tolist(), images.labels.tolist(), strict=True)
    )
    assert 0 < wanted < 11
    for size in (1, 4, 11, 500):
        assert accuracy(first_half_right, images, size) == wanted / 11


def broken() -> nn.Module:
    model = plain()
    model.fc.bias.data[2] = math.nan
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "clean", "message"),
    [
        (plain, pictures(4).subset(torch.arange(0)), "there are no clean images; give at least one"),
        (broken, pictures(4), "NaN or infinite values in fc.bias"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), pictures(4), "no convolution that is followed by"),
        (plain, labelled(2, 2, 2, 2, 2), "the model tells 4 classes apart, the clean images have 5"),
    ],
    ids=["no images", "NaN", "no batch norm", "too few classes"],
)
def test_the_door_refuses_and_leaves_the_model(
    make: Callable[[], nn.Module], clean: Images, message: str, training: bool
) -> None:
    model = make().train(training)
    was = bits(model)
    with pytest.raises(ValueError, match=message):
        check_inputs(model, clean)
    assert all(module.training == training for module in model.modules())
    assert all(value.equal(was[name]) or value.isnan().any() for name, value in model.state_dict().items())


def test_the_door_returns_the_units_and_restores_each_modules_mode() -> None:
    model = plain().train()
    model.bn1.eval()
    was, modes = bits(model), [module.training for module in model.modules()]
    assert check_inputs(model, pictures(4)) == prunable_units(model)
    assert same_bits(bits(model), was) and [module.training for module in model.modules()] == modes
    assert model.conv1.weight.grad is None and set(modes) == {True, False}


def test_modes_are_restored_where_the_model_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(7, 4)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_inputs(model, pictures(4))
    assert all(module.training for module in model.modules())


def test_nothing_pruned_is_a_mask_over_every_unit() -> None:
    model = network()
    mask = nothing_pruned(prunable_units(model), torch.device("cpu"))
    assert mask.count == 0 and list(mask.pruned) == [unit.conv for unit in prunable_units(model)]
    assert mask.filters == sum(bn.num_features for bn in model.modules() if isinstance(bn, nn.BatchNorm2d))
