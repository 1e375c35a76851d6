"""What a value may be, told once for `-p`, `-s` and grids: how it is typed, its type, its range. No torch here."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MOST_WHOLE = 2**63 - 1
"""The largest whole number, without its sign: what torch, numpy and tables count with."""


def parse(text: str) -> Any:
    """The Python literal that a text spells (3, 5e-2, True, [1, 2]), or the text itself where it spells none.

    A number of thousands of digits that Python itself would not write out again is no literal here.
    """
    try:
        value = ast.literal_eval(text)
        repr(value)
        return value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def type_of(value: Any) -> Any:
    """A value's type as an annotation has it: `int`, `list[int | str]`; `Any` for None and an empty list's parts."""
    if value is None:
        return Any
    if isinstance(value, list | tuple):
        inner = tuple(dict.fromkeys(type_of(part) for part in value)) or (Any,)
        return tuple[Union[inner], ...] if isinstance(value, tuple) else list[Union[inner]]  # noqa: UP007
    return type(value)


def said(wanted: Any) -> str:
    """An annotation as people say it: "int", "list of int or str", "None or a float"."""
    options = options_of(wanted)
    if len(options) > 1:
        return " or ".join(sorted(said(option) for option in options))
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (list, tuple) and inner:
        parts = Union[tuple(part for part in inner if part is not ...)]  # noqa: UP007
        return origin.__name__ if parts is Any else f"{origin.__name__} of {said(parts)}"
    if origin is not None:
        return str(wanted)
    return "None" if wanted is type(None) else str(getattr(wanted, "__name__", wanted))


def infinite(value: Any) -> bool:
    """Whether a value is no finite number, written as one or spelled (inf, nan), or holds such."""
    if isinstance(value, dict | list | tuple | set):
        return any(map(infinite, value))
    if isinstance(value, str):
        return any(word.lower() in ("inf", "infinity", "nan") for word in re.findall(r"\w+", value))
    return isinstance(value, float) and not math.isfinite(value)


def storable(value: Any) -> bool:
    """Whether a notebook's file holds a value exactly.

    It does None, a bool, text, a finite number (a whole one of at most 63 bits), and lists, tuples and dicts of these,
    a dict with texts as its keys.
    """
    if isinstance(value, dict):
        return all(isinstance(key, str) and storable(key) and storable(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(storable, value))
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)  # bytes of the shell that are no UTF-8
    return value is None or (isinstance(value, int | float) and not infinite(value) and not too_large(value))


def too_large(value: Any) -> bool:
    """Whether a value is a whole number of more than 63 bits, or holds one."""
    if isinstance(value, dict | list | tuple | set):
        return any(map(too_large, value))
    return isinstance(value, int) and abs(value) > MOST_WHOLE


def options_of(wanted: Any) -> tuple[Any, ...]:
    """The annotations that a union joins; of anything else, itself alone."""
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def fit(value: Any, wanted: Any) -> Any:
    """A value as the wanted type.

    A whole number may stand for a float, a list for a tuple and the other way round, a dataclass's name for it with its
    defaults, and a text for what it spells where no text is wanted (YAML takes 5e-2 for one). A bool is no number, a
    number is finite, and a whole one has at most 63 bits.

    Args:
        value: any.
        wanted: an annotation: a plain type, a union, a Literal, or list, tuple and dict of these.

    Raises:
        TypeError: where it is of another type.
    """
    options = options_of(wanted)
    if Any in options or (value is None and type(None) in options):
        return value
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            if isinstance(value, option):
                return value
            if value == option.__name__:
                return option()
        try:
            return _fit_one(value, option)
        except (TypeError, ValueError):
            continue
    if isinstance(value, str) and str not in options and not isinstance(literal := parse(value), str):
        return fit(literal, wanted)
    raise TypeError(f"{value!r} is not {said(wanted)}" + ", it is too large" * too_large(value))


def _fit_one(value: Any, wanted: Any) -> Any:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal and value in inner:
        return value
    if too_large(value):
        raise TypeError
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if wanted in (int, bool, str) and type(value) is wanted:
        return value
    if (origin or wanted) in (list, tuple) and isinstance(value, list | tuple):
        parts = inner or (Any,)
        if (origin or wanted) is list:
            return [fit(part, parts[0]) for part in value]
        each = parts[:1] * len(value) if parts[-1:] == (...,) or not inner else parts
        return tuple(fit(part, one) for part, one in zip(value, each, strict=True))
    if (origin or wanted) in (dict, Mapping) and isinstance(value, dict):
        names, parts = inner or (Any, Any)
        return {fit(name, names): fit(part, parts) for name, part in value.items()}
    raise TypeError


def build(kind: type, given: Mapping[str, Any], name: str, base: Any = None, path: str = "") -> Any:
    """An instance of a dataclass from values as people give them.

    Args:
        kind: the dataclass; its own checks say which values it takes.
        given: field to value, see `fit`; "fine_tune.lr" is a field of a field.
        name: of what is built, for messages.
        base: whose values the fields have that are not given; None: the defaults.
        path: where this is a field itself, its name and a dot.

    Raises:
        ValueError: for an unknown field or a wrong type, with what there is; and as the dataclass.
    """
    hints = get_type_hints(kind)
    base = kind() if base is None else base
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for field, value in given.items():
        first, _, rest = field.partition(".")
        nested = _dataclasses_in(hints[first]) if first in hints else []
        if first not in hints or (rest and not nested):
            there = ", ".join(f"{path}{f.name} = {getattr(base, f.name)!r}" for f in dataclasses.fields(base))
            raise ValueError(f"{name} has no setting {path + field!r}; it has {there or 'none'}")
        if rest:
            inner.setdefault(first, {})[rest] = value
            continue
        try:
            values[first] = fit(value, hints[first])
        except TypeError:
            such = f", or settings such as {path}{first}.{dataclasses.fields(nested[0])[0].name}" if nested else ""
            large = " (too large: a whole number has at most 63 bits)" if too_large(value) else ""
            raise ValueError(
                f"{name}'s {path}{first} takes {said(hints[first])}{such}, got {value!r}{large}; "
                f"by default it is {getattr(base, first)!r}"
            ) from None
    for first, parts in inner.items():
        now = values.get(first, getattr(base, first))
        if first in values and not dataclasses.is_dataclass(now):
            raise ValueError(f"{path}{first} and {path}{first}.{next(iter(parts))} exclude each other")
        kinds = sorted(_dataclasses_in(hints[first]), key=lambda kind: not isinstance(now, kind))  # its own first
        kinds = kinds[:1] if first in values else kinds
        wanted = {field.partition(".")[0] for field in parts}
        knows = [kind for kind in kinds if wanted <= {field.name for field in dataclasses.fields(kind)}]
        nested = (knows or kinds)[0]
        values[first] = build(nested, parts, name, now if isinstance(now, nested) else None, f"{path}{first}.")
    return dataclasses.replace(base, **values)


def _dataclasses_in(wanted: Any) -> list[type]:
    return [part for part in options_of(wanted) if dataclasses.is_dataclass(part) and isinstance(part, type)]


@dataclass(frozen=True)
class Range:
    """Which numbers are allowed.

    Args:
        said: the range in words, and what the number counts.
        least, most: the ends, both allowed.
        above: whether `least` itself is not.
        also: a number outside that is allowed as well, since it stands for something else.
        whole: whether it counts something.
    """

    said: str
    least: float = 0
    most: float = math.inf
    above: bool = False
    also: float | None = None
    whole: bool = False

    def is_number(self, value: Any) -> bool:
        """Whether a value is a number of this kind; a bool is none."""
        kind = Integral if self.whole else Real
        return isinstance(value, kind) and not isinstance(value, bool)

    def holds(self, number: Any) -> bool:
        """Whether a number is allowed; infinity never is."""
        if infinite(number):
            return False
        if self.also is not None and number == self.also:
            return True
        return (number > self.least if self.above else number >= self.least) and number <= self.most
