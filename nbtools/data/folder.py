"""A folder of clean images by class: FOLDER/<class>/<image>, or in folders below the class's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nbtools.data.classes import class_names
from nbtools.data.images import Images
from nbtools.data.listing import Listing, counted, first, identity, list_beside, list_pictures
from nbtools.data.pictures import SUFFIXES, Header, Span, read_header, read_pixels, read_span, reason

FAINT = 4_096
"""Of the 65,536 values of 16 bits: where none is as high, they are more likely of fewer bits than nearly black."""
LARGE = 512
"""Pixels a side above which a size must be asked for: nobody means to feed photographs as they are by default."""


@dataclass(frozen=True, eq=False)
class Folder:
    """What a folder of images holds.

    Args:
        images: all of them, by class and path.
        notes: how they were read, in sentences.
        warnings: what is amiss with them, in sentences.
    """

    images: Images
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scan:
    """What is known of a folder before its pictures are decoded.

    Args:
        folder, classes: where, and the classes in order.
        labels: of each picture, by class and path.
        headers: of those that have a readable one.
        broken: what can't be read, and why.
        highs: the largest value of each grey picture of more than 8 bits.
        spans: by bits, the extremes over these pictures.
        aside: what is left aside in the class folders.
    """

    folder: Path
    classes: tuple[str, ...]
    labels: dict[Path, int]
    headers: dict[Path, Header]
    broken: dict[Path, str]
    highs: dict[Path, int]
    spans: dict[int, Span]
    aside: Counter[str]


def read_folder(folder: Path, num_classes: int, size: tuple[int, int] | None = None) -> Folder:
    """Every image of every class; the classes' order is that of `nbtools.data.classes.class_order`.

    Args:
        folder: holds one folder a class; some may be empty.
        num_classes: of the model.
        size: height and width to resize to; None is the size that more than half of the images have.

    Raises:
        ValueError: for another number of classes, fewer than two images, images that can't be read, images of many
            sizes, or a size that is too large to be meant so.
    """
    scanned = scan(folder, class_names(folder, num_classes))
    return decode(scanned, size, scanned.spans)


def scan(folder: Path, classes: Sequence[str]) -> Scan:
    """List a folder's pictures and read their headers; grey ones of more than 8 bits are decoded, for their extremes.

    Raises:
        ValueError: where there are fewer than two.
    """
    above = (identity(folder),)
    found = [list_pictures(folder / name, above) if (folder / name).is_dir() else Listing() for name in classes]
    labels = {path: label for label, listing in enumerate(found) for path in listing.pictures}
    broken = {path: why for listing in found for path, why in listing.broken.items()}
    aside = sum((listing.aside for listing in found), Counter[str]())
    if (count := len(labels) + len(broken)) < 2:
        left = counted(aside + list_beside(folder, classes))
        raise ValueError(
            f"{folder} holds {count or 'no'} image{'s' * (count != 1)} ({', '.join(SUFFIXES)}) in its class "
            "folders; two are the least (one to repair with, one held back), ten a class or more are good"
            + (f". What else is there: {left}" if left else "")
        )
    headers: dict[Path, Header] = {}
    highs: dict[Path, int] = {}
    spans: dict[int, Span] = {}
    for path in labels:
        try:
            header = read_header(path)
            if header.bits:
                span = read_span(path)
                highs[path], spans = span[1], widest(spans, {header.bits: span})
            headers[path] = header
        except Exception as error:  # whatever a decoder raises, the file can't be read
            broken[path] = reason(error)
    return Scan(folder, tuple(classes), labels, headers, broken, highs, spans, aside)


def widest(one: Mapping[int, Span], other: Mapping[int, Span]) -> dict[int, Span]:
    """By bits, the extremes of both."""
    pairs = [(bits, [spans[bits] for spans in (one, other) if bits in spans]) for bits in {*one, *other}]
    return {bits: (min(low for low, _ in both), max(high for _, high in both)) for bits, both in pairs}


def decode(scanned: Scan, size: tuple[int, int] | None, spans: Mapping[int, Span]) -> Folder:
    """Read what was listed.

    Args:
        scanned: the folder.
        size: see `read_folder`.
        spans: extremes of grey values as in `Scan.spans`, over everything that is to be read alike.

    Raises:
        ValueError: as `read_folder` does.
    """
    broken = {**scanned.broken, **_doubtful(scanned, spans)}
    if size is None:
        try:
            size = _own_size(scanned)
        except ValueError:
            if broken:
                raise _unreadable(scanned, broken) from None
            raise
    stack = torch.empty(len(scanned.headers), 3, *size, dtype=torch.uint8)
    turned = 0
    for index, path in enumerate(scanned.headers):
        try:
            pixels = read_pixels(path, size, spans)
        except Exception as error:  # as above; a header may be whole, and the rest cut off
            broken[path] = reason(error)
            continue
        stack[index] = pixels.rgb
        turned += pixels.turned
    for index, (path, header) in enumerate(scanned.headers.items()):
        # Of 16 bits a channel PIL hands out the upper 8, and does not say what the lower ones hold.
        if header.deep_colour and path not in broken and int(stack[index].max()) < FAINT // 256:
            broken[path] = f"16 bits a channel and no value above {FAINT - 1}, all but black; save it with 8 bits"
    if broken:
        raise _unreadable(scanned, broken)
    images = Images(stack, torch.tensor(list(scanned.labels.values())), scanned.classes)
    return Folder(images, tuple(_notes(scanned, size, spans, turned)), tuple(_warnings(images)))


def _doubtful(scanned: Scan, spans: Mapping[int, Span]) -> dict[Path, str]:
    """Grey pictures of more than 8 bits whose brightness nothing tells, and why."""
    doubtful = {}
    for path, high in scanned.highs.items():
        most = spans[scanned.headers[path].bits][1]
        if 255 < most < FAINT:
            doubtful[path] = f"grey values up to {most} in files for 65535: of 10 or 12 bits? scale them to 8 bits"
        elif most > 255 and 0 < high <= 255:
            doubtful[path] = f"grey values up to {high}, those of others up to {most}: of 8 bits? save all alike"
    return doubtful


def _unreadable(scanned: Scan, broken: Mapping[Path, str]) -> ValueError:
    named = [f"{path.relative_to(scanned.folder).as_posix()} ({broken[path]})" for path in sorted(broken)]
    total = len({*scanned.labels, *broken})
    return ValueError(f"{len(broken)} of {total} images can't be read: {first(named)}; mend or remove them")


def _own_size(scanned: Scan) -> tuple[int, int]:
    """Height and width that more than half of the images have, unless it is too large to be meant so."""
    sizes = Counter(header.size for header in scanned.headers.values())
    ((height, width), most), *_ = sizes.most_common(1) or [((0, 0), 0)]
    if 2 * most <= sizes.total():
        raise ValueError(
            f"the images in {scanned.folder} have {len(sizes)} sizes, {_range(sizes)}, and no size that more than half "
            f"of the {sizes.total()} share; say with --size what the model takes"
        )
    if max(height, width) > LARGE:
        raise ValueError(f"the images in {scanned.folder} are {width}x{height}; say with --size what the model takes")
    return height, width


def _range(sizes: Counter[tuple[int, int]]) -> str:
    """The smallest and the largest size, or the only one."""
    ordered = [f"{width}x{height}" for height, width in sorted(sizes, key=lambda size: (size[0] * size[1], size))]
    return " to ".join(ordered[:1] + ordered[1:][-1:])


def _notes(scanned: Scan, size: tuple[int, int], spans: Mapping[int, Span], turned: int) -> list[str]:
    headers, total = scanned.headers.values(), len(scanned.headers)
    notes = []
    other = Counter(header.size for header in headers if header.size != size)
    if other:
        notes.append(
            f"{other.total()} of {total} images had another size and were resized to {size[1]}x{size[0]} "
            f"(from {_range(other)})."
        )
    depth = {path: len(path.relative_to(scanned.folder).parts) for path in scanned.headers}
    if deeper := [path.parent.relative_to(scanned.folder).as_posix() for path in depth if depth[path] > 2]:
        places = first(sorted(set(deeper)), 2)
        notes.append(f"{len(deeper)} of {total} images come from folders below those of the classes ({places}).")
    for bits in scanned.spans:
        low, high = spans[bits]
        count = sum(header.bits == bits for header in headers)
        done = "were taken as they are" if high <= 255 else "were divided by 256, being 16-bit ones"
        notes.append(f"{count} of {total} images have {bits}-bit grey values, from {low} to {high}; they {done}.")
    for count, said in (
        (sum(header.deep_colour for header in headers), "have 16 bits a channel, of which the upper 8 were taken"),
        (turned, "ask in their EXIF data to be turned, and were not (torchvision does not do so either)"),
        (sum(header.frames for header in headers), "hold several pictures, of which the first was taken"),
    ):
        if count:
            notes.append(f"{count} of {total} images {said}.")
    for place, aside in (("in", scanned.aside), ("beside", list_beside(scanned.folder, scanned.classes))):
        if text := counted(aside):
            notes.append(f"Left aside {place} the class folders: {text}.")
    return notes


def _warnings(images: Images) -> list[str]:
    warnings = []
    counts = torch.bincount(images.labels, minlength=images.num_classes).tolist()
    if empty := [name for name, count in zip(images.classes, counts, strict=True) if not count]:
        warnings.append(f"There is no image of {first(empty)}: nothing is known of these classes.")
    if copies := len(images) - len(torch.unique(images.images.flatten(1), dim=0)):
        warnings.append(
            f"Among the images are {copies} copies of others: not all that are held back are new to the defence."
        )
    return warnings
