"""Jobs side by side, each in a process of its own that ends when it is told to, or with the process that asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Literal

PRELOADED = ["papermill", "nbconvert", "nbtools.series.execute"]
"""Imported once and not by every job, where processes can be forked from one that has them."""


@dataclass(frozen=True)
class Job:
    """A function to be called in another process with `arguments`; pickled, so it is one of a module.

    It may yield the name and the seconds of each part that is ready.
    """

    name: str
    function: Callable[..., Iterator[tuple[str, float]] | None]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Message:
    """What became of a job: a part is ready (`text` is its name), or it ended ("failed": `text` is the error's)."""

    job: Job
    kind: Literal["part", "done", "failed", "interrupted"]
    text: str
    seconds: float


class Lanes:
    """So many jobs at a time. When the context ends, however it ends, those that still run are interrupted.

    Args:
        number: of lanes, at least 1.
    """

    def __init__(self, number: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(PRELOADED)
        self._number = number
        self._stopping, self._ended = False, []
        self._running: dict[Any, tuple[Job, Any, float]] = {}  # pipe from a job: the job, its process, when it began

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for _message in self.interrupt():
            pass
        for process in self._ended:
            process.join()

    @property
    def running(self) -> list[Job]:
        """What runs now, in the order in which it began."""
        return [job for job, _, _ in self._running.values()]

    @property
    def free(self) -> bool:
        """Whether one more job can start."""
        return len(self._running) < self._number

    def start(self, job: Job) -> None:
        """Start a job, with the environment as it is now."""
        here, there = self._context.Pipe(duplex=False)
        process: Any = self._context.Process(target=_work, args=(there, dict(os.environ), job), name=job.name)  # pyright: ignore[reportAttributeAccessIssue]
        process.start()
        there.close()
        self._running[here] = (job, process, time.monotonic())

    def messages(self) -> Iterator[Message]:
        """Wait until a job has something to say; a job that has ended has left `running` when its message comes."""
        pipes: list[Any] = wait(list(self._running))
        for here in pipes:
            job, process, started = self._running[here]
            try:
                kind, text, seconds = here.recv()
            except EOFError:  # killed, out of memory, or interrupted before it had begun
                process.join()
                kind = "interrupted" if self._stopping else "failed"
                text, seconds = f"its process ended with code {process.exitcode}", 0.0
            if kind != "part":
                del self._running[here]
                here.close()
                self._ended.append(process)  # it may take a moment to leave; an interrupt now must not cost its message
                seconds = time.monotonic() - started
            yield Message(job, kind, text, seconds)

    def interrupt(self) -> Iterator[Message]:
        """Interrupt what runs and wait for it: how each job ended."""
        self._stopping = True
        for _, process, _ in self._running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        while self._running:
            yield from (message for message in self.messages() if message.kind != "part")
        self._stopping = False


def _work(report: Connection, environment: Mapping[str, str], job: Job) -> None:
    """The other process: one job from its beginning to its end."""
    signal.signal(signal.SIGINT, _interrupt_once)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    try:
        for name, seconds in job.function(*job.arguments) or ():
            report.send(("part", name, seconds))
        report.send(("done", "", 0.0))
    except KeyboardInterrupt:
        report.send(("interrupted", "", 0.0))
    except Exception as error:  # whatever it was, the reader gets it as a line
        report.send(("failed", str(error), 0.0))


def _interrupt_once(_signal: int, _frame: FrameType | None) -> None:
    """A terminal's Ctrl-C comes from the terminal and again from the process that asked; once is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
