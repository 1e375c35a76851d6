"""Images at rest and the defender's draws: what is refused, what comes back, how it spreads over the classes."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor

from nbtools.data.images import Images, draw_clean, to_bytes, to_floats

CLASSES = ("ant", "bee", "cat", "dog")


def numbered(labels: Tensor) -> Images:
    """Image i holds the value i in every pixel, so that a draw shows which images it took."""
    values = torch.arange(len(labels), dtype=torch.uint8)
    return Images(values[:, None, None, None].repeat(1, 3, 4, 6), labels, CLASSES)


def numbers(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.fixture
def pool() -> Images:
    return numbered(torch.arange(200) % 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(5, 3, 4, 4)}, r"uint8 \[n, 3, h, w\], got torch.float32 .* multiplied by 255"),
        ({"images": torch.zeros(5, 1, 4, 4, dtype=torch.uint8)}, r"\[5, 1, 4, 4\]; grey images can be repeated"),
        ({"images": torch.zeros(3, 4, 4, dtype=torch.uint8)}, r"got torch.uint8 \[3, 4, 4\]"),
        ({"images": torch.zeros(5, 4, 4, 3, dtype=torch.uint8)}, r"got torch.uint8 \[5, 4, 4, 3\]"),
        ({"labels": torch.zeros(5, dtype=torch.int32)}, r"labels must be int64 \[5\], got torch.int32 \[5\]"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels must be int64 \[5\], got torch.int64 \[4\]"),
        ({"labels": torch.zeros(5, 4, dtype=torch.int64)}, r"labels must be int64 \[5\], got torch.int64 \[5, 4\]"),
        ({"labels": torch.tensor([0, 1, 2, 3, 4])}, r"run from 0 to 4, but there are 4 classes \(0 to 3\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, -1])}, "run from -1 to 3"),
    ],
)
def test_what_is_no_labelled_image_is_refused(change: dict[str, Tensor], message: str) -> None:
    good = {"images": torch.zeros(5, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(5, dtype=torch.int64)}
    Images(**good, classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        Images(**{**good, **change}, classes=CLASSES)


def test_parts_keep_image_label_and_order_together(pool: Images) -> None:
    assert (len(pool), pool.num_classes, pool.size) == (200, 4, (4, 6))
    for part, expected in (
        (pool.subset(torch.tensor([7, 2, 7])), [7, 2, 7]),
        (pool.subset(torch.arange(200) >= 198), [198, 199]),
        (pool.of_class(3), list(range(3, 200, 4))),
        (pool.subset(torch.arange(0)), []),
    ):
        assert numbers(part) == expected and part.labels.tolist() == [i % 4 for i in expected]
        assert part.classes == CLASSES
    with pytest.raises(FrozenInstanceError):
        pool.labels = pool.labels + 1  # type: ignore[misc]


def test_every_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    floats = Images(levels, torch.tensor([0, 1]), CLASSES).floats()
    assert floats.dtype == torch.float32 and floats.is_contiguous(memory_format=torch.channels_last)
    assert floats.equal(to_floats(levels)) and float(floats.min()) == 0 and float(floats.max()) == 1
    assert torch.allclose(floats[0, 0].flatten(), torch.linspace(0, 1, 256), atol=1e-7)
    assert to_bytes(floats).equal(levels)


def test_bytes_are_rounded_to_the_nearest_level_and_clipped() -> None:
    values = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 1.5])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("samples", [1, 7, 50])
def test_a_draw_is_balanced_and_without_replacement(samples: int, pool: Images) -> None:
    drawn = draw_clean(pool, samples)
    assert drawn.labels.tolist() == [label for label in range(4) for _ in range(samples)]
    assert len(set(numbers(drawn))) == 4 * samples
    assert [i % 4 for i in numbers(drawn)] == drawn.labels.tolist()


@pytest.mark.parametrize("n_total", [1, 3, 4, 10, 11, 200])
def test_so_many_in_all_are_spread_as_evenly_as_they_go(n_total: int, pool: Images) -> None:
    drawn = draw_clean(pool, samples_per_class=10, n_total=n_total)
    counts = drawn.labels.bincount(minlength=4)
    assert len(set(numbers(drawn))) == n_total and counts.max() - counts.min() <= 1


def test_a_draw_follows_its_seed_alone(pool: Images) -> None:
    torch.manual_seed(1)
    first, state = draw_clean(pool, 5, seed=3), torch.get_rng_state()
    torch.manual_seed(2)
    assert numbers(draw_clean(pool, 5, seed=3)) == numbers(first)
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)
    assert len({tuple(numbers(draw_clean(pool, 5, seed=seed))) for seed in range(5)}) == 5
    odd_ones = {int(draw_clean(pool, n_total=1, seed=seed).labels) for seed in range(40)}
    assert odd_ones == {0, 1, 2, 3}, "the class that gets one more must not always be the same"


def test_every_image_of_the_pool_can_be_drawn(pool: Images) -> None:
    drawn = {number for seed in range(60) for number in numbers(draw_clean(pool, 5, seed=seed))}
    assert len(drawn) > 195  # each is missed by 60 draws of a tenth with probability 0.002


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samples_per_class": 0}, "samples_per_class=0, n_total=0: ask for at least one image"),
        ({"samples_per_class": -1}, "samples_per_class=-1"),
        ({"n_total": -1}, "n_total=-1"),
        ({"samples_per_class": 3}, "class 'dog' has 2 clean images in the pool, 3 were asked for; ask for fewer"),
        ({"n_total": 12}, "class 'dog' has 2 clean images in the pool, 3 were asked for"),
    ],
)
def test_a_draw_that_cannot_be_had_is_refused(asked: dict[str, Any], message: str) -> None:
    scarce = numbered(torch.tensor([0, 1, 2, 3] * 2 + [0, 1, 2] * 5))
    with pytest.raises(ValueError, match=message):
        draw_clean(scarce, **asked)
