"""Plain data beside the weights: NumPy's numbers and arrays, dates, paths, settings; built from its parts by hand.

A pickle names functions and calls them. `torch.load(weights_only=True)` knows those of tensors; for the few names more
that stand for data it is given the functions below, which check the parts and then make the thing. NumPy's own are not
among them: they trust what they are given.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import math
import pathlib
import re
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PATHS = ("PurePath", "PurePosixPath", "PureWindowsPath", "Path", "PosixPath", "WindowsPath")
CLASSES: tuple[type, ...] = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    argparse.Namespace,
    types.SimpleNamespace,
    *(frozenset, slice, bool, int, float, str, list, dict, tuple),
)
"""Python's own, which make nothing but what they are; the last of them stand in files as the type of something."""
NUMBERS = ("bool", "bool_", "intc", "uintc", "longlong", "ulonglong", "longdouble", "clongdouble", "str_", "bytes_")
NUMBERS += tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
NUMBERS += ("float16", "float32", "float64", "complex64", "complex128", "datetime64", "timedelta64")
"""NumPy's types of numbers, by name."""
SIMPLE = re.compile(r"([biufcSUVOMm])(\d*)")
"""How NumPy writes a type: its kind and its bytes (characters, of a text)."""
CORES = ("numpy.core", "numpy._core")
"""Where the functions lie that NumPy 1 and NumPy 2 name in a pickle."""


LONGEST = 10**7
"""So long a range is data; what a file makes of a longer one might never end."""


class NotData(ValueError):
    """A part that is no plain data, or does not fit the others."""


class Type:
    """A NumPy type as a pickle tells it: a name, and a state that comes after it."""

    __hash__ = None  # type: ignore[assignment]  # it is replaced by what it stands for, which no set could follow

    def __init__(self, name: str, _align: bool = False, _copy: bool = False) -> None:
        if not isinstance(name, str) or not (found := SIMPLE.fullmatch(name)):
            raise NotData(f"the NumPy type {name!r}")
        self.kind, self.size = found[1], found[2]
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if not isinstance(state, tuple) or len(state) not in (8, 9):
            raise NotData("a NumPy type of an unknown form")
        self.state = state

    def built(self) -> np.dtype[Any]:
        """The type itself; NumPy checks that the parts fit together."""
        state: Any = self.state or ("", "=", None, None, None, -1, None)
        _, order, part, names, fields, size, *_, more = state
        if part is not None:
            return np.dtype((part[0].built(), part[1]))
        if names:
            of = [fields[name] for name in names]
            parts = {"formats": [place[0].built() for place in of], "offsets": [place[1] for place in of]}
            whole: Any = {"names": list(names), **parts, "itemsize": size}
            return np.dtype(whole)
        if self.kind in "Mm" and isinstance(more, tuple):
            unit, count, *_ = more[1]
            unit = unit.decode() if isinstance(unit, bytes) else unit
            return np.dtype(f"{self.kind}8" + (f"[{count}{unit}]" if unit != "generic" else "")).newbyteorder(order)
        return np.dtype("O") if self.kind == "O" else np.dtype(f"{self.kind}{self.size}").newbyteorder(order)


class Array:
    """A NumPy array as a pickle tells it: empty, and a state that comes after it."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], Type):
            raise NotData("a NumPy array of an unknown form")
        self.state = state


def _bytes(content: bytes = b"") -> bytes:
    """As NumPy writes the content of an empty array; a number here would be a length."""
    if not isinstance(content, bytes):
        raise NotData("bytes that are none")
    return content


def _range(*ends: int) -> range:
    if max(map(abs, ends), default=0) > LONGEST:
        raise NotData("a range too long to be data")
    return range(*ends)


def _empty(kind: object, _shape: object, _type: object) -> Array:
    if kind is not Array:
        raise NotData("a kind of NumPy array that is none of the plain ones")
    return Array()


def _of_bytes(shape: tuple[int, ...], kind: np.dtype[Any], raw: object, order: Any = "C") -> np.ndarray[Any, Any]:
    """An array with memory of its own."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    sound = not kind.hasobject and all(isinstance(side, int) and side >= 0 for side in shape)
    if not sound or not isinstance(raw, bytes) or math.prod(shape) * kind.itemsize != len(raw):
        raise NotData(f"a NumPy array {shape} of {kind} that does not fit its bytes")
    return np.ndarray(shape, kind, raw, order=order).copy(order)


def _scalar(kind: Type, raw: object) -> Any:
    return _of_bytes((), kind.built(), raw)[()]


def _path(name: str, *parts: str) -> pathlib.PurePath:
    """A path, of the other system as well, whose own class refuses to make it."""
    kind, pure = getattr(pathlib, name), pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
    try:
        return kind(*parts)
    except NotImplementedError:
        path = pure(*parts)
        path.__class__ = kind
        return path


class Reading:
    """The names that one file may call, and what was made under them.

    Dicts with a default and queues are filled by the reader as plain dicts and lists, arrays come in two parts: all are
    made what they are by `finished`.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, tuple[Any, Callable[[Any], Any]]] = {}
        self._done: dict[int, tuple[Any, Any]] = {}  # with the thing itself, so that no other one gets its number
        self._paths = {name: partial(_path, name) for name in PATHS}
        own: dict[Any, Any] = {Type: np.dtype, Array: np.ndarray, _bytes: bytes, _range: range}
        own |= {self._default: collections.defaultdict, self._queue: collections.deque}
        self._meant = own | {made: getattr(pathlib, name) for name, made in self._paths.items()}

    def names(self) -> list[Any]:
        """Each function with the name under which a pickle calls it, for `torch.serialization.safe_globals`."""
        own: dict[str, Any] = {"collections.defaultdict": self._default, "collections.deque": self._queue}
        own |= {f"{kind.__module__}.{kind.__name__}": kind for kind in CLASSES}
        own |= {f"numpy.{name}": getattr(np, name) for name in NUMBERS if hasattr(np, name)}
        own |= {"numpy.dtype": Type, "numpy.ndarray": Array, "builtins.bytes": _bytes, "builtins.range": _range}
        for core in CORES:
            own |= {f"{core}.multiarray.scalar": _scalar, f"{core}.multiarray._reconstruct": _empty}
        for name, path in self._paths.items():
            own |= dict.fromkeys((f"pathlib.{name}", f"pathlib._local.{name}"), path)
        return [(function, name) for name, function in own.items()]

    def _default(self, factory: Any = None) -> dict[Any, Any]:
        plain: dict[Any, Any] = {}
        self._kinds[id(plain)] = plain, lambda filled: collections.defaultdict(self.finished(factory), filled)
        return plain

    def _queue(self, items: tuple[Any, ...] = (), most: int | None = None) -> list[Any]:
        plain = list(items)
        self._kinds[id(plain)] = plain, partial(collections.deque, maxlen=most)
        return plain

    def finished(self, value: Any) -> Any:
        """A value with all that it holds made what it is; dicts, lists and namespaces in place."""
        if callable(value):  # the name itself, as the type of something
            if value in (_scalar, _empty):
                raise NotData("a function of NumPy's")
            return self._meant.get(value, value)
        if isinstance(value, tuple) and type(value) is tuple:
            parts = tuple(map(self.finished, value))
            return value if all(new is old for new, old in zip(parts, value, strict=True)) else parts
        if not isinstance(value, dict | list | argparse.Namespace | types.SimpleNamespace | Array | Type):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value, value  # a thing may hold itself
            self._done[id(value)] = value, self._finish(value)
        return self._done[id(value)][1]

    def _finish(self, value: Any) -> Any:
        if isinstance(value, Type):
            return value.built()
        if isinstance(value, Array):
            return self._array(value)
        inside = value if isinstance(value, dict | list) else vars(value)
        for place in list(inside) if isinstance(inside, dict) else range(len(inside)):
            inside[place] = self.finished(inside[place])
        return self._kinds[id(value)][1](value) if id(value) in self._kinds else value

    def _array(self, value: Array) -> np.ndarray[Any, Any]:
        if not value.state:
            raise NotData("a NumPy array without its content")
        _, shape, kind, fortran, raw = value.state
        kind = kind.built()
        if kind.kind != "O":
            return _of_bytes(shape, kind, raw, "F" if fortran else "C")
        if not isinstance(raw, list) or math.prod(shape) != len(raw):
            raise NotData("a NumPy array of objects that does not fit its content")
        array = np.empty(len(raw), object)
        for place, item in enumerate(raw):
            array[place] = self.finished(item)
        return array.reshape(shape, order="F" if fortran else "C")
