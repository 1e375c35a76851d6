"""Masks: the threshold against numpy; applied, undone, held and made physical, with no change beyond what was asked."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_pruning as tp
from tiny import Plain, bits, mask_of, network, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.defender.pruning import Mask, apply, at_random, hold, most_suspicious, pruned_copy, remove, threshold
from nbtools.networks.units import prunable_units

Scores = dict[str, Tensor]


def drawn_scores(seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n, dtype=torch.float64, generator=generator) ** 4 for name, n in (("a", 40), ("b", 7))}


@pytest.mark.parametrize("mu", [0, 0.5, 2, 2.5])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_threshold_is_mean_plus_mu_unbiased_deviations(mu: float, scope: str) -> None:
    scores = drawn_scores()
    everything = np.concatenate([score.numpy() for score in scores.values()])
    mask = threshold(scores, mu, scope)
    for name, score in scores.items():
        pool = everything if scope == "global" else score.numpy()
        assert mask.pruned[name].tolist() == (score.numpy() > pool.mean() + mu * pool.std(ddof=1)).tolist()
    assert mask.filters == 47 and mask.share == mask.count / 47 and mask.count == sum(mask.by_layer().values())
    assert mask.count > 0
    assert repr(mask) == f"Mask({mask.count} of 47 filters)"


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_further_round_measures_what_stands_out_from_the_filters_that_are_left(scope: str) -> None:
    scores = drawn_scores()
    scores["a"][0] = 1e6  # a sleeper: it covers all others
    assert threshold(scores, 2, scope).pruned["a"].nonzero().tolist() == [[0]]
    left = {name: {number: float(value) for number, value in enumerate(score)} for name, score in scores.items()}
    for rounds in range(1, 5):
        pools = {name: list(values.values()) for name, values in left.items()}
        if scope == "global":
            pools = {name: [value for pool in pools.values() for value in pool] for name in left}
        for name, pool in pools.items():
            limit = np.mean(pool) + 2 * np.std(pool, ddof=1)
            left[name] = {number: value for number, value in left[name].items() if not value > limit}
        mask = threshold(scores, 2, scope, rounds)
        for name in scores:
            assert {int(i) for i in (~mask.pruned[name]).nonzero()} == set(left[name]), (rounds, name)
    assert threshold(scores, 2, scope, 4).count > 2, "the sleeper was not alone"
    assert threshold({"a": torch.tensor([1.0, 1.0, 1.0, 9.0])}, 1, scope, 50).count == 1, "equal ones are left"


@pytest.mark.parametrize("mu", [0, 0.5, 3, math.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_where_nothing_stands_out_nothing_is_pruned(mu: float, scope: str) -> None:
    """One filter alone; equal scores, whose mean is rounded below each of them; scores of zero."""
    for value, size in [(5.0, 1), (0.1, 6), (0.1, 38), (0.0, 4)]:
        assert threshold({"layer": torch.full((size,), value, dtype=torch.float64)}, mu, scope).count == 0


@pytest.mark.parametrize(
    ("scores", "mu", "scope", "message"),
    [
        (drawn_scores(), -0.1, "layer", "mu must be 0 or more, got -0.1"),
        (drawn_scores(), math.nan, "layer", "mu must be 0 or more, got nan"),
        (drawn_scores(), 2, "block", "unknown scope 'block'; known: layer, global"),
        ({"conv1": torch.tensor([1.0, math.nan])}, 2, "layer", "scores of conv1 hold NaN or infinite"),
        ({"conv1": torch.tensor([1.0, math.inf])}, 2, "global", "scores of conv1 hold NaN or infinite"),
    ],
)
def test_threshold_refuses(scores: Scores, mu: float, scope: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threshold(scores, mu, scope)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_not_counted_is_neither_measured_with_nor_pruned(scope: str) -> None:
    scores = drawn_scores()
    wanted = threshold(scores, 1, scope, 2)
    dead = {"a": torch.tensor([0.0, 1e6, 0.0], dtype=torch.float64), "b": torch.tensor([5.0], dtype=torch.float64)}
    more = {name: torch.cat([score, dead[name]]) for name, score in scores.items()}
    counted = {name: torch.arange(len(score)) < len(scores[name]) for name, score in more.items()}
    before = {name: mask.clone() for name, mask in counted.items()}
    found = threshold(more, 1, scope, 2, counted)
    for name, score in scores.items():
        assert found.pruned[name].tolist() == [*wanted.pruned[name].tolist(), *[False] * (len(more[name]) - len(score))]
        assert torch.equal(counted[name], before[name])
    nobody = {name: torch.zeros_like(mask) for name, mask in counted.items()}
    assert threshold(more, 1, scope, 2, nobody).count == 0 < wanted.count


def test_threshold_refuses_no_round() -> None:
    with pytest.raises(ValueError, match="rounds must be 1 or more, got 0"):
        threshold(drawn_scores(), 2, rounds=0)


def test_most_suspicious_takes_the_highest() -> None:
    scores = drawn_scores()
    mask = most_suspicious(scores, {"a": 3})
    assert mask.by_layer() == {"a": 3, "b": 0}
    assert scores["a"][mask.pruned["a"]].min() > scores["a"][~mask.pruned["a"]].max()


def test_at_random_keeps_the_numbers_and_repeats_itself() -> None:
    like = threshold(drawn_scores(), 1)
    draws = [at_random(like, seed) for seed in (0, 0, 1)]
    assert all(draw.by_layer() == like.by_layer() for draw in draws)
    assert same_bits(draws[0].pruned, draws[1].pruned)
    assert not same_bits(draws[0].pruned, draws[2].pruned) and not same_bits(draws[0].pruned, like.pruned)


def test_a_pruned_filter_is_silent_and_undo_restores_every_bit() -> None:
    model = plain()
    before, images = bits(model), pictures(4).floats()
    undo = apply(model, mask_of(model, {"conv1": [0, 3], "conv2": [7]}))
    silent = model.bn1(model.conv1(model.normalise(images))).detach().abs().amax((0, 2, 3)) == 0
    assert silent.nonzero().flatten().tolist() == [0, 3]
    changed = [name for name, value in bits(model).items() if not value.equal(before[name])]
    assert changed == ["bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"]
    undo()
    assert same_bits(bits(model), before)


def test_pruned_copy_leaves_the_original_alone() -> None:
    model = network()
    before, mask = bits(model), mask_of(model, {"conv1": range(8)})
    twin = pruned_copy(model, mask)
    assert same_bits(bits(model), before)
    assert twin.state_dict()["bn1.weight"].tolist() == [0] * 8 + before["bn1.weight"][8:].tolist()


def test_a_held_mask_survives_momentum_and_weight_decay() -> None:
    model, images = plain().train(), pictures(12)
    mask = mask_of(model, {"conv1": [1], "conv2": [2, 5]})
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.1, nesterov=True)

    def step() -> list[list[int]]:
        """One optimiser step; the filters of either layer that are silent after it."""
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.floats()), images.labels).backward()
        optimizer.step()
        return [((bn.weight == 0) & (bn.bias == 0)).nonzero().flatten().tolist() for bn in (model.bn1, model.bn2)]

    assert step() == [[], []]  # and now every filter has momentum
    apply(model, mask)
    again = hold(model, mask)
    for _ in range(3):
        assert step() == [[], []], "a step alone brings pruned filters back"
        again()
        assert not any(bn.weight[pruned].any() or bn.bias[pruned].any() for bn, pruned in held(model, mask))
    assert all((bn.weight[~pruned] != 0).all() for bn, pruned in held(model, mask))


def held(model: Plain, mask: Mask) -> list[tuple[nn.BatchNorm2d, Tensor]]:
    return [(model.bn1, mask.pruned["conv1"]), (model.bn2, mask.pruned["conv2"])]


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"conv1": torch.ones(8).bool(), "conv9": torch.ones(8).bool()}, "layers that the model does not have: conv9"),
        ({"conv1": torch.ones(8).bool(), "conv2": torch.ones(9).bool()}, r"conv2 is torch.bool \[9\], .* \[8\]"),
        ({"conv1": torch.ones(8).bool(), "conv2": torch.ones(8, 1).bool()}, r"conv2 is torch.bool \[8, 1\]"),
        ({"conv1": torch.ones(8).bool(), "conv2": torch.ones(8)}, r"conv2 is torch.float32 \[8\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_and_changes_nothing(pruned: Scores, message: str) -> None:
    model = plain()
    before = bits(model)
    for door in (apply, hold, pruned_copy):
        with pytest.raises(ValueError, match=message):
            door(model, Mask(pruned))
    assert same_bits(bits(model), before)


STREAM = ("conv1", "layer1.0.conv2", "layer1.1.conv2")
"""In ResNet-18 these three add to one residual stream."""


def mask_for(name: str, model: nn.Module) -> Mask:
    """A third of the filters at random, one inner layer whole, and in ResNet-18 four channels of a whole stream."""
    units = prunable_units(model)
    mask = at_random(Mask({u.conv: torch.arange(u.filters) < u.filters // 3 for u in units}))
    whole = {
        "vgg16_bn": "0.7",
        "mobilenet_v2": "features.5.conv.0.0",
        "densenet": "features.denseblock2.denselayer1.conv1",
    }
    mask.pruned[whole.get(name, "layer2.1.conv1")][:] = True
    if name == "mobilenet_v2":
        mask.pruned["features.5.conv.1.0"][:] = True  # the depthwise convolution that the whole layer feeds
    if name == "resnet18":
        for conv in STREAM:
            mask.pruned[conv][:4] = True
    return mask


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "mobilenet_v2", "densenet"])
def test_removal_keeps_the_outputs_and_costs_less(name: str) -> None:
    model, images = network(name), pictures(6, size=32).floats()
    mask, before = mask_for(name, model), bits(model)
    small = remove(model, mask, images)
    with torch.no_grad():
        expected, found = pruned_copy(model, mask)(images), small(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().mean()))
    assert not torch.allclose(expected, model(images), rtol=0.01), "the mask changes what the model says"
    operations, parameters = zip(*(tp.utils.count_ops_and_params(m, images[:1]) for m in (model, small)), strict=True)
    assert operations[1] < 0.9 * operations[0] and parameters[1] < 0.9 * parameters[0]
    assert same_bits(bits(model), before) and not small.training


def test_a_residual_channel_goes_only_where_all_that_add_to_it_prune_it() -> None:
    model, images = network(), pictures(2, size=32).floats()
    some = remove(model, mask_of(model, {conv: [0, 1, 2] for conv in STREAM[:2]}), images)
    every = remove(model, mask_of(model, {conv: [0, 1, 2] for conv in STREAM}), images)
    shapes = [[len(m.state_dict()[f"{conv}.weight"]) for conv in STREAM] for m in (some, every)]
    assert shapes == [[16, 16, 16], [13, 13, 13]]


def test_a_layer_that_is_pruned_whole_keeps_one_silent_channel() -> None:
    model = network()
    small = remove(model, mask_of(model, {"layer3.0.conv1": range(64)}), pictures(1, size=32).floats())
    state = small.state_dict()
    assert state["layer3.0.conv1.weight"].shape[0] == state["layer3.0.conv2.weight"].shape[1] == 1
    assert state["layer3.0.bn1.weight"].tolist() == state["layer3.0.bn1.bias"].tolist() == [0]


class Grouped(nn.Module):
    """A grouped convolution whose groups are not pruned alike, and a plain one behind it; channels shuffled or not."""

    def __init__(self, groups: int, shuffled: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1, groups=groups), nn.BatchNorm2d(16)
        self.e, self.f = nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head, self.groups = nn.Linear(12, 10), groups if shuffled else 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.d(self.c(self.b(self.a(x)).relu())).relu()
        x = x.unflatten(1, (self.groups, 16 // self.groups)).transpose(1, 2).flatten(1, 2)
        return self.head(self.f(self.e(x)).relu().mean((2, 3)))


def unlike(model: nn.Module) -> nn.Module:
    """With statistics, factors and shifts that no two channels share."""
    generator = torch.Generator().manual_seed(0)
    for bn in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for values, low, high in ((bn.running_mean, -0.2, 0.2), (bn.running_var, 0.5, 2), (bn.weight, 0.5, 1.5)):
            assert values is not None
            values.detach().uniform_(low, high, generator=generator)
        bn.bias.detach().uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


UNLIKE = {
    "groups of 8": lambda: Grouped(2),
    "groups of 4": lambda: Grouped(4),
    "depthwise": lambda: Grouped(16),
    "shuffled": lambda: Grouped(2, shuffled=True),
}


@pytest.mark.parametrize("make", UNLIKE.values(), ids=UNLIKE)
def test_removal_keeps_the_outputs_of_networks_whose_channels_are_grouped(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = unlike(make()), torch.rand(2, 3, 32, 32)
    mask = at_random(Mask({u.conv: torch.arange(u.filters) < u.filters // 3 for u in prunable_units(model)}))
    small = remove(model, mask, images)
    with torch.no_grad():
        expected, found = pruned_copy(model, mask)(images), small(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (small, model)]
    assert sizes[0] < sizes[1], "what is not coupled with a group is taken out"
