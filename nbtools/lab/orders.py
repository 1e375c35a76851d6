"""The models that notebooks will ask for, told from their parameters, and trained before they do."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nbtools.settings import get_profile

Order = dict[str, Any]
"""Profile, width, epochs and seed of a run; attack ("none": clean), poison rate and target of a model, and `member`,
its number, where it is one of the zoo's."""


def orders(given: Mapping[str, Any], profile: str) -> list[Order]:
    """What a notebook will ask for, in the order of need.

    Args:
        given: its parameters. With a `poison_rate` it asks for a model of each attack that it names (a parameter
            "attack", "hard_attack", ...) and for a clean one. With `zoo_attacks` and `zoo_rate` it then asks for the
            models of `nbtools.lab.zoo.zoo`.
        profile: where it names none.
    """
    if "poison_rate" not in given:
        return []
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
    return [run | model for model in wanted]


def train(order: Order) -> tuple[str, float] | None:
    """Train a model; its name and the seconds that this took, None where it was there already."""
    from nbtools.lab import experiments, zoo

    rest = dict(order)
    attack, poison_rate, target = (rest.pop(name, None) for name in ("attack", "poison_rate", "target"))
    number = rest.pop("member", None)
    began, started = datetime.now(UTC).replace(microsecond=0), time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        run = experiments.start(quiet=True, **rest)
        run = run if number is None else zoo.member(run, number)
        model = run.clean_model() if attack == "none" else run.model(attack, poison_rate, target)
    if "file" in model.card or datetime.fromisoformat(model.card["created"]) < began:
        return None
    return model.name, time.monotonic() - started
