"""Which defence, with which settings: names as typed on the command line to a defence that is ready to be called."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nbtools import defences
from nbtools.arguments import parse_value
from nbtools.defences import Defence

TABLE = {
    "suspiciousness": "Suspiciousness",
    "clp": "SpectralNorm",
    "chosen_mu": "ChosenMu",
    "fmp": "FMP",
    "mnp": "MNP",
    "nad": "NAD",
    "anp": "ANP",
    "rnp": "RNP",
    "awm": "AWM",
    "fine_pruning": "FinePruning",
    "fine_tuning": "FineTuning",
}


def known() -> dict[str, type]:
    """The defences that there are: the name on the command line to the class."""
    return {name: getattr(defences, kind) for name, kind in TABLE.items() if kind in defences.__all__}


def make_defence(name: str, settings: Sequence[tuple[str, str]]) -> Defence:
    """The defence of this name with these settings.

    Args:
        name: a name in `known()`.
        settings: pairs of a field and its value as typed; "fine_tune.lr" is a field of a field.

    Raises:
        ValueError: for an unknown name or field, a field given twice, a wrong type, or a value that the defence
            refuses; the message lists what there is.
    """
    if name not in known():
        raise ValueError(f"unknown defence {name!r}; known: {', '.join(known())}")
    given: dict[str, str] = {}
    for field, text in settings:
        if field in given:
            raise ValueError(f"-s {field} is given twice")
        given[field] = text
    return _made(known()[name], None, given, name, "")


def _made(kind: type, base: Any, given: Mapping[str, str], name: str, path: str) -> Any:
    """An instance of a dataclass: `base`, or the defaults, with some fields replaced."""
    base = kind() if base is None else base
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, str]] = {}
    for field, text in given.items():
        first, _, rest = field.partition(".")
        nested = _dataclass_in(hints[first]) if first in hints else None
        if first not in hints or (rest and nested is None):
            there = ", ".join(f"{path}{f.name} = {getattr(base, f.name)!r}" for f in dataclasses.fields(base))
            raise ValueError(f"{name} has no setting {path + field!r}; it has {there or 'none'}")
        if rest:
            inner.setdefault(first, {})[rest] = text
            continue
        try:
            values[first] = _cast(parse_value(text), hints[first])
        except TypeError:
            takes = f"None, or settings such as {path}{first}.{dataclasses.fields(nested)[0].name}" if nested else ""
            raise ValueError(
                f"{name}'s {path}{first} takes {takes or _said(hints[first])}, got {text!r}; "
                f"by default it is {getattr(base, first)!r}"
            ) from None
    for first, parts in inner.items():
        if first in values:
            raise ValueError(f"-s {path}{first} and -s {path}{first}.{next(iter(parts))} exclude each other")
        nested = _dataclass_in(hints[first])
        assert nested is not None
        values[first] = _made(nested, getattr(base, first), parts, name, f"{path}{first}.")
    return dataclasses.replace(base, **values)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _dataclass_in(hint: Any) -> type | None:
    return next((part for part in _options(hint) if dataclasses.is_dataclass(part) and isinstance(part, type)), None)


def _said(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint) if get_origin(hint) is None else hint)


def _cast(value: Any, hint: Any) -> Any:
    """The value as the type that a field is annotated with; a whole number may stand for a float, a list for a tuple.

    Raises:
        TypeError: where it is of another type.
    """
    for option in _options(hint):
        origin, inner = get_origin(option), get_args(option)
        if option is Any or (origin is Literal and value in inner) or (option is type(None) and value is None):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
        try:
            if origin is tuple and isinstance(value, list | tuple):
                hints = inner[:1] * len(value) if inner[-1:] == (...,) else inner
                return tuple(_cast(part, hint) for part, hint in zip(value, hints, strict=True))
            if origin in (dict, Mapping) and isinstance(value, dict):
                return {_cast(key, inner[0]): _cast(part, inner[1]) for key, part in value.items()}
        except (TypeError, ValueError):
            continue
    raise TypeError
