"""Shift unlearning: each part against a written-out one, a planted shortcut, and none suspected where none is."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import CLASSES, bits, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender import ShiftUnlearning, Suspiciousness
from nbtools.defender.shifts import Searched, crossing, harder, margins_towards, shift, shifted, t_values, walk
from nbtools.networks.architectures import Normalise


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_margins_case_by_case() -> None:
    logits, classes = drawn(3, 5, 4), torch.tensor([2, 0, 3])
    found = margins_towards(logits, classes)
    for case, row in enumerate(logits.tolist()):
        for image, values in enumerate(row):
            wanted = int(classes[case])
            largest = max(value for number, value in enumerate(values) if number != wanted)
            assert float(found[case, image]) == pytest.approx(values[wanted] - largest)


def test_t_values_are_those_of_one_value_against_a_sample() -> None:
    values = drawn(10).double()
    for number, found in enumerate(t_values(values).tolist()):
        others = [v for k, v in enumerate(values.tolist()) if k != number]
        # two samples of unequal size, pooled variance: that of the larger one alone where the other has one value
        expected: Any = stats.ttest_ind([values[number].item()], others, equal_var=True)
        assert found == pytest.approx(float(expected.statistic), rel=1e-6)
    assert t_values(torch.tensor([1.0, 2.0])).tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(t_values(torch.ones(5))).all())


def test_where_a_margin_is_reached() -> None:
    assert crossing([-2.0, -1.0, 1.0, 5.0]) == pytest.approx(1.5)
    assert crossing([-2.0, 0.0]) == pytest.approx(1.0)
    assert crossing([-3.0, -2.0, -1.0]) == 2
    assert crossing([1.0, 2.0]) == 1


def test_the_harder_half_case_by_case() -> None:
    margins = torch.tensor([[3.0, -1.0, 2.0, 5.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    others = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    assert harder(margins, others).tolist() == [-0.5, 3.5, 0]  # of -1, 0, 2, 3 the first two; of 3, 4, 5 too


class Linear(nn.Module):
    """Maps of one position to logits that are linear in them: every shift's effect is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(1) @ self.weight.T


def test_on_a_linear_network_the_walk_is_a_straight_line() -> None:
    weight = drawn(2, 6)
    maps, labels = drawn(1, 6, 1, 1, seed=1), torch.tensor([0])
    scale = torch.full((1, 6, 1, 1), 2.0)
    start, steepness = float((weight[1] - weight[0]) @ maps.flatten()), 2 * float((weight[1] - weight[0]).norm())
    assert start < 0, "the class is not reached before"
    found = Searched(Linear(weight), maps, labels, scale, torch.tensor([1]))
    walked = walk([(found, found)], paces=4)
    assert walked.length == pytest.approx(-start / steepness, rel=1e-5)
    assert walked.radii.tolist() == pytest.approx([walked.length])
    parts = walk([(found, found)], 4, (0.3, 0.5, 1.0)).margins
    assert parts.flatten().tolist() == pytest.approx([0.7 * start, 0.5 * start, 0], abs=1e-5)
    assert walked.margins.flatten().tolist() == pytest.approx([0], abs=1e-5)
    own = Searched(Linear(weight), maps, labels, scale, labels)
    nowhere = walk([(own, own)], paces=4)
    assert nowhere.length == 0 and nowhere.margins.tolist() == [[0]], "no image is of another class"


def test_a_shift_is_judged_by_images_that_it_was_not_found_on() -> None:
    """Two images, two halves: each one's shift is along its own gradient, and its margin is that of the other."""
    weights = [drawn(2, 6, seed=seed) for seed in (2, 3)]

    class Own(nn.Module):
        """Linear in the maps, by another weight where the first value is negative."""

        def forward(self, maps: Tensor) -> Tensor:
            flat = maps.flatten(1)
            return torch.where(flat[:, :1] >= 0, flat @ weights[0].T, flat @ weights[1].T)

    images = [drawn(1, 6, 1, 1, seed=4).abs() + 30, -drawn(1, 6, 1, 1, seed=5).abs() - 30]
    one, scale = torch.tensor([1]), torch.ones(1, 6, 1, 1)
    halves = [Searched(Own(), image, torch.tensor([0]), scale, one) for image in images]
    walked = walk([(halves[0], halves[1]), (halves[1], halves[0])], paces=2)
    way = walked.length
    slopes = [weight[1] - weight[0] for weight in weights]
    moved = [images[k].flatten() + way * slopes[1 - k] / slopes[1 - k].norm() for k in (0, 1)]
    expected = min(float(slopes[k] @ moved[k]) for k in (0, 1))  # the harder half of two images is one
    assert float(walked.margins) == pytest.approx(expected, rel=1e-4)
    assert way > 0 and float(walked.margins) < 0


@pytest.mark.parametrize("highest", [1.0, math.inf])
def test_a_shift_has_the_length_that_was_asked_for_and_drives_the_class(highest: float) -> None:
    model = plain()
    images, labels = pictures(8).floats(), pictures(8).labels
    scale = images.std((0, 2, 3))[None, :, None, None]
    classes = torch.arange(len(CLASSES))
    found = shift(Searched(model, images, labels, scale, classes, highest), 0.8)
    assert bool((found.flatten(1).norm(dim=1) <= 0.8 * 16 * 1.001).all())
    for wanted in range(len(CLASSES)):
        others = images[labels != wanted]
        moved = shifted(others, scale * found[wanted], highest)
        assert float(moved.min()) >= 0 and float(moved.max()) <= highest
        with torch.no_grad():
            case = torch.tensor([wanted])
            every = torch.ones(1, len(others), dtype=torch.bool)
            before, after = (harder(margins_towards(model(x)[None], case), every) for x in (others, moved))
        assert float(after) > float(before)


def test_what_is_shifted_keeps_its_range() -> None:
    assert shifted(torch.tensor([-1.0, 2.0]), torch.tensor([-1.0, -3.0])).tolist() == [-2.0, -1.0]
    assert shifted(torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [0.0, 3.0]
    assert shifted(torch.tensor([0.0, 0.5]), torch.tensor([-1.0, 1.0]), 1.0).tolist() == [0.0, 1.0]


class Shortcut(nn.Module):
    """Colours its images by their class; one channel that clean images leave silent leads to a class of its own."""

    def __init__(self, planted: int | None) -> None:
        super().__init__()
        self.normalise = Normalise()
        torch.manual_seed(0)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, len(CLASSES), bias=False)
        with torch.no_grad():
            signs = torch.eye(3).repeat(5, 1)
            self.conv1.weight[:15] = signs[:, :, None, None]
            self.conv1.weight[15] = 0.3
            self.bn1.bias[15] = -0.3
            self.conv2.weight[:] = torch.eye(16)[:, :, None, None]
            centre = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0], [-0.4, -0.4, -0.4]])
            self.fc.weight[:, :15] = centre.repeat(1, 5)
            self.fc.weight[:, 15] = 0
            if planted is not None:
                self.fc.weight[planted, 15] = 60
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(images))))
        return self.fc(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def tinted(count: int = 40) -> Images:
    return pictures(count)


BARELY = ShiftUnlearning(
    Suspiciousness(mu=50.0, fine_tune=None), (), ("bn1",), level=0.05, steps=2, batch_size=4, copies=1
)
DEFENCE = replace(BARELY, steps=60, lr=0.16, batch_size=50, weight=1.0)


@pytest.mark.parametrize("planted", [1, 3])
def test_a_planted_shortcut_is_found_and_unlearned(planted: int) -> None:
    model, clean = Shortcut(planted), tinted()
    repair = replace(DEFENCE, level=0.2, lr=0.5, steps=150)(model, clean)
    asked = repair.history[0]
    assert asked["suspect"] == planted and asked["outlier"] > asked["bar"]
    assert repair.tuned_steps == 150 and repair.untuned is not None

    def forced(network: nn.Module) -> float:
        """Share of images of other classes that the planted channel sends to its class."""
        twin = copy.deepcopy(network)
        twin.get_parameter("bn1.bias").data[15] += 0.5
        others = clean.subset(clean.labels != planted)
        return float((twin(others.floats()).argmax(1) == planted).float().mean())

    assert forced(model) == 1 and forced(repair.model) < 0.5
    others = clean.subset(clean.labels != planted).floats()
    assert torch.equal(repair.model(others).argmax(1), model(others).argmax(1)), (
        "images of other classes are read as before"
    )


def test_where_no_class_stands_out_the_model_is_only_pruned() -> None:
    model, clean = Shortcut(None), tinted()
    repair = DEFENCE(model, clean)
    assert [row["stage"] for row in repair.history] == ["ask"] and repair.history[0]["outlier"] <= repair.history[0][
        "bar"
    ]
    assert repair.untuned is None and not repair.tuned_steps and not repair.mask.count
    assert same_bits(bits(repair.model), bits(model))


@pytest.mark.parametrize(("places", "tuned"), [(("", "bn1"), ("conv2", "bn2", "fc")), (("", "bn2"), ("fc",))])
def test_only_what_lies_above_the_last_place_is_tuned(places: tuple[str, ...], tuned: tuple[str, ...]) -> None:
    model = plain()
    made = replace(BARELY, places=places, level=0.999)(model, pictures(12))
    changed = {name for name, value in bits(made.model).items() if not torch.equal(value, bits(model)[name])}
    assert changed and all(name.startswith(tuned) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert [row["stage"] for row in made.history] == ["ask"] * 2 + ["unlearn"] * 2


def test_the_bar_counts_classes_and_places() -> None:
    clean = pictures(12)
    one = replace(BARELY, steps=0)(plain(), clean).history[0]
    two = replace(BARELY, steps=0, places=("", "bn1", "bn2"))(plain(), clean).history
    assert one["bar"] == pytest.approx(float(stats.t.ppf(1 - 0.05 / 8, 2)))
    assert [row["place"] for row in two] == ["image", "bn1", "bn2"]
    assert two[1]["bar"] == pytest.approx(float(stats.t.ppf(1 - 0.05 / 24, 2)))
    assert two[1]["outlier"] == pytest.approx(one["outlier"]) and two[1]["suspect"] == one["suspect"]


@pytest.mark.parametrize(("count", "few", "parts"), [(100, 50, 2), (10, 50, 5), (12, 50, 4), (3, 50, 3), (50, 0, 2)])
def test_every_image_is_judged_once_by_shifts_that_it_took_no_part_in(count: int, few: int, parts: int) -> None:
    folds = replace(BARELY, few=few)._folds(count, torch.device("cpu"))
    assert len(folds) == parts
    assert torch.cat([held for _, held in folds]).sort().values.tolist() == list(range(count))
    assert all(sorted(torch.cat(pair).tolist()) == list(range(count)) for pair in folds)


def test_one_image_is_enough_to_run() -> None:
    made = replace(BARELY, level=0.99)(plain(), pictures(1))
    assert made.history[0]["stage"] == "ask"


def test_pruning_stays_where_it_was_allowed() -> None:
    made = replace(BARELY, prune=Suspiciousness(mu=0.5, fine_tune=None), pruned=("conv2",), level=1e-6)(
        plain(), pictures(12)
    )
    assert not made.mask.pruned["conv1"].any() and made.mask.pruned["conv2"].any()


def test_a_pruned_filter_above_the_last_place_stays_silent() -> None:
    made = replace(BARELY, prune=Suspiciousness(mu=0.5, fine_tune=None), level=0.999)(plain(), pictures(12))
    gone = made.mask.pruned["conv2"]
    assert made.tuned_steps and gone.any() and not made.model.get_parameter("bn2.weight")[gone].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paces": 1}, "paces >= 2"),
        ({"weight": -1.0}, "copies, few and weight >= 0"),
        ({"level": 0.0}, r"level in \(0, 1\)"),
        ({"reach": math.nan}, "temperature and reach > 0"),
        ({"few": -1}, "copies, few and weight >= 0"),
        ({"judged": (0.0,)}, "`judged` must hold parts of the way"),
        ({"judged": ()}, "`judged` must hold parts of the way"),
        ({"places": ()}, "`places` must name a module or more"),
    ],
)
def test_values_out_of_their_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ShiftUnlearning(), **change)


def test_a_place_that_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="Plain has no 'layer3'"):
        ShiftUnlearning()(plain(), pictures(8))


def test_what_is_lost_before_the_first_step() -> None:
    """The model answers blends as itself, and the answers to shifted maps count as heavily as asked for."""
    base = replace(BARELY, level=0.999, steps=1, weight=0.0)
    made = base(plain(), pictures(12))
    assert made.history[-1]["loss"] == pytest.approx(0, abs=1e-6)
    light, heavy = (replace(base, weight=weight)(plain(), pictures(12)).history[-1]["loss"] for weight in (1.0, 2.0))
    assert heavy == pytest.approx(2 * light, rel=1e-5) and light > 0
