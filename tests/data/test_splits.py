"""The order of sets that are sorted by class: every first part of it stands for the whole, whatever is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nbtools.data.datasets import load
from nbtools.data.images import Images
from nbtools.data.sources import SOURCES
from nbtools.data.splits import in_three, mixed_order, rare, split_off, tracks_off

SIZES = {
    "equal": [30] * 10,
    "unequal": [3, 50, 17, 80, 1, 29],
    "one image each": [1] * 12,
    "one large class": [500] + [2] * 40,
    "one class": [7],
    "classes without images": [0, 5, 0, 9, 0],
    "as GTSRB": [150 + 37 * (n % 13) for n in range(43)],
}


def labelled(sizes: list[int]) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_first_part_of_the_mixed_order_holds_the_classes_in_their_shares(sizes: list[int]) -> None:
    labels = labelled(sizes)
    order = mixed_order(labels)
    assert order.sort().values.equal(torch.arange(len(labels)))
    counts = torch.nn.functional.one_hot(labels[order], len(sizes)).cumsum(0)
    length, size = torch.arange(1, len(labels) + 1)[:, None], torch.tensor(sizes)
    there = int((size > 0).sum())
    share = length * size / len(labels)
    assert bool(((counts - share).abs() <= 1 + size * there / len(labels)).all())
    assert (counts > 0).sum(1).equal(length[:, 0].clamp_max(there)), "no class comes twice before each came once"


def test_equal_classes_are_within_one_image_of_their_share_and_no_option_changes_the_order() -> None:
    labels = labelled([30] * 10)
    torch.manual_seed(1)
    order = mixed_order(labels)
    torch.manual_seed(2)
    assert mixed_order(labels).equal(order)
    rows = labels[order].view(30, 10)
    assert rows.sort(1).values.equal(torch.arange(10).expand(30, 10)), "every ten in a row hold each class once"
    assert len({tuple(row) for row in rows.tolist()}) > 20, "in another order each time"
    assert not order[labels[order] == 3].diff().gt(0).all(), "within a class the images are permuted, too"


@pytest.mark.parametrize("sizes", [[9] * 100, [1, 5, 300, 40, 2, 11]], ids=["few each", "unequal"])
def test_a_mixed_set_gives_the_defender_each_class_that_has_two(sizes: list[int]) -> None:
    labels = labelled(sizes)
    kept, apart = split_off(labels, len(labels) // 10, every_class=True)
    assert torch.cat([kept, apart]).sort().values.equal(torch.arange(len(labels)))
    assert labels[kept].unique().tolist() == list(range(len(sizes)))
    assert labels[apart].unique().tolist() == [n for n, size in enumerate(sizes) if size > 1]
    plain = labels[split_off(labels, len(labels) // 10)[1]].bincount(minlength=len(sizes))
    assert labels[apart].bincount(minlength=len(sizes)).equal(plain.clamp_min(1).minimum(torch.tensor(sizes) - 1))


def images(sizes: list[int]) -> Images:
    labels = labelled(sizes)
    values = torch.arange(len(labels), dtype=torch.int32)
    pixels = torch.stack([values % 251, values // 251, labels.int()], 1).to(torch.uint8)
    return Images(pixels[:, :, None, None], labels, tuple(map(str, range(len(sizes)))))


@pytest.mark.parametrize(("train", "reserved", "test"), [(100, 20, 50), (7, 3, 5), (10**6, 10**6, 10**6)])
def test_as_many_classes_as_images_are_in_each_part_of_a_sorted_set(train: int, reserved: int, test: int) -> None:
    whole = images([40] * 10)
    found = in_three("sorted", whole, images([20] * 10), train, reserved, test, mix=True)
    assert [len(part) for part in (found.train, found.reserved, found.test)] == [
        min(train, 360),
        min(reserved, 40),
        min(test, 200),
    ]
    for part in (found.train, found.reserved, found.test):
        assert len(part.labels.unique()) == min(10, len(part))
        assert part.images[:, 2, 0, 0].long().equal(part.labels), "image and label stay together"
    together = torch.cat([found.train.images, found.reserved.images])
    assert len(together.unique(dim=0)) == len(together), "what is trained on is not the defender's"
    few = found.notes if train == 7 else ()
    assert few == found.notes and len(few) == 3 * (train == 7)
    if few:
        assert few[0] == "train: no image of 3 of the 10 classes among the 7 images."


TRACKS = {
    "as GTSRB": [[15] * (7 + 5 * (n % 13)) for n in range(43)],
    "unequal tracks": [[1, 40, 3, 9], [2, 2], [60, 1, 1, 1, 1]],
    "a class of one track": [[12], [5, 5, 5]],
    "a class without images": [[], [4, 4]],
}


@pytest.mark.parametrize("sizes", TRACKS.values(), ids=TRACKS)
def test_a_track_lies_in_one_part_and_each_class_gives_its_share(sizes: list[list[int]]) -> None:
    flat = torch.tensor([size for tracks in sizes for size in tracks])
    tracks = torch.arange(len(flat)).repeat_interleave(flat) * 7 - 3
    labels = labelled([sum(each) for each in sizes])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    labels, tracks, count = labels[order], tracks[order], max(1, len(labels) // 10)
    kept, apart = tracks_off(labels, tracks, count)
    assert torch.cat([kept, apart]).sort().values.equal(torch.arange(len(labels)))
    assert not set(tracks[kept].tolist()) & set(tracks[apart].tolist())
    for label, each in enumerate(sizes):  # a plain loop over what was set apart
        mine = tracks[apart][labels[apart] == label]
        share = sum(each) * count / len(labels)
        assert len(mine.unique()) >= min(1, max(len(each) - 1, 0)), "at least one track"
        assert len(mine.unique()) <= max(len(each) - 1, 0), "and one is kept"
        if 0 < len(mine.unique()) < len(each) - 1:
            assert len(mine) >= share
            assert any(len(mine) - size < share for size in mine.unique(return_counts=True)[1].tolist())
    again = tracks_off(labels, tracks, count)
    assert again[1].equal(apart)


def test_a_track_of_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="a track belongs to one class"):
        tracks_off(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 1)


def test_a_published_set_stays_as_it_is_unless_it_is_sorted() -> None:
    assert [name for name, source in SOURCES.items() if not source.mixed] == ["gtsrb"]
    whole, testing = images([40] * 10), images([20] * 10)
    found = in_three("published", whole, testing, 100, 20, 50)
    kept, apart = split_off(whole.labels, 40)
    assert found.train.images.equal(whole.images[kept[:100]]) and found.reserved.images.equal(whole.images[apart[:20]])
    assert found.test.images.equal(testing.images[:50]) and found.version == ""


def test_a_sorted_folder_is_read_with_every_class_in_every_part(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for half in ("train", "test"):
        for name in "abcdefghij":
            (tmp_path / half / name).mkdir(parents=True)
            for n in range(30):
                Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / half / name / f"{n}.png")
    found = load(f"folder:{tmp_path}", train=100, reserved=20, test=50)
    counts = [part.labels.bincount().tolist() for part in (found.train, found.reserved, found.test)]
    assert counts == [[10] * 10, [2] * 10, [5] * 10]
    more = load(f"folder:{tmp_path}", train=200, reserved=20, test=50)
    assert more.train.images[:100].equal(found.train.images) and more.version == found.version


def test_a_class_with_few_images_is_told_before_anything_is_trained() -> None:
    labels = labelled([12, 10, 11])
    pool = Images(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), labels, ("ant", "bee", "cat"))
    assert rare(pool) == ()
    told = ("the defender's images hold 9 of class 'bee': no draw has more of each class",)
    assert rare(pool.subset(torch.arange(len(labels)) != 12)) == told
