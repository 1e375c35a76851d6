"""Magnitude, saliency and their rank correlation against plain loops; the detector's statistic, ROC and verdict."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tiny import left_alone, network, pictures, plain
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.components import Scores
from nbtools.defender.detection import FORMS, detector_statistic, detector_statistics, judge, roc_auc
from nbtools.defender.magnitude import (
    last_stage,
    magnitude_saliency,
    magnitudes,
    rank_correlations,
    rank_residuals,
    saliencies,
    saliencies_of_sets,
)
from nbtools.networks.units import prunable_units


def modules(model: nn.Module, conv: str, bn: str) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    first, second = model.get_submodule(conv), model.get_submodule(bn)
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
    return first, second


def plain_clean_loss(model: nn.Module, clean: Images) -> float:
    """Mean cross-entropy, one image after the other in float64."""
    losses = []
    for image, label in zip(clean.images, clean.labels.tolist(), strict=True):
        logits = model(image[None].double() / 255)[0]
        losses.append(float(logits.exp().sum().log() - logits[label]))
    return sum(losses) / len(losses)


@torch.no_grad()
def plain_saliency(model: nn.Module, clean: Images, bn: str, factors: tuple[float, float]) -> Tensor:
    """Loss with gamma and beta of each filter times one factor, minus that with the other."""
    values = []
    for i in range(len(model.state_dict()[f"{bn}.weight"])):
        found = []
        for factor in factors:
            twin = copy.deepcopy(model).double().eval()
            state = twin.state_dict()
            state[f"{bn}.weight"][i] *= factor
            state[f"{bn}.bias"][i] *= factor
            found.append(plain_clean_loss(twin, clean))
        values.append(found[0] - found[1])
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("norm", "fold_bn"), [("l1", False), ("l2", False), ("l1", True), ("l2", True)])
def test_magnitudes_are_the_norms_of_the_filters_weights(norm: str, fold_bn: bool) -> None:
    model = network("preact_resnet18")
    units = prunable_units(model)
    found = magnitudes(model, units, norm, fold_bn)
    assert list(found) == [unit.conv for unit in units]
    for unit in units:
        conv, bn = modules(model, unit.conv, unit.bn)
        assert bn.running_var is not None
        for i, value in enumerate(found[unit.conv].tolist()):
            numbers = conv.weight[i].flatten().tolist()
            expected = sum(map(abs, numbers)) if norm == "l1" else math.sqrt(sum(w * w for w in numbers))
            if fold_bn:
                expected *= abs(float(bn.weight.detach()[i])) / math.sqrt(float(bn.running_var[i]) + bn.eps)
            assert value == pytest.approx(expected, rel=1e-5)


def test_exact_saliency_is_what_zeroing_each_filter_costs() -> None:
    model, clean = plain(), pictures(7)
    for batch_size in (250, 3):
        found = saliencies(model, clean, exact=True, batch_size=batch_size)
        for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
            torch.testing.assert_close(found[conv], plain_saliency(model, clean, bn, (0, 1)), rtol=0, atol=1e-6)
            assert bool((found[conv] < 0).any()), "a filter may stand in the way of the clean task"


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "densenet"])
def test_exact_saliency_in_a_network_with_shortcuts_and_in_place_layers(name: str) -> None:
    model, clean = network(name), pictures(3, size=32 if name == "densenet" else 8)
    found = saliencies(model, clean, exact=True)
    logits = model(clean.floats())
    before = F.cross_entropy(logits.double(), clean.labels)
    for unit in prunable_units(model).pairs[::3]:
        for i in (0, unit.filters - 1):
            twin = copy.deepcopy(model)
            state = twin.state_dict()
            state[f"{unit.bn}.weight"][i] = state[f"{unit.bn}.bias"][i] = 0
            cost = F.cross_entropy(twin(clean.floats()).double(), clean.labels) - before
            assert float(found[unit.conv][i]) == pytest.approx(float(cost), abs=2e-6)


def test_fast_saliency_is_the_size_of_the_derivative_by_finite_differences() -> None:
    model, clean, step = plain(), pictures(6), 1e-4
    for batch_size in (250, 4):
        found = saliencies(model, clean, batch_size=batch_size)
        for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
            slope = plain_saliency(model, clean, bn, (1 + step, 1 - step)) / (2 * step)
            torch.testing.assert_close(found[conv], slope.abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch_size", [50, 3])
def test_saliencies_of_sets_are_those_of_each_set_alone_and_each_image_is_passed_once(batch_size: int) -> None:
    model, clean = plain(), pictures(20)
    sets = torch.rand(5, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    sets[0], sets[4], sets[:, 7] = True, ~sets[3], False  # all, a set and its complement, an image in none
    seen: list[int] = []
    model.conv1.register_forward_hook(lambda _conv, inputs, _output: seen.append(len(inputs[0])))
    found = saliencies_of_sets(model, clean, sets, batch_size)
    assert sum(seen) == 19 and max(seen) <= batch_size
    for chosen, scores in zip(sets, found, strict=True):
        alone = saliencies(model, clean.subset(chosen))
        assert scores.keys() == alone.keys()
        for name, values in alone.items():
            torch.testing.assert_close(scores[name], values, rtol=1e-5, atol=1e-8)


def test_a_filter_that_does_nothing_has_no_saliency() -> None:
    model, clean = plain(), pictures(8)
    with torch.no_grad():
        model.bn2.weight[3] = model.bn2.bias[3] = 0
    for exact in (True, False):
        found = saliencies(model, clean, exact)["conv2"]
        assert abs(found[3]) < 1e-7 < found[:3].abs().amax()


@pytest.mark.parametrize("exact", [True, False])
def test_measuring_leaves_the_model_as_it_was(exact: bool) -> None:
    model, clean = plain().train(), pictures(5)
    model.conv1.weight.requires_grad_(False)
    with left_alone(model, clean), torch.no_grad():
        detector_statistic(model, clean, exact=exact)
        saliencies_of_sets(model, clean, torch.ones(1, 5, dtype=torch.bool))


def drawn(ties: bool = True) -> tuple[Scores, Scores]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 4 if ties else 10**9, (4, 30), generator=generator).double()
    return {"a": numbers[0], "b": numbers[1]}, {"a": numbers[2], "b": numbers[3] + numbers[1]}


@pytest.mark.parametrize("ties", [True, False])
def test_rank_correlations_are_scipys_with_ties_too(ties: bool) -> None:
    magnitude, saliency = drawn(ties)
    found = rank_correlations(magnitude, saliency)
    for name, value in found.items():
        expected: Any = spearmanr(magnitude[name], saliency[name])
        assert value == pytest.approx(expected[0], abs=1e-12)
    assert found["b"] > 0.3 > found["a"]


def test_a_layer_without_spread_is_left_out() -> None:
    magnitude, saliency = drawn()
    saliency["a"][:] = 3
    assert list(rank_correlations(magnitude, saliency)) == list(rank_residuals(magnitude, saliency)) == ["b"]


def test_residuals_are_those_of_a_least_squares_line_through_the_ranks() -> None:
    magnitude, saliency = drawn(ties=False)
    for name, found in rank_residuals(magnitude, saliency).items():
        first, second = (values[name].argsort().argsort().double() for values in (magnitude, saliency))
        design = torch.stack([first, torch.ones_like(first)], 1)
        residual = design @ torch.linalg.lstsq(design, second[:, None]).solution[:, 0] - second
        torch.testing.assert_close(found, residual / residual.std(correction=0))


def test_a_large_filter_that_matters_to_no_clean_image_stands_out() -> None:
    magnitude = {"a": torch.arange(20).double()}
    saliency = {"a": torch.arange(20).double()}
    assert not rank_residuals(magnitude, saliency)["a"].any() and rank_correlations(magnitude, saliency)["a"] > 0.999
    saliency["a"][17] = -1
    residual = rank_residuals(magnitude, saliency)["a"]
    assert residual.argmax() == 17 and residual[17] > 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [f"layer4.{n}" for n in ("0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2")]),
        ("preact_resnet18", ["layer4.0.conv1", "layer4.1.conv1"]),
    ],
)
def test_the_last_stage_of_a_resnet_is_its_layer4(name: str, expected: list[str]) -> None:
    assert last_stage(network(name), pictures(2)) == expected


def test_the_last_stage_is_read_from_the_maps_not_from_names() -> None:
    found = last_stage(network("vgg16_bn"), pictures(2, size=32))
    assert len(found) == 3 and found == list(magnitudes(network("vgg16_bn")))[-3:]


def test_each_statistic_is_its_formula() -> None:
    model, clean = network(), pictures(4, size=8)
    rho = magnitude_saliency(model, clean, "l2", True)
    last = [value for name, value in rho.items() if name.startswith("layer4")]
    first = [rho[name] for name in magnitudes(model) if name.startswith(("conv1", "layer1", "layer2"))]
    found = {form: detector_statistic(model, clean, form, "l2", True) for form in FORMS}
    assert detector_statistics(model, clean, "l2", True) == found
    assert found["last stage mean"] == pytest.approx(1 - sum(last) / 5)
    assert found["first half mean"] == pytest.approx(1 - sum(first[:10]) / 10)
    assert found["minimum"] == pytest.approx(1 - min(rho.values()))
    residuals = rank_residuals(magnitudes(model, None, "l2", True), saliencies(model, clean))
    assert found["largest residual"] == pytest.approx(max(float(part.max()) for part in residuals.values()))


def test_a_filter_that_grows_and_does_no_clean_work_raises_the_statistic() -> None:
    """What a backdoor does to the correlation, by hand: large weights, and nothing handed on for clean images."""
    model, clean = plain(), pictures(12)
    with (
        torch.no_grad()
    ):  # magnitude and saliency agree in the second layer: each filter's output grows with its weight
        order = saliencies(model, clean)["conv2"].argsort().argsort().float()
        model.conv2.weight.div_(model.conv2.weight.abs().sum((1, 2, 3), keepdim=True))
        model.conv2.weight.mul_(1 + order[:, None, None, None])
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.conv2.weight[:3] *= 100
        changed.fc.weight[:, :3] = 0
    assert detector_statistic(changed, clean) > detector_statistic(model, clean) + 0.1


def test_the_area_counts_pairs_and_ties_half() -> None:
    clean, backdoored = [0.1, 0.4, 0.4, 0.9, 0.2], [0.4, 0.8, 1.3, 0.1]
    won = [1.0 if b > c else 0.5 if b == c else 0.0 for b in backdoored for c in clean]
    area, (low, high) = roc_auc(clean, backdoored)
    assert area == pytest.approx(sum(won) / 20) and low < area < high
    turned, (left, right) = roc_auc(backdoored, clean)
    assert (turned, left, right) == pytest.approx((1 - area, 1 - high, 1 - low))


def test_the_interval_keeps_a_width_without_errors_and_narrows_with_more_models() -> None:
    widths = []
    for models in (2, 5, 20, 100):
        area, (low, high) = roc_auc(range(models), range(1000, 1000 + models))
        assert area == high == 1 and 0 <= low < 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and widths[0] > 0.5 and widths[-1] < 0.05
    assert roc_auc([2], [1])[0] == roc_auc([2], [1])[1][0] == 0
    wide, narrow = (roc_auc([1, 2, 3, 4], [2, 3, 4, 5], level)[1] for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_covers_the_true_area_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(200, 2, 12, generator=generator, dtype=torch.float64)
    true = 0.5 * (1 + math.erf(1.5 / 2))  # P(N(1.5, 1) > N(0, 1))
    hits = [low <= true <= high for a, b in normals for low, high in [roc_auc(a.tolist(), (b + 1.5).tolist())[1]]]
    assert 0.92 < sum(hits) / len(hits) < 0.99


def test_a_verdict_counts_clean_models() -> None:
    verdict = judge(3, [1, 2, 3, 4])
    assert (verdict.statistic, verdict.models, verdict.quantile) == (3, 4, 0.5)
    assert verdict.p_value == 3 / 5 and verdict.interval[0] < 0.5 < verdict.interval[1]
    sure, doubtful = judge(9, range(8)), judge(9, [1])
    assert sure.p_value == 1 / 9 < doubtful.p_value == 1 / 2
    assert sure.interval == pytest.approx((0, 1 - 0.025 ** (1 / 8)), abs=1e-9)
    assert doubtful.interval[1] == pytest.approx(0.975)


def unlike() -> Images:
    images = pictures(8)
    return Images(images.images, images.labels, (*images.classes, "a fifth"))


def broken() -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.bn1.weight[0] = math.nan
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: saliencies(plain(), pictures(4).subset(torch.arange(0))), "there are no clean images"),
        (lambda: saliencies(broken(), pictures(4)), "NaN or infinite values in bn1.weight"),
        (lambda: saliencies(plain(), unlike()), "tells 4 classes apart, the clean images have 5"),
        (lambda: saliencies(plain(), unlike(), True), "tells 4 classes apart, the clean images have 5"),
        (lambda: saliencies(nn.Sequential(nn.Conv2d(3, 4, 3)), pictures(4)), "no convolution that is followed by a"),
        (lambda: saliencies_of_sets(plain(), pictures(4), torch.zeros(2, 4) > 0), r"one image, got sets of \[0, 0\]"),
        (lambda: magnitudes(plain(), norm="l3"), "unknown norm 'l3'; known: l1, l2"),
        (lambda: detector_statistic(plain(), pictures(4), "mean"), "unknown form 'mean'; known: last stage mean"),
        (lambda: roc_auc([], [1]), "at least one model of each kind"),
        (lambda: roc_auc([1], [math.nan]), "none NaN, got"),
        (lambda: roc_auc([1], [2], 1), "level must lie in"),
        (lambda: judge(math.nan, [1]), "none NaN, got"),
        (lambda: judge(1, []), "at least one model of each kind"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("clean", [pictures(1), pictures(16).of_class(2)], ids=["one image", "one class"])
@pytest.mark.parametrize("form", FORMS)
def test_little_input_is_enough(clean: Images, form: str) -> None:
    assert math.isfinite(detector_statistic(plain(), clean, form))


def test_a_layer_that_nothing_depends_on_has_no_statistic() -> None:
    model = plain()
    nn.init.zeros_(model.fc.weight)
    with pytest.raises(ValueError, match="no layer has a magnitude-saliency correlation"):
        detector_statistic(model, pictures(4))
