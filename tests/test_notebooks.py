"""The whole series in profile quick, through the runner that readers use; one test a notebook."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from nbtools.series import checks, notebooks
from nbtools.series.execute import this_kernel

ROOT = Path(__file__).parent.parent
SOURCES = notebooks.find_sources(ROOT / "notebooks" / "src")
pytestmark = pytest.mark.notebooks


class Run(NamedTuple):
    """A finished run of the series: its folder and what it printed."""

    out: Path
    printed: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Run:
    """The scripts with two cells more, which try their exercises: see `trying`."""
    out, folder = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("series") / "notebooks" / "src"
    folder.mkdir(parents=True)
    first = f"# %%\nimport sys\n\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport trying\n\ntrying.record()\n\n"
    for source in SOURCES:
        text = f'{first}{source.read_text(encoding="utf-8")}\n# %% tags=["trying"]\ntrying.report()\n'
        (folder / source.name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "nbtools", "run", "--profile", "quick", "--keep-going", "--out", str(out)]
    environment = os.environ | {
        "NBTOOLS_CACHE": str(shared_cache),
        "NBTOOLS_NOTEBOOKS": str(folder),
    }
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    return Run(out, child.stdout + child.stderr)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_runs(source: Path, run: Run) -> None:
    executed = run.out / f"{source.stem}.ipynb"
    assert executed.is_file(), run.printed
    assert nbformat.read(executed, as_version=4).metadata.nbtools.profile == "quick"


def printed_by(cells: list[Any], tag: str) -> str:
    """What the cells with a tag wrote to their standard output."""
    chosen = [cell for cell in cells if tag in cell.metadata.get("tags", [])]
    return "".join(output.get("text", "") for cell in chosen for output in cell.get("outputs", []))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_exercise_takes_its_solution_and_nothing_else(source: Path, run: Run) -> None:
    """The solution is right; dots, wrong values, wrong types and absurd ones get one gentle line each."""
    cells = nbformat.read(run.out / f"{source.stem}.ipynb", as_version=4).cells
    numbers = re.findall(r"^# \*\*Exercise (\d+)\*\*", source.read_text(encoding="utf-8"), re.MULTILINE)
    problems = json.loads(printed_by(cells, "trying"))["exercises"]
    assert {name: found for name, found in problems.items() if found} == {}
    assert len(problems) == len(numbers), "each exercise has one check, and each check its solution"
    solved = printed_by(cells, "solution")
    assert solved.count(f"{checks.RIGHT}\n") >= len(numbers) and checks.NOT_YET not in solved, solved
    tried = [cell for cell in cells if "= ...  # your answer" in cell.source]
    assert len(tried) == len(numbers), "a stub is a line `name = ...  # your answer`, in one cell for each exercise"
    for cell in tried:
        said = "".join(output.get("text", "") for output in cell.outputs)
        assert set(said.splitlines()) == {checks.NOT_TRIED}, cell.source


def test_a_committed_notebook_runs_as_it_lies(
    run: Run, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open it, Run All: without data, in a folder of its own, with whatever cells and values were committed."""
    assert run.printed  # so that the models are in the cache
    monkeypatch.setenv("NBTOOLS_CACHE", str(shared_cache))
    monkeypatch.delenv("NBTOOLS_DATA", raising=False)
    notebook: Any = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    with this_kernel(tmp_path):
        NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("quick (" in output.get("text", "") for output in outputs)


def test_every_notebook_has_its_line(run: Run) -> None:
    if not SOURCES:
        pytest.skip("there are no notebooks yet")
    lines = [line.split() for line in run.printed.splitlines()]
    assert sorted(line[0] for line in lines if "ok" in line) == [source.stem for source in SOURCES], run.printed
