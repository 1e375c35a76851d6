"""Runs a plan's notebooks: one line a notebook, as many at a time as there are lanes, finished work stays in place."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nbtools.lab.cluster import Graph, Task, cluster, cores
from nbtools.lab.orders import Order, orders, train
from nbtools.series import notebooks
from nbtools.series.execute import NotebookFailed, run_one, this_kernel
from nbtools.series.plan import Plan
from nbtools.settings import PROFILES, default_device
from nbtools.wording import duration, last_line

MOST_LANES = 4
"""However many cores there are: each lane holds a model, its data and a kernel in memory."""


@dataclass
class Outcome:
    """What became of a run: the notebooks that finished, and those that failed with cell and last line of the error."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def new_folder(profile: str, root: Path) -> Path:
    """Make and return the folder of a run that was given no name: runs/<profile>/<UTC time>, never an existing one."""
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    number, name = 1, started
    while True:
        out = root / "runs" / profile / name
        try:
            out.mkdir(parents=True)
            return out
        except FileExistsError:  # another run of this second
            number += 1
            name = f"{started}-{number}"


def known_seconds(source: Path, profile: str) -> float | None:
    """Return the seconds that a notebook took when it last ran in this profile, by its stamps; None when unknown."""
    committed = notebooks.committed_path(source)
    earlier = (committed.parent.parent / "runs" / profile).glob(f"*/{source.stem}.ipynb")  # folders are named by time
    for path in [*sorted(earlier, reverse=True), committed]:
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["metadata"]["nbtools"]
            if facts["profile"] == profile:
                return float(facts["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def time_left(waiting: Sequence[float | None], spent: Sequence[float], lanes: int = 1) -> str:
    """Return how long the waiting notebooks will take: their known seconds, the mean of `spent` for the others."""
    if not waiting:
        return ""
    mean = sum(spent) / len(spent)
    return f"about {duration(sum(mean if seconds is None else seconds for seconds in waiting) / lanes)} left"


def run_series(
    plan: Plan,
    out: Path,
    *,
    write: bool = False,
    keep_going: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run a plan's notebooks, one line each when it ends, as many at a time as the machine has lanes.

    Where there are several lanes, the models that the notebooks will ask for are trained on them first, and a notebook
    begins when the first of its own is there: for another it waits where it needs it. After the first failure nothing
    new begins unless `keep_going`; an interrupt (Ctrl-C) ends the run. What had been finished stays.
    say: takes one line. Returns what became of every notebook.
    """
    outcome, spent = Outcome(), []
    many = lanes(plan.profile)
    expected = {source.stem: known_seconds(source, plan.profile) for source in plan.sources}
    width = max(len(stem) for stem in expected)

    def line(name: str, seconds: float, result: str, left: str = "") -> None:
        """Print what ended, over the names of what runs."""
        clear = "\r\x1b[2K" if sys.stdout.isatty() else ""
        say(f"{clear}{name:<{width}}  {duration(seconds):>12}  {result:<12}  {left}".rstrip())

    with this_kernel(out), cluster(many, tries=1, threads_free=True) as client:
        graph = Graph(client, _tasks(plan, out, write, many), many)
        try:
            for ended in graph:
                name = ended.task.name
                if name not in expected:  # a model; where it could not be trained, its notebook says why
                    if ended.result:
                        model, seconds = ended.result
                        line(model, seconds, "trained")
                else:
                    spent.append(ended.seconds)
                    if ended.error is None:
                        outcome.done.append(name)
                    else:
                        outcome.failed[name] = _told(ended.error)
                    stopping = bool(outcome.failed) and not keep_going
                    if stopping:
                        graph.waiting.clear()
                    left = [expected[task.name] for task in graph.left if task.name in expected]
                    rest = "" if stopping else time_left(left, spent, min(many, len(left)))
                    line(name, ended.seconds, f"failed {outcome.failed[name]}" if ended.error else "ok", rest)
                if not any(task.name in expected for task in graph.left):
                    break
                if sys.stdout.isatty():
                    print(f"\r\x1b[2K{', '.join(task.name for task, _ in graph.running)} ...", end="", flush=True)
        except KeyboardInterrupt:
            outcome.interrupted = True
            for task, seconds in graph.running:
                if task.name in expected:
                    line(task.name, seconds, "interrupted")
    return outcome


def lanes(profile: str) -> int:
    """How many models or notebooks of a profile this machine takes at a time.

    One on a GPU, and where the profile leaves the number of threads to torch, which takes every core.
    """
    threads = PROFILES[profile].threads
    return min(MOST_LANES, cores(threads)) if threads and default_device().type == "cpu" else 1


def _told(error: BaseException) -> str:
    """What the reader is told of a notebook's failure."""
    if type(error).__name__ == "KilledWorker":
        return "its process died: killed, or out of memory"
    return str(error) if isinstance(error, NotebookFailed) else last_line(error)


def _tasks(plan: Plan, out: Path, write: bool, many: int) -> list[Task]:
    """Return what is to be done, in order: trainings where there are lanes for them, then notebooks."""
    asked: list[Order] = []
    notebooks = []
    for source in plan.sources:
        mine = orders(plan.merged[source.stem], plan.profile) if many > 1 else []
        asked += [order for order in mine if order not in asked]
        needs = frozenset(f"model {asked.index(order)}" for order in mine[:1])
        arguments = (source, plan.profile, plan.values[source.stem], plan.merged[source.stem], out, write)
        notebooks.append(Task(source.stem, run_one, arguments, needs))
    return [*(Task(f"model {number}", train, (order,)) for number, order in enumerate(asked)), *notebooks]
