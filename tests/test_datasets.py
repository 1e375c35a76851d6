"""The data sets: three parts that share nothing, each class in each part, and errors that say what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nbtools import datasets
from nbtools.datasets import CIFAR10_CLASSES, cifar10_found, cifar10_places, load, split_off
from nbtools.images import Images

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta")


def pictures(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without CIFAR-10: the one place that is searched is empty."""
    monkeypatch.setattr(datasets, "cifar10_places", lambda data=None: [tmp_path])
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
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(datasets.SPLIT_SEED)).tolist()
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
    with pytest.raises(ValueError, match="unknown data set 'cifar100'; known: shapes, cifar10"):
        load("cifar100")


@pytest.mark.parametrize("part", ["train", "reserved", "test"])
@pytest.mark.parametrize(("name", "number"), [("shapes", 0), ("shapes", -7), ("cifar10", 0), ("cifar10", 45_001)])
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
    assert cifar10_places(told)[:2] == [told, set_there] and cifar10_places(told)[2].name == "data"
    for place in (set_there, told):
        (place / "cifar-10-batches-py").mkdir(parents=True)
        assert cifar10_found(told) == place
    monkeypatch.delenv("NBTOOLS_DATA")
    assert cifar10_places()[0].name == "data"


@pytest.mark.parametrize("missing", [(), ("data_batch_3",), BATCHES])
def test_truncated_or_missing_cifar10_files_are_refused(missing: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in set(BATCHES) - set(missing):
        (folder / name).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"not complete: a file is missing, truncated or changed.*Delete .*batches-py"):
        load("cifar10", tmp_path)


@pytest.mark.skipif(cifar10_found() is None, reason="CIFAR-10 is not on this machine (NBTOOLS_DATA)")
def test_real_cifar10() -> None:
    from torchvision.datasets import CIFAR10

    splits = load("cifar10")
    for part, size in ((splits.train, 4_500), (splits.reserved, 500), (splits.test, 1_000)):
        assert part.labels.bincount().tolist() == [size] * 10
        assert part.classes == CIFAR10_CLASSES and part.size == (32, 32)
    raw = CIFAR10(str(cifar10_found()), train=True)
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
