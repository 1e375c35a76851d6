"""FT-SAM, D3, LMR and NFT: their steps and losses against written-out ones, and what each must leave alone."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, bits, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.data.images import to_floats
from nbtools.defender import D3, FTSAM, LMR, NFT, Epochs, FineTuning
from nbtools.defender.ft_sam import uphill
from nbtools.defender.head import features, linear_head
from nbtools.defender.learning import batches
from nbtools.networks.training import augment
from nbtools.networks.units import prunable_units

CLEAN = pictures(12)
EPOCH = Epochs(epochs=1, batch_size=12, momentum=0.0, weight_decay=0.0, lr=0.05)
"""One step of plain gradient descent."""


def first_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """What `Epochs` gives the model first."""
    generator = torch.Generator().manual_seed(seed)
    part = CLEAN.subset(batches(len(CLEAN), 12, generator)[0])
    return to_floats(augment(part.images, generator)), part.labels


# FT-SAM


def drawn(sizes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


SIZES: list[tuple[int, ...]] = [(3, 2), (4,), (2, 2, 1)]


def test_the_step_uphill_is_the_written_out_one() -> None:
    weights, gradients = drawn(SIZES, 0), drawn(SIZES, 1)
    total = sum(
        (abs(float(w)) * float(g)) ** 2
        for weight, gradient in zip(weights, gradients, strict=True)
        for w, g in zip(weight.flatten(), gradient.flatten(), strict=True)
    )
    for step, weight, gradient in zip(uphill(weights, tuple(gradients), 2.0), weights, gradients, strict=True):
        expected = [
            2 * float(w) ** 2 * float(g) / total**0.5 for w, g in zip(weight.flatten(), gradient.flatten(), strict=True)
        ]
        torch.testing.assert_close(step.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_no_other_step_of_its_length_leads_higher() -> None:
    weights, gradients = drawn(SIZES, 0), drawn(SIZES, 1)

    def rise(step: list[Tensor]) -> float:
        return sum(float((s * g).sum()) for s, g in zip(step, gradients, strict=True))

    best = rise(uphill(weights, tuple(gradients), 2.0))
    for seed in range(2, 200):
        other = drawn(SIZES, seed)
        length = torch.stack([(o / w).square().sum() for o, w in zip(other, weights, strict=True)]).sum().sqrt()
        assert rise([2 * o / length for o in other]) < best
    assert not any(part.any() for part in uphill(weights, tuple(torch.zeros_like(w) for w in weights), 2.0))


def test_one_step_descends_the_gradient_found_uphill_from_where_it_was() -> None:
    model = plain()
    repaired = FTSAM(0.5, EPOCH)(model, CLEAN).model
    inputs, labels = first_batch()
    twin = copy.deepcopy(model).train()
    names, weights = zip(*twin.named_parameters(), strict=True)
    slopes = torch.autograd.grad(F.cross_entropy(twin(inputs), labels), weights)
    statistics = {name: value.clone() for name, value in twin.named_buffers()}
    above = copy.deepcopy(twin)
    for weight, step in zip(above.parameters(), uphill([w.detach() for w in weights], slopes, 0.5), strict=True):
        weight.data.add_(step)
    found = torch.autograd.grad(F.cross_entropy(above(inputs), labels), list(above.parameters()))
    for name, weight, slope in zip(names, weights, found, strict=True):
        torch.testing.assert_close(repaired.get_parameter(name), weight - 0.05 * slope, msg=name)
    for name, value in statistics.items():
        if "running" in name:  # followed the batch once, where the weights are
            torch.testing.assert_close(repaired.get_buffer(name), value, msg=name)


def test_without_a_step_uphill_it_is_fine_tuning() -> None:
    tune = Epochs(epochs=2, batch_size=5)
    mine, other = FTSAM(0.0, tune)(plain(), CLEAN).model, FineTuning(tune)(plain(), CLEAN).model
    for name, value in other.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(mine.state_dict()[name], value), name


# D3


def test_the_head_moves_on_the_sphere_that_it_lies_on() -> None:
    model = plain()
    tune = Epochs(epochs=20, batch_size=4, lr=0.005, momentum=0.0)
    repaired = D3(hold=0.5, tune=tune)(model, CLEAN).model
    start, end = linear_head(model).weight, linear_head(repaired).weight
    torch.testing.assert_close(end.norm(), start.norm())
    tuned = linear_head(FineTuning(tune)(model, CLEAN).model).weight
    assert (end - start).norm() > 3 * (tuned - start).norm()


def test_a_heavier_hold_keeps_the_clean_loss() -> None:
    def clean_loss(hold: float) -> float:
        repaired = D3(hold=hold, tune=Epochs(epochs=30, batch_size=4, lr=0.05))(plain(), CLEAN).model
        return F.cross_entropy(repaired(CLEAN.floats()), CLEAN.labels).item()

    assert clean_loss(10.0) < clean_loss(0.1)


def test_one_step_of_d3_by_hand() -> None:
    """Below the allowed loss the distance alone pulls: straight away from the start, the body left alone."""
    model = plain()
    repaired = D3(hold=3.0, allowed=100.0, tune=EPOCH)(model, CLEAN).model
    start, end = linear_head(model).weight, linear_head(repaired).weight
    nudge = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    away = start + (1e-3 * start.norm() + EPOCH.lr) * nudge / nudge.norm()
    torch.testing.assert_close(end, away * start.norm() / away.norm())
    assert torch.equal(repaired.get_parameter("conv1.weight"), model.conv1.weight)


# LMR


@pytest.mark.parametrize("suspect", range(4))
def test_the_loss_of_lmr_image_by_image(suspect: int) -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    labels, lmr = torch.arange(9) % 4, LMR(repel=1.5, hold=0.25, repel_margin=3.0, hold_margin=0.5)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        largest = max(row)
        log_sum = largest + torch.tensor([value - largest for value in row]).double().exp().sum().log().item()
        if label != suspect:
            total += log_sum - row[label]
            total += 1.5 * max(0.0, row[suspect] - max(v for j, v in enumerate(row) if j != suspect) + 3.0)
        total += 0.25 * max(0.0, max(v for j, v in enumerate(row) if j != label) - row[label] + 0.5)
    assert float(lmr.loss(logits, labels, suspect)) == pytest.approx(total / 9, rel=1e-9)


def test_lmr_changes_the_head_alone_and_some_weights_of_the_suspect_stay_zero() -> None:
    model = plain()
    repair = LMR(zeroed=0.3, epochs=3, final_epochs=2, batch_size=4)(model, CLEAN)
    suspect = repair.history[0]["class"]
    head = linear_head(repair.model).weight
    assert int((head[suspect] == 0).sum()) == int(0.3 * head.shape[1]) and not (head == 0).sum() > 0.3 * head.shape[1]
    before, after = bits(model), bits(repair.model)
    assert same_bits(
        {n: v for n, v in after.items() if "fc" not in n}, {n: v for n, v in before.items() if "fc" not in n}
    )
    assert [row["stage"] for row in repair.history] == ["suspect", *["repel"] * 3, *["tune"] * 2]
    logits = repair.model(CLEAN.floats())
    assert float(logits[CLEAN.labels != suspect, suspect].detach().mean()) < float(
        model(CLEAN.floats())[CLEAN.labels != suspect, suspect].detach().mean()
    )


@pytest.mark.parametrize("planted", [1, 3])
def test_lmr_suspects_the_class_that_a_network_falls_back_on(planted: int) -> None:
    model = plain()
    with torch.no_grad():
        model.fc.bias[planted] += 3
    means = LMR(ascent_epochs=1, batch_size=4).fallen_back_on(model, CLEAN)
    assert means.shape == (len(CLASSES),) and int(means.argmax()) == planted


def test_features_are_what_the_head_is_given() -> None:
    model = plain()
    given = features(model, CLEAN, batch_size=5)
    torch.testing.assert_close(model.fc(given), model(CLEAN.floats()))
    with pytest.raises(ValueError, match="Conv2d has no linear layer; this defence works on the one that gives"):
        linear_head(nn.Conv2d(3, 3, 1))


# NFT


def test_one_step_of_nft_by_hand() -> None:
    model, nft = plain(), NFT(epochs=1, lr=5.0, momentum=0.0, penalty=1e-3, batch_size=12)
    repaired = nft(model, CLEAN).model
    generator = torch.Generator().manual_seed(0)
    part = CLEAN.subset(batches(len(CLEAN), 12, generator)[0])
    inputs = to_floats(augment(part.images, generator))
    others, share = torch.randperm(12, generator=generator), float(torch.rand((), generator=generator))
    twin = copy.deepcopy(model)
    gammas, moved = [twin.get_parameter(f"{unit.bn}.weight") for unit in prunable_units(model)], 0
    logits = twin(share * inputs + (1 - share) * inputs[others])
    loss = share * F.cross_entropy(logits, part.labels) + (1 - share) * F.cross_entropy(logits, part.labels[others])
    for unit, gamma, slope in zip(prunable_units(model), gammas, torch.autograd.grad(loss, gammas), strict=True):
        factor = (1 - 5 * (slope * gamma - 1e-3)).clamp(0, 1).detach()  # by the chain rule through gamma * factor
        moved += int((factor < 1).sum())
        torch.testing.assert_close(repaired.get_parameter(f"{unit.bn}.weight"), gamma * factor)
    assert moved > 2
    gamma_names = {f"{unit.bn}.weight" for unit in prunable_units(model)}
    before, after = bits(model), bits(repaired)
    assert same_bits(*({n: v for n, v in x.items() if n not in gamma_names} for x in (before, after)))


def test_a_heavy_penalty_keeps_every_filter() -> None:
    repair = NFT(epochs=3, penalty=100.0, batch_size=4)(plain(), CLEAN)
    assert same_bits(bits(repair.model), bits(plain()))
    assert [row["least_mask"] for row in repair.history] == [1.0] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FTSAM(rho=-1.0), "rho must be 0 or more"),
        (lambda: FTSAM(rho=float("nan")), "rho must be 0 or more"),
        (lambda: D3(hold=0.0), "hold must be above 0"),
        (lambda: D3(allowed=-0.1), "allowed 0 or more"),
        (lambda: LMR(zeroed=1.0), r"zeroed in \[0, 1\)"),
        (lambda: LMR(epochs=0), "epochs >= 1"),
        (lambda: replace(LMR(), repel_margin=float("nan")), "finite margins"),
        (lambda: NFT(penalty=-1.0), "penalty >= 0"),
        (lambda: NFT(lr=0.0), "lr must be above 0"),
    ],
)
def test_values_out_of_their_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
