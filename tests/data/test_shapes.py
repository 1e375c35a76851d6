"""The shapes data set: sizes, balance, determinism, and pictures that carry their class."""

import pytest
import torch

from nbtools.data.shapes import CLASSES, MAX_SEED, MIN_SIZE, make_shapes


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return make_shapes(500, seed=7)


def test_ten_different_names() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10


@pytest.mark.parametrize(("n", "size"), [(1, 32), (13, 32), (260, 32), (10, MIN_SIZE), (10, 33), (10, 48)])
def test_shapes_and_dtypes(n: int, size: int) -> None:
    images, labels = make_shapes(n, size=size)
    assert images.shape == (n, 3, size, size) and images.dtype == torch.uint8
    assert labels.shape == (n,) and labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < len(CLASSES)


@pytest.mark.parametrize("n", [10, 250, 500])
def test_classes_are_balanced_and_shuffled(n: int) -> None:
    labels = make_shapes(n, seed=1)[1]
    assert labels.bincount(minlength=10).eq(n // 10).all()
    assert not labels.equal(labels.sort().values)


def test_uneven_count_is_balanced_within_one() -> None:
    counts = make_shapes(253, seed=1)[1].bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_same_seed_same_bits_and_global_random_state_untouched(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    images, labels = make_shapes(500, seed=7)
    assert images.equal(pictures[0]) and labels.equal(pictures[1])
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("n", [3, 250, 257])
def test_a_longer_set_begins_with_the_shorter_one(n: int, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = make_shapes(n, seed=7)
    assert images.equal(pictures[0][:n]) and labels.equal(pictures[1][:n])


def test_no_image_occurs_twice_within_or_across_seeds(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    sets = [pictures[0], make_shapes(500, seed=8)[0], make_shapes(500, seed=MAX_SEED)[0]]
    everything = torch.cat(sets).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": -5}, "n = -5"),
        ({"n": 10, "size": MIN_SIZE - 1}, "size = 15"),
        ({"n": 10, "seed": -1}, "seed = -1"),
        ({"n": 10, "seed": MAX_SEED + 1}, "seed = 4294967296"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_shapes(**arguments)


def test_every_image_has_content(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert pictures[0].float().flatten(1).std(dim=1).min() > 3


def test_values_use_the_range(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    values = pictures[0].float()
    assert values.min() < 10 and values.max() > 245
    assert 80 < values.mean() < 160 and values.std() > 35


def test_bottom_right_corner_is_rarely_white() -> None:
    """A white 3x3 square there is the best-known trigger: it must not occur naturally."""
    corners = make_shapes(1000, seed=2)[0][:, :, 29:, 29:].flatten(1)
    assert (corners.amin(dim=1) >= 240).float().mean() < 0.005


def test_each_class_has_its_own_figure() -> None:
    """The average contrast map of a class finds itself, and no other class, in fresh images."""
    images, labels = make_shapes(2000, seed=3)
    values = images.float() / 255
    contrast = (values - values.mean((2, 3), keepdim=True)).square().mean(1)
    first, second = (
        torch.stack([contrast[half][labels[half] == c].mean(0).flatten() for c in range(10)])
        for half in (slice(0, 1000), slice(1000, 2000))
    )
    distance = torch.cdist(first - first.mean(0), second - second.mean(0))
    assert distance.argmin(1).equal(torch.arange(10))
