"""Points and tasks that measure nothing: they add, wait, fail or kill their worker. Workers import this module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sum:
    """A point whose row is a sum; each measurement leaves a line in `log`."""

    number: int
    log: str
    does: str = ""
    model: None = None
    dataset: str = ""

    @property
    def id(self) -> str:
        return f"sum{self.number}"

    @property
    def name(self) -> str:
        return f"sum {self.number}"

    def columns(self) -> dict[str, Any]:
        return {"id": self.id, "number": self.number}

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        with Path(self.log).open("a") as log:
            log.write(f"{self.number} {os.getpid()}\n")
        if self.does == "fail":
            raise ValueError(f"no sum of {self.number}\nbut of others")
        if self.does == "wait":
            time.sleep(0.3)
        if self.does == "die once" and Path(self.log).read_text().count(f"{self.number} ") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        row = self.columns() | {"sum": self.number + 1, "threads": threads, "wall": 0.0, "error": ""}
        return row, {"saved.csv": f"a\n{self.number}\n".encode()} if self.does == "save" else {}


def meet(mine: Path, other: Path) -> None:
    """A task that ends only when another runs at the same time."""
    mine.touch()
    deadline = time.monotonic() + 60
    while not other.exists():
        assert time.monotonic() < deadline, "the other did not come"
        time.sleep(0.02)


def fail() -> None:
    """A task that fails."""
    raise ValueError("mu is wrong")


def die() -> None:
    """A task whose process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(told: Path) -> None:
    """A task that does not end by itself and says in which process it runs."""
    told.write_text(str(os.getpid()))
    time.sleep(600)


def threads() -> str | None:
    """What the process's libraries are told about threads."""
    return os.environ.get("OMP_NUM_THREADS")
