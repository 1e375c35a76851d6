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
_MU = Range("0 or more (standard deviations above the layer's mean)")
_DRAWS = Range("0 (what the profile says), or a number of draws, at most 1000", 0, 1_000, whole=True)
_PER_CLASS = Range("1 or more clean images a class", 1, whole=True)
_EPOCHS = "a number of epochs, at most 10000"
RANGES: dict[str, Range] = {
    "poison_rate": _SHARE,
    "low_rate": _LOW_RATE,
    "zoo_rate": _SHARE,
    "clean_label_rate": Range("a share of the target class, above 0 and at most 1", 0, 1, above=True),
    "most_per_class": Range("-1 (none), 0 (what the profile says), or clean images a class", -1, whole=True),
    "paper_per_class": _PER_CLASS,
    "samples_per_class": _PER_CLASS,
    "counts": _PER_CLASS,
    "n_total": Range("0 (use samples_per_class), or the number of clean images in all", whole=True),
    "many": Range("0 (what the defender's pool holds), or clean images a class", whole=True),
    "n_images": Range("a number of images, 1 to 100000", 1, 100_000, whole=True),
    "patience": Range("0 or more seconds"),
    "alpha": _STEP,
    "epsilon": _STEP,
    "divisors": Range("2 to 100000: one channel in so many is pruned", 2, 100_000, whole=True),
    "mu": _MU,
    "mus": _MU,
    "allowed": Range("a share of the accuracy, from 0 to below 1", 0, math.nextafter(1, 0)),
    "most": Range("a number of filters, 1 to 100000", 1, 100_000, whole=True),
    "weight": Range("above 0: of the attacker's penalty beside the cross-entropy", 0, above=True),
    "trainings": Range(f"1 or more: {_EPOCHS}", 1, 10_000, whole=True),
    "seed": Range("0 or more, and below 2 to the power of 63", 0, 2**63 - 1, whole=True),
    "width": Range(f"0 (what the profile says), or {MIN_WIDTH} to 1024 channels", MIN_WIDTH, 1024, also=0, whole=True),
    "epochs": Range(f"0 (what the profile says), or {_EPOCHS}", 0, 10_000, whole=True),
    "draw": Range("the number of a draw, 0 or more, below 2 to the power of 63", 0, 2**63 - 1, whole=True),
    "draws": _DRAWS,
    "whole_draws": _DRAWS,
}


def target_range(classes: int | None) -> Range:
    """The range of a target class; `classes` is None where only reading the data would tell."""
    last = "and up" if classes is None else f"to {classes - 1}"
    most = math.inf if classes is None else classes - 1
    return Range(f"a class number, 0 {last}, or -1 for all-to-all", -1, most, whole=True)


def check_parameters(parameters: Mapping[str, Any], classes: int | None = CLASSES) -> None:
    """Refuse a parameter that is out of range, names something unknown, or asks for more images than there are.

    Args:
        parameters: name to value, or to a list of values; "profile" says how many images there are.
        classes: of the data set; None where only reading it would tell.

    Raises:
        ValueError: it names the parameter, the value, and what is allowed.
    """
    check_ranges(parameters, classes)
    profile = PROFILES[parameters.get("profile") or default_profile()]
    by_class = dict.fromkeys(("samples_per_class", "counts", "many"), classes or 1)
    for name, parts in {**by_class, "n_total": 1}.items():
        most = profile.reserved // parts
        if max(_each(parameters.get(name, 0))) > most:
            drawn = f"the defender of profile {profile.name} draws from {profile.reserved:,} images"
            drawn += f" of {classes} classes" if classes else ""
            raise ValueError(f"{name}={parameters[name]!r} is out of range: at most {most}, since {drawn}")


def check_ranges(parameters: Mapping[str, Any], classes: int | None = CLASSES) -> None:
    """The part of `check_parameters` that depends on no profile: quick, since it needs no torch."""
    for name, value in parameters.items():
        _check_name(name, value)
        allowed = target_range(classes) if name == "target" else RANGES.get(name)
        if allowed and not all(map(allowed.is_number, _each(value))):
            raise ValueError(f"{name}={value!r} is no {'whole ' * allowed.whole}number: {allowed.said}")
        if allowed and not (_each(value) and all(map(allowed.holds, _each(value)))):
            raise ValueError(f"{name}={value!r} is out of range: {allowed.said}")


def _check_name(name: str, value: Any) -> None:
    """Refuse a profile or an attack that is not there; "" leaves a profile or a second attack open."""
    there = PROFILES if name == "profile" else ATTACKS if name.endswith(("attack", "attacks")) else ()
    none = [] if name.endswith("s") else [value]  # an empty list of attacks is none of them
    for one in (_each(value) or none) if there else []:
        if not (isinstance(one, str) and one in there) and not (one == "" and name in ("profile", "hard_attack")):
            raise ValueError(known(name.removesuffix("s"), str(one), there))


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
