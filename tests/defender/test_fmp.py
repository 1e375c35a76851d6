"""FMP: its scores against a plain loop over channels, its pruning, and the mistakes that public code makes here."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, bits, network, pictures, plain, same_bits, settled
from torch import Tensor, nn

from nbtools.defender import feature_maps
from nbtools.defender.feature_maps import ChannelAccuracies, adversarial_maps, channel_accuracies, folded, noisy_images
from nbtools.defender.fmp import FMP
from nbtools.defender.learning import Epochs
from nbtools.networks.architectures import PreActResNet18, ResNet18
from nbtools.networks.units import Unit, prunable_units

EPSILON = 0.06
SHORT = Epochs(epochs=2, lr=0.01, batch_size=8)
TUNED = FMP(n_images=8, divisor=4, fine_tune=SHORT)
ONLY = replace(TUNED, fine_tune=None)


class Odd(nn.Module):
    """Convolutions with groups, a dilation, a bias, padding that is named, reflected or missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, (3, 5), padding="same", padding_mode="reflect"), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 16, 3, 2, 2, dilation=2, groups=4, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 8, 2, (1, 2)), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)), inplace=True))))
        return self.fc(F.relu(self.bn3(self.conv3(x))).mean((2, 3)))


def odd() -> nn.Module:
    torch.manual_seed(0)
    return settled(Odd())


def narrow() -> nn.Module:
    torch.manual_seed(1)
    return settled(ResNet18(len(CLASSES), 16, (1, 2, 2, 2, 2)))


def narrow_preact() -> nn.Module:
    torch.manual_seed(1)
    return settled(PreActResNet18(len(CLASSES), 16, (1, 2, 2, 2, 2)))


def one_channel(model: nn.Module, unit: Unit, channel: int, x: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """The plain loop's body: whole forward passes, one backward; adversarial images and their gradient."""
    maps: list[Tensor] = []
    handle = model.get_submodule(unit.conv).register_forward_hook(lambda _m, _i, out: maps.append(out[:, channel]))
    model(x)
    start = noisy.clone().requires_grad_()
    model(start)
    handle.remove()
    (gradient,) = torch.autograd.grad(F.mse_loss(maps[1], maps[0].detach()), start)
    return (noisy + EPSILON * gradient.sign()).clamp(0, 1), gradient


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "odd convolutions": odd,
    "ResNet18": narrow,
    "PreActResNet18": narrow_preact,
    "DenseNet": lambda: network("densenet"),
}


@pytest.mark.parametrize("name", MODELS)
def test_images_accuracies_and_losses_are_those_of_a_plain_loop(name: str) -> None:
    model, clean = MODELS[name](), pictures(4, 32 if name == "DenseNet" else 16)
    noisy = noisy_images(clean.floats(), 0.02, torch.Generator().manual_seed(3))
    found = channel_accuracies(model, clean, noisy, EPSILON)
    units = prunable_units(model).pairs
    assert list(found) == [unit.conv for unit in units]
    for unit in units if len(units) <= 3 else (units[0], units[3], units[-6], units[-1]):
        channels = list(range(unit.filters)) if len(units) <= 3 else [1, unit.filters - 1]
        seen = adversarial_maps(model, unit, channels, clean, noisy, EPSILON)
        for place, channel in enumerate(channels):
            images, gradient = one_channel(model, unit, channel, clean.floats(), noisy)
            differ = images != seen.images[place]
            assert not differ[gradient.abs() > 1e-5 * gradient.abs().amax()].any(), (unit.conv, channel)
            assert differ.float().mean() < 1e-3
            logits = model(images).detach()
            right = int((logits.argmax(1) == clean.labels).sum())
            assert int(found[unit.conv].correct[channel]) == right
            assert float(found[unit.conv].loss[channel]) == pytest.approx(
                F.cross_entropy(logits, clean.labels).item(), rel=2e-4, abs=1e-5
            )


def test_the_pruned_set_is_that_of_a_plain_loop() -> None:
    model, clean = plain(), pictures(24)
    defence = FMP(n_images=16, divisor=3, fine_tune=None)
    drawn, noisy = defence.draw(clean)
    repair = defence(model, clean)
    for unit in prunable_units(model):
        ranking = []
        for channel in range(unit.filters):
            images, _ = one_channel(model, unit, channel, drawn.floats(), noisy)
            logits = model(images)
            loss = F.cross_entropy(logits, drawn.labels).item()
            ranking.append((int((logits.argmax(1) == drawn.labels).sum()), -loss, channel))
        worst = [channel for _, _, channel in sorted(ranking)]
        assert repair.scores[unit.conv].argsort(descending=True).tolist() == worst
        assert repair.mask.pruned[unit.conv].nonzero().flatten().tolist() == sorted(worst[:2])


def test_a_linear_map_has_the_closed_form() -> None:
    """F_i = w_i x, so g is (w_i d) w_i at each pixel, with d = x~ - x."""
    torch.manual_seed(0)
    model = settled(
        nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    with torch.no_grad():
        model.get_submodule("1").get_parameter("weight")[1] *= -1  # the sign of gamma must not turn the step round
    clean = pictures(5, 8)
    noisy = noisy_images(clean.floats(), 0.02, torch.Generator().manual_seed(0))
    (unit,) = prunable_units(model)
    seen = adversarial_maps(model, unit, range(6), clean, noisy, EPSILON)
    weight = model.get_submodule("0").get_parameter("weight").detach()[:, :, 0, 0]
    along = torch.einsum("ic,nchw->inhw", weight, noisy - clean.floats())
    step = EPSILON * (along[:, :, None] * weight[:, None, :, None, None]).sign()
    clear = along.abs() > 1e-6
    assert clear.float().mean() > 0.99
    assert (seen.images == (noisy + step).clamp(0, 1)).all(2)[clear].all()
    assert torch.allclose(seen.before, torch.einsum("ic,nchw->inhw", weight, clean.floats()), atol=1e-5)
    assert torch.allclose(seen.after, torch.einsum("ic,inchw->inhw", weight, seen.images), atol=1e-5)


def test_the_step_leads_the_map_away_from_the_clean_one() -> None:
    model, clean = narrow(), pictures(8)
    unit = prunable_units(model).pairs[5]
    drawn, noisy = ONLY.draw(clean)
    seen = adversarial_maps(model, unit, range(unit.filters), drawn, noisy, EPSILON)
    still = adversarial_maps(model, unit, range(unit.filters), drawn, noisy, 1e-9)
    moved, noised = ((maps.after - maps.before).square().mean((1, 2, 3)) for maps in (seen, still))
    assert (moved > 2 * noised).all()
    assert seen.images.amin() >= 0 and seen.images.amax() <= 1
    assert (seen.images - noisy).abs().amax() <= EPSILON + 1e-6


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_the_size_of_a_chunk_changes_no_score(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = odd(), pictures(12)
    noisy = noisy_images(clean.floats(), 0.02, torch.Generator().manual_seed(0))
    usual = channel_accuracies(model, clean, noisy)
    monkeypatch.setattr(feature_maps, "CHUNK", chunk)
    other = channel_accuracies(model, clean, noisy)
    for name, found in usual.items():
        assert other[name].correct.equal(found.correct) and other[name].images == 12
        assert torch.allclose(other[name].loss, found.loss, rtol=1e-4)


def test_never_more_than_a_chunk_goes_through_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = plain(), []
    model.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(feature_maps, "CHUNK", 10)
    channel_accuracies(model, pictures(24), pictures(24).floats())
    assert max(sizes) == 10


@pytest.mark.parametrize(("side", "many"), [(16, 2048), (32, 512), (64, 128), (224, 128)])
def test_a_gpu_takes_more_images_at_once_where_they_are_small(side: int, many: int) -> None:
    assert feature_maps.at_once(torch.device("cuda"), side, side) == many
    assert feature_maps.at_once(torch.device("cpu"), side, side) == feature_maps.CHUNK


def test_noise_is_one_step_up_or_down_within_the_range() -> None:
    images = pictures(6).floats()
    noisy = noisy_images(images, 0.1, torch.Generator().manual_seed(0))
    up, down = (images + 0.1).clamp(max=1), (images - 0.1).clamp(min=0)
    assert ((noisy == up) | (noisy == down)).all()
    assert 0.45 < (noisy == up).float().mean() < 0.6
    assert not noisy.equal(noisy_images(images, 0.1, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("count", "drawn"), [(5, 5), (40, 24)])
def test_the_seed_draws_the_images(count: int, drawn: int) -> None:
    clean = pictures(24)
    images, noisy = FMP(n_images=count, seed=1).draw(clean)
    again, same = FMP(n_images=count, seed=1).draw(clean)
    other, _ = FMP(n_images=count, seed=2).draw(clean)
    assert len(images) == len(noisy) == drawn
    assert images.images.equal(again.images) and noisy.equal(same) and not images.images.equal(other.images)
    at = [int((clean.images == image).flatten(1).all(1).nonzero()) for image in images.images]
    assert len(set(at)) == drawn and images.labels.equal(clean.labels[at])


def test_a_score_ranks_by_accuracy_and_among_equals_by_loss() -> None:
    correct = torch.tensor([3, 4, 3, 0, 4, 2, 2])
    loss = torch.tensor([0.5, 1e9, 0.75, 0.0, 0.25, 40.0, 41.0], dtype=torch.float64)
    found = ChannelAccuracies(correct, loss, 4)
    scores = found.scores()
    by_hand = sorted(range(7), key=lambda i: (correct[i], -loss[i]))
    assert scores.argsort(descending=True).tolist() == by_hand
    assert (4 * scores + 1e-12).floor().tolist() == (4 - correct).tolist(), "the loss never crosses an image's step"
    assert found.accuracy.tolist() == [0.75, 1, 0.75, 0, 1, 0.5, 0.5]


@pytest.mark.parametrize(("divisor", "images"), [(2, 8), (3, 8), (5, 8), (9, 8), (3, 1)])
def test_each_layer_loses_its_share(divisor: int, images: int) -> None:
    model = odd()
    repair = FMP(n_images=4, divisor=divisor, fine_tune=None)(model, pictures(images))
    assert repair.mask.by_layer() == {unit.conv: unit.filters // divisor for unit in prunable_units(model)}
    for name, pruned in repair.mask.pruned.items():
        if pruned.any():
            assert repair.scores[name][pruned].min() >= repair.scores[name][~pruned].max()


def test_clean_images_move_no_statistics_while_scoring() -> None:
    model = plain().train()
    repair = ONLY(model, pictures(16))
    for name, value in model.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert repair.model.state_dict()[name].equal(value)


def test_the_network_sees_images_from_0_to_1_and_normalises_them_itself() -> None:
    model, seen = plain(), []
    model.register_forward_pre_hook(lambda _m, inputs: seen.append((inputs[0].amin().item(), inputs[0].amax().item())))
    ONLY(model, pictures(8))
    assert len(seen) > 3 and all(low >= 0 and 0.5 < high <= 1 for low, high in seen)


def conv_and_bn(model: nn.Module, unit: Unit) -> tuple[Tensor, Tensor, Tensor]:
    state = model.state_dict()
    return state[f"{unit.conv}.weight"], state[f"{unit.bn}.weight"], state[f"{unit.bn}.bias"]


@pytest.mark.parametrize("make", [plain, odd], ids=["plain", "with a bias"])
def test_frozen_channels_stay_at_zero(make: Callable[[], nn.Module]) -> None:
    model, clean = make(), pictures(16)
    repair = TUNED(model, clean)
    assert repair.untuned is not None and repair.tuned_steps == 4 and [r["steps"] for r in repair.history] == [2, 4]
    for unit in prunable_units(model):
        pruned = repair.mask.pruned[unit.conv]
        assert 0 < pruned.sum() < unit.filters
        for twin in (repair.untuned, repair.model):
            assert all(not values[pruned].any() for values in conv_and_bn(twin, unit))
        first, tuned = (conv_and_bn(twin, unit)[0][~pruned] for twin in (repair.untuned, repair.model))
        assert first.equal(conv_and_bn(model, unit)[0][~pruned]) and not tuned.equal(first)


def test_without_a_mask_only_the_constant_of_a_pruned_channel_learns() -> None:
    """As released: beta goes on learning; W = gamma = 0 is a stationary point, so neither of them comes back."""
    model, clean = plain(), pictures(16)
    repair = replace(TUNED, freeze_pruned=False)(model, clean)
    assert repair.untuned is not None
    assert same_bits(repair.mask.pruned, TUNED(model, clean).mask.pruned)
    for unit in prunable_units(model):
        pruned = repair.mask.pruned[unit.conv]
        given, first, tuned = (conv_and_bn(m, unit) for m in (model, repair.untuned, repair.model))
        assert not first[0][pruned].any() and not first[1][pruned].any()
        assert first[2].equal(given[2]) and not tuned[2][pruned].equal(first[2][pruned])
        assert not tuned[0][pruned].any() and not tuned[1][pruned].any()


def test_without_fine_tuning_nothing_is_tuned() -> None:
    repair = ONLY(plain(), pictures(16))
    assert repair.untuned is None and repair.tuned_steps == 0 and repair.history == []
    untuned = TUNED(plain(), pictures(16)).untuned
    assert untuned is not None and same_bits(bits(repair.model), bits(untuned))


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_network_answers_as_before(name: str) -> None:
    model, images = MODELS[name](), pictures(6, 32).floats()
    twin = folded(model, prunable_units(model))
    with torch.no_grad():
        answers, expected = twin(images), model(images)
    assert torch.allclose(answers, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) - len(prunable_units(model)) == sum(
        isinstance(m, nn.BatchNorm2d) for m in twin.modules()
    )


def test_the_fine_tuning_is_that_of_the_public_code() -> None:
    assert FMP().fine_tune == Epochs(10, 0.01, 1e-4, 0.9, False, 5e-4, 256, 0, 0)


@pytest.mark.parametrize(
    ("channels", "noisy", "message"),
    [
        ([8], pictures(4).floats(), r"conv1 has the channels 0 to 7 and .* got the channels \[8\] and 4 images"),
        ([-1], pictures(4).floats(), r"got the channels \[-1\]"),
        ([], pictures(4).floats(), r"got the channels \[\]"),
        ([0], pictures(3).floats(), r"must be floats of the clean images' shape \[4, 3, 16, 16\], got torch.float32"),
        ([0], pictures(4).images, "got torch.uint8"),
    ],
)
def test_a_look_at_what_is_not_there_is_refused(channels: list[int], noisy: Tensor, message: str) -> None:
    model = plain()
    with pytest.raises(ValueError, match=message):
        adversarial_maps(model, prunable_units(model).pairs[0], channels, pictures(4), noisy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_images", 0), ("divisor", 1)]
    + [(name, value) for name in ("alpha", "epsilon") for value in (0.0, -0.02, 1.5, math.nan)],
)
def test_settings_are_checked_before_any_work(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha and epsilon in \(0, 1\] .*[ (]{name}={value}"):
        replace(FMP(), **{name: value})
