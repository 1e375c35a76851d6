"""Grids as people write them: YAML, checked whole, and spread into points [ours]."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nbtools.attacker.adaptive import ADAPTIVE, make_adaptive
from nbtools.attacker.triggers import TRIGGERS, make_trigger
from nbtools.data.datasets import DATASETS, FOLDER, classes_of
from nbtools.defender.choices import DEFENCES, make_defence
from nbtools.lab.gridfile import DEFAULTS, load, unknown_axes
from nbtools.lab.parameters import check_parameters
from nbtools.lab.points import Model, Options, Point, Setup
from nbtools.lab.store import Grid
from nbtools.networks.architectures import ARCHITECTURES
from nbtools.settings import PROFILES, default_profile
from nbtools.values import fit, type_of
from nbtools.wording import known


def read(path: Path, profile: str = "") -> Grid:
    """The grid of a file, checked whole.

    Every name takes one value or a list of them; all combinations are points. Whole numbers may be a range, "0..9".
    `samples_per_class` and `n_total` are two ways to give clean images: their values are united, not combined. An
    attack or a defence may be a mapping from its name to its settings, each with one value or a list.

    Args:
        path: a YAML file.
        profile: of the parts that name none; "" is that of `nbtools.settings.default_profile`.

    Raises:
        ValueError: it lists everything that is wrong: unknown names, empty lists, values out of range.
        OSError: for a file that can't be read.
    """
    text, parts = load(path)
    problems: list[str] = []
    points: dict[str, Point] = {}
    for number, part in enumerate(parts, start=1):
        found: list[str] = []
        axes = {"profile": profile or default_profile()} | part
        points |= {point.id: point for point in _points(axes, found)}
        problems += [f"part {number}: {problem}" if len(parts) > 1 else problem for problem in found]
    if problems:
        raise ValueError(f"{path}:\n" + "\n".join(f"- {problem}" for problem in problems))
    return Grid(list(points.values()), text)


TYPES = {name: type_of(default) for name, default in DEFAULTS.items()} | {"poison_rate": float}
NAMED = {"attack": ("none", *TRIGGERS), "adaptive": ("none", *ADAPTIVE), "defence": tuple(DEFENCES)}
"""Axes whose values are a name, or a mapping from one name to settings."""
KNOWN = {"profile": tuple(PROFILES), "dataset": ("", *DATASETS), "architecture": tuple(ARCHITECTURES)}


def _points(given: Mapping[str, Any], problems: list[str]) -> Iterator[Point]:
    """The points of one mapping; what is wrong with it is added to `problems`, and then there are none."""
    problems += unknown_axes(given)
    axes = {name: [value] for name, value in DEFAULTS.items()}
    for name in DEFAULTS:
        if name in given:
            axes[name] = list(_axis(name, spread(given[name]), problems))
            problems += [f"{name}: the list is empty"] if given[name] == [] else []
    made = {name: list(_entries(name, axes[name], problems)) for name in NAMED}
    problems += too_many(axes | made)
    amounts = [
        (each, 0) for each in axes["samples_per_class"] if "samples_per_class" in given or "n_total" not in given
    ]
    amounts += [(0, total) for total in axes["n_total"] if total]
    if not amounts and not problems:
        problems.append("n_total is 0, and there is no samples_per_class: no clean images are asked for")
    problems += [f"{name} is missing: {', '.join(NAMED[name])}" for name in ("attack", "defence") if name not in given]
    if "poison_rate" not in given and any(name != "none" for name, _, _ in made["attack"]):
        problems.append("poison_rate is missing: a share of the training set, above 0 and at most 1")
    checked = ["target", "seed", "width", "epochs", "samples_per_class", "n_total", "draw"]
    checked += ["poison_rate"] if "poison_rate" in given else []
    for profile, dataset in itertools.product(axes["profile"], axes["dataset"]) if not problems else ():
        plain = {"profile": profile} | {name: axes[name] for name in checked}
        _tried(problems, check_parameters, plain, classes_of(dataset or PROFILES[profile].dataset), axes=True)
    if problems:
        return
    setups = itertools.product(*(axes[field.name] for field in fields(Setup)))
    models = itertools.product(setups, made["attack"], axes["poison_rate"], axes["target"], made["adaptive"])
    for setup, (attack, options, _), rate, target, (_, _, adaptive) in models:
        told = (rate, target, adaptive) if attack != "none" else (0.0, target, None)
        model = Model(Setup(*setup), attack, options, *told)
        asked = itertools.product(made["defence"], amounts, axes["draw"], axes["glance"])
        for (_, _, defence), (each, total), draw, glance in asked:
            yield Point(model, defence, each, total, draw, glance)


def _axis(name: str, values: list[Any], problems: list[str]) -> Iterator[Any]:
    """An axis' values as its type; what is of another type, unknown or there twice is a problem."""
    if len(set(map(repr, values))) < len(values):
        problems.append(f"{name}: a value is there twice")
    for value in values:
        if name in NAMED:
            if isinstance(value, str) or (isinstance(value, dict) and len(value) == 1):
                yield value
            else:
                problems.append(f"{name}: {value!r} is neither a name nor a mapping from one name to settings")
            continue
        try:
            found = fit(value, TYPES[name])
        except TypeError as error:
            problems.append(f"{name}: {error}")
            continue
        if found not in KNOWN.get(name, (found,)) and not (name == "dataset" and found.startswith(FOLDER)):
            problems.append(f"{name}: {known(name, found, filter(None, KNOWN[name]))}")
        else:
            yield found


MOST_POINTS = 100_000
"""Of one mapping; more could not be listed, let alone measured."""


def too_many(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Why these axes have too many combinations, a sentence or none."""
    count = math.prod(map(len, axes.values()))
    return [f"{count:,} points are asked for; a grid has at most {MOST_POINTS:,}"] if count > MOST_POINTS else []


def spread(value: Any) -> list[Any]:
    """The values that an entry stands for: those of its list, those of a range "0..9", or the one that it is.

    Raises:
        ValueError: for a range of more values than a grid has points.
    """
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        ends = re.fullmatch(r"(\d{1,19})\.\.(\d{1,19})", one) if isinstance(one, str) else None
        if ends and int(ends[2]) - int(ends[1]) >= MOST_POINTS:
            raise ValueError(f"the range {one} has too many values; a grid has at most {MOST_POINTS:,} points")
        found += range(int(ends[1]), int(ends[2]) + 1) if ends else [one]
    return found


def _entries(axis: str, values: list[Any], problems: list[str]) -> Iterator[tuple[str, Options, Any]]:
    """An attack or a defence with each combination of its settings: name, settings, and what they make."""
    make = {"attack": make_trigger, "defence": make_defence, "adaptive": make_adaptive}[axis]
    for entry in values:
        name, settings = next(iter(entry.items())) if isinstance(entry, dict) else (entry or "none", {})
        settings = {} if settings is None else settings
        if name not in NAMED[axis] and entry is not None:
            problems.append(f"{axis}: {known(axis, str(name), NAMED[axis])}")
        elif not isinstance(settings, dict) or not all(isinstance(setting, str) for setting in settings):
            problems.append(f"{axis}: the settings of {name} are no mapping from names: {settings!r}")
        elif name == "none":
            problems += [f"{axis}: none takes no settings, got {settings!r}"] if settings else []
            yield "none", (), None
        else:
            axes = {setting: [_hashable(one) for one in spread(value)] for setting, value in settings.items()}
            problems += [f"{axis}: {name}'s list of {n} is empty" for n, found in axes.items() if not found]
            for chosen in itertools.product(*axes.values()):
                options = tuple(zip(axes, chosen, strict=True))
                if axis == "defence":
                    yield name, options, _tried(problems, make, name, options)
                elif made := _tried(problems, make, name, **dict(options)):
                    yield name, tuple((option, getattr(made, option)) for option in axes), made  # as its own types


def _hashable(value: Any) -> Any:
    """A list as a tuple: a list within a list is one value."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _tried(problems: list[str], make: Any, *arguments: Any, **options: Any) -> Any:
    """What `make` gives, or None and its complaint among the problems."""
    try:
        return make(*arguments, **options)
    except (ValueError, TypeError) as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
