"""A point of a grid: which model, which defence, which clean images; measured in any process, anywhere [ours]."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nbtools.attacker.adaptive import Adaptive
from nbtools.attacker.triggers import Trigger, make_trigger
from nbtools.defender.repair import Defence
from nbtools.lab.cache import source_hash
from nbtools.lab.experiments import Run, defence_code, start
from nbtools.lab.trained import Trained, named
from nbtools.settings import PROFILES, ROOT

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Setup:
    """What `nbtools.lab.experiments.start` is asked for."""

    profile: str
    dataset: str = ""
    architecture: str = "resnet18"
    width: int = 0
    epochs: int = 0
    small: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """One model: `attack` is "none" for a clean one, `options` are the trigger's own fields."""

    setup: Setup
    attack: str
    options: Options = ()
    poison_rate: float = 0.0
    target: int = 0
    adaptive: Adaptive | None = None

    @property
    def id(self) -> str:
        """Of sixteen hexadecimal digits: the same for the same model."""
        return digest(repr(self))

    @property
    def name(self) -> str:
        """For lines, see `nbtools.lab.trained.named`."""
        return named(self.attack, self.poison_rate, self.trigger, self.target, self.adaptive)

    @property
    def trigger(self) -> Trigger:
        """The attacker's; for a clean model the one that the evaluator tries on it."""
        return make_trigger("badnets" if self.attack == "none" else self.attack, **dict(self.options))


@dataclass(frozen=True)
class Point:
    """One row: a defence on a model with a draw of clean images; `glance` as in `lab.experiments.Run.defend`."""

    model: Model
    defence: Defence
    samples_per_class: int = 10
    n_total: int = 0
    draw: int = 0
    glance: bool = False

    @property
    def dataset(self) -> str:
        """The name of its images' set."""
        return self.model.setup.dataset or PROFILES[self.model.setup.profile].dataset

    @property
    def id(self) -> str:
        """Of sixteen hexadecimal digits: the same for the same point and the same code of its defence."""
        return digest(repr(self) + defence_code(self.defence))

    @property
    def name(self) -> str:
        """For lines: "badnets 5 %, Suspiciousness, 10 a class, draw 3"."""
        amount = f"{self.n_total} in all" if self.n_total else f"{self.samples_per_class} a class"
        return f"{self.model.name}, {type(self.defence).__name__}, {amount}, draw {self.draw}"

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The row, and no files; see `measure`."""
        return measure(self, data, threads, code), {}

    def columns(self) -> dict[str, Any]:
        """What was asked: the first columns of the row, there even if the point fails."""
        model, amount = self.model, 0 if self.n_total else self.samples_per_class
        asked = {"id": self.id, **asdict(model.setup), "attack": model.attack, "options": dict(model.options) or ""}
        asked |= {"poison_rate": model.poison_rate, "target": model.target}
        asked |= {"adaptive": repr(model.adaptive) if model.adaptive else ""}
        asked |= {"defence": type(self.defence).__name__, "settings": repr(self.defence)}
        return asked | {"samples_per_class": amount, "n_total": self.n_total, "draw": self.draw, "glance": self.glance}


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that a text is known by."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code() -> str:
    """A hash of the package's source: workers with another one would give other rows."""
    return source_hash(*map(str, sorted((ROOT / "nbtools").rglob("*.py"))))


def train(model: Model, data: str, threads: int, expected: str, draws: Sequence[tuple[int, int, int]] = ()) -> float:
    """Train a model, or find it in the cache; seconds that this took.

    Args:
        model: which.
        data, threads, expected: see `measure`.
        draws: `samples_per_class`, `n_total` and `draw` of the points that wait for it.

    Raises:
        ValueError: where the images have none of these draws, so that a training would be for nothing.
    """
    started = time.monotonic()
    same_code(expected)
    torch.set_num_threads(threads)
    run, problems = _run(model.setup, data, _device()), []
    for amount in draws:
        try:
            run.draw(*amount)
            break
        except ValueError as error:
            problems.append(error)
    else:
        if problems:
            raise problems[0]
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
        What was asked, what `nbtools.lab.experiments.Run.defend` measured, the run's stamp, `wall` (seconds with
        evaluation, and with loading where the worker's last points were of other models), and "" as `error`; as `notes`
        what was left aside, resized or guessed in the images, where anything was.

    Raises:
        RuntimeError: where this process has another version of the package.
    """
    started = time.monotonic()
    same_code(expected)
    torch.set_num_threads(threads)
    run, trained = _trained(point.model, data, _device())
    amount = point.samples_per_class, point.n_total, point.draw
    row = run.defend(trained, point.defence, *amount, glance=point.glance)
    told = {"notes": " ".join(run.splits.notes)} if run.splits.notes else {}
    return point.columns() | run.stamp() | row | told | {"wall": time.monotonic() - started, "error": ""}


# The last few are kept, since a grid's neighbours share them.


@functools.lru_cache(maxsize=2)
def _run(setup: Setup, data: str, device: str) -> Run:
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


def same_code(expected: str) -> None:
    """Refuse to measure for somebody whose package is another, "" for anybody.

    Raises:
        RuntimeError: where the `code()` of who asks is not this process's.
    """
    if expected and code() != expected:
        raise RuntimeError(f"this worker has another version of nbtools ({ROOT}): install the same")
