"""The models of the series: trained once, found in the cache after that."""

from __future__ import annotations

import functools
import hashlib
import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.attacker.adaptive import Adaptive
from nbtools.attacker.poisoning import poison
from nbtools.attacker.triggers import ALL_TO_ALL, Trigger, check_target, make_trigger
from nbtools.data.images import Images
from nbtools.data.splits import Splits
from nbtools.defender.components import Scores
from nbtools.defender.pruning import pruned_copy, threshold
from nbtools.evaluator.evaluation import Evaluation, Evaluator, accuracy
from nbtools.lab import ready
from nbtools.lab.cache import cached, source_hash
from nbtools.networks.architectures import make_model
from nbtools.networks.training import Penalty, Recipe, train
from nbtools.settings import STRIDES, Profile, hardware, has_bf16, seed_everything

Options = dict[str, float | int | str]


MEASURING = (
    "evaluator/evaluation.py",
    "data/images.py",
    "networks/units.py",
    "networks/training.py",
    "attacker/triggers.py",
)
"""The source that decides what an evaluator finds."""


@dataclass(frozen=True)
class Setting:
    """Where models are trained: how large, on what device and data, which architecture and seed."""

    profile: Profile
    device: torch.device
    splits: Splits
    architecture: str
    seed: int


@dataclass(frozen=True)
class Trained:
    """A model of the series and what it was made of.

    Args:
        model: in eval mode, on the run's device. Defences copy it; nothing changes it.
        attack: the attack's name, "none" for a clean model.
        trigger: what the attacker used; for a clean model the trigger that the evaluator tries on it.
        target: the target class.
        poison_rate: 0 for a clean model.
        adaptive: what the attacker added to the loss to hide from the score; None for nothing.
        card: what the cache wrote beside the weights: configuration, history, seconds, hardware.
        evaluate: the evaluator, holding test set and trigger.
        glance: the same on the first of the test images only (`Profile.glance`), for the many points of a sweep.
    """

    model: nn.Module
    attack: str
    trigger: Trigger
    target: int
    poison_rate: float
    adaptive: Adaptive | None
    card: dict[str, Any]
    evaluate: Evaluator
    glance: Evaluator

    @functools.cached_property
    def before(self) -> Evaluation:
        """ACC, ASR and RA of the model as it was trained: measured now, or found in the cache."""
        return self._measured(self.evaluate)

    @functools.cached_property
    def before_at_a_glance(self) -> Evaluation:
        """The same on the images of `glance`."""
        return self._measured(self.glance)

    def _measured(self, evaluate: Evaluator) -> Evaluation:
        config = {
            "weights": _fingerprint(*self.model.state_dict().values()),
            "test": _fingerprint(evaluate.test.images, evaluate.test.labels),
            "trigger": repr(self.trigger),
            "target": self.target,
            "code": source_hash(*MEASURING),
            **precision(),
        }
        card = cached("evaluations", config, lambda _work: ({}, {"measured": asdict(evaluate(self.model))})).card
        found: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in card["measured"].items()}
        return Evaluation(**found)

    def pruned(self, scores: Scores, mu: float) -> dict[str, Any]:
        """Prune a copy where the scores stand out and measure it at a glance: a point of a sweep.

        Args:
            scores: convolution name to `[filters]`, high = suspicious.
            mu: see `nbtools.defender.pruning.threshold`.

        Returns:
            A row: model, mu, pruned (filters); acc, asr, ra in percent.
        """
        mask = threshold(scores, mu)
        after = self.glance(pruned_copy(self.model, mask))
        return {"model": self.name, "mu": mu, "pruned": mask.count, **after.row()}

    @property
    def name(self) -> str:
        """For tables and titles, see `named`."""
        return named(self.attack, self.poison_rate, self.trigger, self.target, self.adaptive)


def named(attack: str, poison_rate: float, trigger: Trigger, target: int, adaptive: Adaptive | None) -> str:
    """A model's name for tables and titles: "clean", "badnets 5 %", "blended 5 %, alpha=0.1, all to all".

    What is as usual is not told: the trigger's own settings, the target 0, an attacker who adds nothing to the loss.
    """
    if attack == "none":
        return "clean"
    usual: Any = make_trigger(attack)
    told = [f"{attack} {100 * poison_rate:g} %"]
    told += [f"{name}={value}" for name, value in vars(trigger).items() if value != vars(usual)[name]]
    told += ["all to all" if target == ALL_TO_ALL else f"to {target}"] if target else []
    return ", ".join([*told, *([repr(adaptive)] if adaptive else [])])


def _fingerprint(*tensors: Tensor) -> str:
    """A hash of the tensors' values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_or_train(
    setting: Setting,
    attack: str,
    poison_rate: float,
    target: int,
    shown: str,
    options: Options,
    adaptive: Adaptive | None = None,
) -> Trained:
    """The model of this configuration; see `nbtools.lab.experiments.Run.model`.

    Args:
        setting: profile, device, data, architecture, seed.
        attack: what the model is trained with, "none" for a clean one.
        poison_rate: 0 for a clean one.
        target: the target class.
        shown: the attack whose trigger the evaluator holds.
        options: that trigger's own fields.
        adaptive: what the attacker adds to the loss, see `nbtools.attacker.adaptive`.

    Raises:
        ValueError: for a value out of its range, before anything is trained.
    """
    trigger, profile, poison_rate = make_trigger(shown, **options), setting.profile, float(poison_rate)
    classes = setting.splits.train.num_classes
    check_target(target, classes)
    # Before anything is written, so that a wrong architecture, width or rate stops here.
    seed_everything(setting.seed)
    model = make_model(setting.architecture, classes, width=profile.width, strides=profile.strides).to(setting.device)
    images = setting.splits.train
    if attack != "none":
        images = poison(images, trigger, poison_rate, target, setting.seed).images
    config = model_config(profile, setting.architecture, attack, poison_rate, target, trigger, setting.seed)
    config |= {"dataset": setting.splits.name, "train_images": len(setting.splits.train)}
    if setting.splits.version:
        config["dataset_version"] = setting.splits.version
    config |= adaptive_config(adaptive)
    penalty = adaptive.on(model, trigger) if adaptive else None
    build = functools.partial(_build, setting, attack, model, images, config, penalty)
    entry = cached("models", config | precision(), build)
    model.load_state_dict(entry.tensors)
    model.eval().requires_grad_(False)
    test = setting.splits.test
    first = test.subset(torch.arange(min(profile.glance, len(test))))
    evaluators = [Evaluator(part, trigger, target) for part in (test, first)]
    return Trained(model, attack, trigger, target, poison_rate, adaptive, entry.card, *evaluators)


def precision() -> dict[str, str]:
    """What a cached result is known by besides: that a CPU computed it in bf16, which it does where it is asked to."""
    return {"precision": "bf16 on a CPU"} if has_bf16(torch.device("cpu")) else {}


def _recipe(profile: Profile) -> Recipe:
    return Recipe(
        profile.epochs,
        profile.batch_size,
        lr=profile.lr,
        weight_decay=profile.weight_decay,
        padding=profile.padding,
    )


def adaptive_config(adaptive: Adaptive | None) -> dict[str, Any]:
    """What an attacker who adds to the loss adds to `model_config`: its settings, and the code of what it adds."""
    if adaptive is None:
        return {}
    return {"adaptive": {"attacker": repr(adaptive), "code": source_hash(inspect.getfile(Adaptive))}}


def model_config(
    profile: Profile, architecture: str, attack: str, poison_rate: float, target: int, trigger: Trigger, seed: int
) -> dict[str, Any]:
    """Everything that shapes a model of this profile, but for the data set's version: what the cache knows it by."""
    config: dict[str, Any] = {
        "dataset": profile.dataset,
        "train_images": profile.train,
        "attack": attack,
        "trigger": None if attack == "none" else asdict(trigger),  # type: ignore[call-overload]
        "poison_rate": float(poison_rate),
        "target": None if attack == "none" else target,
        "architecture": architecture,
        "width": profile.width,
        "recipe": asdict(_recipe(profile)),
        "seed": seed,
    }
    return config | ({"strides": profile.strides} if profile.strides != STRIDES else {})


def _build(
    setting: Setting,
    attack: str,
    model: nn.Module,
    images: Images,
    config: dict[str, Any],
    penalty: Penalty | None,
    work: Path,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if found := ready.find(config, model.state_dict()):
        return found
    print(f"training {setting.architecture} of width {setting.profile.width} ({attack}, {setting.splits.name})")
    watched = setting.splits.reserved.subset(torch.arange(min(1_000, len(setting.splits.reserved))))
    checkpoint, recipe = work / "checkpoint.safetensors", _recipe(setting.profile)
    history = train(model, images, recipe, setting.seed, checkpoint, lambda m: accuracy(m, watched), penalty=penalty)
    card = {
        "history": history,
        "seconds": sum(row["seconds"] for row in history),
        "hardware": hardware(setting.device),
        "bf16": has_bf16(setting.device),
        "torch": torch.__version__,
    }
    return {name: value.contiguous() for name, value in model.state_dict().items()}, card
