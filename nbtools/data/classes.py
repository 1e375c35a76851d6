"""The classes of a folder of images, in the order of a model's outputs."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nbtools.data.listing import LIST, class_folders, first, kind_of
from nbtools.data.pictures import reason

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, and so stands before it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The byte-order marks that a text may begin with, and how it is read then."""


def class_names(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The classes in the order of the model's outputs, see `class_order`.

    Raises:
        ValueError: where there are not as many as the model has; both are listed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --images takes one that holds a folder of images for each class")
    names = class_order(folder)
    if len(names) != num_classes:
        source = f"{LIST} names" if (folder / LIST).is_file() else f"{folder} holds"
        raise ValueError(
            f"the model tells {num_classes} classes apart, and {source} {len(names)}: {first(names, 20) or 'none'}. "
            f"Every class needs a folder (an empty one will do), or a line in {folder / LIST}, in the order of the "
            f"model's outputs{_within(folder, names, num_classes)}"
        )
    return names


def _within(folder: Path, names: Sequence[str], num_classes: int) -> str:
    """Which folder inside has as many classes as the model, as `train` and `val` of a data set have."""
    right: list[str] = []
    for place in (folder / name for name in names):
        with suppress(ValueError):  # one that can't be entered, or is not there
            right += [str(place)] if len(class_folders(place)) == num_classes else []
    return f". As many are in {' and in '.join(right)}: one of these may be meant" if right else ""


def class_order(folder: Path) -> tuple[str, ...]:
    """The order of classes.txt where there is one; numerical where all names are whole numbers; else alphabetical.

    Raises:
        ValueError: where the list can't be read or does not fit the folders, or a class's folder can't be entered.
    """
    listed = folder / LIST
    if os.path.lexists(listed) and (kind := kind_of(listed)) != "a file":
        raise ValueError(f"{listed} is {kind}, and should be a text file, a class a line; mend or remove it")
    there = class_folders(folder)
    if not listed.is_file():
        numbered = all(name.isdecimal() for name in there)
        return tuple(sorted(there, key=lambda name: (int(name), name)) if numbered else there)
    names = [line.strip() for line in _text(listed).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{listed} is empty; it should name a class a line, or be removed")
    # The same é is one letter in a text and, in the name of a folder that came from a Mac, an e and an accent.
    same = {_plain(name): name for name in there}
    names = [name if name in there else same.get(_plain(name), name) for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{listed} names a class twice: {first(twice)}")
    if unknown := sorted(set(there) - set(names)):
        raise ValueError(f"{folder} holds folders that {LIST} does not name: {first(unknown)}")
    if not there:
        raise ValueError(f"{folder} holds none of the folders that {LIST} names: {first(names)}")
    return tuple(names)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), _unmarked(data))
        text = data.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as text ({reason(error)}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} can't be read as text (it holds bytes that are zero); save it as UTF-8")
    return text.replace("\ufeff", "")


def _unmarked(data: bytes) -> str:
    """The encoding of a text without a mark: in UTF-16 a line's end has a zero byte, on one side or the other."""
    if b"\0" not in data or len(data) % 2:
        return "utf-8"
    return "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
