"""What a notebook's parameters may be, whatever the notebook; checked before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from nbtools.networks import MIN_WIDTH
from nbtools.settings import PROFILES, default_profile
from nbtools.triggers import TRIGGERS

CLASSES = 10
"""Of every data set that a profile uses."""


def _target(classes: int | None) -> tuple[Callable[[Any], bool], str]:
    last = "and up" if classes is None else f"to {classes - 1}"
    return lambda v: -1 <= v < (classes or math.inf), f"a class number, 0 {last}, or -1 for all-to-all"


_MU = (lambda v: v >= 0, "0 or more (standard deviations above the layer's mean)")
_STEP = (lambda v: 0 < v <= 1, "a step in images from 0 to 1: above 0 and at most 1")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "poison_rate": (lambda v: 0 < v <= 1, "a share of the training set, above 0 and at most 1"),
    "low_rate": (lambda v: 0 <= v <= 1, "0 (none), or a share of the training set, at most 1"),
    "target": _target(CLASSES),
    "clean_label_rate": (lambda v: 0 < v <= 1, "a share of the target class, above 0 and at most 1"),
    "most_per_class": (lambda v: v >= -1, "-1 (none), 0 (what the profile says), or clean images a class"),
    "paper_per_class": (lambda v: v >= 1, "1 or more clean images a class"),
    "zoo_rate": (lambda v: 0 < v <= 1, "a share of the training set, above 0 and at most 1"),
    "patience": (lambda v: v >= 0, "0 or more seconds"),
    "n_images": (lambda v: v >= 1, "1 or more images"),
    "alpha": _STEP,
    "epsilon": _STEP,
    "divisors": (lambda v: v >= 2, "2 or more: one channel in so many is pruned"),
    "mu": _MU,
    "mus": _MU,
    "samples_per_class": (lambda v: v >= 1, "1 or more clean images a class"),
    "n_total": (lambda v: v >= 0, "0 (use samples_per_class), or the number of clean images in all"),
    "seed": (lambda v: v >= 0, "0 or more"),
    "width": (lambda v: v == 0 or v >= MIN_WIDTH, f"0 (what the profile says), or at least {MIN_WIDTH} channels"),
    "epochs": (lambda v: v >= 0, "0 (what the profile says), or a number of epochs"),
    "draw": (lambda v: v >= 0, "the number of a draw, 0 or more"),
    "draws": (lambda v: v >= 0, "0 (what the profile says), or a number of draws"),
}


def check_parameters(parameters: Mapping[str, Any], classes: int | None = CLASSES) -> None:
    """Refuse a notebook parameter that is out of range or names something unknown, before any work.

    Args:
        parameters: name to value, or to a list of values.
        classes: of the data set; None where only reading it would tell.

    Raises:
        ValueError: it names the parameter, the value, and what is allowed.
    """
    limits = LIMITS | {"target": _target(classes)}
    for name, value in parameters.items():
        known: list[str] = []
        if name == "profile" or name.endswith(("attack", "attacks")):
            known = list(PROFILES if name == "profile" else TRIGGERS)
        for one in _each(value) if known else []:
            if one not in known and not (name in ("profile", "hard_attack") and one == ""):
                raise ValueError(f"unknown {name} {one!r}; known: {', '.join(known)}")
        if name in limits and not (value != [] and all(limits[name][0](v) for v in _each(value))):
            raise ValueError(f"{name}={value!r} is out of range: {limits[name][1]}")
    profile = PROFILES[parameters.get("profile") or default_profile()]
    for name, parts in (("samples_per_class", classes or 1), ("n_total", 1)):
        value = parameters.get(name, 0)
        if max(_each(value)) > profile.reserved // parts:
            drawn = f"the defender of profile {profile.name} draws from {profile.reserved:,} images"
            drawn += f" of {classes} classes" if classes else ""
            raise ValueError(f"{name}={value!r} is out of range: at most {profile.reserved // parts}, since {drawn}")


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
