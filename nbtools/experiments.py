"""One line for "the poisoned model of this configuration": trained once, found in the cache after that."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import nbtools
from nbtools import datasets
from nbtools.cache import cached
from nbtools.defences import Defence
from nbtools.evaluation import Evaluation, Evaluator, accuracy, der
from nbtools.images import Images, draw_clean
from nbtools.models import make_model
from nbtools.poisoning import Poisoned, poison
from nbtools.pruning import pruned_copy
from nbtools.settings import (
    STRIDES,
    Profile,
    default_device,
    default_profile,
    get_profile,
    hardware,
    has_bf16,
    keep_memory,
    seed_everything,
)
from nbtools.training import Recipe, train
from nbtools.triggers import Trigger, make_trigger


@dataclass(frozen=True)
class Trained:
    """A model of the series and what it was made of.

    Args:
        model: in eval mode, on the run's device. Defences copy it; nothing changes it.
        attack: the attack's name, "none" for a clean model.
        trigger: what the attacker used; for a clean model the trigger that the evaluator tries on it.
        target: the target class.
        poison_rate: 0 for a clean model.
        card: what the cache wrote beside the weights: configuration, history, seconds, hardware.
        evaluate: the evaluator, holding test set and trigger.
    """

    model: nn.Module
    attack: str
    trigger: Trigger
    target: int
    poison_rate: float
    card: dict[str, Any]
    evaluate: Evaluator

    @functools.cached_property
    def before(self) -> Evaluation:
        """ACC, ASR and RA of the model as it was trained."""
        return self.evaluate(self.model)

    @property
    def name(self) -> str:
        """For tables and titles: "badnets 5 %", "clean"."""
        return "clean" if self.attack == "none" else f"{self.attack} {100 * self.poison_rate:g} %"


@dataclass(frozen=True)
class Run:
    """One notebook's run: profile, device, data, and where its rows go."""

    profile: Profile
    device: torch.device
    splits: datasets.Splits
    architecture: str
    seed: int

    def poisoned(self, attack: str, poison_rate: float, target: int = 0, **options: float | int | str) -> Poisoned:
        """The attacker's training set."""
        return poison(self.splits.train, make_trigger(attack, **options), poison_rate, target, self.seed)

    def model(self, attack: str, poison_rate: float, target: int = 0, **options: float | int | str) -> Trained:
        """The model of this configuration: trained now, or found in the cache.

        Args:
            attack: a name in `nbtools.triggers.TRIGGERS`.
            poison_rate: see `nbtools.poisoning.poison`.
            target: the target class.
            options: the trigger's own fields.
        """
        make_trigger(attack, **options)
        return self._trained(attack, poison_rate, target, attack, options)

    def clean_model(self, attack: str = "badnets", target: int = 0, **options: float | int | str) -> Trained:
        """A model trained the same way on clean images; `attack` is only what the evaluator tries on it."""
        return self._trained("none", 0.0, target, attack, options)

    def defend(
        self, trained: Trained, defence: Defence, samples_per_class: int = 10, n_total: int = 0, draw: int = 0
    ) -> dict[str, Any]:
        """One tidy row: this defence on this model with this draw of clean images; found in the cache once measured.

        The row is found again by the model, the defence's `repr`, the draw, the number of test images, and the source
        code that a defence runs; its `seconds` are those of the first run.

        Returns:
            What was asked; `pruned` filters; ACC, ASR and RA before, after pruning alone (`_pruned`) and after the
            whole defence (`_after`), in percent; `der`; the fine-tuning's `tuned_steps`; `seconds`.
        """
        asked = {
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
        shaped = {
            "weights": trained.card["key"],
            "trigger": repr(trained.trigger),
            "test_images": len(trained.evaluate.test),
            "reserved": len(self.splits.reserved),
            "code": _defence_code(),
        }

        def build(_work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            repair = defence(trained.model, self.draw(samples_per_class, n_total, draw))
            tuned = next((int(row["step"]) for row in repair.history if row.get("chosen")), 0)
            before, after = trained.before, trained.evaluate(repair.model)
            alone = trained.evaluate(pruned_copy(trained.model, repair.mask)) if tuned else after
            row = {"pruned": repair.mask.count, "filters": repair.mask.filters, "tuned_steps": tuned}
            row |= before.row("_before") | alone.row("_pruned") | after.row("_after")
            return {}, {"row": {**row, "der": der(before, after), "seconds": repair.seconds}}

        return {**asked, **cached("rows", {**asked, **shaped}, build).card["row"]}

    def draw(self, samples_per_class: int = 10, n_total: int = 0, draw: int = 0) -> Images:
        """The defender's clean images; see `nbtools.images.draw_clean`."""
        return draw_clean(self.splits.reserved, samples_per_class, n_total, seed=draw)

    def save_rows(self, rows: list[dict[str, Any]] | pd.DataFrame, name: str) -> Path:
        """Write tidy rows with the run's configuration beside each, as `<name>.csv`.

        They go to the folder in `NBTOOLS_OUT` (set by `python -m nbtools run`), else to `runs/`.
        """
        table = pd.DataFrame(rows).assign(**self.stamp())
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
            "nbtools": nbtools.__version__,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }

    def _trained(
        self, attack: str, poison_rate: float, target: int, shown: str, options: dict[str, float | int | str]
    ) -> Trained:
        trigger = make_trigger(shown, **options)
        profile = self.profile
        recipe = Recipe(profile.epochs, profile.batch_size, weight_decay=profile.weight_decay, padding=profile.padding)
        classes = self.splits.train.num_classes
        if not 0 <= target < classes:
            raise ValueError(f"target must be one of the classes 0 to {classes - 1}, got {target}")
        config: dict[str, Any] = {
            "dataset": self.splits.name,
            "train_images": len(self.splits.train),
            "attack": attack,
            "trigger": None if attack == "none" else asdict(trigger),  # type: ignore[call-overload]
            "poison_rate": poison_rate,
            "target": None if attack == "none" else target,
            "architecture": self.architecture,
            "width": self.profile.width,
            "recipe": asdict(recipe),
            "seed": self.seed,
        }
        if profile.strides != STRIDES:
            config["strides"] = profile.strides

        def fresh() -> nn.Module:
            seed_everything(self.seed)
            return make_model(self.architecture, classes, width=profile.width, strides=profile.strides).to(self.device)

        def build(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            print(f"training {self.architecture} of width {self.profile.width} ({attack}, {self.splits.name})")
            images = self.splits.train
            if attack != "none":
                images = poison(images, trigger, poison_rate, target, self.seed).images
            model, watched = fresh(), self.splits.reserved.subset(torch.arange(min(1_000, len(self.splits.reserved))))
            history = train(
                model, images, recipe, self.seed, work / "checkpoint.safetensors", lambda m: accuracy(m, watched)
            )
            card = {
                "history": history,
                "seconds": sum(row["seconds"] for row in history),
                "hardware": hardware(self.device),
                "bf16": has_bf16(self.device),
                "torch": torch.__version__,
            }
            return {name: value.contiguous() for name, value in model.state_dict().items()}, card

        entry = cached("models", config, build)
        model = fresh()
        model.load_state_dict(entry.tensors)
        model.eval().requires_grad_(False)
        return Trained(
            model, attack, trigger, target, poison_rate, entry.card, Evaluator(self.splits.test, trigger, target)
        )


@functools.cache
def _defence_code() -> str:
    """A hash of the source that decides a defence's result: a row measured by other code is not found again."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("activations", "scores", "pruning", "models", "evaluation", "training")]
    text = b"".join(path.read_bytes() for path in files + sorted((here / "defences").glob("*.py")))
    return hashlib.sha256(text).hexdigest()[:16]


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
) -> Run:
    """Begin a notebook: choose device and data by the profile, and print one table of what was chosen.

    Args:
        profile: "quick", "laptop", "paper"; "" is `paper` with a GPU and `quick` without.
        width: another width than the profile's; 0 keeps it.
        epochs: other epochs than the profile's; 0 keeps them.
        architecture: a name in `nbtools.models.ARCHITECTURES`.
        seed: of data, poisoning, initial weights and training.
        data: a folder that holds CIFAR-10.
        device: by default the first GPU, else the CPU.
        quiet: print no table.

    Raises:
        ValueError: for an unknown profile.
        FileNotFoundError: where the profile's data can't be found; it says how to get them.
    """
    keep_memory()
    chosen = get_profile(profile or default_profile())
    chosen = replace(chosen, width=width or chosen.width, epochs=epochs or chosen.epochs)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    place = torch.device(device) if device else default_device()
    splits = datasets.load(
        chosen.dataset, data, place, train=chosen.train, reserved=chosen.reserved, test=chosen.test, seed=seed
    )
    run = Run(chosen, place, splits, architecture, seed)
    if not quiet:
        print(_table(run))
    return run


def _table(run: Run) -> str:
    profile = run.profile
    lines = {
        "profile": f"{profile.name} ({profile.about})",
        "device": f"{hardware(run.device)}, {'bf16' if has_bf16(run.device) else 'float32'}",
        "data": f"{run.splits.name}: {len(run.splits.train):,} to train on, {len(run.splits.reserved):,} for the "
        f"defender, {len(run.splits.test):,} for the evaluator",
        "model": f"{run.architecture}, width {profile.width}, {profile.epochs} epochs",
        "versions": f"Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}, "
        f"nbtools {nbtools.__version__}",
    }
    return "\n".join(f"{name:<9} {value}" for name, value in lines.items())
