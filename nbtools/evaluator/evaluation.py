"""Accuracies, their intervals, and DER: what only somebody with the trigger and the test set can measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nbtools.attacker.triggers import Trigger, check_target, led_to, stamp
from nbtools.data.images import Images, to_floats
from nbtools.networks.training import autocast


@torch.no_grad()
def predict(model: nn.Module, images: Images, batch_size: int = 500) -> Tensor:
    """Predicted classes: int64 `[n]`, on the images' device, the model in eval mode for the while."""
    was_training = model.training
    model.eval()
    with autocast(images.images.device):
        batches = [model(to_floats(batch)).argmax(1) for batch in images.images.split(batch_size)]
    model.train(was_training)
    return torch.cat(batches) if batches else images.labels[:0]


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of images that are classified as labelled, in [0, 1]."""
    return float((predict(model, images) == images.labels).double().mean())


@dataclass(frozen=True)
class Evaluation:
    """What a model does, in percent, each with a Wilson 95 % interval (low, high).

    Args:
        acc: clean accuracy on all test images.
        asr: share of triggered images, true class not the target, classified as the target (all-to-all: as the next
            class).
        ra: share of those same triggered images classified as their true class.
    """

    acc: float
    asr: float
    ra: float
    acc_interval: tuple[float, float]
    asr_interval: tuple[float, float]
    ra_interval: tuple[float, float]

    def row(self, suffix: str = "") -> dict[str, float]:
        """The three numbers as columns `acc`, `asr`, `ra`, each with `suffix`."""
        return {f"{name}{suffix}": asdict(self)[name] for name in ("acc", "asr", "ra")}

    def __str__(self) -> str:
        return f"ACC {self.acc:5.1f}  ASR {self.asr:5.1f}  RA {self.ra:5.1f}"


class Evaluator:
    """Holds the test set and the trigger; called on a model it returns an `Evaluation`.

    Args:
        test: all test images.
        trigger: the attack's trigger.
        target: its target class, or `nbtools.attacker.triggers.ALL_TO_ALL`.

    Raises:
        ValueError: for a target that is no class, or a test set with no image of another class.
    """

    def __init__(self, test: Images, trigger: Trigger, target: int = 0) -> None:
        check_target(target, test.num_classes)
        if bool((test.labels == target).all()):
            raise ValueError(f"some of the {len(test)} test images must be of another class than the target {target}")
        self.test, self.trigger, self.target = test, trigger, target
        self.clean_others = test.subset(test.labels != target)
        self.triggered = stamp(trigger, self.clean_others)
        self.wanted = led_to(self.triggered.labels, target, test.num_classes)

    def __call__(self, model: nn.Module) -> Evaluation:
        clean = predict(model, self.test) == self.test.labels
        triggered = predict(model, self.triggered)
        hits = [clean, triggered == self.wanted, triggered == self.triggered.labels]
        shares = [100 * float(hit.double().mean()) for hit in hits]
        return Evaluation(*shares, *(wilson(int(hit.sum()), len(hit)) for hit in hits))  # pyright: ignore


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson 95 % interval of a share, in percent (scipy)."""
    interval = binomtest(hits, trials).proportion_ci(0.95, "wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def der(before: Evaluation, after: Evaluation) -> float:
    """Defence effectiveness rating in percent: (max(0, dASR) - max(0, dACC) + 1) / 2, d = before minus after."""
    return 50 * (max(0.0, before.asr - after.asr) / 100 - max(0.0, before.acc - after.acc) / 100 + 1)
