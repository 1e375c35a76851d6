"""Runs a series of notebooks: refuses bad input before any work, one line a notebook, finished work stays in place."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbtools import arguments, notebooks
from nbtools.ahead import orders, training_ahead
from nbtools.execute import NotebookFailed, run_one


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know before it starts: checked, nothing left to refuse."""

    profile: str
    sources: list[Path]
    values: dict[str, dict[str, Any]]  # stem -> values that differ from the notebook's defaults
    merged: dict[str, dict[str, Any]]  # stem -> every parameter as it will be
    notes: list[str]  # sentences for the reader: which notebooks take which parameter


@dataclass
class Outcome:
    """What became of a run: the notebooks that finished, and those that failed with cell and last line of the error."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def plan(names: Sequence[str], profile: str | None, given: Sequence[tuple[str, str]], folder: Path) -> Plan:
    """Return the checked plan of a run.

    names: notebooks (stem, number or path; none means all). profile: a name from settings.PROFILES; None: the default.
    given: (name, text) pairs from the command line. folder: where the percent scripts lie.
    Raises ValueError, with what exists, for an unknown notebook, profile or parameter, a wrong type or value.
    """
    from nbtools.parameters import check_parameters
    from nbtools.settings import PROFILES, default_profile

    if profile is not None and profile not in PROFILES:
        raise ValueError(notebooks.known("profile", profile, PROFILES))
    profile = profile or default_profile()
    sources = notebooks.choose(names, folder)
    if len({path.stem for path in sources}) < len(sources):
        raise ValueError("Two notebooks of one run have the same name, and their results would overwrite each other.")
    declared = {path.stem: notebooks.parameters_of(notebooks.read_script(path), path.stem) for path in sources}
    values = arguments.match(given, declared)
    merged = {}
    for stem, cell in declared.items():
        if "profile" in cell:
            values[stem]["profile"] = profile
        merged[stem] = {name: values[stem].get(name, parameter.default) for name, parameter in cell.items()}
        try:
            check_parameters(merged[stem])
        except ValueError as error:
            raise ValueError(f"{stem}: {error}") from None
        values[stem] = {name: value for name, value in values[stem].items() if value != cell[name].default}
    return Plan(profile, sources, values, merged, arguments.takers(given, declared))


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


def duration(seconds: float) -> str:
    """Return seconds as a reader says them: "8.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(waiting: Sequence[float | None], spent: Sequence[float]) -> str:
    """Return how long the waiting notebooks will take: their known seconds, the mean of `spent` for the others."""
    if not waiting:
        return ""
    mean = sum(spent) / len(spent)
    return f"about {duration(sum(mean if seconds is None else seconds for seconds in waiting))} left"


def run_series(
    plan: Plan,
    out: Path,
    *,
    write: bool = False,
    keep_going: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run a plan's notebooks in order, one line each when it ends.

    Stops at the first failure unless `keep_going`; an interrupt (Ctrl-C) ends the run. What had been finished stays.
    say: takes one line. Returns what became of every notebook.
    """
    outcome, spent = Outcome(), []
    expected = [known_seconds(source, plan.profile) for source in plan.sources]
    width = max(len(source.stem) for source in plan.sources)
    with training_ahead(orders(plan.merged.values(), plan.profile)):
        for number, source in enumerate(plan.sources, start=1):
            started = time.monotonic()
            result = "ok"
            if sys.stdout.isatty():  # gone when the notebook's line is printed
                print(f"{source.stem} ...", end="\r", flush=True)
            try:
                run_one(source, plan.profile, plan.values[source.stem], plan.merged[source.stem], out, write)
                outcome.done.append(source.stem)
            except NotebookFailed as error:
                outcome.failed[source.stem] = str(error)
                result = f"failed {error}"
            except KeyboardInterrupt:
                outcome.interrupted = True
                result = "interrupted"
            spent.append(time.monotonic() - started)
            stopping = outcome.interrupted or (outcome.failed and not keep_going)
            left = "" if stopping else time_left(expected[number:], spent)
            say(f"{source.stem:<{width}}  {duration(spent[-1]):>12}  {result:<12}  {left}".rstrip())
            if stopping:
                break
    return outcome
