"""One picture of a person's own: what its header says, and its pixels as 8-bit RGB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff")
"""Those of torchvision's `ImageFolder`, and .pnm."""
DEPTHS = {"I": 32, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16}
"""Bits a value, by PIL's mode, of the grey pictures that have more than 8."""
Span = tuple[int, int]
"""The smallest and the largest grey value."""


@dataclass(frozen=True)
class Header:
    """What is known before a picture is decoded.

    Args:
        size: height and width.
        bits: of a grey value, where they are more than 8; else 0.
        deep_colour: whether a colour channel has 16 bits, of which PIL hands out the upper 8.
        frames: whether the file holds more than one picture; the first is read.
    """

    size: tuple[int, int]
    bits: int
    deep_colour: bool
    frames: bool


@dataclass(frozen=True, eq=False)
class Pixels:
    """A picture that was read.

    Args:
        rgb: uint8 `[3, h, w]`.
        turned: whether EXIF asks for another orientation than the pixels lie in.
    """

    rgb: Tensor
    turned: bool


def read_header(path: Path) -> Header:
    """Size and depth, without decoding.

    Raises:
        ValueError: for floats, whose range nothing tells.
        OSError: for what is no picture; PIL raises others where a file is damaged.
    """
    with Image.open(path) as image:
        if image.mode == "F":
            raise ValueError("its pixels are floats of unknown range; save it with 8 bits a channel")
        bits = DEPTHS.get(image.mode, 0)
        raw = " ".join(str(tile.args) for tile in getattr(image, "tile", ()))
        frames = bool(getattr(image, "is_animated", False))
        deep = ";16" in raw or (image.format == "PPM" and any(int(part) > 255 for part in re.findall(r"\d+", raw)))
        return Header((image.height, image.width), bits, not bits and deep, frames)


def read_span(path: Path) -> Span:
    """The extremes of a grey picture of more than 8 bits, decoded.

    Raises:
        ValueError: where they lie outside 0 to 65,535, of which no brightness can be made.
    """
    with Image.open(path) as image:
        values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(f"its values run from {low} to {high}; 0 to 255 and 0 to 65535 are understood")
    return low, high


def read_pixels(path: Path, size: tuple[int, int], spans: Mapping[int, Span]) -> Pixels:
    """A picture as 8-bit RGB: alpha dropped, grey repeated, resized where it is not of `size`.

    Args:
        path: of the file.
        size: height and width.
        spans: by bits (of `Header`), the extremes over *all* pictures of that depth. Where they lie within 0 to 255,
            the values are 8-bit ones in a larger container, and stay; else they are 16-bit ones. One picture alone
            can't tell: a dark one would become a bright one.
    """
    with Image.open(path) as image:
        image.load()
        turned = _turned(image)
        bits = DEPTHS.get(image.mode, 0)
        if bits:  # PIL's own conversion cuts off at 255
            values = np.asarray(image)
            image = Image.fromarray((values if spans[bits][1] <= 255 else values // 256).astype(np.uint8))
        image = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")
        height, width = size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return Pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1), turned)


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # damaged EXIF; the pixels are what counts
        return False


def reason(error: Exception) -> str:
    """Why a file can't be read, for people."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image, or damaged"
    return (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
