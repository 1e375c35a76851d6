"""A grid whose points are runs of a notebook: read from YAML, held against its parameters cell [ours]."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtools import arguments, notebooks
from nbtools.axes import load, spread
from nbtools.grid import Grid, Options, digest
from nbtools.parameters import check_parameters
from nbtools.settings import PROFILES, default_profile


@dataclass(frozen=True)
class Page:
    """One run of a notebook: its parameters, but for the profile."""

    notebook: str
    profile: str
    values: Options
    model: None = None  # it asks for its models by itself

    @property
    def id(self) -> str:
        """Of sixteen hexadecimal digits: the same for the same run, in whichever grid."""
        return digest(repr(self))

    @property
    def name(self) -> str:
        """For lines: "06_suspiciousness, mu=2.0, seed=1"."""
        return ", ".join([self.notebook, *(f"{name}={value}" for name, value in self.values)])

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The row and the files; see `nbtools.points.run_notebook`."""
        from nbtools.points import run_notebook

        return run_notebook(self, data, code)

    def columns(self) -> dict[str, Any]:
        """What was asked: the first columns of the row."""
        return {"id": self.id, "notebook": self.notebook, "profile": self.profile, **dict(self.values)}


def read(path: Path, notebook: str, folder: Path, profile: str = "") -> Grid:
    """The grid of a file as runs of a notebook, checked whole.

    Args:
        path: a YAML file; its names are the notebook's parameters. A list is a list of values; where a parameter is a
            list itself, a list of lists.
        notebook: its stem, number or path.
        folder: where the notebooks' sources lie.
        profile: of the parts that name none; "" is that of `nbtools.settings.default_profile`.

    Raises:
        ValueError: it lists everything that is wrong: unknown names, empty lists, wrong types, values out of range.
        OSError: for a file that can't be read.
    """
    text, parts = load(path)
    (source,) = notebooks.choose([notebook], folder)
    declared = notebooks.parameters_of(notebooks.read_script(source), source.stem)
    problems: list[str] = []
    found: dict[str, Page] = {}
    for part in parts:
        axes = {"profile": [profile or default_profile()]} | {name: spread(value) for name, value in part.items()}
        wrong = [f"unknown parameter {n!r}; known: {', '.join(declared)}" for n in axes if n not in declared]
        wrong += [f"{name}: the list is empty" for name, values in axes.items() if not values]
        wrong += [notebooks.known("profile", p, PROFILES) for p in axes["profile"] if p not in PROFILES]
        for chosen in itertools.product(*axes.values()) if not wrong else ():
            given = dict(zip(axes, chosen, strict=True))
            try:
                values = {name: arguments.convert(value, declared[name].default) for name, value in given.items()}
                check_parameters({name: parameter.default for name, parameter in declared.items()} | values)
            except TypeError:
                wrong += [f"{name}={value!r} is of another type than {declared[name].default!r}"
                          for name, value in given.items() if not _fits(value, declared[name].default)]  # fmt: skip
            except ValueError as error:
                wrong.append(str(error))
            else:
                page = Page(source.stem, values.pop("profile"), tuple(values.items()))
                found[page.id] = page
        problems += [problem for problem in dict.fromkeys(wrong) if problem not in problems]
    if problems:
        raise ValueError(f"{path}:\n" + "\n".join(f"- {problem}" for problem in problems))
    return Grid(list(found.values()), text)


def _fits(value: Any, default: Any) -> bool:
    try:
        arguments.convert(value, default)
    except TypeError:
        return False
    return True
