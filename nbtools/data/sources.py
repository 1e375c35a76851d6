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
from nbtools.data.places import PUBLISHED, found, not_found
from nbtools.data.splits import MIXED, TRACKS, Splits, in_three
from nbtools.settings import data_places

_SPEEDS = ("20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80", "100 km/h", "120 km/h")
_ORDERS = ("no passing", "no passing, trucks", "right of way", "priority road", "yield", "stop", "no vehicles")
_ORDERS += ("no trucks", "no entry")
_DANGERS = ("caution", "curve left", "curve right", "double curve", "bumpy road", "slippery road", "road narrows")
_DANGERS += ("road work", "traffic lights", "pedestrians", "children", "bicycles", "ice or snow", "wild animals")
_WAYS = ("end of all limits", "turn right", "turn left", "ahead only", "ahead or right", "ahead or left", "keep right")
_WAYS += ("keep left", "roundabout", "end of no passing", "end of no passing, trucks")
GTSRB_CLASSES = (*_SPEEDS, *_ORDERS, *_DANGERS, *_WAYS)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Half(NamedTuple):
    """A half of a published data set.

    Args:
        pixels: uint8 `[n, h, w, 3]`.
        labels: `[n]`.
        classes: their names.
        notes: what reading changed, see `nbtools.data.splits.Splits`.
        tracks: `[n]`, the same number for images of the same object; None where each shows another one.
    """

    pixels: Any
    labels: Any
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    tracks: Any = None


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
    # CLASS/TRACK_FRAME.ppm: the frames of a track show one sign from a car that comes nearer. torchvision keeps the
    # paths to itself. The images to test with carry a number only, and each shows another sign.
    names = [Path(path) for path, _ in half._samples] if train else []
    _, tracks = np.unique([f"{name.parent.name}/{name.stem.split('_')[0]}" for name in names], return_inverse=True)
    return Half(pixels, labels, GTSRB_CLASSES, notes, tracks if train else None)


@dataclass(frozen=True)
class Source:
    """A published data set.

    Args:
        name: its name in `nbtools.data.datasets.DATASETS` and in `nbtools.data.places.PUBLISHED`.
        classes: how many.
        read: root, which half, and whether to download, to that half.
        mixed: whether it is published in random order, so that its first images hold every class; one that is sorted
            is brought into `nbtools.data.splits.mixed_order`.
    """

    name: str
    classes: int
    read: Callable[[str, bool, bool], Half]
    mixed: bool = True

    @property
    def title(self) -> str:
        """As people write it."""
        return PUBLISHED[self.name][0]

    @property
    def marker(self) -> str:
        """The file or folder that it is found by."""
        return PUBLISHED[self.name][1]

    def found(self, data: Path | None = None) -> Path | None:
        """The first of `nbtools.settings.data_places` that holds `marker`, else None."""
        return found(self.name, data)


SOURCES = {
    source.name: source
    for source in (
        Source("cifar10", 10, _cifar10),
        Source("cifar100", 100, _cifar100),
        Source("svhn", 10, _svhn),
        Source("gtsrb", 43, _gtsrb, mixed=False),
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
        raise not_found(source.name, data)
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
    tracks = None if halves[0].tracks is None else torch.as_tensor(halves[0].tracks, dtype=torch.int64)
    version = "" if source.mixed else MIXED if tracks is None else TRACKS
    notes = _both([half.notes for half in halves])
    sizes = (train, reserved, test)
    return in_three(source.name, learning, testing, *sizes, version, mix=not source.mixed, tracks=tracks, notes=notes)


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
