"""Universal shifts: each part against a written-out one, and ways whose lengths are known."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import CLASSES, Calls, pictures, plain
from torch import Tensor, nn

from nbtools.defender.shifts import (
    Searched,
    crossing,
    folds,
    halves,
    harder,
    joint,
    log_p_values,
    margins_towards,
    shift,
    shifted,
    spread,
    t_values,
    walk,
)


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
    for value in (1.0, 0.1, -3.7, -12.3):
        assert t_values(torch.full((10,), value)).tolist() == [0.0] * 10
    near = drawn(10) * 3e-3
    torch.testing.assert_close(t_values(near - 20), t_values((near - 20).double()).float(), rtol=1e-4, atol=1e-4)


def test_p_values_are_those_of_one_sided_tests() -> None:
    values = drawn(10).double()
    for number, found in enumerate(log_p_values(t_values(values), 3).exp().tolist()):
        others = [v for k, v in enumerate(values.tolist()) if k != number]
        expected: Any = stats.ttest_ind([values[number].item()], others, equal_var=True, alternative="greater")
        assert found == pytest.approx(min(1, 3 * float(expected.pvalue)), rel=1e-6)
    assert log_p_values(t_values(torch.tensor([1.0, 5.0])), 2).tolist() == [0, 0], "of two classes none stands out"


def test_places_are_joined_by_fishers_method() -> None:
    alone = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)).double().pow(3)
    each: list[Any] = [stats.combine_pvalues(column, "fisher") for column in alone.T.tolist()]
    together = [10 * float(one.pvalue) for one in each]
    suspect, chance = joint(alone.log())
    assert together[suspect] == min(together) and chance == pytest.approx(min(1, min(together)))
    suspect, chance = joint(alone[:1].log())  # of one place it is a correction alone
    assert suspect == int(alone[0].argmin()) and chance == pytest.approx(min(1, 10 * float(alone[0].min())))
    assert joint(torch.tensor([[-900.0, -1000.0], [-900.0, -1000.0]]).double()) == (1, 0), "no p-value is too small"


def test_where_a_margin_is_reached() -> None:
    assert crossing([-2.0, -1.0, 1.0, 5.0]) == pytest.approx(1.5)
    assert crossing([-2.0, 0.0]) == pytest.approx(1.0)
    assert crossing([-3.0, -2.0, -1.0]) == 2
    assert crossing([1.0, 2.0]) == 0


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


def test_the_last_possible_step_makes_no_gradient_and_the_margins_are_the_same() -> None:
    model, clean = plain(), pictures(12)
    searched = Searched(model, clean.floats(), clean.labels, torch.ones(1, 3, 1, 1), torch.arange(4))
    shifts = torch.randn(4, 3, *clean.size, generator=torch.Generator().manual_seed(0))
    every, half, slopes = searched.slopes(shifts.clone())
    with Calls() as calls:
        same = searched.slopes(shifts.clone(), further=False)
    assert same[0].equal(every) and same[1].equal(half) and bool(slopes.any()) and not same[2].any()
    assert not any("backward" in str(made) for made in calls.made)


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
    first, second = (Searched(Own(), image, torch.tensor([0]), scale, one) for image in images)
    walked = walk([(first, second), (second, first)], paces=2)
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
        assert float(found[wanted].norm()) > 0.4 * 16, "six steps of 1.6 sixths reach it, unless the way turns back"
        with torch.no_grad():
            case = torch.tensor([wanted])
            every = torch.ones(1, len(others), dtype=torch.bool)
            before, after = (harder(margins_towards(model(x)[None], case), every) for x in (others, moved))
        assert float(after) > float(before)


def test_what_is_shifted_keeps_its_range() -> None:
    assert shifted(torch.tensor([-1.0, 2.0]), torch.tensor([-1.0, -3.0])).tolist() == [-2.0, -1.0]
    assert shifted(torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [0.0, 3.0]
    assert shifted(torch.tensor([0.0, 0.5]), torch.tensor([-1.0, 1.0]), 1.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("count", "few", "parts"), [(100, 50, 2), (10, 50, 5), (12, 50, 4), (3, 50, 3), (50, 0, 2)])
def test_every_image_is_judged_once_by_shifts_that_it_took_no_part_in(count: int, few: int, parts: int) -> None:
    dealt = folds(count, few, 0, torch.device("cpu"))
    assert len(dealt) == parts
    assert torch.cat([held for _, held in dealt]).sort().values.tolist() == list(range(count))
    assert all(sorted(torch.cat(pair).tolist()) == list(range(count)) for pair in dealt)


def test_halves_come_in_pairs() -> None:
    found = halves(7, 5, 0, torch.device("cpu"))
    assert [len(half) for half in found] == [4] * 5
    assert set(torch.cat(found[:2]).tolist()) == set(torch.cat(found[2:4]).tolist()) == set(range(7))
    assert sorted(found[0].tolist()) != sorted(found[2].tolist())


def test_a_class_that_is_just_reached_earlier_has_a_smaller_radius() -> None:
    """Linear maps of four positions, one image of each class: margins grow along known lines."""
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 3.0], [-4.0, 0.0, 1.0, 0.0]])

    class Mean(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.mean((2, 3)) @ weight.T

    maps = torch.zeros(1, 4, 2, 2)
    maps[:, 0], maps[:, 1] = 1.0, -1.0  # signed, so that nothing is cut at 0
    own = Searched(Mean(), maps, torch.tensor([0]), torch.ones(1, 4, 1, 1), torch.tensor([1, 2]))
    walked = walk([(own, own)], paces=4)
    # class 1 has to gain 1 with a gradient that is (-1, 0, 0, 3) at every position: length 1 / sqrt(10)
    assert float(walked.radii[0]) == pytest.approx(1 / math.sqrt(10), rel=1e-4)
    assert float(walked.radii[1]) == pytest.approx(min(walked.length, 4 / math.sqrt(17)), rel=1e-4)
    assert float(walked.radii[0]) < float(walked.radii[1])


def test_scales_are_the_channels_spreads_and_none_is_next_to_nothing() -> None:
    maps = drawn(20, 3, 2, 2) * torch.tensor([1.0, 5.0, 0.0])[None, :, None, None]
    found = spread(maps)
    each = maps.transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(found[0, :2, 0, 0], each[:2])
    assert float(found[0, 2]) == pytest.approx(float(each[1]) / 1000)
