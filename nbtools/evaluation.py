"""The evaluator's room: accuracies, intervals, DER, and TAC. Everything here may see trigger and test set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nbtools.activations import watch
from nbtools.images import Images, to_floats
from nbtools.models import prunable_units
from nbtools.training import autocast
from nbtools.triggers import Trigger, check_target, led_to, stamp


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
        target: its target class, or `nbtools.triggers.ALL_TO_ALL`.

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


@torch.no_grad()
def tac(model: nn.Module, images: Images, trigger: Trigger, batch_size: int = 250) -> dict[str, Tensor]:
    """Trigger-activated change of every filter: the ground truth that only an evaluator can compute.

    TAC_i = mean over x of || A_i(trigger(x)) - A_i(x) ||_F, A_i the filter's map behind BN and ReLU.

    Args:
        model: with convolution-BN pairs.
        images: clean images, none of the target class.
        trigger: the attack's trigger.
        batch_size: images at a time.

    Returns:
        Convolution name to float64 `[filters]`, on the images' device.

    Raises:
        ValueError: where there is no image.
    """
    if not len(images):
        raise ValueError("TAC is a mean over clean images; give at least one")
    units = prunable_units(model)
    was_training = model.training
    model.eval()
    total = {u.conv: torch.zeros(u.filters, dtype=torch.float64, device=images.images.device) for u in units}
    triggered = stamp(trigger, images)
    for clean, changed in zip(images.images.split(batch_size), triggered.images.split(batch_size), strict=True):
        seen: dict[str, Tensor] = {}

        def compare(name: str, maps: Tensor, seen: dict[str, Tensor] = seen) -> None:
            half = len(maps) // 2
            change = (maps[:half] - maps[half:]).flatten(2).norm(dim=2)
            seen[name] = change.sum(0, dtype=torch.float64)

        with watch(model, units, compare):
            model(to_floats(torch.cat([clean, changed])))
        for name, value in seen.items():
            total[name] += value
    model.train(was_training)
    return {name: value / len(images) for name, value in total.items()}


def agreement(scores: dict[str, Tensor], truth: dict[str, Tensor], k: int = 10) -> dict[str, dict[str, float]]:
    """How well a score finds what TAC finds, by layer.

    Args:
        scores: convolution name to `[filters]`, high = suspicious.
        truth: TAC, same shapes.
        k: for precision at k (at most the layer's filters).

    Returns:
        Convolution name to {"spearman": in [-1, 1], "precision": share of the k highest scores among the k highest
        TACs, "chance": what a random ranking would reach}.
    """
    from scipy.stats import spearmanr

    table = {}
    for name, score in scores.items():
        mine, real = score.double().cpu(), truth[name].cpu()
        top = min(k, len(mine))
        hits = len(set(mine.topk(top).indices.tolist()) & set(real.topk(top).indices.tolist()))
        rank = float(spearmanr(mine.numpy(), real.numpy()).statistic)  # type: ignore[attr-defined]
        table[name] = {"spearman": rank, "precision": hits / top, "chance": top / len(mine)}
    return table


def stability(draws: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """How alike several draws of clean images rank the filters.

    Args:
        draws: one measurement a draw, convolution name to `[filters]`; at least two.

    Returns:
        Convolution name to Spearman's rank correlation, the mean over all pairs of draws.

    Raises:
        ValueError: for fewer than two draws.
    """
    from scipy.stats import spearmanr

    pairs = list(itertools.combinations(draws, 2))
    if not pairs:
        raise ValueError(f"stability compares draws; give at least two, got {len(draws)}")
    return {
        name: sum(float(spearmanr(a[name].cpu(), b[name].cpu()).statistic) for a, b in pairs) / len(pairs)  # type: ignore[attr-defined]
        for name in draws[0]
    }
