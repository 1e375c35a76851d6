"""The whole series in profile quick, through the runner that readers use; one test a notebook."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from nbtools.series import notebooks
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
    out = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "nbtools", "run", "--profile", "quick", "--keep-going", "--out", str(out)]
    environment = os.environ | {
        "NBTOOLS_CACHE": str(shared_cache),
        "NBTOOLS_NOTEBOOKS": str(ROOT / "notebooks" / "src"),
    }
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    return Run(out, child.stdout + child.stderr)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_runs(source: Path, run: Run) -> None:
    executed = run.out / f"{source.stem}.ipynb"
    assert executed.is_file(), run.printed
    assert nbformat.read(executed, as_version=4).metadata.nbtools.profile == "quick"


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
