"""What the evaluator reports, against models whose every answer is known, formulas by hand, and plain loops."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nbtools.attacker.triggers import ALL_TO_ALL, BadNets, Trigger, WaNet, stamp
from nbtools.data.images import Images, to_floats
from nbtools.evaluator.agreement import agreement, stability, tac
from nbtools.evaluator.evaluation import Evaluation, Evaluator, accuracy, der, predict, wilson
from nbtools.networks.architectures import PreActResNet18, ResNet18
from nbtools.networks.units import layers_of, prunable_units

TARGET = 1


class Oracle(nn.Module):
    """Reads the true class from the first pixel and the trigger from the last, and answers as it is told."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        true, triggered = (images[:, 0, 0, 0] * 255 / 20).round().long(), images[:, 0, -1, -1] == 1
        return F.one_hot(self.answer(true, triggered), 4).float()


@pytest.fixture
def test_set() -> Images:
    """40 images, 10 a class; the first pixel tells the class, no image carries the trigger."""
    labels = torch.arange(40) % 4
    pixels = torch.randint(0, 200, (40, 3, 8, 8), generator=Generator().manual_seed(0)).to(torch.uint8)
    pixels[:, 0, 0, 0] = (labels * 20).to(torch.uint8)
    return Images(pixels, labels, ("ant", "bee", "cat", "dog"))


@pytest.mark.parametrize(
    ("answer", "acc", "asr", "ra"),
    [
        pytest.param(lambda true, seen: torch.where(seen, TARGET, true), 100, 100, 0, id="a backdoor"),
        pytest.param(lambda true, seen: true, 100, 0, 100, id="no backdoor"),
        pytest.param(lambda true, seen: torch.full_like(true, TARGET), 25, 100, 0, id="always the target"),
        pytest.param(lambda true, seen: torch.where(true == TARGET, 0, true), 75, 0, 100, id="never the target"),
        # Of the three other classes, the trigger sends the first to the target and the second elsewhere.
        pytest.param(
            lambda true, seen: torch.where(seen & (true != 3), TARGET * (true == 0), true),
            100, 100 / 3, 100 / 3, id="half a backdoor",
        ),
    ],
)  # fmt: skip
def test_acc_counts_all_classes_and_asr_and_ra_all_but_the_target(
    answer: Callable[[Tensor, Tensor], Tensor], acc: float, asr: float, ra: float, test_set: Images
) -> None:
    model = Oracle(answer)
    found = Evaluator(test_set, BadNets(1), TARGET)(model)
    assert (found.acc, found.asr, found.ra) == pytest.approx((acc, asr, ra))
    assert found.acc_interval == wilson(round(0.4 * acc), 40)
    assert found.asr_interval == wilson(round(0.3 * asr), 30) and found.ra_interval == wilson(round(0.3 * ra), 30)
    assert accuracy(model, test_set) == pytest.approx(acc / 100)
    assert found.row("_before") == {"acc_before": found.acc, "asr_before": found.asr, "ra_before": found.ra}
    assert str(found) == f"ACC {acc:5.1f}  ASR {asr:5.1f}  RA {ra:5.1f}"


def test_all_to_all_counts_the_next_class_on_all_images(test_set: Images) -> None:
    half = Oracle(lambda true, seen: torch.where(seen & (true > 1), (true + 1) % 4, true))
    found = Evaluator(test_set, BadNets(1), ALL_TO_ALL)(half)
    assert (found.acc, found.asr, found.ra) == (100, 50, 50)


def test_the_triggered_images_are_those_of_the_other_classes_and_keep_their_labels(test_set: Images) -> None:
    evaluator = Evaluator(test_set, BadNets(1), TARGET)
    others = test_set.subset(test_set.labels != TARGET)
    assert len(evaluator.triggered) == 30 and evaluator.triggered.labels.equal(others.labels)
    assert evaluator.triggered.images.equal(stamp(BadNets(1), others).images)


@pytest.mark.parametrize("target", [-2, 4])
def test_targets_that_leave_nothing_to_measure_are_refused(target: int, test_set: Images) -> None:
    with pytest.raises(ValueError, match=f"one of the classes 0 to 3, or -1 for all-to-all, got {target}"):
        Evaluator(test_set, BadNets(), target)
    with pytest.raises(ValueError, match="some of the 10 test images must be of another class"):
        Evaluator(test_set.of_class(2), BadNets(), 2)


@pytest.mark.parametrize(("hits", "trials"), [(0, 100), (3, 100), (50, 100), (100, 100), (1, 1), (9_412, 10_000)])
def test_wilson_interval_by_hand(hits: int, trials: int) -> None:
    z, share = 1.959963984540054, hits / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    assert wilson(hits, trials) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "by_hand"),
    [
        ((90, 95), (89, 2), (0.93 - 0.01 + 1) / 2),
        ((90, 95), (92, 2), (0.93 + 1) / 2),  # a gain in ACC earns nothing
        ((90, 95), (80, 99), (1 - 0.10) / 2),  # a rise of ASR costs nothing more
        ((90, 100), (90, 0), 1),
        ((90, 95), (90, 95), 0.5),
    ],
)
def test_der_by_hand(before: tuple[float, float], after: tuple[float, float], by_hand: float) -> None:
    first, second = (Evaluation(acc, asr, 0, (0, 0), (0, 0), (0, 0)) for acc, asr in (before, after))
    assert der(first, second) == pytest.approx(100 * by_hand)


def lived_in(model: nn.Module) -> nn.Module:
    """A model whose batch norms have seen something, as after training."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            model.train()(torch.rand(16, 3, 8, 8))
    return model


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_changes_nothing_in_the_model(training: bool, test_set: Images) -> None:
    torch.manual_seed(0)
    model = lived_in(ResNet18(4, width=16)).train(training)
    before = copy.deepcopy(model.state_dict())
    in_one, in_many = predict(model, test_set), predict(model, test_set, batch_size=7)
    assert in_one.equal(in_many), "batch norm looks at no batch"
    Evaluator(test_set, BadNets(), TARGET)(model)
    tac(model, test_set, BadNets())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert model.training is training and not any(p.grad is not None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_images_no_predictions(test_set: Images) -> None:
    nothing = test_set.subset(torch.arange(0))
    assert predict(ResNet18(4, width=16), nothing).tolist() == []
    with pytest.raises(ValueError, match="give at least one"):
        tac(ResNet18(4, width=16), nothing, BadNets())


def tac_by_loop(model: nn.Module, images: Images, trigger: Trigger) -> dict[str, list[float]]:
    """TAC_i = mean over x of || relu(BN(conv(trigger(x))))_i - relu(BN(conv(x)))_i ||, image by image, in float64."""
    maps: dict[str, Tensor] = {}
    model = copy.deepcopy(model).double().eval()

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: maps.update({name: output[0].clamp_min(0)})

    for unit, _, bn in layers_of(model, prunable_units(model)):
        bn.register_forward_hook(keep(unit.conv))
    total: dict[str, list[float]] = {}
    for image, changed in zip(images.images, stamp(trigger, images).images, strict=True):
        pair = []
        for pixels in (image, changed):
            model(to_floats(pixels[None]).double())
            pair.append(dict(maps))
        for name, clean in pair[0].items():
            sums = total.setdefault(name, [0.0] * len(clean))
            for i in range(len(clean)):
                sums[i] += math.sqrt(float(((pair[1][name][i] - clean[i]) ** 2).sum())) / len(images)
    return total


@pytest.mark.parametrize(
    ("model", "trigger"), [(ResNet18(4, width=16), BadNets()), (PreActResNet18(4, width=16), WaNet(s=2.0))]
)
def test_tac_is_the_mean_over_images_of_each_filters_change(
    model: nn.Module, trigger: Trigger, test_set: Images
) -> None:
    torch.manual_seed(1)
    images = test_set.subset(torch.arange(7))
    lived_in(model)
    with torch.no_grad():
        expected, found = tac_by_loop(model, images, trigger), tac(model, images, trigger, batch_size=3)
    assert list(found) == list(expected) == [unit.conv for unit in prunable_units(model)]
    for name, values in found.items():
        torch.testing.assert_close(values, torch.tensor(expected[name], dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_agreement_on_hand_made_scores() -> None:
    truth = torch.tensor([9.0, 8, 1, 2, 3, 4, 5, 6])
    scores = {
        "same": truth**3,
        "reversed": -truth,
        "half": torch.tensor([9.0, 0, 8, 1, 2, 3, 4, 5]),  # of the two highest it finds the first
        "few": torch.tensor([1.0, 2, 3]),
    }
    truths = {**dict.fromkeys(scores, truth), "few": torch.tensor([1.0, 3, 2])}
    table = agreement(scores, truths, k=2)
    assert table["same"] == pytest.approx({"spearman": 1, "precision": 1, "chance": 0.25})
    assert table["reversed"] == pytest.approx({"spearman": -1, "precision": 0, "chance": 0.25})
    assert table["half"]["precision"] == 0.5
    assert table["few"] == pytest.approx({"spearman": 0.5, "precision": 1, "chance": 2 / 3})
    assert agreement(scores, truths, k=10)["few"]["chance"] == 1, "k is at most the layer's filters"


def test_stability_is_the_mean_rank_correlation_of_all_pairs_of_draws() -> None:
    rising, swapped = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3])
    draws = [{"l": rising}, {"l": rising.exp()}, {"l": swapped}, {"l": -rising}]
    expected = [1, 0.8, -1, 0.8, -1, -0.8]  # pairs in order; 1 - 6 * sum of squared rank differences / 60
    assert stability(draws) == pytest.approx({"l": sum(expected) / 6})
    with pytest.raises(ValueError, match="at least two, got 1"):
        stability(draws[:1])
