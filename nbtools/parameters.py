"""What a notebook's parameters may be, whatever the notebook; checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbtools.models import MIN_WIDTH
from nbtools.settings import PROFILES
from nbtools.triggers import TRIGGERS

LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "poison_rate": (lambda v: 0 < v <= 1, "a share of the training set, above 0 and at most 1"),
    "target": (lambda v: v >= 0, "a class number, 0 or more"),
    "mu": (lambda v: v >= 0, "0 or more (standard deviations above the layer's mean)"),
    "samples_per_class": (lambda v: v >= 1, "1 or more clean images a class"),
    "n_total": (lambda v: v >= 0, "0 (use samples_per_class), or the number of clean images in all"),
    "seed": (lambda v: v >= 0, "0 or more"),
    "width": (lambda v: v == 0 or v >= MIN_WIDTH, f"0 (what the profile says), or at least {MIN_WIDTH} channels"),
    "epochs": (lambda v: v >= 0, "0 (what the profile says), or a number of epochs"),
    "draws": (lambda v: v >= 0, "0 (what the profile says), or a number of draws"),
}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse a notebook parameter that is out of range or names something unknown, before any work.

    Raises:
        ValueError: it names the parameter, the value, and what is allowed.
    """
    names = {"profile": tuple(PROFILES), "attack": tuple(TRIGGERS)}
    for name, value in parameters.items():
        if name in names and value not in names[name] and not (name == "profile" and value == ""):
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(names[name])}")
        if name in LIMITS and not all(LIMITS[name][0](v) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{name}={value!r} is out of range: {LIMITS[name][1]}")
