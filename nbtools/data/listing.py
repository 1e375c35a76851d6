"""What lies in a folder of images by class: the pictures, what can't be read, and what is left aside."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nbtools.data.pictures import SUFFIXES, reason

LIST = "classes.txt"
NAMED = 5
"""So many files or classes are named in a message."""
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
Identity = tuple[int, int]
"""Device and number of a folder: the same for every link to it."""


@dataclass
class Listing:
    """What was found in a class's folder.

    Args:
        pictures: files with a picture's ending, sorted by path.
        broken: what bears a picture's ending, or may be a folder of pictures, and can't be opened; with the reason.
        aside: what is not looked at, and how many of it.
    """

    pictures: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)


def kind_of(path: Path) -> str:
    """One of `KINDS`, links followed; else why it is none: "a dead link", ..."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode), "a device")
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "a dead link"
        return "a link to itself" if error.errno == errno.ELOOP else reason(error)


def is_picture(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def is_hidden_folder(path: Path) -> bool:
    """Whether no person made it: .ipynb_checkpoints, __MACOSX."""
    return path.name.startswith((".", "__"))


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out.

    Raises:
        ValueError: where it can't be entered, or something in it that may be a class's folder can't.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} can't be entered ({reason(error)}); change who may read it") from None
    kinds = {path: kind_of(path) for path in entries if not is_hidden_folder(path)}
    lost = [f"{p.name} ({kind})" for p, kind in kinds.items() if kind not in KINDS.values() and not is_picture(p)]
    if lost:
        raise ValueError(f"{folder} holds what may be a class and can't be read: {first(lost)}; mend or remove it")
    return [path.name for path, kind in kinds.items() if kind == "a folder"]


def list_pictures(folder: Path, above: tuple[Identity, ...] = ()) -> Listing:
    """Every picture in a folder and in the folders below it, links followed, as torchvision's `ImageFolder` does.

    Args:
        folder: a class's.
        above: the folders that it lies in: a link to one of them leads in a circle.
    """
    found = Listing()
    above = (*above, identity(folder))
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        found.broken[folder] = reason(error)
        return found
    for path in entries:
        kind = kind_of(path)
        if kind == "a folder":
            _add_folder(found, path, above)
        elif path.name[0] != "." and is_picture(path) and kind == "a file":
            found.pictures.append(path)
        elif path.name[0] != "." and (is_picture(path) or kind not in KINDS.values()):
            found.broken[path] = kind
        else:
            found.aside[_noun(path)] += 1
    return found


def _add_folder(found: Listing, folder: Path, above: tuple[Identity, ...]) -> None:
    if is_hidden_folder(folder):
        found.aside += _hidden(folder)
    elif identity(folder) in above:
        found.aside["link back to a folder above"] += 1
    else:
        below = list_pictures(folder, above)
        found.pictures += below.pictures
        found.broken |= below.broken
        found.aside += below.aside


def list_beside(folder: Path, classes: Collection[str]) -> Counter[str]:
    """What lies beside the class folders and belongs to no class."""
    aside: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.name in (LIST, *classes):
            continue
        if kind_of(path) != "a folder":
            aside[_noun(path)] += 1
        elif is_hidden_folder(path):
            aside += _hidden(path)
    return aside


def identity(folder: Path) -> Identity:
    """Which folder this is, whatever link led to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _hidden(folder: Path) -> Counter[str]:
    """The pictures in a hidden folder."""
    names = [name for _, _, files in os.walk(folder) for name in files]
    return Counter({"picture in hidden folders": sum(is_picture(Path(name)) for name in names)})


def _noun(path: Path) -> str:
    if path.name[0] == ".":
        return "hidden file"
    if is_picture(path):
        return "picture"
    return f"{path.suffix.lower()} file" if path.suffix else "file without an ending"


def counted(aside: Counter[str]) -> str:
    """For people: "3 .gif files, 1 hidden file"; the most first."""
    most = sorted((+aside).items(), key=lambda item: (-item[1], item[0]))
    return first([f"{count} {_plural(noun) if count > 1 else noun}" for noun, count in most])


def _plural(noun: str) -> str:
    word = next(word for word in ("file", "picture", "link") if word in noun)
    return f"{word}s".join(noun.rsplit(word, 1))


def first(names: Sequence[str], count: int = NAMED) -> str:
    """The first few of a list, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
