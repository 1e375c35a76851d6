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
"""Profile, width, epochs and seed of a run; attack ("none": clean), poison rate and target of a model, and `member`,
its number, where it is one of the zoo's."""

MOST_LANES = 4
"""However many cores there are: each lane holds a model, its data and a kernel in memory."""


def orders(notebooks: Iterable[Mapping[str, Any]], profile: str) -> list[Order]:
    """What the notebooks will ask for, in the order of need.

    Args:
        notebooks: the parameters of each. Where one has a `poison_rate`, it asks for a model of each attack that it
            names (a parameter "attack", "hard_attack", ...) and for a clean one. Where one has `zoo_attacks` and
            `zoo_rate`, it then asks for the models of `nbtools.lab.zoo.zoo`.
        profile: the profile of those that name none.
    """
    asked: list[Order] = []
    for given in notebooks:
        if "poison_rate" not in given:
            continue
        run = {"profile": given.get("profile") or profile}
        run |= {name: given.get(name, 0) for name in ("width", "epochs", "seed")}
        scale = get_profile(run["profile"])
        poisoned = {name: given[name] for name in ("poison_rate", "target") if name in given}
        named = [value or scale.hard_attack for name, value in given.items() if name.endswith("attack")]
        attacks = [attack for attack in named if attack]
        wanted: list[Order] = [{"attack": attack} | poisoned for attack in attacks]
        wanted[1:1] = [{"attack": "none"}] if attacks else []
        if "zoo_attacks" in given:
            kinds, of_zoo = given["zoo_attacks"] or scale.zoo_attacks, poisoned | {"poison_rate": given["zoo_rate"]}
            for number in range(scale.zoo):
                attack = {"attack": kinds[number % len(kinds)]}
                wanted += [{"attack": "none", "member": number}, attack | of_zoo | {"member": number}]
        for order in (run | model for model in wanted):
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
    from nbtools.lab import experiments, zoo

    for order in asked:
        rest = dict(order)
        attack, poison_rate, target = (rest.pop(name, None) for name in ("attack", "poison_rate", "target"))
        number = rest.pop("member", None)
        began, started = datetime.now(UTC).replace(microsecond=0), time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            run = experiments.start(quiet=True, **rest)
            run = run if number is None else zoo.member(run, number)
            model = run.clean_model() if attack == "none" else run.model(attack, poison_rate, target)
        if datetime.fromisoformat(model.card["created"]) >= began:
            yield model.name, time.monotonic() - started
