"""The one engine: work spread over processes by Dask, on this machine or on a cluster that is there already [ours]."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE = "20s"
"""How long a scheduler may take to answer."""


@contextmanager
def cluster(workers: int, scheduler: str = "", tries: int = 4, threads_free: bool = False) -> Iterator[Client]:
    """A client of the scheduler that is named, or of a cluster on this machine that ends with the context.

    Args:
        workers: processes of a cluster of our own, each of which does one thing at a time.
        scheduler: the address of a cluster that is there already, such as tcp://10.0.0.5:8786; "" starts one.
        tries: with the death of so many workers over a piece of work it counts as failed; 4 is Dask's own number.
        threads_free: leave the number of threads to those who compute; else Dask asks their libraries for one.

    Raises:
        ValueError: where no scheduler answers, or Dask has no folder to write in.
    """
    import dask
    import torch
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}") from None
        with client:
            yield client
        return
    check_scratch()
    settings: dict[str, Any] = {"distributed.scheduler.allowed-failures": tries - 1}
    settings |= {"distributed.nanny.pre-spawn-environ": {}} if threads_free else {}
    with dask.config.set(settings), ExitStack() as stack:  # pyright: ignore[reportPrivateImportUsage]
        with _without_interrupts():
            own = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",  # any free port, for this machine alone
                memory_limit=0,  # Dask would pause a worker at a share of the machine's memory that one model may need
                silence_logs=logging.CRITICAL,
                resources={"GPU": 1} if torch.cuda.is_available() else {},
            )
            client = Client(own)
            stack.callback(_close, client, own)
            client.register_plugin(_deaf())
        yield client


def check_scratch() -> None:
    """Refuse a folder for Dask's own files in which nothing can be written.

    Raises:
        ValueError: it names the folder, and where it is set.
    """
    import dask

    folder = dask.config.get("temporary-directory", None)  # pyright: ignore[reportPrivateImportUsage]
    try:
        path = Path(folder or tempfile.gettempdir())
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # really tried: permission bits do not tell
            pass
    except OSError as error:
        where = (
            "named by Dask's setting temporary-directory (DASK_TEMPORARY_DIRECTORY)" if folder else "named by TMPDIR"
        )
        raise ValueError(
            f"Dask's workers can't write in {folder or 'the system folder for temporary files'}, {where}: "
            f"{error.strerror or error}; name a folder that can be written in"
        ) from None


def _deaf() -> Any:
    """What lets a worker pass over a terminal's Ctrl-C, which reaches every process: who asked decides what ends."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):
        def setup(self, worker: object) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()


def _close(client: Client, own: Any) -> None:
    """End a cluster of our own; a second Ctrl-C meanwhile is passed over."""
    with _without_interrupts(later=False):
        client.close()
        own.close()


@contextmanager
def _without_interrupts(later: bool = True) -> Iterator[None]:
    """While the context lasts, a Ctrl-C waits; afterwards it comes, or is passed over where `later` is False."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        while not later and signal.SIGINT in signal.sigpending():
            signal.sigwait({signal.SIGINT})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores(threads: int, gpus: int = 0) -> int:
    """How many pieces of work this machine takes at a time: one a GPU, or one for each so many threads."""
    return gpus or max(1, (os.cpu_count() or 1) // threads)


@dataclass(frozen=True)
class Task:
    """A piece of work: a function that a worker can import, and the names of the tasks that must have ended before.

    Args:
        name: its own.
        function, arguments: what is called; pickled.
        needs: names of other tasks. One that failed has ended, too.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ended:
    """How a task ended: what it returned, or the error that it raised; and after how many seconds."""

    task: Task
    result: Any
    error: BaseException | None
    seconds: float


class Graph:
    """Tasks worked through in their order, each as soon as what it needs has ended, so many at a time.

    Only what runs is handed to the cluster, so that what has not begun can be dropped: `waiting.clear()`.

    Args:
        client: of the cluster.
        tasks: in the order in which they should begin.
        at_once: so many at the most.
    """

    def __init__(self, client: Client, tasks: Sequence[Task], at_once: int) -> None:
        self._client, self._at_once = client, at_once
        self.waiting = list(tasks)
        self._running: dict[Future, tuple[Task, float]] = {}

    @property
    def running(self) -> list[tuple[Task, float]]:
        """What runs now, in the order in which it began, each with the seconds that it has taken so far."""
        return [(task, time.monotonic() - started) for task, started in self._running.values()]

    @property
    def left(self) -> list[Task]:
        """What has not ended: first what runs, then what waits."""
        return [task for task, _ in self.running] + self.waiting

    def __iter__(self) -> Iterator[Ended]:
        """Each task when it has ended. An interrupt (Ctrl-C) is raised here, and leaves `running` as it was."""
        from distributed import as_completed

        ends = as_completed([])
        while self._begin(ends.add):
            future: Any = next(ends)
            task, started = self._running.pop(future)
            error = None if future.status == "finished" else future.exception()
            result = future.result() if error is None else None
            future.release()
            yield Ended(task, result, error, time.monotonic() - started)

    def _begin(self, began: Callable[[Future], None]) -> bool:
        """Hand over what can begin; whether anything runs."""
        while len(self._running) < self._at_once:
            left = {task.name for task in self.left}
            ready = next((task for task in self.waiting if not task.needs & left), None)
            if ready is None:
                break
            self.waiting.remove(ready)
            future = self._client.submit(ready.function, *ready.arguments, pure=False)
            self._running[future] = (ready, time.monotonic())
            began(future)
        return bool(self._running)
