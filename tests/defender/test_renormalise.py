"""Renormalisation after pruning: means and spreads come back, pruned channels do not, and harm is taken back."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import bits, mask_of, network, pictures, plain, same_bits, taught
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender import Renormalise, Suspiciousness
from nbtools.defender.pruning import Mask, at_random, pruned_copy
from nbtools.networks.units import prunable_units

CLEAN = pictures(24, seed=1)


def some_pruned(model: nn.Module, share: int = 4) -> Mask:
    """Every fourth filter of each layer, at other places in each."""
    first = {unit.conv: torch.arange(unit.filters) % share == 0 for unit in prunable_units(model)}
    return at_random(Mask(first), seed=3)


def moments(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each batch norm's output, a channel at a time in double precision."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}

    def look(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            rows = output.detach().double().transpose(0, 1).reshape(output.shape[1], -1)
            seen[name] = rows.mean(1), ((rows - rows.mean(1, keepdim=True)) ** 2).mean(1).sqrt()

        handles.append(norms[name].register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in norms:
        look(name)
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "densenet", "mobilenet_v2"])
def test_every_channel_that_is_left_has_its_mean_and_spread_back(name: str) -> None:
    before, clean = network(name), pictures(12, size=32)
    mask = some_pruned(before)
    model = pruned_copy(before, mask).eval()
    first = bits(model)
    Renormalise(limit=1e6)._match(model, clean, mask, before)
    wanted, got, fell = moments(before, clean.floats()), moments(model, clean.floats()), 0.0
    gone = {unit.bn: mask.pruned[unit.conv] for unit in prunable_units(before)}
    untouched = moments(pruned_copy(before, mask).eval(), clean.floats())
    for norm in wanted:
        left = ~gone.get(norm, torch.zeros(len(wanted[norm][0]), dtype=torch.bool))
        left &= untouched[norm][1] > 0.01
        for one, other, was in zip(got[norm], wanted[norm], untouched[norm], strict=True):
            torch.testing.assert_close(one[left], other[left], rtol=1e-3, atol=1e-3)
            fell = max([fell, *(was - other)[left].abs().tolist()])
        for part in ("weight", "bias"):
            assert not model.get_parameter(f"{norm}.{part}")[gone.get(norm, ~left & left)].any()
    assert fell > 0.1, "there was something to give back"
    now = model.state_dict()
    moved = {key for key in first if not first[key].equal(bits(model)[key])}
    assert moved <= {f"{norm}.{part}" for norm in wanted for part in ("weight", "bias")} and now.keys() == first.keys()


def test_it_helps_a_taught_network_and_says_by_how_much() -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0, 1, 2], "conv2": [0, 1]})
    model, kept, random = pruned_copy(before, mask).eval(), bits(before), torch.get_rng_state()

    def distance(pupil: nn.Module) -> Tensor:
        with torch.no_grad():
            p, q = (net(CLEAN.floats()).softmax(1) for net in (before, pupil))
        return (p * (p.log() - q.log())).sum(1).mean()

    was = distance(model)
    start, end = Renormalise()(model, CLEAN, mask, before)
    assert (start["step"], end["step"], start["chosen"], end["chosen"]) == (0, 1, False, True)
    assert end["gain"] == pytest.approx(float(was - distance(model)), rel=1e-3) and end["gain"] > 0
    assert same_bits(bits(before), kept) and torch.get_rng_state().equal(random)
    for norm in ("bn1", "bn2"):
        assert not model.training and not model.get_parameter(f"{norm}.weight")[mask.pruned[f"conv{norm[-1]}"]].any()


def test_what_takes_the_answers_further_away_is_taken_back() -> None:
    """Halved maps and a doubled head answer the same; the old spread with the doubled head does not."""
    before = plain()
    mask = mask_of(before, {"conv1": [], "conv2": []})
    model = copy.deepcopy(before)
    with torch.no_grad():
        model.bn2.weight.mul_(0.5)
        model.bn2.bias.mul_(0.5)
        model.fc.weight.mul_(2)
    was = bits(model)
    start, end = Renormalise()(model, CLEAN, mask, before)
    assert end["gain"] < 0 and start["chosen"] and not end["chosen"] and same_bits(bits(model), was)


def test_a_factor_keeps_to_its_limit_and_one_gives_the_means_alone() -> None:
    before = plain()
    mask = mask_of(before, {"conv1": [0, 1, 2, 3, 4, 5], "conv2": []})
    pruned = pruned_copy(before, mask).eval()
    factors = {}
    for limit in (1.0, 1.1, 1e6):
        model = copy.deepcopy(pruned)
        Renormalise(limit=limit)._match(model, CLEAN, mask, before)
        factors[limit] = model.get_parameter("bn2.weight") / pruned.get_parameter("bn2.weight")
        if limit == 1:
            mean, wanted = (moments(net, CLEAN.floats())["bn2"][0] for net in (model, before))
            torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-4)
    assert factors[1.0].eq(1).all() and 1 / 1.1 - 1e-6 <= factors[1.1].min() <= factors[1.1].max() <= 1.1 + 1e-6
    assert not 1 / 1.1 < float(factors[1e6].min()) <= float(factors[1e6].max()) < 1.1, "the limit had something to do"


def test_a_channel_that_hardly_varies_is_not_stretched() -> None:
    before = plain()
    mask = mask_of(before, {"conv1": list(range(8)), "conv2": []})  # nothing is left below: constant maps above
    model = pruned_copy(before, mask).eval()
    Renormalise(limit=1e6)._match(model, CLEAN, mask, before)
    assert model.get_parameter("bn2.weight").equal(before.get_parameter("bn2.weight"))
    assert all(bool(values.isfinite().all()) for values in model.state_dict().values())


def test_of_many_images_so_many_are_drawn() -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0, 1, 2], "conv2": []})
    order = torch.randperm(len(CLEAN), generator=torch.Generator().manual_seed(5))[:10]
    few, drawn, other = (pruned_copy(before, mask).eval() for _ in range(3))
    Renormalise(most=10, seed=5)(drawn, CLEAN, mask, before)
    Renormalise()(few, CLEAN.subset(order), mask, before)
    Renormalise(most=10, seed=6)(other, CLEAN, mask, before)
    assert same_bits(bits(few), bits(drawn)) and not same_bits(bits(drawn), bits(other))


def test_a_batch_norm_that_is_called_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.again = plain(), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner.relu(self.inner.bn1(self.inner.conv1(x)))
            x = self.inner.bn2(self.inner.conv2(self.again(self.again(x) + 1)))
            return self.inner.fc(self.inner.relu(x).mean((2, 3)))

    before = Twice().eval()
    mask = mask_of(before, {"inner.conv1": [0, 1], "inner.conv2": []})
    model = pruned_copy(before, mask).eval()
    Renormalise()._match(model, CLEAN, mask, before)
    assert model.get_parameter("again.weight").eq(1).all() and model.get_parameter("again.bias").eq(0).all()
    assert not model.get_parameter("inner.bn2.bias").equal(before.get_parameter("inner.bn2.bias"))


@pytest.mark.parametrize("images", [CLEAN.subset(torch.tensor([0])), CLEAN.subset(torch.tensor([0, 4, 8]))])
def test_one_image_or_one_class_is_enough(images: Images) -> None:
    repair = Suspiciousness(mu=1, fine_tune=Renormalise())(plain(), images)
    assert repair.mask.count and all(bool(values.isfinite().all()) for values in repair.model.state_dict().values())


def test_a_network_in_training_mode_is_refused_and_left_as_it_was() -> None:
    before = plain()
    mask = mask_of(before, {"conv1": [0], "conv2": []})
    model = pruned_copy(before, mask).train()
    was = bits(model)
    with pytest.raises(ValueError, match=r"call .eval\(\) on them first"):
        Renormalise()(model, CLEAN, mask, before)
    assert same_bits(bits(model), was)


def test_a_repair_that_renormalised_counts_one_step_and_keeps_its_pruned_copy() -> None:
    model = taught()
    repair = Suspiciousness(mu=0.5, fine_tune=Renormalise())(model, CLEAN)
    assert repair.tuned_steps == 1 and repair.history[1]["chosen"] and repair.untuned is not None
    assert same_bits(bits(repair.untuned), bits(pruned_copy(model, repair.mask).eval()))
    assert not same_bits(bits(repair.untuned), bits(repair.model))


@pytest.mark.parametrize("wrong", [{"limit": 0.9}, {"limit": float("nan")}, {"limit": float("inf")}, {"most": 1}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="limit >= 1 and most >= 2 are needed"):
        replace(Renormalise(), **wrong)
