"""Strict arguments: every `-p NAME VALUE` is held against the notebooks' parameters cells before any work."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nbtools.lab.cells import Parameter, read_cell, typed
from nbtools.values import parse
from nbtools.wording import known

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
    return read_cell(cells[0], stem) if cells else {}


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


def takers(given: Iterable[tuple[str, str]], declared: Declared) -> list[str]:
    """Return one sentence for each given name that only some of the notebooks declare: who takes it."""
    lines = []
    for name, _ in given:
        stems = [stem for stem, parameters in declared.items() if name in parameters]
        if len(stems) < len(declared):
            lines.append(f"{name} is a parameter of {', '.join(stems)}; the others run as they are.")
    return lines
