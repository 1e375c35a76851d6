"""Published data sets through torchvision, and one's own as a folder of images by class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import torch

from nbtools.data.images import Images
from nbtools.data.splits import MIXED, Splits, in_three
from nbtools.settings import CIFAR10, data_places

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Half(NamedTuple):
    """A half of a published data set.

    Args:
        pixels: uint8 `[n, h, w, 3]`.
        labels: `[n]`.
        classes: their names.
        notes: what reading changed, see `nbtools.data.splits.Splits`.
    """

    pixels: Any
    labels: Any
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


HALVES = ("train", "test")
"""The folders in a folder of one's own."""


def _cifar10(root: str, train: bool, download: bool) -> Half:
    from torchvision.datasets import CIFAR10

    half = CIFAR10(root, train=train, download=download)
    return Half(half.data, half.targets, CIFAR10_CLASSES)


def _cifar100(root: str, train: bool, download: bool) -> Half:
    from torchvision.datasets import CIFAR100

    half = CIFAR100(root, train=train, download=download)
    return Half(half.data, half.targets, tuple(half.classes))


def _svhn(root: str, train: bool, download: bool) -> Half:
    from torchvision.datasets import SVHN

    half = SVHN(root, split="train" if train else "test", download=download)
    return Half(half.data.transpose(0, 2, 3, 1), half.labels, tuple("0123456789"))


def _gtsrb(root: str, train: bool, download: bool) -> Half:
    from torchvision.datasets import GTSRB

    half = GTSRB(root, split="train" if train else "test", download=download)
    pictures, labels = zip(*half, strict=True)
    pixels = np.stack([np.asarray(picture.convert("RGB").resize((32, 32))) for picture in pictures])
    other = sum(picture.size != (32, 32) for picture in pictures)
    notes = (f"{other:,} of {len(pixels):,} images had another size and were resized to 32x32.",) if other else ()
    return Half(pixels, labels, tuple(f"{number:02d}" for number in range(43)), notes)


class DataNotFound(FileNotFoundError):
    """A data set is not on this machine; the message says what to type. A notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Source:
    """A published data set.

    Args:
        name: its name in `nbtools.data.datasets.DATASETS`.
        title: as people write it.
        classes: how many.
        marker: the file or folder that it is found by.
        read: root, which half, and whether to download, to that half.
        mixed: whether it is published in random order, so that its first images hold every class; one that is sorted
            is brought into `nbtools.data.splits.mixed_order`.
    """

    name: str
    title: str
    classes: int
    marker: str
    read: Callable[[str, bool, bool], Half]
    mixed: bool = True

    def found(self, data: Path | None = None) -> Path | None:
        """The first of `nbtools.settings.data_places` that holds `marker`, else None."""
        return next((place for place in data_places(data) if (place / self.marker).exists()), None)


SOURCES = {
    source.name: source
    for source in (
        Source("cifar10", "CIFAR-10", 10, CIFAR10, _cifar10),
        Source("cifar100", "CIFAR-100", 100, "cifar-100-python", _cifar100),
        Source("svhn", "SVHN", 10, "train_32x32.mat", _svhn),
        Source("gtsrb", "GTSRB", 43, "gtsrb", _gtsrb, mixed=False),
    )
}


def load(
    source: Source,
    data: Path | None = None,
    *,
    train: int = 45_000,
    reserved: int = 5_000,
    test: int = 10_000,
    seed: int = 0,
    download: bool = False,
) -> Splits:
    """A published data set through torchvision, checksums verified, 32 x 32 pixels.

    A tenth of the training images, at most 5,000, is the defender's (`nbtools.data.splits.in_three`): of CIFAR-10
    45,000 are to train on, 5,000 the defender's, 10,000 the evaluator's.

    Args:
        source: which.
        data: a folder that holds it, searched before the usual places.
        train, reserved, test: at most so many images.
        seed: not used: the splits are fixed.
        download: fetch it into the first place where it can't be found.

    Raises:
        DataNotFound: where the files are not there; it says what to type.
        ConnectionError: where the download fails.
        ValueError: where a file is damaged, or a part would have no image.
    """
    if min(train, reserved, test) < 1:
        raise ValueError(f"each part needs at least one image, got train={train}, reserved={reserved}, test={test}")
    root = source.found(data)
    if root is None and not download:
        looked = ", ".join(str(place) for place in data_places(data))
        download_it = f"from nbtools.data import datasets; datasets.load('{source.name}', download=True)"
        raise DataNotFound(
            f'{source.title} is not here. To go on without it: profile = "quick" in the parameters cell, or --profile '
            f'quick on the command line. To download it: python -c "{download_it}". Where it lies elsewhere: set '
            f"NBTOOLS_DATA to the folder that holds {source.marker}, or give that folder with --data. Looked in: "
            f"{looked}."
        )
    root = root or data_places(data)[0]
    try:
        halves = [source.read(str(root), which, download) for which in (True, False)]
        learning, testing = map(_images, halves)
    except URLError as error:
        raise ConnectionError(
            f"{source.title} could not be downloaded into {root} ({error.reason}). Without a connection: get "
            f"{source.marker} elsewhere, and set NBTOOLS_DATA to the folder that holds it, or give that folder with "
            "--data."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{source.title} in {root} is not complete: a file is missing, truncated or changed (its checksum differs)."
            f" Delete {root / source.marker} and get it again."
        ) from error
    version, mix = ("", False) if source.mixed else (MIXED, True)
    notes = _both([half.notes for half in halves])
    return in_three(source.name, learning, testing, train, reserved, test, version, mix=mix, notes=notes)


def _images(half: Half) -> Images:
    planes = torch.from_numpy(np.ascontiguousarray(np.asarray(half.pixels).transpose(0, 3, 1, 2)))
    return Images(planes, torch.as_tensor(half.labels, dtype=torch.int64), half.classes)


def load_folder(folder: Path, *, train: int, reserved: int, test: int, size: int = 32) -> Splits:
    """Images of one's own: FOLDER/train/<class>/<image> and FOLDER/test/<class>/<image>, resized to squares.

    The parts are in `nbtools.data.splits.mixed_order`, and the notes tell what was left aside, resized or guessed.

    Args:
        folder: holds `train` and `test`, each with the same classes.
        train, reserved, test: at most so many images; a tenth of those in `train` is the defender's.
        size: pixels a side.

    Raises:
        ValueError: for a folder that is missing, other classes in `test`, or images that can't be read.
    """
    from nbtools.data.classes import class_order
    from nbtools.data.folder import decode, scan, widest

    if missing := [half for half in HALVES if not (folder / half).is_dir()]:
        raise ValueError(
            f"{folder} holds no folder {' and no folder '.join(missing)}: a folder a class in each of them"
        )
    names, others = (class_order(folder / half) for half in HALVES)
    if names != others:
        differ = ", ".join(sorted({*names} ^ {*others})[:5])
        raise ValueError(
            f"the classes in {folder / 'test'} are others than those in {folder / 'train'}, or in another order: "
            + (f"{differ} in one of them alone; an empty folder will do" if differ else "see classes.txt in both")
        )
    scans = [scan(folder / half, names) for half in HALVES]
    spans = widest(*(scanned.spans for scanned in scans))
    halves = [decode(scanned, (size, size), spans) for scanned in scans]
    digest = hashlib.sha256(MIXED.encode())
    for half in halves:
        digest.update(half.images.images.numpy().tobytes() + half.images.labels.numpy().tobytes())
    learning, testing = (half.images for half in halves)
    return in_three(
        f"folder:{folder.name}",
        learning,
        testing,
        train,
        reserved,
        test,
        digest.hexdigest()[:12],
        mix=True,
        notes=_both([half.notes + half.warnings for half in halves]),
    )


def _both(notes: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Those of both halves, with the half's name where the other one has another."""
    common = [note for note in notes[0] if note in notes[1]]
    own = [f"{half}: {note}" for half, said in zip(HALVES, notes, strict=True) for note in said if note not in common]
    return (*common, *own)
