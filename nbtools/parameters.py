"""What a notebook's parameters may be, whatever the notebook; checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbtools.networks import MIN_WIDTH
from nbtools.settings import PROFILES, default_profile
from nbtools.triggers import TRIGGERS

CLASSES = 10
"""Of every data set that a profile uses."""
_MU = (lambda v: v >= 0, "0 or more (standard deviations above the layer's mean)")
_STEP = (lambda v: 0 < v <= 1, "a step in images from 0 to 1: above 0 and at most 1")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "poison_rate": (lambda v: 0 < v <= 1, "a share of the training set, above 0 and at most 1"),
    "low_rate": (lambda v: 0 <= v <= 1, "0 (none), or a share of the training set, at most 1"),
    "target": (lambda v: -1 <= v < CLASSES, f"a class number, 0 to {CLASSES - 1}, or -1 for all-to-all"),
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


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse a notebook parameter that is out of range or names something unknown, before any work.

    Raises:
        ValueError: it names the parameter, the value, and what is allowed.
    """
    for name, value in parameters.items():
        known: list[str] = []
        if name == "profile" or name.endswith(("attack", "attacks")):
            known = list(PROFILES if name == "profile" else TRIGGERS)
        for one in _each(value) if known else []:
            if one not in known and not (name in ("profile", "hard_attack") and one == ""):
                raise ValueError(f"unknown {name} {one!r}; known: {', '.join(known)}")
        if name in LIMITS and not (value != [] and all(LIMITS[name][0](v) for v in _each(value))):
            raise ValueError(f"{name}={value!r} is out of range: {LIMITS[name][1]}")
    profile = PROFILES[parameters.get("profile") or default_profile()]
    for name, classes in (("samples_per_class", CLASSES), ("n_total", 1)):
        value = parameters.get(name, 0)
        if max(_each(value)) > profile.reserved // classes:
            most = f"the defender of profile {profile.name} draws from {profile.reserved:,} images of {CLASSES} classes"
            raise ValueError(f"{name}={value!r} is out of range: at most {profile.reserved // classes}, since {most}")


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
