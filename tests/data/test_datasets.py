"""The data sets: three parts that share nothing, each class in each part, and errors that say what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nbtools.data import places, sources, splits
from nbtools.data.datasets import load
from nbtools.data.images import Images
from nbtools.data.sources import CIFAR10_CLASSES, SOURCES
from nbtools.data.splits import TRACKS, split_off
from nbtools.settings import data_places

CIFAR10 = SOURCES["cifar10"]

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta")


def pictures(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without CIFAR-10: the one place that is searched is empty."""
    for module in (sources, places):
        monkeypatch.setattr(module, "data_places", lambda data=None: [tmp_path])
    return tmp_path


def test_shapes_come_in_three_parts_that_share_no_picture() -> None:
    splits = load("shapes", train=500, reserved=250, test=250, seed=3)
    parts = (splits.train, splits.reserved, splits.test)
    assert splits.name == "shapes" and [len(part) for part in parts] == [500, 250, 250]
    assert len(set.union(*map(pictures, parts))) == 1000
    for part in parts:
        assert part.labels.bincount(minlength=10).tolist() == [len(part) // 10] * 10
    again, other = (load("shapes", train=500, reserved=250, test=250, seed=seed) for seed in (3, 4))
    assert again.test.images.equal(splits.test.images) and again.test.labels.equal(splits.test.labels)
    assert not pictures(other.train) & pictures(splits.train)


@pytest.mark.parametrize("labels", [[0, 1, 2] * 20, [0] * 50 + [1] * 30 + [2] * 20, [2, 0, 2, 2, 0, 2, 0]])
def test_split_off_takes_each_class_its_share_as_a_plain_loop_does(labels: list[int]) -> None:
    count = len(labels) // 5
    kept, apart = split_off(torch.tensor(labels), count)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(splits.SEED)).tolist()
    expected: list[int] = []
    for label in set(labels):
        share = labels.count(label) * count // len(labels)
        expected += [index for index in order if labels[index] == label][:share]
    assert apart.tolist() == sorted(expected)
    assert sorted(kept.tolist() + apart.tolist()) == list(range(len(labels))) and kept.tolist() == sorted(kept.tolist())


def test_the_split_is_fixed_whatever_the_global_seed() -> None:
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    first = split_off(labels, 100)[1]
    torch.manual_seed(2)
    assert split_off(labels, 100)[1].equal(first)
    assert not first.equal(torch.arange(100)) and labels[first].bincount().tolist() == [10] * 10


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown data set 'cifar11'; known: shapes, cifar10, cifar100, svhn, gtsrb, folder:PATH"
    ):
        load("cifar11")


@pytest.mark.parametrize("part", ["train", "reserved", "test"])
@pytest.mark.parametrize(("name", "number"), [("shapes", 0), ("shapes", -7), ("cifar10", 0), ("gtsrb", -1)])
def test_impossible_sizes_are_refused_before_any_work(name: str, number: int, part: str) -> None:
    sizes: dict[str, Any] = {"train": 1, "reserved": 1, "test": 1, part: number}
    with pytest.raises(ValueError, match="each part needs") as caught:
        load(name, **sizes)
    assert str(number) in str(caught.value)


def test_a_missing_cifar10_names_the_places_and_three_ways(nowhere: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar10")
    for needed in (str(nowhere), "NBTOOLS_DATA", "--data", "download=True"):
        assert needed in str(caught.value)
    assert not any(nowhere.iterdir()), "nothing is fetched unless it was asked for"


def test_a_download_that_fails_says_why_and_what_else_to_do(nowhere: Path) -> None:
    with pytest.raises(ConnectionError, match=r"network is blocked.*NBTOOLS_DATA.*--data"):
        load("cifar10", download=True)


def test_cifar10_is_searched_where_told_then_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, set_there = tmp_path / "told", tmp_path / "set"
    monkeypatch.setenv("NBTOOLS_DATA", str(set_there))
    assert data_places(told)[:2] == [told, set_there] and data_places(told)[2].name == "data"
    for place in (set_there, told):
        (place / "cifar-10-batches-py").mkdir(parents=True)
        assert CIFAR10.found(told) == place
    monkeypatch.delenv("NBTOOLS_DATA")
    assert data_places()[0].name == "data"


@pytest.mark.parametrize("missing", [(), ("data_batch_3",), BATCHES])
def test_truncated_or_missing_cifar10_files_are_refused(missing: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in set(BATCHES) - set(missing):
        (folder / name).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"not complete: a file is missing, truncated or changed.*Delete .*batches-py"):
        load("cifar10", tmp_path)


@pytest.mark.skipif(CIFAR10.found() is None, reason="CIFAR-10 is not on this machine (NBTOOLS_DATA)")
def test_real_cifar10() -> None:
    from torchvision import datasets as published

    splits = load("cifar10")
    for part, size in ((splits.train, 4_500), (splits.reserved, 500), (splits.test, 1_000)):
        assert part.labels.bincount().tolist() == [size] * 10
        assert part.classes == CIFAR10_CLASSES and part.size == (32, 32)
    raw = published.CIFAR10(str(CIFAR10.found()), train=True)
    assert raw.classes == list(CIFAR10_CLASSES)
    kept, apart = split_off(torch.tensor(raw.targets), 5_000)
    assert not set(kept.tolist()) & set(apart.tolist())
    for part, indices in ((splits.train, kept), (splits.reserved, apart)):
        for here in (0, 17, len(part) - 1):
            there = int(indices[here])
            assert part.images[here, :, 3, 7].tolist() == raw.data[there, 3, 7].tolist()
            assert int(part.labels[here]) == raw.targets[there]
    fewer = load("cifar10", train=100, reserved=50, test=10)
    assert [len(part) for part in (fewer.train, fewer.reserved, fewer.test)] == [100, 50, 10]
    assert fewer.reserved.images.equal(splits.reserved.images[:50])


class Cifar100:
    """Stands for torchvision's: 40 images, of which the test half has 20."""

    classes = ("apple", "bear")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        count = 40 if train else 20
        self.data = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
        self.targets = [n % 2 for n in range(count)]


class Svhn:
    def __init__(self, root: str, split: str, download: bool) -> None:
        self.data = np.zeros((40, 3, 32, 32), np.uint8)
        self.data[:, 1] = 7
        self.labels = np.arange(40) % 2


class Gtsrb(list):
    def __init__(self, root: str, split: str, download: bool) -> None:
        super().__init__((Image.new("RGB", (20 + n, 15), (n, 0, 9)), n % 3) for n in range(86))
        self._samples = [(f"{n % 3:05d}/{n // 9:05d}_{n:05d}.ppm", n % 3) for n in range(86)]  # three frames a track


def test_other_published_sets_come_in_the_same_three_parts(
    monkeypatch: pytest.MonkeyPatch, nowhere: Path, tmp_path: Path
) -> None:
    for name, stand_in in (("CIFAR100", Cifar100), ("SVHN", Svhn), ("GTSRB", Gtsrb)):
        monkeypatch.setattr(f"torchvision.datasets.{name}", stand_in)
        (nowhere / SOURCES[name.lower()].marker).mkdir()
    sizes: dict[str, Any] = {"train": 45_000, "reserved": 5_000, "test": 10_000}
    found = load("cifar100", **sizes)
    assert [len(part) for part in (found.train, found.reserved, found.test)] == [36, 4, 20], "a tenth is the defender's"
    assert found.train.classes == ("apple", "bear") and found.reserved.labels.bincount().tolist() == [2, 2]
    values = found.train.images[:, 0, 0, 0].tolist() + found.reserved.images[:, 0, 0, 0].tolist()
    assert sorted(values) == list(range(40)), "each image in one part"
    assert all(int(label) == value % 2 for label, value in zip(found.train.labels, values, strict=False))
    digits = load("svhn", **{**sizes, "train": 5})
    assert len(digits.train) == 5 and digits.test.images[3, :, 2, 2].tolist() == [0, 7, 0]
    signs = load("gtsrb", **{**sizes, "reserved": 1, "test": 3})
    assert (
        signs.test.size == (32, 32)
        and signs.test.num_classes == 43
        and signs.test.labels.sort().values.tolist() == [0, 1, 2]
        and signs.version == TRACKS
    )
    pixels = signs.test.images[:, :, 5, 5].tolist()
    assert all(blue == 9 and red % 3 == label for (red, _, blue), label in zip(pixels, signs.test.labels, strict=True))
    assert signs.train.images[:, 0, 5, 5].int().diff().lt(0).any(), "a sorted set is mixed"
    signs = load("gtsrb", **sizes)
    tracks = [
        set((part.images[:, 0, 5, 5] // 9 + 100 * part.labels).tolist()) for part in (signs.train, signs.reserved)
    ]
    assert not tracks[0] & tracks[1] and len(signs.train) + len(signs.reserved) == 86, "a track is in one part"
    assert signs.reserved.labels.unique().tolist() == [0, 1, 2] and signs.test.classes[14] == "stop"
    assert any("resized to 32x32" in note for note in signs.notes)
    assert found.version == digits.version == "", "what was published in random order lies as it did"


def folder(place: Path, classes: str = "ab", count: int = 10) -> Path:
    for half in ("train", "test"):
        for number, name in enumerate(classes):
            (place / half / name).mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (40, 40), (number, n, 0)).save(place / half / name / f"{n}.png")
    return place


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine")
    found = load(f"folder:{mine}", train=100, reserved=100, test=100)
    assert [len(part) for part in (found.train, found.reserved, found.test)] == [18, 2, 20]
    assert found.train.classes == ("a", "b") and found.train.size == (32, 32)
    assert found.name == "folder:mine" and len(found.version) == 12
    assert found.test.images[:, 0].amax((1, 2)).equal(found.test.labels.to(torch.uint8))
    Image.new("RGB", (40, 40), (9, 9, 9)).save(mine / "test" / "a" / "0.png")
    assert load(f"folder:{mine}", train=9, reserved=2, test=9).version != found.version, "other images, other models"


def test_a_folder_that_is_no_data_set_says_what_is_missing(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"train": 9, "reserved": 9, "test": 9}
    with pytest.raises(ValueError, match="holds no folder train and no folder test"):
        load(f"folder:{tmp_path}", **sizes)
    mine = folder(tmp_path / "mine")
    (mine / "test" / "a").rename(mine / "test" / "c")
    with pytest.raises(ValueError, match="are others than those in"):
        load(f"folder:{mine}", **sizes)
    with pytest.raises(ValueError, match="each part needs at least one image"):
        load(f"folder:{folder(tmp_path / 'few', count=2)}", **sizes)
