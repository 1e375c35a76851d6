"""What a run will do, checked before any work: which notebooks, with which parameters. No torch unless all is well."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtools.data import places
from nbtools.lab.parameters import check_parameters, check_ranges
from nbtools.series import arguments, notebooks
from nbtools.series.edits import check_edits
from nbtools.settings import PROFILES, default_profile
from nbtools.wording import known


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know before it starts: checked, nothing left to refuse."""

    profile: str
    sources: list[Path]
    values: dict[str, dict[str, Any]]  # stem -> values that differ from the notebook's defaults
    merged: dict[str, dict[str, Any]]  # stem -> every parameter as it will be
    notes: list[str]  # sentences for the reader: which notebooks take which parameter, whose edits are kept
    edits: dict[Path, Path]  # notebook with edits that its script lacks -> the script that takes them, before the run


def plan(
    names: Sequence[str], profile: str | None, given: Sequence[tuple[str, str]], folder: Path, write: bool = False
) -> Plan:
    """Return the checked plan of a run.

    names: notebooks (stem, number or path; none means all). profile: a name from settings.PROFILES; None: the default.
    given: (name, text) pairs from the command line. folder: where the percent scripts lie. write: whether committed
    notebooks will be overwritten.
    Raises ValueError, with what exists, for an unknown notebook, profile or parameter, a wrong type or value; and where
    writing would lose an edit. Raises DataNotFound, with what to type, where the profile's images are not here.
    """
    if profile is not None and profile not in PROFILES:
        raise ValueError(known("profile", profile, PROFILES))
    sources = notebooks.choose(names, folder)
    if len({path.stem for path in sources}) < len(sources):
        raise ValueError("Two notebooks of one run have the same name, and their results would overwrite each other.")
    declared = {path.stem: arguments.parameters_of(path) for path in sources}
    values = arguments.match(given, declared)
    _checked(values, check_ranges)  # all that can be refused without torch, which takes seconds to import
    edits = {path: script for path in sources if write and (script := check_edits(path, folder))}
    profile = profile or default_profile()
    merged = {}
    for stem, cell in declared.items():
        if "profile" in cell:
            values[stem]["profile"] = profile
        merged[stem] = {name: values[stem].get(name, parameter.default) for name, parameter in cell.items()}
        values[stem] = {name: value for name, value in values[stem].items() if value != cell[name].default}
    _checked(merged, check_parameters)
    if any("profile" in cell for cell in declared.values()):
        places.require([PROFILES[profile].dataset])  # else the first notebook would say so, after its kernel's start
    notes = [f"{path.name} was edited: {script.name} takes its cells first." for path, script in edits.items()]
    return Plan(profile, sources, values, merged, [*arguments.takers(given, declared), *notes], edits)


def _checked(parameters: Mapping[str, Mapping[str, Any]], check: Callable[[Mapping[str, Any]], None]) -> None:
    for stem, values in parameters.items():
        try:
            check(values)
        except ValueError as error:
            raise ValueError(f"{stem}: {error}") from None
