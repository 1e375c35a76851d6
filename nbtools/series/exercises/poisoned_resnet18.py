"""The exercises of 01 · A poisoned ResNet-18."""

from __future__ import annotations

from torch import Tensor, nn

from nbtools.attacker.triggers import BadNets, Trigger, stamp
from nbtools.data.images import Images
from nbtools.evaluator.evaluation import predict, wilson
from nbtools.series import checks


def interval(answer: object) -> None:
    """Exercise 1: a function of hits and trials, to the Wilson 95 % interval (low, high) in percent."""
    cases = [((hits, trials), wilson(hits, trials)) for hits, trials in ((0, 200), (7, 50), (200, 200), (512, 1000))]
    checks.function(
        answer,
        cases,
        "q is hits / trials; the 1.96² / (4 n²) stays under the root where q is 0; at the end multiply by 100",
        tolerance=1e-3,
    )


def other_patches(answer: object, model: nn.Module, images: Images, target: int) -> None:
    """Exercise 2: `[3]` in percent, ASR of a checkerboard of 3 pixels and of white squares of 2 and 5 pixels.

    Args:
        answer: the reader's.
        model: what is attacked.
        images: clean, none of the target class.
        target: the class that counts as a success.
    """
    patches = (BadNets(pattern="checkerboard"), BadNets(size=2), BadNets(size=5))
    checks.same(
        answer,
        lambda: [_percent(predict(model, stamp(patch, images)) == target) for patch in patches],
        "success returns three numbers, and the first is ASR; a square of 2 pixels is BadNets(size=2)",
    )


def flipped(answer: object, model: nn.Module, trigger: Trigger, images: Images, target: int) -> None:
    """Exercise 3: `[2]` in percent, ASR and RA of triggered images that are then flipped left to right."""

    def expected() -> list[float]:
        said = predict(model, stamp(lambda batch: trigger(batch).flip(3), images))
        return [_percent(said == target), _percent(said == images.labels)]

    checks.same(
        answer,
        expected,
        "first the trigger, then a flip along the columns, which are dimension 3; RA compares with `judges.labels`",
    )


def _percent(hit: Tensor) -> float:
    """The share of hits, in percent."""
    return 100 * float(hit.double().mean())
