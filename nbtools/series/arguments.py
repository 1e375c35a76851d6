"""Strict arguments: every `-p NAME VALUE` is held against the notebooks' parameters cells before any work."""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtools.values import fit, parse, said, type_of
from nbtools.wording import known


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: name, default (a literal) and the comment behind it ("" if none)."""

    name: str
    default: Any
    comment: str


# The notebooks that were chosen: stem -> the parameters that it declares.
Declared = Mapping[str, Mapping[str, Parameter]]


def parameters_of(path: Path) -> dict[str, Parameter]:
    """Return the parameters that a notebook declares, by name, in order; empty when it has no parameters cell.

    path: a percent script or a notebook. It is read here without nbformat, whose import takes a second or more.
    Raises ValueError when the cell tagged "parameters" holds anything but `name = literal` lines, or when there are two
    such cells.
    """
    stem, cells = path.stem, [text for text, tags in _code_cells(path) if "parameters" in tags]
    if len(cells) > 1:
        raise ValueError(f"{stem} has {len(cells)} cells tagged parameters; one is allowed.")
    if not cells:
        return {}
    try:
        statements = ast.parse(cells[0]).body
    except SyntaxError as error:
        raise ValueError(f"{stem}: the parameters cell is not Python: {error.msg}, line {error.lineno}.") from None
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(cells[0]).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for statement in statements:
        try:
            name, value = _assignment(statement)
        except ValueError:
            text = ast.unparse(statement)
            raise ValueError(f"{stem}: the parameters cell may hold only `name = literal`, not `{text}`.") from None
        found[name] = Parameter(name, value, comments.get(statement.end_lineno or statement.lineno, ""))
    return found


def _code_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Text and tags of each code cell."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        try:
            for cell in json.loads(text)["cells"]:
                if cell["cell_type"] == "code":
                    yield "".join(cell["source"]), cell["metadata"].get("tags", [])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} can't be read as a notebook.") from None
        return
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        marker, _, source = part.partition("\n")
        tags = re.search(r"tags=(\[.*?\])", marker)
        if "[markdown]" not in marker:
            yield source.strip("\n"), json.loads(tags[1]) if tags else []


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    """Return name and value of `name = literal` or `name: type = literal`; raises ValueError for anything else."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, ast.literal_eval(value)
    raise ValueError


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
        infinite = isinstance(value, float) and not math.isfinite(value)
        kind = "not a finite number" if infinite else said(type_of(value))
        raise ValueError(
            f"The parameter {parameter.name} takes {said(wanted)}, and {text or value!r} is {kind}. "
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
