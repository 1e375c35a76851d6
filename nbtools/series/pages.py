"""A grid whose points are runs of a notebook: read from YAML, held against its parameters cell [ours]."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtools.lab.cells import typed
from nbtools.lab.gridfile import load
from nbtools.lab.grids import spread, too_many
from nbtools.lab.parameters import check_parameters
from nbtools.lab.points import Options, digest, same_code
from nbtools.lab.store import Grid
from nbtools.series import arguments, notebooks
from nbtools.settings import PROFILES, default_profile
from nbtools.wording import known


@dataclass(frozen=True)
class Page:
    """One run of a notebook: its parameters, but for the profile."""

    notebook: str
    profile: str
    values: Options
    model: None = None  # it asks for its models by itself

    @property
    def dataset(self) -> str:
        """The name of its images' set."""
        return PROFILES[self.profile].dataset

    @property
    def id(self) -> str:
        """Of sixteen hexadecimal digits: the same for the same run, in whichever grid."""
        return digest(repr(self))

    @property
    def name(self) -> str:
        """For lines: "06_suspiciousness, mu=2.0, seed=1"."""
        return ", ".join([self.notebook, *(f"{name}={value}" for name, value in self.values)])

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The row and the files; see `run_notebook`."""
        return run_notebook(self, data, code)

    def columns(self) -> dict[str, Any]:
        """What was asked: the first columns of the row."""
        return {"id": self.id, "notebook": self.notebook, "profile": self.profile, **dict(self.values)}


def run_notebook(page: Page, data: str, expected: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A notebook with a point's parameters, as `python -m nbtools run` runs it.

    Returns:
        The row: what was asked, `wall` in seconds, `error` ("" or what the command said last); and the files that it
        left (executed notebook, page, tables), name to content.
    """
    started = time.monotonic()
    same_code(expected)
    given = [part for name, value in page.values for part in ("-p", name, repr(value))]
    command = [sys.executable, "-m", "nbtools", "run", page.notebook, "--profile", page.profile, *given]
    with tempfile.TemporaryDirectory(prefix="nbtools-sweep-") as folder:
        command += ["--out", folder, *(["--data", data] if data else [])]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    said = [line for line in (ended.stdout + ended.stderr).splitlines() if "failed" in line or "rror" in line]
    error = "" if ended.returncode == 0 else (said or [f"exit code {ended.returncode}"])[0].strip()
    return page.columns() | {"wall": time.monotonic() - started, "error": error}, files


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
    declared = arguments.parameters_of(source)
    problems: list[str] = []
    found: dict[str, Page] = {}
    for part in parts:
        axes = {"profile": [""]} | {name: spread(value) for name, value in part.items()}
        axes["profile"] = [name or profile or default_profile() for name in axes["profile"]]
        wrong = [known("parameter", str(name), declared) for name in axes if name not in declared]
        wrong += too_many(axes)
        wrong += [f"{name}: the list is empty" for name, values in axes.items() if not values]
        for name in axes.keys() & declared.keys():
            for place, value in enumerate(axes[name]):
                try:
                    axes[name][place] = typed(value, declared[name], source.stem)
                except ValueError as error:
                    wrong.append(str(error))
        for chosen in itertools.product(*axes.values()) if not wrong else ():
            values = dict(zip(axes, chosen, strict=True))
            try:
                check_parameters({name: parameter.default for name, parameter in declared.items()} | values)
            except ValueError as error:
                wrong.append(str(error))
            else:
                page = Page(source.stem, values.pop("profile"), tuple(values.items()))
                found[page.id] = page
        problems += [problem for problem in dict.fromkeys(wrong) if problem not in problems]
    if problems:
        raise ValueError(f"{path}:\n" + "\n".join(f"- {problem}" for problem in problems))
    return Grid(list(found.values()), text)
