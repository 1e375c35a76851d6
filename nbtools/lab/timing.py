"""How speed is measured: two pieces of work side by side, on random images and weights, in seconds or in calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbtools.data.images import Images
from nbtools.networks.architectures import make_model
from nbtools.settings import STRIDES, seed_everything

aten = torch.ops.aten
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default,
           aten._unique2.default, aten.repeat_interleave.Tensor, aten._linalg_check_errors.default,
           aten._linalg_eigh.default, aten._linalg_svd.default)  # fmt: skip
"""Operators whose answer, size or success the host needs before it goes on."""


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


@dataclass(frozen=True)
class Calls:
    """What a piece of work asks of its device: what a GPU's time goes by where the work itself is small.

    Args:
        operators: PyTorch's operators that compute or copy; views are not counted.
        waits: times that the host needs a value, and so waits until the device has done all before it.
        copies: from the host to the device.
    """

    operators: int
    waits: int
    copies: int


class _Counter(TorchDispatchMode):
    """Counts what `Calls` holds. A value that is asked of the device "meta", which has none, is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.waits, self.copies = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten" or func.is_view or func is aten.detach.default:
            return func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        indexed = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
        by_mask = indexed and any(value.dtype == torch.bool for value in given[1:])
        self.operators += 1
        self.waits += func in WAITING or by_mask
        if func is aten._local_scalar_dense.default and given[0].is_meta:
            return 1
        result = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default:
            self.waits += result.device.type == "cpu" != given[0].device.type
            self.copies += given[0].device.type == "cpu" != result.device.type
        return result


def calls(work: Callable[[], object]) -> Calls:
    """Count what a piece of work asks for, on any device; on "meta" it takes no time, as nothing is computed."""
    with _Counter() as counter:
        work()
    return Calls(counter.operators, counter.waits, counter.copies)


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
