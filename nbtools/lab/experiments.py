"""One line for "the poisoned model of this configuration": trained once, found in the cache after that."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass, field, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nbtools.attacker.adaptive import Adaptive
from nbtools.attacker.poisoning import Poisoned, poison
from nbtools.attacker.triggers import make_trigger
from nbtools.data import datasets
from nbtools.data.datasets import shapes_version
from nbtools.data.images import Images, draw_clean
from nbtools.data.shapes import make_shapes
from nbtools.data.splits import rare
from nbtools.defender import Defence, Repair
from nbtools.evaluator.evaluation import der
from nbtools.lab.cache import cached, source_hash
from nbtools.lab.cells import check_notebook
from nbtools.lab.trained import MEASURING, Setting, Trained, load_or_train, precision
from nbtools.settings import (
    STRIDES,
    default_device,
    default_profile,
    get_profile,
    hardware,
    hardware_and_precision,
    keep_memory,
    package_version,
)


@dataclass(frozen=True)
class Run(Setting):
    """One notebook's run: profile, device, data, and where its rows go."""

    data: Path | None = None
    _last: dict[str, Repair] = field(default_factory=dict, init=False, repr=False, compare=False)

    def poisoned(self, attack: str, poison_rate: float, target: int = 0, **options: float | int | str) -> Poisoned:
        """The attacker's training set."""
        return poison(self.splits.train, make_trigger(attack, **options), poison_rate, target, self.seed)

    def model(
        self,
        attack: str,
        poison_rate: float,
        target: int = 0,
        *,
        adaptive: Adaptive | None = None,
        **options: float | int | str,
    ) -> Trained:
        """The model of this configuration: trained now, or found in the cache.

        Args:
            attack: a name in `nbtools.attacker.triggers.TRIGGERS`.
            poison_rate: see `nbtools.attacker.poisoning.poison`.
            target: the target class, or `nbtools.attacker.triggers.ALL_TO_ALL`.
            adaptive: what the attacker adds to the loss, see `nbtools.attacker.adaptive`; None for nothing.
            options: the trigger's own fields.
        """
        return load_or_train(self, attack, poison_rate, target, attack, options, adaptive)

    def clean_model(self, attack: str = "badnets", target: int = 0, **options: float | int | str) -> Trained:
        """A model trained the same way on clean images; `attack` is only what the evaluator tries on it."""
        return load_or_train(self, "none", 0.0, target, attack, options)

    def defend(
        self,
        trained: Trained,
        defence: Defence,
        samples_per_class: int = 10,
        n_total: int = 0,
        draw: int = 0,
        *,
        glance: bool = False,
    ) -> dict[str, Any]:
        """One tidy row: this defence on this model with this draw of clean images; found in the cache once measured.

        The row is found again by the model, the defence's `repr`, the draw, the number of test images, and the source
        code that a defence runs; its `seconds` are those of the first run.

        Args:
            trained: the model.
            defence: called with the model and the drawn images.
            samples_per_class, n_total, draw: see `nbtools.data.images.draw_clean`.
            glance: evaluate on `Trained.glance` instead of all test images, for a point of a sweep.

        Returns:
            What was asked; the numbers of `test_images` and of `pruned` filters; ACC, ASR and RA before, after pruning
            alone (`_pruned`) and after the whole defence (`_after`), in percent; `der`; the `tuned_steps` of its
            weights; `seconds`; `peak_mb`, see `nbtools.defender.memory.peak`; on what hardware, with which versions and
            when it was measured.
        """
        told = asked(trained, defence, samples_per_class, n_total, draw)
        evaluate, before = trained.evaluate, trained.before
        if glance:
            evaluate, before = trained.glance, trained.before_at_a_glance
        shaped = {
            "weights": trained.card["sha256"],
            "trigger": repr(trained.trigger),
            "test_images": len(evaluate.test),
            "reserved": len(self.splits.reserved),
            "code": defence_code(defence),
            **precision(),
        }

        def build(_work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            repair = self.repair(trained, defence, samples_per_class, n_total, draw)
            after = evaluate(repair.model)
            alone = after  # nothing was tuned; else the pruned copy, which is the model itself where nothing was pruned
            if repair.untuned is not None:
                alone = evaluate(repair.untuned) if repair.mask.count else before
            row = {"pruned": repair.mask.count, "filters": repair.mask.filters, "tuned_steps": repair.tuned_steps}
            row |= before.row("_before") | alone.row("_pruned") | after.row("_after")
            row |= {"der": der(before, after), "seconds": repair.seconds, "peak_mb": repair.peak_bytes / 1e6}
            now = self.stamp()
            return {}, {"row": row | {name: now[name] for name in ("hardware", "torch", "nbtools", "date")}}

        row = cached("rows", {**told, **shaped}, build).card["row"]
        return {**told, "test_images": shaped["test_images"], **row}

    def repair(
        self, trained: Trained, defence: Defence, samples_per_class: int = 10, n_total: int = 0, draw: int = 0
    ) -> Repair:
        """What this defence makes of this model with this draw of clean images; see `defend`.

        The last one is remembered, model and all, so that a row about it costs its evaluation alone: look, don't touch.
        """
        which = repr((trained.card["sha256"], defence, samples_per_class, n_total, draw))
        if which not in self._last:
            self._last.clear()
            self._last[which] = defence(trained.model, self.draw(samples_per_class, n_total, draw))
        return self._last[which]

    def draw(self, samples_per_class: int = 10, n_total: int = 0, draw: int = 0) -> Images:
        """The defender's clean images; see `nbtools.data.images.draw_clean`."""
        return draw_clean(self.splits.reserved, samples_per_class, n_total, seed=draw)

    def save_rows(self, rows: list[dict[str, Any]] | pd.DataFrame, name: str) -> Path:
        """Write tidy rows with the run's configuration beside each, as `<name>.csv`; what a row says itself stands.

        They go to the folder in `NBTOOLS_OUT` (set by `python -m nbtools run`), else to `runs/`.
        """
        table = pd.DataFrame(rows)
        table = table.assign(**{name: value for name, value in self.stamp().items() if name not in table})
        if Path(name).name != name:
            raise ValueError(f"the name of a table is a file's name without a folder, got {name!r}")
        folder = Path(os.environ.get("NBTOOLS_OUT", "runs"))
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.csv.partial"
        table.to_csv(partial, index=False)
        return partial.replace(folder / f"{name}.csv")

    def stamp(self) -> dict[str, Any]:
        """The columns that say how a row came about."""
        return {
            "profile": self.profile.name,
            "dataset": self.splits.name,
            "architecture": self.architecture,
            "width": self.profile.width,
            "epochs": self.profile.epochs,
            "train_images": len(self.splits.train),
            "test_images": len(self.splits.test),
            "seed": self.seed,
            "hardware": hardware(self.device),
            "torch": torch.__version__.split("+")[0],
            "nbtools": package_version("nbtools"),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }


def asked(trained: Trained, defence: Defence, samples_per_class: int, n_total: int, draw: int) -> dict[str, Any]:
    """What a row is about: model, defence and draw; the first columns of `Run.defend`."""
    return {
        "model": trained.name,
        "attack": trained.attack,
        "poison_rate": trained.poison_rate,
        "target": trained.target,
        "defence": type(defence).__name__,
        "settings": repr(defence),
        "samples_per_class": 0 if n_total else samples_per_class,
        "n_total": n_total,
        "draw": draw,
    }


def defence_code(defence: Defence) -> str:
    """A hash of the source that decides a defence's result: a row measured by other code is not found again."""
    score = ("components", "saliency", "score", "magnitude", "pruning")
    common = (
        "repair",
        "learning",
        "validation",
        "soft_masks",
        "threshold_sweep",
        "feature_maps",
        "shifts",
        "head",
        "last_stage",
        "renormalise",
    )
    shared = [f"defender/{name}.py" for name in (*score, *common)]
    parts = [part for part in (defence, *vars(defence).values()) if is_dataclass(part)]
    own = {inspect.getfile(kind) for part in parts for kind in type(part).__mro__ if is_dataclass(kind)}
    return source_hash(*MEASURING, "networks/maps.py", "networks/above.py", *shared, *sorted(own))


def start(
    profile: str = "",
    *,
    width: int = 0,
    epochs: int = 0,
    architecture: str = "resnet18",
    seed: int = 0,
    data: Path | None = None,
    device: str | torch.device | None = None,
    quiet: bool = False,
    small: bool = False,
    dataset: str = "",
) -> Run:
    """Begin a notebook: choose device and data by the profile, and print one table of what was chosen, with notes.

    In a notebook its parameters cell, and what papermill was given, are checked first.

    Args:
        profile: "quick", "laptop", "paper"; "" is `paper` with a GPU and `quick` without.
        width: another width than the profile's; 0 keeps it.
        epochs: other epochs than the profile's; 0 keeps them.
        architecture: a name in `nbtools.networks.architectures.ARCHITECTURES`.
        seed: of data, poisoning, initial weights and training.
        data: a folder that holds CIFAR-10.
        device: by default the first GPU, else the CPU.
        quiet: print no table.
        small: take the narrow network where the profile has one, see `nbtools.settings.Profile.narrowed`.
        dataset: another data set than the profile's, a name in `nbtools.data.datasets.DATASETS`; "" keeps it.

    Raises:
        WrongParameter: for a parameter of the running notebook that is not allowed.
        ValueError: for an unknown profile or data set.
        DataNotFound: where the profile's data can't be found; it says how to get them.
    """
    check_notebook()
    keep_memory()
    chosen = get_profile(profile or default_profile(data))
    chosen = chosen.narrowed() if small else chosen
    changes = {"width": width, "epochs": epochs, "dataset": dataset}
    chosen = replace(chosen, **{name: value for name, value in changes.items() if value})
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    place = torch.device(device) if device else default_device()
    options: dict[str, Any] = {"make": _kept_shapes} if chosen.dataset == "shapes" else {}
    options |= {"train": chosen.train, "reserved": chosen.reserved, "test": chosen.test, "seed": seed}
    splits = datasets.load(chosen.dataset, data, place, **options)
    run = Run(chosen, place, splits, architecture, seed, data)
    if not quiet:
        print(_table(run))
    return run


def _kept_shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`nbtools.data.shapes.make_shapes`; many of them are kept in the cache: a series of notebooks makes them once."""
    if count < 10_000:
        return make_shapes(count, seed)
    config = {"dataset": "shapes", "images": count, "seed": seed, "version": shapes_version()}

    def build(_work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        images, labels = make_shapes(count, seed)
        return {"images": images, "labels": labels}, {}

    made = cached("images", config, build).tensors
    return made["images"], made["labels"]


def _table(run: Run) -> str:
    profile = run.profile
    shape = f"width {profile.width}"
    shape += f", strides {' '.join(map(str, profile.strides))}" if profile.strides != STRIDES else ""
    lines = {
        "profile": f"{profile.name} ({profile.about})",
        "device": hardware_and_precision(run.device),
        "data": f"{run.splits.name}: {len(run.splits.train):,} to train on, {len(run.splits.reserved):,} for the "
        f"defender, {len(run.splits.test):,} for the evaluator",
        "model": f"{run.architecture}, {shape}, {profile.epochs} epochs",
        "versions": f"Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}, "
        f"nbtools {package_version('nbtools')}",
    }
    told = [*lines.items(), *(("note", note) for note in (*run.splits.notes, *rare(run.splits.reserved)))]
    return "\n".join(f"{name:<9} {value}" for name, value in told)
