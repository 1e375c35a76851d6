"""The four components and the score against plain loops that follow the formulas, in float64."""

import copy
import itertools
import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny import left_alone, network, pictures, plain, plain_correlation, plain_loss, same_bits
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.components import TERMS, Components, Scores, at_once, components, spectral_norms
from nbtools.defender.saliency import SALIENCY_LOSSES
from nbtools.defender.score import suspiciousness
from nbtools.networks.units import Unit, Units


def bn_of(conv: str) -> str:
    """The batch norm's name by the naming of ResNets, with nothing of the package asked."""
    return conv.replace("downsample.0", "downsample.1") if "downsample" in conv else conv.replace("conv", "bn")


def mobilenet_bn_of(conv: str) -> str:
    """In torchvision's MobileNetV2 (and in a Sequential) the batch norm is the next module of its parent."""
    parent, _, number = conv.rpartition(".")
    return f"{parent}.{int(number) + 1}".lstrip(".")


def convolution(model: nn.Module, name: str) -> nn.Conv2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def plain_sigma(model: nn.Module, conv: str, bn: str = "") -> Tensor:
    """One full singular value decomposition a filter, in float64; BN folded where `bn` is given."""
    values = []
    for number, weight in enumerate(convolution(model, conv).weight.detach().double()):
        sigma = torch.linalg.svd(weight.flatten(1), full_matrices=False).S[0]
        if bn:
            norm = model.get_submodule(bn)
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
            sigma = sigma * abs(norm.weight[number].item()) / math.sqrt(norm.running_var[number].item() + norm.eps)
        values.append(sigma)
    return torch.stack(values)


def measured(
    model: nn.Module, images: Images, convs: list[str], kind: str, per_image: bool
) -> tuple[Scores, Scores, Scores]:
    """Saliency, activation norm and correlation, one image after the other in float64."""
    model = copy.deepcopy(model).double()
    maps: dict[str, list[Tensor]] = defaultdict(list)
    for conv in convs:

        def look(_module: nn.Module, _inputs: object, output: Tensor, conv: str = conv) -> None:
            maps[conv].append(output.detach().clamp(min=0)[0])

        model.get_submodule(bn_of(conv)).register_forward_hook(look)
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        model.zero_grad()
        plain_loss(model(image[None].double() / 255)[0], label, kind).backward()
        for conv in convs:
            gradient = convolution(model, conv).weight.grad
            assert gradient is not None
            gradients[conv].append(gradient.clone())
    saliency, activation, correlation = {}, {}, {}
    for conv in convs:
        if per_image:
            lengths = [[part.square().sum().sqrt() for part in gradient] for gradient in gradients[conv]]
            saliency[conv] = torch.stack([torch.stack(of_filter).mean() for of_filter in zip(*lengths, strict=True)])
        else:
            mean = torch.stack(gradients[conv]).mean(0)
            saliency[conv] = torch.stack([part.square().sum().sqrt() for part in mean])
        norms = [torch.stack([part.square().sum().sqrt() for part in image]) for image in maps[conv]]
        activation[conv] = torch.stack(norms).mean(0)
        correlation[conv] = plain_correlation(torch.stack(maps[conv]))
    return saliency, activation, correlation


def assert_close(found: Scores, expected: Scores, rtol: float = 1e-5, floor: float = 0) -> None:
    """Equal to `rtol`, and where a value is that small, to `floor` of its layer's mean."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=floor * float(expected[name].mean()))


@pytest.mark.parametrize("fold_bn", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_spectral_norms_equal_a_full_svd_of_each_filter(name: str, fold_bn: bool) -> None:
    model = network(name)
    pair = mobilenet_bn_of if name == "mobilenet_v2" else bn_of  # 1x1 and depthwise convolutions in the former
    convs = [n for n, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for conv in convs:
            convolution(model, conv).weight[1] = 0
            model.state_dict()[f"{pair(conv)}.weight"][2] *= -1  # a norm is not negative
    found = spectral_norms(model, fold_bn=fold_bn)
    assert_close(found, {conv: plain_sigma(model, conv, pair(conv) if fold_bn else "") for conv in convs})
    assert all(value[1] == 0 for value in found.values())


def test_spectral_norms_of_nan_are_refused() -> None:
    model = network()
    with torch.no_grad():
        convolution(model, "conv1").weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values in conv1\.weight"):
        spectral_norms(model)


def test_spectral_norms_of_odd_kernels_and_groups() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, (1, 9)), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 5, 7), nn.BatchNorm2d(5))
    assert_close(spectral_norms(model), {n: plain_sigma(model, n, mobilenet_bn_of(n)) for n in ("0", "2", "4")})


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("kind", SALIENCY_LOSSES)
def test_components_equal_plain_loops_in_any_batches(kind: str, per_image: bool) -> None:
    model, images = network(), pictures(20)
    for batch_size in (7, 100, 0):
        found = components(model, images, kind, per_image=per_image, batch_size=batch_size)
        convs = list(found.sigma)
        assert len(convs) == 20
        assert same_bits(found.sigma, spectral_norms(model))
        # The package's pass is float32: a filter that hardly ever fires carries the rounding of its neighbours.
        for term, expected in zip(TERMS[1:], measured(model, images, convs, kind, per_image), strict=True):
            assert_close(found.of(term), expected, floor=1e-7)


@pytest.mark.parametrize(("filters", "side", "count"), [(4800, 32, 10), (1200, 32, 40), (40, 32, 100), (26560, 224, 1)])
def test_the_wider_a_network_and_the_larger_the_images_the_fewer_go_through_at_once(
    filters: int, side: int, count: int
) -> None:
    units = Units((Unit("a", "b", filters // 2, (3, 3)), Unit("c", "d", filters // 2, (3, 3))), ())
    images = Images(torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    assert at_once(units, images) == count


@pytest.mark.parametrize("state", ["eval", "train", "frozen", "partly in train mode", "fails"])
def test_components_leave_the_model_as_it_was(state: str) -> None:
    model, images = plain(), pictures(6)
    model.train(state != "eval")
    model.bn1.train(state in ("train", "fails"))
    model.conv1.weight.requires_grad_(state != "frozen")
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    if state == "fails":
        model.fc.register_forward_hook(lambda *_: 1 / 0)
    with left_alone(model, images), pytest.raises(ZeroDivisionError) if state == "fails" else nullcontext():
        components(model, images)


def drawn_components(seed: int = 0) -> Components:
    """Components of two layers, nine and four filters, one of them dead and one layer without any activation."""
    generator = torch.Generator().manual_seed(seed)
    units = Units((Unit("first", "bn1", 9, (3, 3)), Unit("second", "bn2", 4, (1, 1))), ())
    drawn = {
        term: {u.conv: torch.rand(u.filters, dtype=torch.float64, generator=generator) * 7 for u in units}
        for term in TERMS
    }
    for term in TERMS:
        drawn[term]["first"][2] = 0 if term != "sigma" else 1
    drawn["activation"]["second"][:] = 0
    return Components(**drawn, units=units)


def plain_score(parts: Components, conv: str, powers: dict[str, float], normalise: bool) -> list[float]:
    """S_i, a filter at a time."""
    result = []
    for i in range(len(parts.sigma[conv])):
        value = 1.0
        for term, power in powers.items():
            layer = parts.of(term)[conv].tolist()
            mean = sum(layer) / len(layer)
            z = layer[i] / mean if normalise and mean else layer[i]
            value *= math.pow(z if term == "sigma" else z + 0.01, power)
        result.append(value)
    return result


def test_the_score_is_the_formula() -> None:
    parts, e = drawn_components(), 0.01
    s, a, r = (parts.of(term)["first"] / parts.of(term)["first"].mean() for term in TERMS[1:])
    sigma = parts.sigma["first"] / parts.sigma["first"].mean()
    expected = sigma * torch.sqrt(1 / ((s + e) * (a + e) * (r + e)))
    torch.testing.assert_close(suspiciousness(parts)["first"], expected, rtol=1e-12, atol=0)
    assert expected.argmax() == 2, "a filter that does nothing on clean images is the most suspicious"


@pytest.mark.parametrize("normalise", [True, False])
def test_every_variant_of_the_score_equals_the_formula_by_hand(normalise: bool) -> None:
    parts = drawn_components()
    for drawn in itertools.product((-1, -0.5, 0, 1), repeat=4):
        powers: dict[str, float] = dict(zip(TERMS, drawn, strict=True))
        found = suspiciousness(parts, powers, normalise)
        for conv, value in found.items():
            assert value.tolist() == pytest.approx(plain_score(parts, conv, powers, normalise), rel=1e-9)
        given = {term: power for term, power in powers.items() if power}
        assert same_bits(suspiciousness(parts, given, normalise), found), "a missing term is left out"


def test_a_normalised_score_does_not_depend_on_units() -> None:
    parts = drawn_components()
    scaled = replace(parts, saliency={name: 1000 * value for name, value in parts.saliency.items()})
    assert_close(suspiciousness(scaled), suspiciousness(parts), rtol=1e-9)


@pytest.mark.parametrize(("powers", "named"), [({"sigma": math.inf}, "'sigma': inf"), ({"entropy": 1}, "'entropy': 1")])
def test_unknown_terms_and_powers_are_refused(powers: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"to a finite number, got {named}"):
        suspiciousness(drawn_components(), powers)


def test_a_model_with_fewer_classes_than_the_images_is_refused() -> None:
    images = pictures(8)
    more = Images(images.images, images.labels, (*images.classes, "a fifth"))
    with pytest.raises(ValueError, match="tells 4 classes apart, the clean images have 5"):
        components(plain(), more)
