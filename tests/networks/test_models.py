"""The networks against torchvision's layers, and the convolution-BN pairs against what a forward pass really does."""

import copy
from collections.abc import Callable

import pytest
import torch
from flowing import pairs_of_a_forward_pass
from torch import Tensor, nn
from torchvision import models as zoo

from nbtools.networks.architectures import (
    ARCHITECTURES,
    MEAN,
    STD,
    Normalise,
    PreActBlock,
    PreActResNet18,
    ResNet18,
    make_model,
)
from nbtools.networks.units import check_finite, layers_of, prunable_units
from nbtools.settings import STRIDES


@pytest.mark.parametrize(
    ("build", "pairs", "alone", "filters"),
    [
        (ResNet18, 20, 0, 4800),
        (PreActResNet18, 8, 12, 1920),
        (zoo.resnet18, 20, 0, 4800),
        (zoo.resnet50, 53, 0, 26560),
        (zoo.vgg16_bn, 13, 0, 4224),
        (zoo.densenet121, 59, 61, 7488),
        (zoo.mobilenet_v2, 52, 0, 17056),
    ],
)
def test_pairs_are_those_of_a_forward_pass(
    build: Callable[[], nn.Module], pairs: int, alone: int, filters: int
) -> None:
    with torch.device("meta"):  # shapes without numbers: the largest of these would take half a gigabyte
        model = build()
    units = prunable_units(model)
    assert (len(units), len(units.without_bn), sum(unit.filters for unit in units)) == (pairs, alone, filters)
    expected_pairs, expected_alone = pairs_of_a_forward_pass(model)
    assert [(unit.conv, unit.bn) for unit in units] == expected_pairs
    assert list(units.without_bn) == expected_alone
    for unit, conv, bn in layers_of(model, units):
        assert unit.filters == conv.out_channels == bn.num_features and unit.kernel == conv.kernel_size


def test_known_pairs_of_the_two_resnets() -> None:
    plain, preact = (prunable_units(make_model(name, width=16)) for name in ("resnet18", "preact_resnet18"))
    assert plain.pairs[0].conv == "conv1" and plain.pairs[0].bn == "bn1"
    assert [u.conv for u in plain if u.shortcut] == [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert [[u.conv for u in units if u.first] for units in (plain, preact)] == [["conv1"], ["layer1.0.conv1"]]
    assert {(u.conv, u.bn) for u in preact} == {
        (f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.bn2") for stage in (1, 2, 3, 4) for block in (0, 1)
    }, "in a pre-activation block only the first convolution has a batch norm to itself"
    assert {"conv1", "layer1.0.conv2", "layer2.0.shortcut"} <= set(preact.without_bn)


@pytest.mark.parametrize(
    ("build", "shortcuts"),
    [
        (lambda: zoo.resnet50(), [f"layer{stage}.0.downsample.0" for stage in (1, 2, 3, 4)]),
        (lambda: zoo.mobilenet_v2(), []),
        (lambda: zoo.vgg11_bn(), []),
    ],
)
def test_a_shortcut_is_no_1x1_convolution_of_the_main_path(
    build: Callable[[], nn.Module], shortcuts: list[str]
) -> None:
    with torch.device("meta"):
        assert [unit.conv for unit in prunable_units(build()) if unit.shortcut] == shortcuts


@pytest.mark.parametrize(
    "name", sorted(set(ARCHITECTURES) - {"densenet"})
)  # whose blocks run in the order of registration
def test_the_order_of_registration_does_not_matter(name: str) -> None:
    model = make_model(name, width=16)
    expected = prunable_units(model)
    for module in model.modules():
        if not isinstance(module, nn.Sequential):  # whose order is its forward pass
            module._modules = dict(reversed(module._modules.items()))
    assert next(model.named_children())[0] in ("fc", "network"), "the last has become the first"
    assert prunable_units(model) == expected


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), "torch.fx can't trace Branching .* must not branch on values"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), r"followed by a batch norm \(1 convolutions"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
            r"followed by a batch norm \(1 convolutions",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), r"Sequential has no convolution .* \(0 convolutions"),
    ],
)
def test_a_model_without_pairs_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prunable_units(model)


def test_resnet18_is_torchvisions_behind_the_normalisation() -> None:
    theirs, ours = zoo.resnet18(num_classes=10).eval(), ResNet18().eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore[assignment]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 11_173_962
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["normalise.mean", "normalise.std"] and not missing.unexpected_keys
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs((images - mean) / std), rtol=1e-4, atol=1e-5)


def test_preact_resnet18_by_hand() -> None:
    model = PreActResNet18(num_classes=7, width=16).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x = model.conv1(Normalise()(images))
        for block in model.modules():
            if isinstance(block, PreActBlock):
                ready = block.bn1(x).relu()
                kept = block.shortcut(ready) if block.shortcut else x
                x = kept + block.conv2(block.bn2(block.conv1(ready)).relu())
        assert x.shape == (2, 128, 4, 4)
        torch.testing.assert_close(model(images), model.fc(model.bn(x).relu().mean((2, 3))))


RESNETS = ("resnet18", "resnet34", "preact_resnet18")


@pytest.mark.parametrize("name", RESNETS)
def test_width_and_classes_scale_the_network(name: str) -> None:
    model = make_model(name, num_classes=7, width=16)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert model.get_parameter("layer4.1.conv2.weight").shape == (128, 128, 3, 3)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    torch.manual_seed(0)
    first = make_model(name, width=16)
    torch.manual_seed(0)
    for ours, again in zip(first.parameters(), make_model(name, width=16).parameters(), strict=True):
        assert ours.equal(again)


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(("strides", "sizes"), [(STRIDES, [32, 16, 8, 4]), ((1, 2, 2, 2, 1), [16, 8, 4, 4])])
def test_strides_set_the_size_of_each_stages_maps(name: str, strides: tuple[int, ...], sizes: list[int]) -> None:
    model, seen = make_model(name, width=16, strides=strides), list[int]()
    for stage in (1, 2, 3, 4):
        model.get_submodule(f"layer{stage}").register_forward_hook(lambda _m, _i, maps: seen.append(maps.shape[2]))
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert seen == sizes


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'vgg'; known: resnet18, resnet34, preact"):
        make_model("vgg")


def test_nan_and_infinite_weights_are_named() -> None:
    model = ResNet18(width=16)
    check_finite(model)
    broken = copy.deepcopy(model)
    broken.get_parameter("layer1.0.conv1.weight").data[0, 0, 0, 0] = torch.nan
    broken.get_buffer("bn1.running_var")[1] = torch.inf
    with pytest.raises(ValueError, match=r"NaN or infinite values in bn1.running_var, layer1.0.conv1.weight; its"):
        check_finite(broken)
    for parameter in broken.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"in conv1.weight, bn1.weight, bn1.bias and 60 more"):
        check_finite(broken)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_a_width_that_crashes_the_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"at least 16.*oneDNN"):
        make_model(name, width=8)
    with pytest.raises(ValueError, match="5 numbers"):
        make_model(name, width=16, strides=(1, 2))


@pytest.mark.parametrize(
    ("name", "published", "less"),
    [
        ("resnet34", zoo.resnet34, 64 * 3 * (49 - 9)),  # a stem of 3 x 3
        ("vgg16_bn", lambda num_classes: zoo.vgg16_bn().features, -(512 + 1) * 10),  # and a linear layer of ours
        ("mobilenet_v2", zoo.mobilenet_v2, 0),
    ],
)
def test_at_width_64_a_network_has_its_papers_parameters(
    name: str, published: Callable[..., nn.Module], less: int
) -> None:
    with torch.device("meta"):
        mine, theirs = make_model(name), published(num_classes=10)
    count = [sum(p.numel() for p in model.parameters()) for model in (mine, theirs)]
    assert count[0] == count[1] - less


@pytest.mark.parametrize("strides", [STRIDES, (1, 2, 2, 2, 2)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_takes_small_images_and_has_filters_to_prune(name: str, strides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make_model(name, 7, width=16, strides=strides).eval()
    images = torch.rand(2, 3, 32, 32)
    found = model(images)
    assert found.shape == (2, 7) and found.isfinite().all() and not found[0].allclose(found[1])
    assert sum(unit.filters for unit in prunable_units(model)) > 300
    with pytest.raises(ValueError, match="width must be at least 16"):
        make_model(name, width=8)
