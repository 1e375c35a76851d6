"""Universal shifts: one change of the maps, the same for every image, that drives all towards a class [ours]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.networks.training import autocast

INPUT = ""
"""The place of a patch: the images themselves."""


def spread(maps: Tensor) -> Tensor:
    """Each channel's spread over images and positions, at least a thousandth of the largest: `[1, c, 1, 1]`."""
    deviations = maps.transpose(0, 1).flatten(1).std(1)
    return deviations.clamp_min(1e-3 * deviations.amax().clamp_min(1e-12))[None, :, None, None]


def shifted(maps: Tensor, by: Tensor, place: str = "maps") -> Tensor:
    """Maps, or images in [0, 1], moved; what had no negative values gets none."""
    if place == INPUT:
        return (maps + by).clamp(0, 1)
    return torch.where(maps.amin() >= 0, (maps + by).relu(), maps + by)  # decided on the device


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


def _slopes(
    top: nn.Module, maps: Tensor, others: Tensor, shifts: Tensor, scale: Tensor, classes: Tensor, image: bool
) -> tuple[Tensor, Tensor]:
    """Mean margin of each class over the images of other classes `[k]`, and its gradient by the shifts."""
    margins, slopes = [], []
    for part in torch.arange(len(classes), device=maps.device).split(max(1, 100 // len(maps))):
        moved = shifts[part].requires_grad_(True)
        with torch.enable_grad():
            tried = shifted(maps[None], scale[None] * moved[:, None], INPUT if image else "maps")
            tried = tried.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with autocast(maps.device):
                logits = top(tried).float().unflatten(0, (len(part), len(maps)))
            values = (margins_towards(logits, classes[part]) * others[part]).sum(1)
            (slope,) = torch.autograd.grad(values.sum(), moved)
        margins.append(values.detach())
        slopes.append(slope)
    return torch.cat(margins), torch.cat(slopes)


def _others(labels: Tensor, classes: Tensor) -> Tensor:
    """Weight of each image in a class's mean: the same for all of other classes, none for its own `[k, n]`."""
    others = (labels[None] != classes[:, None]).float()
    return others / others.sum(1, keepdim=True).clamp_min(1)


def _direction(slopes: Tensor, inside: Tensor) -> Tensor:
    """Each class's gradient inside its window, of length 1."""
    slopes = slopes * inside
    return slopes / slopes.flatten(1).norm(dim=1).clamp_min(1e-20)[:, None, None, None]


def _windows(slopes: Tensor, window: int) -> Tensor:
    """The square of each class with the most gradient: 1 inside, 0 outside, `[k, 1, h, w]`; all where `window` is 0."""
    count, _, height, width = slopes.shape
    if not window:
        return torch.ones_like(slopes[:, :1])
    rows, columns = min(window, height), min(window, width)
    energy = F.avg_pool2d(slopes.square().sum(1, keepdim=True), (rows, columns), 1)
    place = energy.flatten(1).argmax(1)
    top, left = place // energy.shape[3], place % energy.shape[3]
    y, x = (torch.arange(size, device=slopes.device)[None] for size in (height, width))
    down, across = (
        (axis >= first[:, None]) & (axis < first[:, None] + side)
        for axis, first, side in ((y, top, rows), (x, left, columns))
    )
    return (down[:, :, None] & across[:, None, :]).view(count, 1, height, width).to(slopes)


def walk(
    top: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    scale: Tensor,
    classes: Tensor,
    paces: int,
    window: int = 0,
) -> tuple[Tensor, float]:
    """Margins on the way of each class's universal shift, grown from nothing by steps along the gradient.

    Args:
        top: maps to logits.
        parts: maps `[n, c, h, w]` of clean images, images in [0, 1] where there is a window, and their labels `[n]`;
            each part has shifts of its own, and their margins are averaged.
        scale: `[1, c, 1, 1]`, in which shifts are measured.
        classes: `[k]`.
        paces: steps to the length that linear extrapolation gives the middle class; twice as many are walked, fewer
            where the middle class is reached. With a window it is so many steps.
        window: side of the square that a shift may change, 0 for everywhere.

    Returns:
        Mean margins over images of other classes, a row a step from 0 on: `[steps + 1, k]`; and the length of a step,
        the root mean square over the positions that may change.
    """
    shape = parts[0][0].shape[1:]
    size = window or math.sqrt(shape[1] * shape[2])
    weights = [_others(labels, classes) for _, labels in parts]
    shifts = [torch.zeros(len(classes), *shape, device=scale.device) for _ in parts]
    rows, pace, inside = list[Tensor](), 0.0, [torch.ones_like(scale)] * len(parts)
    while True:
        found = [
            _slopes(top, maps, others, shift, scale, classes, bool(window))
            for (maps, _), others, shift in zip(parts, weights, shifts, strict=True)
        ]
        margins = torch.stack([margins for margins, _ in found]).mean(0)
        slopes = [slopes for _, slopes in found]
        rows.append(margins)
        if len(rows) == 1:
            steepness = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes]).mean(0) * size
            pace = float((-margins / steepness.clamp_min(1e-20)).median().clamp_min(1e-6)) / paces
            pace = min(pace, 1.0) if window else pace
        if len(rows) <= 3:
            inside = [_windows(slope, window) for slope in slopes]
            shifts = [shift * part for shift, part in zip(shifts, inside, strict=True)]
        most = paces if window else 2 * paces
        if len(rows) > most or (not window and float(margins.median()) >= 0):
            return torch.stack(rows), pace
        ways = (_direction(slope, part) for slope, part in zip(slopes, inside, strict=True))
        shifts = [shift + pace * size * way for shift, way in zip(shifts, ways, strict=True)]


def shift(
    top: nn.Module, maps: Tensor, labels: Tensor, scale: Tensor, classes: Tensor, length: float, window: int = 0
) -> Tensor:
    """A universal shift of this length for each class, in six steps along the gradient; arguments as in `walk`.

    Returns:
        `[k, c, h, w]`, in units of `scale`, of root mean square at most `length` over the positions.
    """
    others, shifts = _others(labels, classes), torch.zeros(len(classes), *maps.shape[1:], device=maps.device)
    size = window or math.sqrt(maps.shape[2] * maps.shape[3])
    inside = torch.ones_like(shifts[:, :1])
    for step in range(6):
        _, slopes = _slopes(top, maps, others, shifts, scale, classes, bool(window))
        if step < 3:
            inside = _windows(slopes, window)
        shifts = shifts * inside + 1.6 / 6 * length * size * _direction(slopes, inside)
        norms = shifts.flatten(1).norm(dim=1)[:, None, None, None]
        shifts = shifts * (length * size / norms.clamp_min(1e-20)).clamp_max(1)
    return shifts
