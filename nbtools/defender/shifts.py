"""Universal shifts: one change of the maps, the same for every image, that drives all towards a class [ours]."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbtools.networks.training import autocast


def spread(maps: Tensor) -> Tensor:
    """Each channel's spread over images and positions, at least a thousandth of the largest: `[1, c, 1, 1]`."""
    deviations = maps.transpose(0, 1).flatten(1).std(1)
    return deviations.clamp_min(1e-3 * deviations.amax().clamp_min(1e-12))[None, :, None, None]


def shifted(maps: Tensor, by: Tensor, highest: float = math.inf) -> Tensor:
    """Maps moved; what had no negative values gets none, and none gets above `highest`, which is 1 for images."""
    moved = (maps + by).clamp_max(highest)
    return torch.where(maps.amin() >= 0, moved.relu(), moved)  # decided on the device


def margins_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """How far a class leads: its logit minus the largest other one.

    Args:
        logits: `[k, n, classes]`, of n images in k cases.
        classes: `[k]`, the class of each case.

    Returns:
        `[k, n]`.
    """
    index = classes[:, None, None].expand(*logits.shape[:2], 1)
    return logits.gather(2, index)[..., 0] - logits.scatter(2, index, -math.inf).amax(2)


def t_values(values: Tensor) -> Tensor:
    """Each value against the mean and spread of the others: `[n]` to Student's t with n - 2 degrees of freedom, `[n]`.

    The difference to the others' mean, divided by their standard deviation times sqrt(1 + 1 / (n - 1)).
    """
    count = len(values)
    if count < 3:
        return torch.zeros_like(values)
    others = (values.sum() - values) / (count - 1)
    squares = (values.square().sum() - values.square()) / (count - 1) - others.square()
    deviation = (squares.clamp_min(0) * (count - 1) / (count - 2)).sqrt()
    return (values - others) / (deviation * math.sqrt(1 + 1 / (count - 1))).clamp_min(1e-12)


def crossing(margins: Sequence[float]) -> float:
    """At which step a growing margin reaches 0, between steps by a straight line; the last step where it does not."""
    for step, (low, high) in enumerate(itertools.pairwise(margins)):
        if high >= 0 > low:
            return step + low / (low - high)
    return float(len(margins) - 1)


def _margins(
    top: nn.Module, maps: Tensor, others: Tensor, shifts: Tensor, scale: Tensor, classes: Tensor, highest: float
) -> Tensor:
    """Mean margin of each class over the images of other classes, `[k]`."""
    tried = shifted(maps[None], scale[None] * shifts[:, None], highest)
    tried = tried.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with autocast(maps.device):
        logits = top(tried).float().unflatten(0, (len(classes), len(maps)))
    return (margins_towards(logits, classes) * others).sum(1)


def _slopes(
    top: nn.Module, maps: Tensor, others: Tensor, shifts: Tensor, scale: Tensor, classes: Tensor, highest: float
) -> tuple[Tensor, Tensor]:
    """`_margins`, and their gradient by the shifts; about a hundred images at a time."""
    margins, slopes = [], []
    for part in torch.arange(len(classes), device=maps.device).split(max(1, 100 // len(maps))):
        moved = shifts[part].requires_grad_(True)
        with torch.enable_grad():
            values = _margins(top, maps, others[part], moved, scale, classes[part], highest)
            (slope,) = torch.autograd.grad(values.sum(), moved)
        margins.append(values.detach())
        slopes.append(slope)
    return torch.cat(margins), torch.cat(slopes)


@torch.no_grad()
def _judged(
    top: nn.Module, maps: Tensor, others: Tensor, shifts: Tensor, scale: Tensor, classes: Tensor, highest: float
) -> Tensor:
    """`_margins` without a gradient; about a hundred images at a time."""
    each = torch.arange(len(classes), device=maps.device).split(max(1, 100 // len(maps)))
    return torch.cat([_margins(top, maps, others[part], shifts[part], scale, classes[part], highest) for part in each])


def _others(labels: Tensor, classes: Tensor) -> Tensor:
    """Weight of each image in a class's mean: the same for all of other classes, none for its own `[k, n]`."""
    others = (labels[None] != classes[:, None]).float()
    return others / others.sum(1, keepdim=True).clamp_min(1)


def _direction(slopes: Tensor) -> Tensor:
    """Each class's gradient, of length 1."""
    return slopes / slopes.flatten(1).norm(dim=1).clamp_min(1e-20)[:, None, None, None]


def walk(
    top: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    scale: Tensor,
    classes: Tensor,
    paces: int,
    highest: float = math.inf,
) -> tuple[Tensor, Tensor, float]:
    """Margins on the way of each class's universal shift, grown from nothing by steps along the gradient.

    Args:
        top: maps to logits.
        parts: maps `[n, c, h, w]` of clean images and their labels `[n]`; each part has shifts of its own, and their
            margins are averaged. At the end those of one part are judged by the images of the next.
        scale: `[1, c, 1, 1]`, in which shifts are measured.
        classes: `[k]`.
        paces: steps to the length that linear extrapolation gives the middle class; twice as many are walked, fewer
            where the middle class is reached.
        highest: what no shifted value may exceed.

    Returns:
        Mean margins over images of other classes, a row a step from 0 on: `[steps + 1, k]`; those at the end over
        images that the shifts were not found on, `[k]`; and the length of a step, the root mean square over the
        positions.
    """
    shape = parts[0][0].shape[1:]
    size = math.sqrt(shape[1] * shape[2])
    weights = [_others(labels, classes) for _, labels in parts]
    shifts = [torch.zeros(len(classes), *shape, device=scale.device) for _ in parts]
    rows, pace = list[Tensor](), 0.0
    while True:
        found = [
            _slopes(top, maps, others, shift, scale, classes, highest)
            for (maps, _), others, shift in zip(parts, weights, shifts, strict=True)
        ]
        margins = torch.stack([margins for margins, _ in found]).mean(0)
        slopes = [slopes for _, slopes in found]
        rows.append(margins)
        if len(rows) == 1:
            steepness = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes]).mean(0) * size
            pace = float((-margins / steepness.clamp_min(1e-20)).median().clamp_min(1e-6)) / paces
        if len(rows) > 2 * paces or float(margins.median()) >= 0:
            judged = [
                _judged(top, maps, others, shift, scale, classes, highest)
                for (maps, _), others, shift in zip(parts, weights, shifts[-1:] + shifts[:-1], strict=True)
            ]
            return torch.stack(rows), torch.stack(judged).mean(0), pace
        shifts = [shift + pace * size * _direction(slope) for shift, slope in zip(shifts, slopes, strict=True)]


def shift(
    top: nn.Module,
    maps: Tensor,
    labels: Tensor,
    scale: Tensor,
    classes: Tensor,
    length: float,
    highest: float = math.inf,
) -> Tensor:
    """A universal shift of this length for each class, in six steps along the gradient; arguments as in `walk`.

    Returns:
        `[k, c, h, w]`, in units of `scale`, of root mean square at most `length` over the positions.
    """
    others, shifts = _others(labels, classes), torch.zeros(len(classes), *maps.shape[1:], device=maps.device)
    size = math.sqrt(maps.shape[2] * maps.shape[3])
    for _ in range(6):
        _, slopes = _slopes(top, maps, others, shifts, scale, classes, highest)
        shifts = shifts + 1.6 / 6 * length * size * _direction(slopes)
        norms = shifts.flatten(1).norm(dim=1)[:, None, None, None]
        shifts = shifts * (length * size / norms.clamp_min(1e-20)).clamp_max(1)
    return shifts
