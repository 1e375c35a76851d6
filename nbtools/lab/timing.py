"""How speed is measured: two pieces of work side by side, on random images and weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from nbtools.data.images import Images
from nbtools.networks.architectures import make_model
from nbtools.settings import STRIDES, seed_everything


def side_by_side(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Run both in turn, `repeats` times after one warm-up each.

    Returns:
        Median seconds of the first, of the second, and the median of the pairs' ratios (first / second): a slow moment
        of the machine hits both of a pair.
    """
    first()
    second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes, the device's queue included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def random_images(count: int, device: torch.device) -> Images:
    """Noise of CIFAR's shape: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    return Images(pixels, labels, tuple("0123456789")).to(device)


def model_of(width: int, device: torch.device, strides: Sequence[int] = STRIDES) -> nn.Module:
    """A ResNet-18 with random weights: speed does not depend on what it learnt."""
    seed_everything(0)
    return make_model("resnet18", width=width, strides=strides).to(device)
