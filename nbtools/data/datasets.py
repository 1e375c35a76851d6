"""The data sets by name, each in three parts: for training, for the defender, for the evaluator."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbtools.data import shapes, sources
from nbtools.data.images import Images
from nbtools.data.shapes import CLASSES, make_shapes
from nbtools.data.splits import Splits

FOLDER = "folder:"
"""What the name of one's own data set begins with; its path follows."""


def shapes_version() -> str:
    """Of the code that makes `shapes`: what was made, or trained, by other code is not found again."""
    return hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()[:12]


def load_shapes(
    data: Path | None = None,
    *,
    train: int,
    reserved: int,
    test: int,
    seed: int = 0,
    download: bool = False,
    make: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]] = make_shapes,
) -> Splits:
    """The data set that code makes: no download, any size (`data` and `download` change nothing).

    Args:
        train, reserved, test: so many images.
        seed: of the images.
        make: number and seed to images and labels, as `nbtools.data.shapes.make_shapes`.

    Raises:
        ValueError: where a part would have no image.
    """
    if min(train, reserved, test) < 1:
        raise ValueError(f"each part needs at least one image, got train={train}, reserved={reserved}, test={test}")
    everything = Images(*make(train + reserved + test, seed), CLASSES)
    parts = torch.arange(len(everything)).split([train, reserved, test])
    return Splits("shapes", *(everything.subset(part) for part in parts), version=shapes_version())


DATASETS: dict[str, Callable[..., Splits]] = {"shapes": load_shapes} | {
    name: functools.partial(sources.load, source) for name, source in sources.SOURCES.items()
}


def classes_of(name: str) -> int | None:
    """How many classes a data set has; None for "folder:PATH", which only reading it tells."""
    if name in sources.SOURCES:
        return sources.SOURCES[name].classes
    return len(CLASSES) if name in DATASETS else None


def load(name: str, data: Path | None = None, device: torch.device | str = "cpu", **options: Any) -> Splits:
    """A data set by name, on `device`.

    Args:
        name: one of `DATASETS`, or "folder:PATH", see `nbtools.data.sources.load_folder`.
        data: a folder to search first.
        device: where the uint8 tensors shall lie.
        options: `train`, `reserved`, `test` (numbers of images), `seed`, `download`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name.startswith(FOLDER):
        sizes = {part: int(options[part]) for part in ("train", "reserved", "test")}
        return sources.load_folder(Path(name.removeprefix(FOLDER)).expanduser(), **sizes).to(device)
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}, {FOLDER}PATH")
    return DATASETS[name](data, **options).to(device)
