"""The choice by held-back clean images."""

import math

import pytest
import torch
from tiny import labelled

from nbtools.data.images import Images
from nbtools.defender.validation import Validation


def numbers(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(10, 10, 10, 10), (7, 1, 12, 3), (1, 1, 1, 1), (5,), (0, 6, 0, 2), (2,)], ids=str)
def test_a_split_is_disjoint_complete_and_stratified(counts: tuple[int, ...], share: float) -> None:
    clean = labelled(*counts)
    learned, held = Validation(share=share).split(clean)
    assert len(learned) and len(held)
    assert sorted(numbers(learned) + numbers(held)) == list(range(len(clean)))
    for part in (learned, held):
        assert part.labels.tolist() == clean.labels[numbers(part)].tolist()
        assert numbers(part) == sorted(numbers(part)) and part.classes == clean.classes
    if any(count > 1 and share * count >= 0.5 for count in counts):
        for label, count in enumerate(counts):
            got = len(held.of_class(label))
            assert abs(got - share * count) <= 0.5 + 1e-9 or got == count - 1


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_no_class_is_held_back_whole(share: float) -> None:
    learned, _ = Validation(share=share).split(labelled(1, 2, 9))
    assert all(len(learned.of_class(label)) > 0 for label in range(3))


def test_a_split_depends_on_its_seed_alone() -> None:
    clean, random = labelled(20, 20), torch.get_rng_state()
    first, again, other = (Validation(seed=seed).split(clean)[1] for seed in (0, 0, 1))
    assert numbers(first) == numbers(again) != numbers(other)
    assert len(first) == 8 and torch.get_rng_state().equal(random)


def test_one_image_serves_for_both() -> None:
    clean = labelled(0, 1)
    learned, held = Validation().split(clean)
    assert numbers(learned) == numbers(held) == [0]


def test_images_that_are_one_a_class_are_still_divided() -> None:
    learned, held = Validation(share=0.2).split(labelled(*[1] * 10))
    assert len(held) == 2 and len(learned) == 8


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([0.9, 0.9, 0.9], 2),
        ([0.9, 0.88, 0.87], 1),
        ([0.95, 0.5, 0.95], 0),
        ([0.87, 0.9], -1),
        ([], -1),
        ([0.9, math.nan, 0.9], 0),
        ([math.nan], -1),
        ([1.0], 0),
    ],
    ids=str,
)
def test_the_strongest_setting_before_accuracy_falls_is_chosen(accuracies: list[float], chosen: int) -> None:
    assert Validation(allowed=0.02).choose(accuracies, 0.9) == chosen


def test_a_fall_of_exactly_what_is_allowed_passes_whatever_the_rounding() -> None:
    rule = Validation(allowed=0.02)
    assert all(
        rule.choose([(n - 1) / 50], n / 50) == 0 and rule.choose([(n - 2) / 50], n / 50) == -1 for n in range(2, 51)
    )
    assert Validation(allowed=0).choose([0.3, 0.3], 0.3) == 1
    assert rule.choose([0.9], math.nan) == -1


def test_one_held_back_image_may_always_be_lost_and_two_may_not() -> None:
    rule = Validation(allowed=0.02)
    assert rule.choose([0.85, 0.9, 0.85], 0.9, images=20) == 2 and rule.choose([0.85], 0.9) == -1
    assert rule.choose([0.85, 0.8, 0.9], 0.9, images=20) == 0
    assert rule.choose([0.885, 0.875], 0.9, images=1000) == 0, "with many images `allowed` decides"


@pytest.mark.parametrize(
    "values", [{"share": n} for n in (0, 1, -1, math.nan)] + [{"allowed": n} for n in (-0.1, 1, math.nan)], ids=str
)
def test_a_validation_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\) and allowed in \[0, 1\), got Validation"):
        Validation(**values)  # pyright: ignore[reportArgumentType]
