"""What the trigger really moves (TAC), and how well a score finds it: by the evaluator alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbtools.attacker.triggers import Trigger, stamp
from nbtools.data.images import Images, to_floats
from nbtools.networks.maps import watch
from nbtools.networks.units import prunable_units


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
    units = prunable_units(model, to_floats(images.images[:1]))
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
