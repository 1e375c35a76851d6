"""Points of a sweep that measure nothing: they add, wait, fail or kill their worker. Workers import this module."""

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
