"""A store of trained models and results: found by what shaped them, built once, never half-written [ours].

<folder>/<kind>/<key>/tensors.safetensors   the tensors, never pickled
<folder>/<kind>/<key>/card.json             what they are: the builder's numbers, the configuration, the checksums
<folder>/<kind>/<key>.work/                 the builder's own checkpoints, until the entry stands
<folder>/<kind>/<key>.lock                  held by the process that builds the entry
<folder>/<kind>/<key>.damaged-<UTC time>/   an entry that was found damaged: set aside, never deleted
"""

import errno
import functools
import hashlib
import json
import math
import os
import re
import reprlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from nbtools.settings import ROOT

FORMAT = 1
TENSORS, CARD = "tensors.safetensors", "card.json"


class _Unsound(Exception):
    """What is wrong with an entry, in words."""


@dataclass(frozen=True)
class Entry:
    """What the cache holds for one configuration: tensors (on the CPU, in the builder's order), card, folder."""

    tensors: dict[str, Tensor]
    card: dict[str, Any]
    path: Path


def folder() -> Path:
    """The cache's folder: NBTOOLS_CACHE if set, else data/cache of a source checkout, else the user's cache folder."""
    if chosen := os.environ.get("NBTOOLS_CACHE"):
        return Path(chosen).expanduser().absolute()
    if (ROOT / "pyproject.toml").is_file() and (ROOT / "data").is_dir():
        return ROOT / "data" / "cache"
    return platformdirs.user_cache_path("nbtools")


def key(config: Mapping[str, Any]) -> str:
    """The name of a configuration: the first 20 hexadecimal digits of the SHA-256 of its canonical JSON.

    The order of names does not matter and a tuple counts as a list; 1, 1.0 and True are three different values.
    Raises ValueError for what JSON cannot hold: NaN, infinity, names that are not strings, any other object.
    """
    return _sha256(_canonical(config, "config"))[:20]


@functools.cache
def source_hash(*files: str) -> str:
    """A hash of these source files as they were when first asked for: what other code made is not found again.

    files: full paths, or paths within the package, such as "data/images.py".
    """
    return _sha256(b"".join((ROOT / "nbtools" / file).read_bytes() for file in files))[:16]


def cached(
    kind: str,
    config: Mapping[str, Any],
    build: Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]],
    root: Path | None = None,
) -> Entry:
    """The entry of this configuration: read if it is there and sound, built once otherwise.

    kind: the entry's family, such as "model": small letters, digits, "-" and "_".
    config: everything that shapes the entry, as plain JSON values.
    build: called as build(work) if the entry must be made; returns its tensors and the numbers for its card. The folder
        `work` outlives a crash, so a build that leaves checkpoints there can resume; it goes once the entry stands.
    root: the cache's folder; by default `folder()`.

    Raises ValueError for a bad kind, config or card; OSError for a folder that cannot be used or a full disk; and
    whatever `build` raises, unchanged, with `work` left in place.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind):
        raise ValueError(f'kind is {kind!r}; it names a folder, so use small letters, digits, "-" and "_" only.')
    wanted = _canonical(config, "config")
    path = (folder() if root is None else Path(root).absolute()) / kind / key(config)
    with _explained(path.parent), suppress(_Unsound):  # without the lock, so that a read-only cache serves too
        return _read(path, wanted)
    with _claim(path):
        work = path.with_suffix(".work")
        with _explained(path.parent):
            try:
                return _read(path, wanted)
            except _Unsound as problem:
                if os.path.lexists(path):
                    _set_aside(path, problem)
            work.mkdir(exist_ok=True)
        _write(path, *build(work), wanted)
        shutil.rmtree(work, ignore_errors=True)
        return _read(path, wanted)  # read back, so that the first caller gets what every later one gets


def size(root: Path | None = None) -> int:
    """Bytes in all files of the cache, with those of unfinished and damaged entries; 0 if there is no cache yet."""
    total = 0
    for place, _, names in os.walk(folder() if root is None else root):
        for name in names:
            with suppress(FileNotFoundError):  # removed by another process since the folder was listed
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _plain(value: object, name: str) -> Any:
    """The value in JSON's own types; the ValueError names the first part, such as config["lr"], that has none."""
    if isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value):
        return {inner: _plain(part, f'{name}["{inner}"]') for inner, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, f"{name}[{index}]") for index, part in enumerate(value)]
    raise ValueError(
        f"{name} is {reprlib.repr(value)} ({type(value).__name__}), which JSON cannot hold; give None, True or False, "
        "a finite Python number, a string, a list of these, or a dict of these whose keys are strings."
    )


def _canonical(value: object, name: str) -> bytes:
    return json.dumps(_plain(value, name), sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, wanted: bytes) -> Entry:
    """The entry at `path`; raises _Unsound unless it is there and all of it is as it was written."""
    try:
        text, data = (path / CARD).read_bytes(), (path / TENSORS).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _Unsound(f"{Path(error.filename).name} is missing") from error
    try:
        card = json.loads(text)
        body = _canonical({name: value for name, value in card.items() if name != "card_sha256"}, "card")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _Unsound(f"{CARD} cannot be read as a card") from error
    if card.get("format") != FORMAT:
        raise _Unsound(f"{CARD} has the format {card.get('format')!r}, and this version reads {FORMAT}")
    if card.get("card_sha256") != _sha256(body):
        raise _Unsound(f"{CARD} is not as it was written")
    if _canonical(card["config"], "config") != wanted:
        raise _Unsound(f"{CARD} belongs to another configuration")
    if _sha256(data) != card["sha256"]:
        raise _Unsound(f"{TENSORS} is not as it was written ({len(data):,} bytes now, {card['bytes']:,} then)")
    tensors = safetensors.torch.load(data)
    return Entry({name: tensors[name] for name in card["tensors"]}, card, path)


def _write(path: Path, tensors: dict[str, Tensor], card: dict[str, Any], wanted: bytes) -> None:
    """Writes an entry beside its place, makes it durable, and only then renames it into place."""
    # Clones, because safetensors takes neither shared memory (tied weights) nor strides (channels_last).
    dense = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    data = safetensors.torch.save(dense)
    own = {
        "format": FORMAT,
        "key": path.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": json.loads(wanted),
        "tensors": {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in dense.items()},
        "bytes": len(data),
        "sha256": _sha256(data),
    }
    if taken := sorted({*own, "card_sha256"} & card.keys()):
        raise ValueError(f"The builder's card uses {', '.join(taken)}, which the cache fills in itself; rename them.")
    full = {**_plain(card, "card"), **own}
    text = json.dumps({**full, "card_sha256": _sha256(_canonical(full, "card"))}, indent=2).encode()
    temporary = path.with_suffix(".tmp")
    with _explained(path.parent, needed=len(data) + len(text)):
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left one, and the lock is ours
        try:
            temporary.mkdir()
            (temporary / TENSORS).write_bytes(data)
            (temporary / CARD).write_bytes(text)
            for place in (temporary / TENSORS, temporary / CARD, temporary):
                _sync(place)
            os.rename(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(place: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable (not on Windows, which cannot open a folder)."""
    if os.name == "posix":
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _set_aside(path: Path, problem: _Unsound) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    os.rename(path, aside)
    message = f"The cache entry {path} is damaged: {problem}. It was set aside as {aside.name} and is built again."
    warnings.warn(message, stacklevel=3)


def _claim(path: Path) -> AbstractContextManager[object]:
    """The entry's lock, waited for while another process builds the entry; raises at once if nothing can be written."""
    with _explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"nbtools")  # really tried, because permission bits do not tell
        lock = FileLock(path.with_suffix(".lock"))
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            print(f"Another process is building {path.parent.name}/{path.name}; waiting for it.", flush=True)
            return lock.acquire()


@contextmanager
def _explained(place: Path, needed: int = 0) -> Generator[None]:
    """Turns the system's error about the cache folder into one that says what to do; its errno and class stay."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            message = f"The cache folder {place} cannot be used: {reason}. Set NBTOOLS_CACHE to a folder that can be."
            raise OSError(error.errno, message) from error
        free = shutil.disk_usage(next(there for there in (place, *place.parents) if there.exists())).free
        need = f"this entry needs {needed:,} bytes and " if needed else ""
        message = f"{reason}: {need}{free:,} bytes are free in {place}. No entry was written; checkpoints are kept. "
        raise OSError(error.errno, message + "Free some space, or set NBTOOLS_CACHE to a larger disk.") from error
