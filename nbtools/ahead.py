"""The models that a series will ask for, trained side by side before its first notebook and while the next ones run."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from nbtools.settings import default_device, get_profile

Order = dict[str, Any]
"""Profile, width, epochs and seed of a run; attack ("none": clean), poison rate and target of a model."""

MOST_LANES = 4
"""However many cores there are: each lane holds a model, its data and a kernel in memory."""


def orders(notebooks: Iterable[Mapping[str, Any]], profile: str) -> list[Order]:
    """What the notebooks will ask for, in the order of need.

    Args:
        notebooks: the parameters of each. Where one has a `poison_rate`, it asks for a model of each attack that it
            names (a parameter "attack", "hard_attack", ...) and for a clean one.
        profile: the profile of those that name none.
    """
    asked: list[Order] = []
    for given in notebooks:
        if "poison_rate" not in given:
            continue
        run = {"profile": given.get("profile") or profile}
        run |= {name: given[name] for name in ("width", "epochs", "seed") if name in given}
        second = get_profile(run["profile"]).hard_attack
        poisoned = {name: given[name] for name in ("poison_rate", "target") if name in given}
        attacks = [attack for name, value in given.items() if name.endswith("attack") and (attack := value or second)]
        for attack in [*attacks[:1], *(["none"] if attacks else []), *attacks[1:]]:
            order = run | {"attack": attack} | (poisoned if attack != "none" else {})
            if order not in asked:
                asked.append(order)
    return asked


def lanes(profile: str) -> int:
    """How many models or notebooks of a profile this machine takes at a time.

    One on a GPU, and where the profile leaves the number of threads to torch, which takes every core.
    """
    threads = get_profile(profile).threads
    if default_device().type != "cpu" or not threads:
        return 1
    return max(1, min(MOST_LANES, (os.cpu_count() or 1) // threads))


def train(asked: list[Order]) -> Iterator[tuple[str, float]]:
    """Train these models one after the other; yield name and seconds of each that was not in the cache already."""
    from nbtools import experiments

    for order in asked:
        rest = dict(order)
        attack, poison_rate, target = (rest.pop(name, None) for name in ("attack", "poison_rate", "target"))
        began, started = datetime.now(UTC).replace(microsecond=0), time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            run = experiments.start(quiet=True, **rest)
            model = run.clean_model() if attack == "none" else run.model(attack, poison_rate, target)
        if datetime.fromisoformat(model.card["created"]) >= began:
            yield model.name, time.monotonic() - started
