"""What the parameters of notebooks and grids may be: ranges and names, checked before any work. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nbtools.attacker import ATTACKS
from nbtools.settings import MIN_WIDTH, PROFILES, default_profile
from nbtools.values import Range
from nbtools.wording import known

CLASSES = 10
"""Of every data set that a profile uses."""

_SHARE = Range("a share of the training set, above 0 and at most 1", 0, 1, above=True)
_LOW_RATE = Range("0 (none), or a share of the training set, at most 1", 0, 1)
_STEP = Range("a step in images from 0 to 1: above 0 and at most 1", 0, 1, above=True)
_MU = Range("0 to 1000 (standard deviations above the layer's mean)", 0, 1_000)
_DRAWS = Range("0 (what the profile says), or a number of draws, at most 1000", 0, 1_000, whole=True)
_PER_CLASS = Range("1 to 100000 clean images a class", 1, 100_000, whole=True)
_EPOCHS = "a number of epochs, at most 10000"
RANGES: dict[str, Range] = {
    "poison_rate": _SHARE,
    "low_rate": _LOW_RATE,
    "zoo_rate": _SHARE,
    "clean_label_rate": Range("a share of the target class, above 0 and at most 1", 0, 1, above=True),
    "most_per_class": Range("-1 (none), 0 (what the profile says), or 1 to 100000 a class", -1, 100_000, whole=True),
    "paper_per_class": _PER_CLASS,
    "samples_per_class": _PER_CLASS,
    "counts": _PER_CLASS,
    "n_total": Range("0 (use samples_per_class), or 1 to 100000 clean images in all", 0, 100_000, whole=True),
    "many": Range("0 (what the defender's pool holds), or 1 to 100000 clean images a class", 0, 100_000, whole=True),
    "n_images": Range("a number of images, 1 to 100000", 1, 100_000, whole=True),
    "patience": Range("0 to 1000000 seconds", 0, 1_000_000),
    "alpha": _STEP,
    "epsilon": _STEP,
    "divisors": Range("2 to 100000: one channel in so many is pruned", 2, 100_000, whole=True),
    "mu": _MU,
    "mus": _MU,
    "allowed": Range("a share of the accuracy, from 0 to below 1", 0, math.nextafter(1, 0)),
    "most": Range("a number of filters, 1 to 100000", 1, 100_000, whole=True),
    "weight": Range("above 0 and at most 1000000: of a penalty beside the cross-entropy", 0, 1_000_000, above=True),
    "trainings": Range(f"1 or more: {_EPOCHS}", 1, 10_000, whole=True),
    "seed": Range("0 to 1000000000", 0, 10**9, whole=True),  # what is made of it, for an epoch or a zoo, fits as well
    "width": Range(f"0 (what the profile says), or {MIN_WIDTH} to 1024 channels", MIN_WIDTH, 1024, also=0, whole=True),
    "epochs": Range(f"0 (what the profile says), or {_EPOCHS}", 0, 10_000, whole=True),
    "draw": Range("the number of a draw, 0 to 1000000000", 0, 10**9, whole=True),
    "draws": _DRAWS,
    "whole_draws": _DRAWS,
}
"""Of numbers; `target` has `target_range`."""
LISTS = ("attacks", "counts", "divisors", "mus", "trainings", "zoo_attacks")
"""Parameters of several values, each there once; but `zoo_attacks` are taken in turn, so one may come again."""
FLAGS = ("slider",)
"""Parameters that are True or False."""


def target_range(classes: int | None) -> Range:
    """The range of a target class; `classes` is None where only reading the data would tell."""
    last = "and up" if classes is None else f"to {classes - 1}"
    most = math.inf if classes is None else classes - 1
    return Range(f"a class number, 0 {last}, or -1 for all-to-all", -1, most, whole=True)


def check_parameters(parameters: Mapping[str, Any], classes: int | None = CLASSES, axes: bool = False) -> None:
    """Refuse a parameter that is out of range, names something unknown, or asks for more images than there are.

    Args:
        parameters: name to value; "profile" says how many images there are. A name that is not limited here is free.
        classes: of the data set; None where only reading it would tell.
        axes: whether a list stands for several values of its parameter, as in a grid.

    Raises:
        ValueError: it names the parameter, the value, and what is allowed.
    """
    check_ranges(parameters, classes, axes)
    profile = PROFILES[parameters.get("profile") or default_profile()]
    by_class = dict.fromkeys(("samples_per_class", "counts", "many"), classes or 1)
    for name, parts in {**by_class, "n_total": 1}.items():
        most = profile.reserved // parts
        if max(_each(parameters.get(name, 0))) > most:
            drawn = f"the defender of profile {profile.name} draws from {profile.reserved:,} images"
            drawn += f" of {classes} classes" if classes else ""
            raise ValueError(f"{name}={parameters[name]!r} is out of range: at most {most}, since {drawn}")


def check_ranges(parameters: Mapping[str, Any], classes: int | None = CLASSES, axes: bool = False) -> None:
    """The part of `check_parameters` that depends on no profile: quick, since it needs no torch."""
    for name, value in parameters.items():
        there, allowed = names_for(name), target_range(classes) if name == "target" else RANGES.get(name)
        told = f"{name}={value!r}"
        if name in LISTS and not isinstance(value, list | tuple):
            raise ValueError(
                f"{told} is no list{f': of {allowed.said}' if allowed else ', such as [badnets, blended]'}"
            )
        values = _each(value) if name in LISTS or axes else [value]
        if name in FLAGS and not all(isinstance(one, bool) for one in values):
            raise ValueError(f"{told} is neither True nor False")
        for one in values if there else ():
            if not (isinstance(one, str) and one in there):
                raise ValueError(known(name.removesuffix("s"), str(one), filter(None, there)))
        if allowed and not all(map(allowed.is_number, values)):
            raise ValueError(f"{told} is no {'whole ' * allowed.whole}number: {allowed.said}")
        if allowed and not (values and all(map(allowed.holds, values))):
            raise ValueError(f"{told} is out of range: {allowed.said}")
        if name in LISTS and name != "zoo_attacks" and len(set(values)) < len(values):
            raise ValueError(f"{told} has a value twice; give each once")


def names_for(name: str) -> tuple[str, ...]:
    """The values of a parameter that is a name, or holds names: () for others; "" leaves it open."""
    if name == "profile":
        return "", *PROFILES
    if name.endswith(("attack", "attacks")):
        return ("", *ATTACKS) if name == "hard_attack" else tuple(ATTACKS)
    return ()


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
