"""Pruned filters cut out: never another answer, on images that nothing was compared with; and what stays says why."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, mask_of, network, pictures, plain, same_bits, settled
from torch import Tensor, nn
from torchvision.models import EfficientNet, MobileNetV3, RegNet, ResNet, ShuffleNetV2
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

from nbtools.defender.pruning import Mask, at_random, pruned_copy, removal, remove
from nbtools.defender.removal import Removal
from nbtools.networks.units import prunable_units


def third(model: nn.Module) -> Mask:
    """A third of each layer's filters, drawn at random."""
    return at_random(Mask({u.conv: torch.arange(u.filters) < u.filters // 3 for u in prunable_units(model)}))


def silent(model: nn.Module) -> int:
    """Filters whose batch norm holds zeros."""
    norms = [model.get_submodule(unit.bn) for unit in prunable_units(model)]
    return sum(int(((norm.weight == 0) & (norm.bias == 0)).sum()) for norm in norms)  # type: ignore[operator]


def checked(model: nn.Module, mask: Mask, images: Tensor) -> Removal:
    """What was removed; the smaller network answers as the pruned one in float64 on other images than those given."""
    found, pruned = removal(model, mask, images), pruned_copy(model, mask).eval()
    generator = torch.Generator().manual_seed(7)
    for low, high in ((0, 1), (-3, 3), (0, 0.01)):
        other = torch.empty(3, *images.shape[1:], dtype=torch.float64).uniform_(low, high, generator=generator)
        with torch.no_grad():
            wanted, got = copy.deepcopy(pruned).double()(other), copy.deepcopy(found.model).double()(other)
        assert float((got - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())
    assert found.pruned == mask.count and all(part.filters > 0 and part.reason for part in found.left)
    assert silent(found.model) == sum(part.filters for part in found.left) == found.pruned - found.removed
    return found


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def mobilenet_v3() -> nn.Module:
    rows = [(16, 3, 16, 16, True, "RE", 2, 1), (16, 3, 40, 24, False, "RE", 2, 1), (24, 5, 48, 24, True, "HS", 1, 1)]
    return MobileNetV3([InvertedResidualConfig(*row, 1.0) for row in rows], 32, 4)


def efficientnet() -> nn.Module:
    rows = [(1, 3, 1, 16, 16, 1), (4, 3, 2, 16, 24, 1), (4, 5, 1, 24, 24, 1)]
    return EfficientNet([MBConvConfig(*row, 1.0, 1.0) for row in rows], 0.0, num_classes=4, last_channel=48)


def regnet() -> nn.Module:
    return RegNet(BlockParams.from_init_params(3, 32, 36.0, 2.5, 16, se_ratio=0.25), num_classes=4)


ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], float, str]] = {
    "resnet18": (network, 0.4, "reads something else in their channels"),
    "resnext": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 4, groups=4, width_per_group=4), 0.2, "each of the 4 groups"),
    "mobilenet_v3": (mobilenet_v3, 0.4, "reads something else in their channels"),
    "efficientnet": (efficientnet, 0.4, "reads something else in their channels"),
    "regnet": (regnet, 0.02, "groups of trunk_output"),
    "densenet": (lambda: network("densenet"), 0.8, ""),
    "shufflenet": (lambda: ShuffleNetV2([1, 1, 1], [8, 16, 16, 16, 16], 4), 0.0, "torch-pruning can't cut them out"),
}
"""Of networks as torchvision builds them, thin: the share of the pruned filters that goes at least, and what stays."""


@pytest.mark.parametrize("name", ELSEWHERE)
def test_networks_of_torchvision_get_smaller_and_answer_the_same(name: str) -> None:
    make, least, reason = ELSEWHERE[name]
    torch.manual_seed(0)
    model = settled(make())
    before = bits(model)
    found = checked(model, third(model), torch.rand(2, 3, 32, 32))
    assert found.removed >= least * found.pruned and any(reason in part.reason for part in found.left)
    assert (parameters(found.model) < parameters(model)) == (found.removed > 0)
    assert same_bits(bits(model), before) and not found.model.training


class Behind(nn.Module):
    """A convolution-BN pair, something behind it, and a second pair that takes what it gives."""

    def __init__(self, what: Callable[[Tensor], Tensor], padding: int = 0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.what = what
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=padding), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.what(self.bn1(self.conv1(x)))))
        return self.fc(x.relu().mean((2, 3)))


class ChannelsLast(nn.Module):
    """A LayerNorm over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def root_mean_square(x: Tensor) -> Tensor:
    """Keeps zeros, but what the other channels become depends on how many there are."""
    return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()


KEEPING: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "max-pooling": lambda: nn.MaxPool2d(3, 2, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "a gate": lambda: lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "prelu": lambda: nn.PReLU(8),
}
CHANGING: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], str]] = {
    "sigmoid": (nn.Sigmoid, "conv2 gets the constant 0.5, not 0"),
    "softplus": (nn.Softplus, "conv2 gets the constant 0.693, not 0"),
    "hard-sigmoid": (nn.Hardsigmoid, "conv2 gets the constant 0.5, not 0"),
    "cosine": (lambda: torch.cos, "conv2 gets the constant 1, not 0"),
    "padding": (lambda: lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "conv2 reads something else in their channels"),
    "LayerNorm": (ChannelsLast, "conv2 reads something else in their channels"),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), "conv2 reads something else in their channels"),
    "softmax": (lambda: nn.Softmax(1), "conv2 reads something else in their channels"),
    "mean": (lambda: lambda x: x - x.mean(1, keepdim=True), "conv2 reads something else in their channels"),
    "root mean square": (lambda: root_mean_square, "without them conv2 would give something else"),
    "neighbours": (lambda: nn.LocalResponseNorm(3, 1.0), "without them conv2 would give something else"),
}


@pytest.mark.parametrize("what", KEEPING)
def test_behind_what_keeps_zero_all_pruned_filters_go(what: str) -> None:
    torch.manual_seed(0)
    model = settled(Behind(KEEPING[what]()))
    found = checked(model, mask_of(model, {"conv1": [1, 6], "conv2": [0]}), torch.rand(2, 3, 12, 12))
    assert (found.removed, found.left) == (3, ())
    assert [len(found.model.get_parameter(f"{name}.weight")) for name in ("conv1", "conv2")] == [6, 7]


@pytest.mark.parametrize("what", CHANGING)
def test_behind_what_makes_something_of_zero_they_stay_and_the_record_says_why(what: str) -> None:
    torch.manual_seed(0)
    make, reason = CHANGING[what]
    model = settled(Behind(make()))
    found = checked(model, mask_of(model, {"conv1": [1, 6], "conv2": [0]}), torch.rand(2, 3, 12, 12))
    (left,) = found.left
    assert (left.conv, left.filters, found.removed) == ("conv1", 2, 1) and reason in left.reason
    assert repr(found) == "Removal(1 of 3 pruned filters)"


@pytest.mark.parametrize("hidden", ["tiny weights", "dark images", "a closed ReLU"])
def test_a_difference_that_the_outputs_do_not_show_is_seen(hidden: str) -> None:
    """Behind a sigmoid pruned filters give 0.5: not seen in the logits of these images, but in those of others."""

    class Dark(Behind):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (x.mean((1, 2, 3)) - 10).relu()[:, None]

    torch.manual_seed(0)
    model = settled((Dark if hidden == "dark images" else Behind)(nn.Sigmoid()))
    with torch.no_grad():
        if hidden == "tiny weights":
            model.get_parameter("conv2.weight")[:, [1, 6]] *= 1e-9
        elif hidden == "a closed ReLU":
            model.get_parameter("bn2.bias").fill_(-100.0)
    found = removal(model, mask_of(model, {"conv1": [1, 6]}), torch.rand(2, 3, 12, 12))
    assert found.removed == 0 and "the constant 0.5" in found.left[0].reason


def test_filters_that_are_only_asleep_on_these_images_are_not_taken_for_pruned() -> None:
    """What is added to the pruned channels is 0 on all images that are compared with, and not on others."""

    class Twice(Behind):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.aside = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(x)).relu() + (self.aside(x) - 4).relu()
            return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, images = settled(Twice()), torch.rand(2, 3, 12, 12)
    found = removal(model, mask_of(model, {"conv1": [1, 6]}), images)
    assert found.removed == 0 and "something else" in found.left[0].reason
    with torch.no_grad():
        aside = model.get_submodule("aside")
        assert not (aside(images) > 4).any() and (aside(100 * images) > 4).any()


class Depthwise(nn.Module):
    """Two pairs, the second depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3)))


def test_a_depthwise_filter_takes_the_one_that_feeds_it_along_and_not_the_other_way_round() -> None:
    torch.manual_seed(0)
    model = settled(Depthwise())
    found = checked(model, mask_of(model, {"conv1": [0, 1], "conv2": [1, 2, 3]}), torch.rand(2, 3, 8, 8))
    (left,) = found.left
    assert (left.conv, left.filters, found.removed) == ("conv1", 1, 4)
    small = found.model
    assert [len(small.get_parameter(f"{name}.weight")) for name in ("conv1", "conv2")] == [5, 5]
    assert small.get_parameter("conv1.weight").equal(model.get_parameter("conv1.weight")[[0, 4, 5, 6, 7]])


class Groups(nn.Module):
    """Pairs before and in a convolution of four groups of four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("first", "second", "shapes", "left"),
    [
        ([0, 5, 10, 15], [], [12, 16, 3], 0),  # another place in each group
        ([0, 1, 5, 6, 7, 10, 15], [3, 4, 8, 9, 12], [12, 12, 3], 4),
        ([0, 1, 2, 3], [], [16, 16, 4], 4),  # all of one group, none of the others
        (range(16), range(16), [4, 4, 1], 8),
    ],
)
def test_each_group_loses_as_many_channels_as_the_others(
    first: Sequence[int], second: Sequence[int], shapes: list[int], left: int
) -> None:
    torch.manual_seed(0)
    model = settled(Groups())
    found = checked(model, mask_of(model, {"conv1": first, "conv2": second}), torch.rand(2, 3, 8, 8))
    weights = [found.model.get_parameter(f"{name}.weight") for name in ("conv1", "conv2")]
    assert [len(weights[0]), len(weights[1]), weights[1].shape[1]] == shapes
    assert found.pruned - found.removed == left


def test_a_layer_that_is_pruned_whole_says_that_it_must_keep_one() -> None:
    model = plain()
    found = checked(model, mask_of(model, {"conv1": range(8)}), pictures(2).floats())
    (left,) = found.left
    assert (left.conv, left.filters, left.reason) == ("conv1", 1, "a layer must keep one channel")


def test_a_network_that_can_not_be_checked_stays_as_it_is() -> None:
    class Own(Depthwise):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())  # so it can't be computed in float64

    torch.manual_seed(0)
    model, images = settled(Own()), torch.rand(2, 3, 8, 8)
    mask = mask_of(model, {"conv1": [0], "conv2": [0]})
    found = removal(model, mask, images)
    assert found.removed == 0 and {part.conv for part in found.left} == {"conv1", "conv2"}
    assert all("the network can't be checked" in part.reason for part in found.left)
    assert same_bits(bits(found.model), bits(pruned_copy(model, mask)))


def test_what_is_not_cut_keeps_its_bits_and_its_type() -> None:
    model = plain()
    model.fc.bias.data = model.fc.bias.data + 1e-7
    small = remove(model, mask_of(model, {"conv2": [2]}), pictures(2).floats())
    wanted, kept = model.state_dict(), [0, 1, 3, 4, 5, 6, 7]
    for name, value in small.state_dict().items():
        old = wanted[name]
        if name.startswith(("conv2", "bn2")) and old.ndim:
            old = old[kept]
        elif name == "fc.weight":
            old = old[:, kept]
        assert value.dtype == old.dtype and value.equal(old), name
