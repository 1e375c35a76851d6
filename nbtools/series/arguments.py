"""Strict arguments: every `-p NAME VALUE` is held against the notebooks' parameters cells before any work."""

from collections.abc import Iterable, Mapping
from typing import Any

from nbtools.series.notebooks import Parameter
from nbtools.values import fit, parse, said, type_of
from nbtools.wording import known

# The notebooks that were chosen: stem -> the parameters that it declares.
Declared = Mapping[str, Mapping[str, Parameter]]


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
        for stem, parameters in declared.items():
            if name in parameters:
                values[stem][name] = typed(parse(text), parameters[name], stem, text)
    return values


def typed(value: Any, parameter: Parameter, stem: str, text: str = "") -> Any:
    """Return a value as the type of a parameter's default.

    text: the value as it was typed, for the message.
    Raises ValueError, with what is wanted, where it is of another type.
    """
    wanted = type_of(parameter.default)
    try:
        return fit(value, wanted)
    except TypeError:
        comment = f" ({parameter.comment})" if parameter.comment else ""
        raise ValueError(
            f"The parameter {parameter.name} takes {said(wanted)}, and {text or value!r} is {said(type_of(value))}. "
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
