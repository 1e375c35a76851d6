"""What a worker of a sweep does: train a model, measure a point, run a notebook; each in any process, anywhere."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nbtools.cache import source_hash

if TYPE_CHECKING:
    from nbtools.experiments import Run
    from nbtools.grid import Model, Point, Setup
    from nbtools.pages import Page
    from nbtools.trained import Trained


def code() -> str:
    """A hash of the package's source: workers with another one would give other rows."""
    return source_hash(*map(str, sorted(Path(__file__).parent.rglob("*.py"))))


def train(model: Model, data: str, threads: int, expected: str) -> float:
    """Train a model, or find it in the cache; seconds that this took."""
    started = time.monotonic()
    _same_code(expected)
    torch.set_num_threads(threads)
    _trained(model, data, _device())
    return time.monotonic() - started


def measure(point: Point, data: str = "", threads: int = 1, expected: str = "") -> dict[str, Any]:
    """A point's row.

    Args:
        point: of a grid.
        data: a folder that holds CIFAR-10; "" looks in the usual places.
        threads: of torch on a CPU.
        expected: the `code()` of who asks, "" for any.

    Returns:
        What was asked, what `nbtools.experiments.Run.defend` measured, the run's stamp, `wall` (seconds with
        evaluation, and with loading where the worker's last points were of other models), and "" as `error`.

    Raises:
        RuntimeError: where this process has another version of the package.
    """
    started = time.monotonic()
    _same_code(expected)
    torch.set_num_threads(threads)
    run, trained = _trained(point.model, data, _device())
    amount = point.samples_per_class, point.n_total, point.draw
    row = run.defend(trained, point.defence, *amount, glance=point.glance)
    return point.columns() | run.stamp() | row | {"wall": time.monotonic() - started, "error": ""}


def run_notebook(page: Page, data: str, expected: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A notebook with a point's parameters, as `python -m nbtools run` runs it.

    Returns:
        The row: what was asked, `wall` in seconds, `error` ("" or what the command said last); and the files that it
        left (executed notebook, page, tables), name to content.
    """
    started = time.monotonic()
    _same_code(expected)
    given = [part for name, value in page.values for part in ("-p", name, repr(value))]
    command = [sys.executable, "-m", "nbtools", "run", page.notebook, "--profile", page.profile, *given]
    with tempfile.TemporaryDirectory(prefix="nbtools-sweep-") as folder:
        command += ["--out", folder, *(["--data", data] if data else [])]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    said = [line for line in (ended.stdout + ended.stderr).splitlines() if "failed" in line or "rror" in line]
    error = "" if ended.returncode == 0 else (said or [f"exit code {ended.returncode}"])[0].strip()
    return page.columns() | {"wall": time.monotonic() - started, "error": error}, files


# The last few are kept, since a grid's neighbours share them.


@functools.lru_cache(maxsize=2)
def _run(setup: Setup, data: str, device: str) -> Run:
    from nbtools.experiments import start

    threads = torch.get_num_threads()
    run = start(**asdict(setup), data=Path(data) if data else None, device=device or None, quiet=True)
    torch.set_num_threads(threads)  # the sweep's, not the profile's
    return run


@functools.lru_cache(maxsize=4)
def _trained(model: Model, data: str, device: str) -> tuple[Run, Trained]:
    run = _run(model.setup, data, device)
    if model.attack == "none":
        return run, run.clean_model(target=model.target)
    return run, run.model(model.attack, model.poison_rate, model.target, adaptive=model.adaptive, **dict(model.options))


def _device() -> str:
    """The worker's own GPU where a cluster of ours spreads over several, else "": the first one, or the CPU."""
    from distributed import get_worker

    if torch.cuda.device_count() < 2:
        return ""
    try:
        number = get_worker().name
    except ValueError:  # no worker
        return ""
    return f"cuda:{number % torch.cuda.device_count()}" if isinstance(number, int) else ""


def _same_code(expected: str) -> None:
    if expected and code() != expected:
        raise RuntimeError(f"this worker has another version of nbtools ({Path(__file__).parent}): install the same")
