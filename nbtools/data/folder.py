"""A folder of clean images by class: FOLDER/<class>/<image>."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nbtools.data.images import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
LIST = "classes.txt"
NAMED = 5
"""So many files or classes are named in a message."""
LARGE = 512
"""Pixels a side above which a size must be asked for: nobody means to feed photographs as they are by default."""


@dataclass(frozen=True, eq=False)
class Folder:
    """What a folder of images holds.

    Args:
        images: all of them, by class and name.
        notes: how they were read, in sentences.
        warnings: what is amiss with them, in sentences.
    """

    images: Images
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_folder(folder: Path, num_classes: int, size: tuple[int, int] | None = None) -> Folder:
    """Every image of every class; the classes' order is that of `class_names`.

    Args:
        folder: holds one folder a class; some may be empty.
        num_classes: of the model.
        size: height and width to resize to; None is the first image's.

    Raises:
        ValueError: for another number of classes, no image, images that can't be read, or a first image that is too
            large to be meant so.
    """
    classes = class_names(folder, num_classes)
    files = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name)]
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files) or 'no'} image{'s' * (len(files) != 1)} ({', '.join(SUFFIXES)}) in its class "
            "folders; two are the least (one to repair with, one held back), ten a class or more are good"
        )
    if size is None:
        size = _own_size(files[0][0])
    stack = torch.empty(len(files), 3, *size, dtype=torch.uint8)
    broken, resized = [], 0
    for index, (path, _) in enumerate(files):
        try:
            pixels, changed = _read(path, size)
        except Exception as error:  # whatever a decoder raises, the file can't be read
            broken.append(f"{path.relative_to(folder)} ({_reason(error)})")
            continue
        stack[index] = pixels
        resized += changed
    if broken:
        raise ValueError(f"{len(broken)} of {len(files)} images can't be read: {_first(broken)}; mend or remove them")
    images = Images(stack, torch.tensor([label for _, label in files]), classes)
    return Folder(images, tuple(_notes(folder, images, resized)), tuple(_warnings(images)))


def class_names(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The classes in the order of the model's outputs.

    That of classes.txt where there is one; numerical where all names are whole numbers; else alphabetical.

    Raises:
        ValueError: where there are not as many as the model has; both are listed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --images takes one that holds a folder of images for each class")
    there = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    listed = folder / LIST
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(set(names)) < len(names):
            raise ValueError(f"{listed} names a class twice")
        if unknown := sorted(set(there) - set(names)):
            raise ValueError(f"{folder} holds folders that {LIST} does not name: {_first(unknown)}")
        if not set(there) & set(names):
            raise ValueError(f"{folder} holds none of the folders that {LIST} names: {_first(names)}")
    elif there and all(name.isdecimal() for name in there):
        names = sorted(there, key=lambda name: (int(name), name))
    else:
        names = sorted(there)
    if len(names) != num_classes:
        source = f"{LIST} names" if listed.is_file() else f"{folder} holds"
        raise ValueError(
            f"the model tells {num_classes} classes apart, and {source} {len(names)}: {_first(names, 20) or 'none'}. "
            f"Every class needs a folder (an empty one will do), or a line in {folder / LIST}, in the order of the "
            "model's outputs"
        )
    return tuple(names)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())


def _own_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, unless it is too large to be meant so."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:
        raise ValueError(f"the first image, {path.name}, can't be read ({_reason(error)}); mend or remove it") from None
    if max(width, height) > LARGE:
        raise ValueError(f"the first image, {path.name}, is {width}x{height}; say with --size what the model takes")
    return height, width


def _read(path: Path, size: tuple[int, int]) -> tuple[torch.Tensor, bool]:
    """One image: uint8 `[3, h, w]`, and whether it was resized."""
    with Image.open(path) as image:
        image.load()
        if image.mode.startswith("I"):  # 16 bits a pixel; PIL's own conversion would cut the upper values off
            image = Image.fromarray((np.asarray(image).clip(0, 65_535) // 256).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its pixels are floats of unknown range")
        image = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")
        changed = image.size != (size[1], size[0])
        if changed:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), changed


def _reason(error: Exception) -> str:
    return "no image, or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)


def _first(names: Sequence[str], count: int = NAMED) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _notes(folder: Path, images: Images, resized: int) -> list[str]:
    notes = []
    height, width = images.size
    if resized:
        notes.append(f"{resized} of {len(images)} images had another size and were resized to {width}x{height}.")
    places = [folder / name for name in images.classes if (folder / name).is_dir()]
    inside = [path for place in places for path in place.iterdir() if path.name[0] != "."]
    if other := sum(path.suffix.lower() not in SUFFIXES for path in inside):
        notes.append(f"Left aside in the class folders, being no images: {other}.")
    return notes


def _warnings(images: Images) -> list[str]:
    warnings = []
    counts = torch.bincount(images.labels, minlength=images.num_classes).tolist()
    if empty := [name for name, count in zip(images.classes, counts, strict=True) if not count]:
        warnings.append(f"There is no image of {_first(empty)}: what the repair does to these classes is not known.")
    if copies := len(images) - len(torch.unique(images.images.flatten(1), dim=0)):
        warnings.append(
            f"Among the images are {copies} copies of others: not all that are held back are new to the defence."
        )
    return warnings
