"""Strict arguments: every `-p NAME VALUE` is held against the notebooks' parameters cells before any work."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from nbtools.notebooks import Parameter, known

# The notebooks that were chosen: stem -> the parameters that it declares.
Declared = Mapping[str, Mapping[str, Parameter]]


def parse_value(text: str) -> Any:
    """Return the Python literal that `text` spells (3, 0.05, True, [1, 2]), or `text` itself when it spells none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def convert(value: Any, default: Any) -> Any:
    """Return `value` as the type of `default`; raises TypeError when it is of another type.

    An int may stand for a float, a list for a tuple and the other way round (each element like one of the default's);
    a bool is not a number. A default of None takes any literal.
    """
    if default is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(_convert_element(element, default) for element in value)
    if type(value) is not type(default):
        raise TypeError
    return value


def _convert_element(element: Any, defaults: Iterable[Any]) -> Any:
    """Return `element` as the type of the first of `defaults` that it fits; unchanged when `defaults` is empty."""
    defaults = list(defaults)
    for default in defaults:
        try:
            return convert(element, default)
        except TypeError:
            continue
    if defaults:
        raise TypeError
    return element


def _kind(value: Any) -> str:
    """Return a value's type as a reader would write it: int, or list of int."""
    if isinstance(value, list | tuple) and value:
        return f"{type(value).__name__} of {' or '.join(sorted({_kind(element) for element in value}))}"
    return type(value).__name__


def match(given: Iterable[tuple[str, str]], declared: Declared) -> dict[str, dict[str, Any]]:
    """Return, for each notebook, the given values that it declares, as the types of its defaults.

    given: (name, text) pairs as typed. declared: the chosen notebooks' parameters.
    Raises ValueError for a name that no chosen notebook declares, a name given twice, and a value of the wrong type.
    """
    values: dict[str, dict[str, Any]] = {stem: {} for stem in declared}
    names = list(dict.fromkeys(name for parameters in declared.values() for name in parameters))
    seen: set[str] = set()
    for name, text in given:
        if name == "profile":
            raise ValueError("The profile is set by --profile, not by -p profile.")
        if name not in names:
            raise ValueError(known("parameter", name, (name for name in names if name != "profile")))
        if name in seen:
            raise ValueError(f"The parameter {name} is given twice.")
        seen.add(name)
        value = parse_value(text)
        for stem, parameters in declared.items():
            if name in parameters:
                values[stem][name] = _checked(text, value, parameters[name], stem)
    return values


def _checked(text: str, value: Any, parameter: Parameter, stem: str) -> Any:
    """Return one given value as the default's type; raises ValueError that says what is wanted."""
    try:
        return convert(value, parameter.default)
    except TypeError:
        comment = f" ({parameter.comment})" if parameter.comment else ""
        raise ValueError(
            f"The parameter {parameter.name} takes {_kind(parameter.default)}, and {text!r} is {_kind(value)}. "
            f"In {stem} it is {parameter.name} = {parameter.default!r}{comment}."
        ) from None


def takers(given: Iterable[tuple[str, str]], declared: Declared) -> list[str]:
    """Return one sentence for each given name that only some of the notebooks declare: who takes it."""
    lines = []
    for name, _ in given:
        stems = [stem for stem, parameters in declared.items() if name in parameters]
        if len(stems) < len(declared):
            lines.append(f"{name} is a parameter of {', '.join(stems)}; the others run as they are.")
    return lines
