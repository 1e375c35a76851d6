"""Runs a series of notebooks: refuses bad input before any work, one line a notebook, finished work stays in place."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbtools.series import arguments, notebooks
from nbtools.series.ahead import lanes, orders, train
from nbtools.series.execute import run_one
from nbtools.series.lanes import Job, Lanes, Message
from nbtools.wording import duration


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
    from nbtools.lab.parameters import check_parameters
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
    """Run a plan's notebooks, begun in order, one line each when it ends; as many at a time as the machine has lanes.

    Where there are several lanes, the models that the notebooks will ask for are trained on them first. After the first
    failure nothing new begins unless `keep_going`; an interrupt (Ctrl-C) ends the run. What had been finished stays.
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

    def ended(message: Message) -> None:
        """Note and print how a notebook ended, or which model is ready."""
        name, seconds, result = message.job.name, message.seconds, "ok"
        if name not in expected:
            if message.kind == "part":
                line(message.text, seconds, "trained")
            return  # an order that can't be met is refused where its notebook asks again
        spent.append(seconds)
        left = [expected[job.name] for job in (*active.running, *waiting) if job.name in expected]
        match message.kind:
            case "failed":
                outcome.failed[name] = message.text
                result = f"failed {message.text}"
            case "interrupted":
                outcome.interrupted, result = True, "interrupted"
            case _:
                outcome.done.append(name)
        stopping = outcome.interrupted or (outcome.failed and not keep_going)
        if stopping:
            waiting.clear()
        line(name, seconds, result, "" if stopping else time_left(left, spent, min(many, len(left))))

    waiting = _jobs(plan, out, write, many)
    with Lanes(many) as active:
        try:
            while any(job.name in expected for job in (*active.running, *waiting)):
                while waiting and active.free:
                    active.start(waiting.pop(0))
                if sys.stdout.isatty():
                    print(f"\r\x1b[2K{', '.join(job.name for job in active.running)} ...", end="", flush=True)
                for message in active.messages():
                    ended(message)
        except KeyboardInterrupt:
            outcome.interrupted = True
            for message in active.interrupt():
                ended(message)
    return outcome


def _jobs(plan: Plan, out: Path, write: bool, many: int) -> list[Job]:
    """Return what is to be done, in order: trainings where there are lanes for them, then notebooks.

    A notebook that runs alone does not wait for trainings: its own model it trains itself.
    """
    notebooks = [
        Job(
            source.stem,
            run_one,
            (source, plan.profile, plan.values[source.stem], plan.merged[source.stem], out, write),
        )
        for source in plan.sources
    ]
    asked = orders(plan.merged.values(), plan.profile)
    groups = [asked[1:]] if len(notebooks) == 1 else [asked[lane::many] for lane in range(many)]
    trainings = [Job(f"models {number}", train, (group,)) for number, group in enumerate(groups) if group]
    return [*trainings, *notebooks] if many > 1 else notebooks
