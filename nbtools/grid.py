"""A grid of experiments and its points: which model, which defence, which draw of clean images [ours]."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nbtools.adaptive import Adaptive
from nbtools.defences import Defence
from nbtools.store import Asked
from nbtools.trained import named
from nbtools.triggers import Trigger, make_trigger

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Setup:
    """What `nbtools.experiments.start` is asked for."""

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
        """For lines, see `nbtools.trained.named`."""
        return named(self.attack, self.poison_rate, self.trigger, self.target, self.adaptive)

    @property
    def trigger(self) -> Trigger:
        """The attacker's; for a clean model the one that the evaluator tries on it."""
        return make_trigger("badnets" if self.attack == "none" else self.attack, **dict(self.options))


@dataclass(frozen=True)
class Point:
    """One row: a defence on a model with a draw of clean images; `glance` as in `nbtools.experiments.Run.defend`."""

    model: Model
    defence: Defence
    samples_per_class: int = 10
    n_total: int = 0
    draw: int = 0
    glance: bool = False

    @property
    def id(self) -> str:
        """Of sixteen hexadecimal digits: the same for the same point and the same code of its defence."""
        from nbtools.experiments import defence_code

        return digest(repr(self) + defence_code(self.defence))

    @property
    def name(self) -> str:
        """For lines: "badnets 5 %, Suspiciousness, 10 a class, draw 3"."""
        amount = f"{self.n_total} in all" if self.n_total else f"{self.samples_per_class} a class"
        return f"{self.model.name}, {type(self.defence).__name__}, {amount}, draw {self.draw}"

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The row, and no files; see `nbtools.points.measure`."""
        from nbtools.points import measure

        return measure(self, data, threads, code), {}

    def columns(self) -> dict[str, Any]:
        """What was asked: the first columns of the row, there even if the point fails."""
        model, amount = self.model, 0 if self.n_total else self.samples_per_class
        asked = {"id": self.id, **asdict(model.setup), "attack": model.attack, "options": dict(model.options) or ""}
        asked |= {"poison_rate": model.poison_rate, "target": model.target}
        asked |= {"adaptive": repr(model.adaptive) if model.adaptive else ""}
        asked |= {"defence": type(self.defence).__name__, "settings": repr(self.defence)}
        return asked | {"samples_per_class": amount, "n_total": self.n_total, "draw": self.draw, "glance": self.glance}


@dataclass(frozen=True)
class Grid:
    """The points of a file, each once, and the text that they were read from."""

    points: Sequence[Asked]
    text: str


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that a text is known by."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
