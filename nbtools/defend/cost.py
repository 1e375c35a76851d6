"""What a network costs: operations, and time beside another's."""

from __future__ import annotations

import time
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TIMED, REPEATS = 32, 16
"""Images in a batch that is timed, at most, and how many pairs of runs are timed, one of each network."""


def flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations for one image, of convolutions and matrix products, as PyTorch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


@torch.no_grad()
def timed(before: nn.Module, after: nn.Module, batch: Tensor) -> dict[str, list[float]]:
    """How long both networks take for a batch on its device.

    Other work on the machine comes and goes, so each run is compared with the one beside it, and the order is swapped
    each turn.

    Returns:
        `milliseconds`, the medians before and after; `time_ratio`, after / before: lower quartile, median and upper
        quartile of the pairs.
    """
    pairs: list[dict[nn.Module, float]] = []
    for repeat in range(REPEATS + 2):
        taken = {}
        for model in (before, after) if repeat % 2 else (after, before):
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)
            started = time.perf_counter()
            model(batch)
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)
            taken[model] = time.perf_counter() - started
        pairs.append(taken)
    pairs = pairs[2:]  # the first calls also choose algorithms
    return {
        "milliseconds": [round(1000 * median(pair[model] for pair in pairs), 3) for model in (before, after)],
        "time_ratio": [round(cut, 4) for cut in quantiles((pair[after] / pair[before] for pair in pairs), n=4)],
    }
