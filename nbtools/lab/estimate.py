"""How long a grid will take, roughly: from what the cache's cards say of models and rows like its own [ours]."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from nbtools.lab import cache, shipped
from nbtools.lab.experiments import scaled
from nbtools.lab.points import Model, Point
from nbtools.lab.trained import adaptive_config, model_config
from nbtools.wording import duration

_SHAPE = ("dataset", "architecture", "width", "strides", "train_images")


def estimate(points: Sequence[Point], workers: int) -> str:
    """Lines that say how many points and models there are, what is there already, and how long the rest will take.

    Seconds are means of the cards in the cache: of trainings of the same network on the same number of images, scaled
    by the epochs; of rows of the same kind of defence, without their evaluation. Where there is no such card the time
    is called unknown.

    Args:
        points: those without a row.
        workers: among which the work is divided.
    """
    cards = [card for card in cache.cards("models") if "seconds" in card]
    there = [_plain(card["config"]) for card in [*cards, *shipped.cards()]]
    models = list(dict.fromkeys(point.model for point in points))
    missing = [model for model in models if _config(model) not in there]
    lines = [f"{len(points)} points without a row, {len(models)} models, {len(missing)} of them to be trained"]

    an_epoch: dict[str, list[float]] = defaultdict(list)
    for card in cards:
        an_epoch[_shape(card["config"])].append(card["seconds"] / card["config"]["recipe"]["epochs"])
    a_row: dict[str, list[float]] = defaultdict(list)
    for card in cache.cards("rows"):
        if "row" in card:
            a_row[card["config"]["defence"]].append(card["row"]["seconds"])

    seconds, unknown = 0.0, []
    for model in missing:
        config = _config(model)
        if known := an_epoch.get(_shape(config)):
            seconds += mean(known) * config["recipe"]["epochs"]
        else:
            unknown.append(f"the training of {model.name}")
    for kind, count in Counter(type(point.defence).__name__ for point in points).items():
        if kind in a_row:
            seconds += mean(a_row[kind]) * count
        else:
            unknown.append(kind)
    told = f"roughly {duration(seconds / workers)} with {workers} worker{'s' * (workers > 1)}, evaluation apart"
    if unknown:
        several = ", ".join(dict.fromkeys(unknown))
        told = f"{told}; nothing is known yet of {several}" if seconds else f"how long is not known yet ({several})"
    return "\n".join([*lines, told])


def _config(model: Model) -> dict[str, Any]:
    """What the cache knows the model by, as its card holds it."""
    setup = asdict(model.setup)
    architecture, seed = setup.pop("architecture"), setup.pop("seed")
    asked = (model.attack, model.poison_rate, model.target, model.trigger, seed)
    return _plain(model_config(scaled(**setup), architecture, *asked)) | adaptive_config(model.adaptive)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, and without the data set's version, which is not known before the data are there."""
    kept = {name: list(v) if isinstance(v, tuple) else v for name, v in config.items() if name != "dataset_version"}
    trigger = kept.get("trigger")
    if isinstance(trigger, dict):
        kept["trigger"] = {name: list(v) if isinstance(v, tuple) else v for name, v in trigger.items()}
    return kept


def _shape(config: dict[str, Any]) -> str:
    return repr([*(config.get(name) for name in _SHAPE), "adaptive" in config])
