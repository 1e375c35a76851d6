"""The data sets by name, each in three parts: for training, for the defender, for the evaluator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from nbtools import shapes, sources
from nbtools.cache import cached, source_hash
from nbtools.images import Images
from nbtools.shapes import CLASSES, make_shapes
from nbtools.splits import Splits

FOLDER = "folder:"
"""What the name of one's own data set begins with; its path follows."""


def load_shapes(
    data: Path | None = None, *, train: int, reserved: int, test: int, seed: int = 0, download: bool = False
) -> Splits:
    """The data set that code makes: no download, any size (`data` and `download` change nothing).

    Large ones are kept in the cache: a series of notebooks makes them once.

    Raises:
        ValueError: where a part would have no image.
    """
    if min(train, reserved, test) < 1:
        raise ValueError(f"each part needs at least one image, got train={train}, reserved={reserved}, test={test}")
    # What was made, or trained, by other code is not found again.
    count, version = train + reserved + test, source_hash(shapes.__file__)[:12]

    def build(_work: Path | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        images, labels = make_shapes(count, seed)
        return {"images": images, "labels": labels}, {}

    config = {"dataset": "shapes", "images": count, "seed": seed, "version": version}
    made = cached("images", config, build).tensors if count >= 10_000 else build()[0]
    everything = Images(made["images"], made["labels"], CLASSES)
    parts = torch.arange(len(everything)).split([train, reserved, test])
    return Splits("shapes", *(everything.subset(part) for part in parts), version=version)


DATASETS: dict[str, Callable[..., Splits]] = {"shapes": load_shapes} | {
    name: functools.partial(sources.load, source) for name, source in sources.SOURCES.items()
}


def classes_of(name: str) -> int | None:
    """How many classes a data set has; None for "folder:PATH", which only reading it tells."""
    if name in sources.SOURCES:
        return sources.SOURCES[name].classes
    return len(CLASSES) if name in DATASETS else None


def load(name: str, data: Path | None = None, device: torch.device | str = "cpu", **options: int | bool) -> Splits:
    """A data set by name, on `device`.

    Args:
        name: one of `DATASETS`, or "folder:PATH", see `nbtools.sources.load_folder`.
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
