"""The whole series in profile quick, through the runner that readers use; one test a notebook."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from nbtools.series import notebooks

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
    assert (run.out / f"{source.stem}.html").is_file()
    assert nbformat.read(executed, as_version=4).metadata.nbtools.profile == "quick"


def test_every_notebook_has_its_line(run: Run) -> None:
    if not SOURCES:
        pytest.skip("there are no notebooks yet")
    lines = [line.split() for line in run.printed.splitlines()]
    assert sorted(line[0] for line in lines if "ok" in line) == [source.stem for source in SOURCES], run.printed
