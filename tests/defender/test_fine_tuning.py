"""Fine-tuning after pruning: the mask holds, it helps or does nothing, and what is held back stays held back."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import bits, mask_of, network, pictures, plain, same_bits, taught
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender import FineTune
from nbtools.defender.pruning import Mask, pruned_copy

TUNE = FineTune(steps=20, every=5, lr=5e-3)
CLEAN = pictures(24, seed=1)
UNSEEN = pictures(200, seed=2)


def loss(model: nn.Module, images: Images = UNSEEN) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images.floats()), images.labels))


@pytest.fixture(scope="module")
def before() -> nn.Module:
    """A network that tells the tinted classes apart."""
    model = taught()
    assert loss(model) < 0.1
    return model.requires_grad_(False)


@pytest.fixture
def mask(before: nn.Module) -> Mask:
    return mask_of(before, {"conv1": [0, 1, 2], "conv2": [0, 1, 2]})


@pytest.fixture
def pruned(before: nn.Module, mask: Mask) -> nn.Module:
    return pruned_copy(before, mask)


@pytest.mark.parametrize("teacher", ["before", "labels"])
def test_it_helps_and_the_mask_holds(before: nn.Module, pruned: nn.Module, mask: Mask, teacher: str) -> None:
    pruned.get_parameter("fc.bias")[0] += 25  # bent so far towards one class that any tuning helps
    was, broken, taught, random = bits(pruned), loss(pruned), bits(before), torch.get_rng_state()
    history = replace(TUNE, teacher=teacher)(pruned, CLEAN, mask, before)
    (chosen,) = [row for row in history if row["chosen"]]
    assert chosen["step"] > 0 and chosen["gain"] > chosen["error"] > 0
    assert loss(pruned) < broken / 2, "images that tuning never saw are told apart better"
    now = bits(pruned)
    for name, gone in zip(("bn1", "bn2"), mask.pruned.values(), strict=True):
        for part in (f"{name}.weight", f"{name}.bias"):
            assert not now[part][gone].any() and not now[part][~gone].equal(was[part][~gone])
    assert same_bits(bits(before), taught) and torch.get_rng_state().equal(random)
    assert not pruned.training and not any(p.requires_grad for p in pruned.parameters())


def test_the_mask_holds_on_a_residual_stream() -> None:
    """Where no ReLU follows the batch norm at once, a pruned filter has a gradient, and would come back."""
    model = network()
    mask = mask_of(model, {"layer1.0.conv2": [0, 1, 2]})
    twin = pruned_copy(model, mask)
    looks = 0
    for _ in replace(TUNE, every=1).tune(twin, CLEAN, mask, model, 3):
        now, looks = bits(twin), looks + 1
        assert not now["layer1.0.bn2.weight"][:3].any() and not now["layer1.0.bn2.bias"][:3].any()
    assert looks == 3


def test_history_is_one_row_a_look(before: nn.Module, pruned: nn.Module, mask: Mask) -> None:
    history = TUNE(pruned, CLEAN, mask, before)
    assert [row["step"] for row in history] == [0, 5, 10, 15, 20]
    assert history[0] == {"step": 0, "gain": 0, "error": 0, "chosen": history[0]["chosen"]}
    assert sum(row["chosen"] for row in history) == 1


def test_at_a_rate_of_zero_only_statistics_move(before: nn.Module, pruned: nn.Module, mask: Mask) -> None:
    start = bits(pruned)
    for _ in FineTune(lr=0, frozen_bn=False, every=5).tune(pruned, CLEAN, mask, before, 5):
        pass
    moved = {name.rpartition(".")[2] for name, value in bits(pruned).items() if not torch.equal(value, start[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_frozen_batch_norms_keep_their_statistics(
    before: nn.Module, pruned: nn.Module, mask: Mask, frozen_bn: bool
) -> None:
    was = bits(pruned)
    assert list(replace(TUNE, frozen_bn=frozen_bn).tune(pruned, CLEAN, mask, before, 10)) == [5, 10]
    kept = [value.equal(was[name]) for name, value in bits(pruned).items() if "running" in name or "num_" in name]
    assert kept == [frozen_bn] * 6
    assert not any(module.training for module in pruned.modules())


@pytest.mark.parametrize(
    ("tune", "clean", "rows"),
    [
        (replace(TUNE, confidence=math.inf), CLEAN, 5),
        (replace(TUNE, lr=1e30), CLEAN, 5),
        (TUNE, CLEAN.subset(torch.arange(1)), 0),
    ],
    ids=["gain not certain enough", "diverges", "one image"],
)
def test_where_it_is_not_shown_to_help_not_a_bit_changes(
    before: nn.Module, mask: Mask, tune: FineTune, clean: Images, rows: int
) -> None:
    pruned = pruned_copy(before, mask)
    was = bits(pruned)
    history = tune(pruned, clean, mask, before)
    assert same_bits(bits(pruned), was)
    assert len(history) == rows and all(row["chosen"] == (row["step"] == 0) for row in history)
    assert not pruned.training and not any(p.requires_grad for p in pruned.parameters())


def test_a_teacher_that_misleads_is_not_followed(before: nn.Module, mask: Mask) -> None:
    wrong, nothing = copy.deepcopy(before), mask_of(before, {})
    state = wrong.state_dict()
    wrong.load_state_dict({**state, "fc.weight": state["fc.weight"].roll(1, 0), "fc.bias": state["fc.bias"].roll(1)})
    model = copy.deepcopy(before)
    history = TUNE(model, CLEAN, nothing, wrong)
    assert same_bits(bits(model), bits(before)) and history[0]["chosen"] and history[-1]["gain"] < -0.1


@pytest.mark.parametrize("folds", [2, 3, 50])
@pytest.mark.parametrize("shift", [0, 1], ids=["true labels", "wrong labels"])
def test_the_chosen_look_never_raised_the_held_back_loss(
    before: nn.Module, pruned: nn.Module, mask: Mask, folds: int, shift: int
) -> None:
    clean = Images(CLEAN.images[:8], (CLEAN.labels[:8] + shift) % 4, CLEAN.classes)
    tune = replace(TUNE, folds=folds, confidence=0, steps=10)
    gains = tune.held_back_gains(pruned, clean, mask, before)
    assert gains is not None and gains.shape == (3, 8)
    assert not gains[0].any()
    for row, look in zip(tune(pruned, clean, mask, before), gains, strict=True):
        assert row["gain"] == pytest.approx(float(look.mean()))
        assert row["gain"] >= 0 or not row["chosen"]


def test_no_image_is_judged_by_a_model_that_saw_it_or_its_fold() -> None:
    """Another picture in one image's place changes the gain of all but the three that are held back with it."""
    model, clean = plain(), CLEAN.subset(torch.arange(12))
    nothing, tune = mask_of(model, {}), replace(TUNE, teacher="labels", folds=3, steps=5)
    first = tune.held_back_gains(model, clean, nothing, model)
    assert first is not None
    for number in (0, 5, 11):
        images = clean.images.clone()
        images[number] = 255 - images[number]
        second = tune.held_back_gains(model, replace(clean, images=images), nothing, model)
        assert second is not None
        untouched = torch.isclose(first, second, rtol=1e-6, atol=1e-7).all(0)
        assert int(untouched.sum()) == 3


def test_the_same_seed_gives_the_same_bits_and_another_one_others(before: nn.Module, mask: Mask) -> None:
    ends = []
    for seed in (0, 0, 1):
        model = pruned_copy(before, mask)
        list(replace(TUNE, seed=seed).tune(model, CLEAN, mask, before, 5))
        ends.append(bits(model))
    assert same_bits(ends[0], ends[1]) and not same_bits(ends[0], ends[2])


def test_tuning_goes_through_all_images_before_any_comes_again(
    before: nn.Module, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def record(_tune: FineTune, model: nn.Module, _before: nn.Module, batch: Images, _draws: torch.Generator) -> Tensor:
        seen.extend(batch.images[:, 0, 0, 0].tolist())
        return next(model.parameters()).sum() * 0

    monkeypatch.setattr(FineTune, "_loss", record)
    numbers = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 8, 8)
    clean = replace(CLEAN.subset(torch.arange(12)), images=numbers)
    list(replace(TUNE, batch_size=4).tune(copy.deepcopy(before), clean, mask, before, 6))
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
