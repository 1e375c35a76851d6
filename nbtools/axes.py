"""Grids as people write them: YAML, checked whole, and spread into points [ours]."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from nbtools.adaptive import ADAPTIVE
from nbtools.datasets import DATASETS, FOLDER, classes_of
from nbtools.defend.choices import known, make_defence
from nbtools.grid import Grid, Model, Options, Point, Setup
from nbtools.networks import ARCHITECTURES
from nbtools.parameters import check_parameters
from nbtools.settings import PROFILES, default_profile
from nbtools.triggers import TRIGGERS, make_trigger


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, but for names that are given twice: it would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a ValueError for a name that is given twice."""
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice (line {node.start_mark.line + 1} and below)")
        return super().construct_mapping(node, deep=deep)


def load(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """A grid file's text, and the mappings that it holds: one, or a list of them whose points are united.

    Raises:
        ValueError: for what is no YAML, holds no mapping, or gives a name twice.
        OSError: for a file that can't be read.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.load(text, _OnceLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} can't be read as YAML: {error}") from None
    parts = content if isinstance(content, list) else [content]
    if not parts or not all(isinstance(part, dict) and part for part in parts):
        raise ValueError(f"{path} holds no grid: names with lists of values, such as attack: [badnets, blended]")
    return text, parts


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


_DEFAULTS: dict[str, Any] = {
    "profile": "",
    "dataset": "",
    "architecture": "resnet18",
    "width": 0,
    "epochs": 0,
    "small": False,
    "seed": 0,
    "attack": None,
    "poison_rate": None,
    "target": 0,
    "adaptive": "none",
    "defence": None,
    "samples_per_class": 10,
    "n_total": 0,
    "draw": 0,
    "glance": False,
}
_KNOWN = {"profile": list(PROFILES), "dataset": ["", *DATASETS], "architecture": list(ARCHITECTURES)}


def _points(axes: Mapping[str, Any], problems: list[str]) -> Iterator[Point]:
    """The points of one mapping; what is wrong with it is added to `problems`, and then there are none."""
    if unknown := [name for name in axes if name not in _DEFAULTS]:
        problems.append(f"unknown {', '.join(map(repr, unknown))}; known: {', '.join(_DEFAULTS)}")
    values: dict[str, list[Any]] = {}
    for name, default in _DEFAULTS.items():
        values[name] = spread(axes[name]) if name in axes else [default]
        if not values[name]:
            problems.append(f"{name}: the list is empty")
        problems += [f"{name}: {text}" for text in _wrong(name, default, values[name] if name in axes else [])]
    attacks = [one for entry in values["attack"] if entry for one in _named("attack", entry, TRIGGERS, problems)]
    defences = [one for entry in values["defence"] if entry for one in _named("defence", entry, known(), problems)]
    attackers = [one for entry in values["adaptive"] for one in _named("adaptive", entry, ADAPTIVE, problems)]
    amounts = [
        (each, 0) for each in values["samples_per_class"] if "samples_per_class" in axes or "n_total" not in axes
    ]
    amounts += [(0, total) for total in values["n_total"] if total]
    if not amounts and values["n_total"] and values["samples_per_class"]:
        problems.append("n_total is 0, and there is no samples_per_class: no clean images are asked for")
    if not attacks:
        problems.append(f"attack is missing: none, {', '.join(TRIGGERS)}")
    if not defences:
        problems.append(f"defence is missing: {', '.join(known())}")
    rates = values["poison_rate"]
    if rates == [None] and any(name != "none" for name, _ in attacks):
        problems.append("poison_rate is missing: a share of the training set, above 0 and at most 1")
    if problems:
        return
    made = [(name, options, _built(make_trigger, problems, name, **dict(options))) for name, options in attacks]
    hiding = [_built(ADAPTIVE.get(name), problems, **dict(options)) for name, options in attackers]
    ready = [_built(make_defence, problems, name, [(n, repr(v)) for n, v in settings]) for name, settings in defences]
    for profile, dataset in itertools.product(values["profile"], values["dataset"]):
        plain = {name: values[name] for name in ("target", "seed", "width", "epochs", "samples_per_class", "draw")}
        plain |= {"n_total": values["n_total"], "profile": profile}
        plain |= {"poison_rate": rates} if rates != [None] else {}
        _built(check_parameters, problems, plain, classes_of(dataset or PROFILES[profile].dataset))
    if problems:
        return
    setups = itertools.product(*(values[field.name] for field in fields(Setup)))
    axes_of_models = itertools.product(setups, made, rates, values["target"], hiding)
    for setup, (attack, options, _), rate, target, adaptive in axes_of_models:
        told = (float(rate), target, adaptive) if attack != "none" else (0.0, target, None)
        model = Model(Setup(*setup), attack, options, *told)
        for defence, (each, total), draw, glance in itertools.product(ready, amounts, values["draw"], values["glance"]):
            yield Point(model, defence, each, total, draw, glance)


def spread(value: Any) -> list[Any]:
    """The values that an entry stands for: those of its list, those of a range "0..9", or the one that it is."""
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", one) if isinstance(one, str) else None
        found += range(int(ends[1]), int(ends[2]) + 1) if ends else [one]
    return found


def _wrong(name: str, default: Any, values: list[Any]) -> Iterator[str]:
    """What is wrong with an axis' values, as far as their types and names go."""
    for value in values:
        if name in ("attack", "adaptive", "defence"):
            if not _is_entry(value):
                yield f"{value!r} is neither a name nor a mapping from one name to settings"
        elif name in _KNOWN and value not in _KNOWN[name] and not (name == "dataset" and str(value).startswith(FOLDER)):
            yield f"unknown {value!r}; known: {', '.join(filter(None, _KNOWN[name]))}"
        elif name == "poison_rate":
            if type(value) not in (int, float):
                yield f"{value!r} is no number"
        elif type(value) is not type(default):
            yield f"{value!r} is no {'whole number' if type(default) is int else type(default).__name__}"
    if any(values.count(value) > 1 for value in values):
        yield "a value is there twice"


def _is_entry(value: Any) -> bool:
    """Whether this is a name, or a mapping from one name to settings."""
    return isinstance(value, str) or (isinstance(value, dict) and len(value) == 1)


def _named(axis: str, entry: Any, table: Mapping[str, Any], problems: list[str]) -> list[tuple[str, Options]]:
    """An attack or a defence with each combination of its settings; nothing where `_wrong` has complained."""
    if not _is_entry(entry):
        return []
    name, settings = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
    if name not in table and (axis == "defence" or name != "none"):
        also = "none, " if axis != "defence" else ""
        problems.append(f"{axis}: unknown {name!r}; known: {also}{', '.join(table)}")
        return []
    if not isinstance(settings or {}, dict) or not all(isinstance(setting, str) for setting in settings or {}):
        problems.append(f"{axis}: the settings of {name} are no mapping from names: {settings!r}")
        return []
    if name == "none" and settings:
        problems.append(f"{axis}: none takes no settings, got {settings!r}")
    values = {setting: [_hashable(one) for one in spread(value)] for setting, value in (settings or {}).items()}
    if empty := [setting for setting, found in values.items() if not found]:
        problems.append(f"{axis}: {name}'s list of {', '.join(empty)} is empty")
    return [(name, tuple(zip(values, chosen, strict=True))) for chosen in itertools.product(*values.values())]


def _hashable(value: Any) -> Any:
    """A list as a tuple: a list within a list is one value."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _built(make: Any, problems: list[str], *arguments: Any, **options: Any) -> Any:
    """What `make` gives, or None and its complaint among the problems."""
    if make is None or (arguments[:1] == ("none",) and not options):
        return None
    try:
        return make(*arguments, **options)
    except (ValueError, TypeError) as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
