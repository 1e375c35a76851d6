"""Universal shifts: one change of the maps, the same for every image, that drives all towards a class [ours]."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from scipy.stats import t as student_t
from torch import Tensor, nn

from nbtools.networks.training import autocast


def spread(maps: Tensor) -> Tensor:
    """Each channel's spread over images and positions, at least a thousandth of the largest: `[1, c, 1, 1]`.

    So a channel that is silent in all clean images is hardly moved: a shortcut through it alone isn't found.
    """
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

    The difference to the others' mean, divided by their standard deviation times sqrt(1 + 1 / (n - 1)). Of fewer than
    three values none stands out, and of values that are equal but for rounding neither.
    """
    count = len(values)
    if count < 3:
        return torch.zeros_like(values)
    rounding = 1e-6 * values.abs().amax().double().clamp_min(1e-12)
    centred = values.double() - values.double().mean()
    others = -centred / (count - 1)
    squares = (centred.square().sum() - centred.square()) / (count - 1) - others.square()
    deviation = (squares.clamp_min(0) * (count - 1) / (count - 2)).sqrt()
    found = (centred - others) / (deviation * math.sqrt(1 + 1 / (count - 1))).clamp_min(rounding)
    return found.where((centred - others).abs() > rounding, 0.0).to(values.dtype)


def log_p_values(outliers: Tensor, parts: int) -> Tensor:
    """How likely each class would be so far above the others by chance.

    Args:
        outliers: `[k]`, each class's largest t of so many parts, see `t_values`.
        parts: at which the classes were compared.

    Returns:
        `[k]`, float64 on the CPU: logarithm of the one-sided p-value, corrected for the parts (Bonferroni), at most 0.
    """
    freedom = max(len(outliers) - 2, 1)
    logs = torch.from_numpy(student_t.logsf(outliers.double().cpu().numpy(), freedom))
    return (logs + math.log(parts)).clamp_max(0)


def joint(logs: Tensor) -> tuple[int, float]:
    """Fisher's method: the class that stands out most at all places together.

    Minus twice the sum of the p-values' logarithms follows the chi-squared distribution with two degrees of freedom a
    place, where the places are independent. (R. A. Fisher, Statistical Methods for Research Workers, 4th ed., 1932.)

    Args:
        logs: `[places, k]`, see `log_p_values`.

    Returns:
        The class, and how likely some class would stand out so far by chance (Bonferroni over the classes, at most 1).
    """
    places, classes = logs.shape
    evidence = -2 * logs.sum(0)
    return int(evidence.argmax()), min(1.0, classes * float(chi2.sf(float(evidence.max()), 2 * places)))


def crossing(margins: Sequence[float]) -> float:
    """At which step a growing margin reaches 0, between steps by a straight line; the last step where it does not."""
    if margins[0] >= 0:
        return 0.0
    for step, (low, high) in enumerate(itertools.pairwise(margins)):
        if high >= 0 > low:
            return step + low / (low - high)
    return float(len(margins) - 1)


def harder(margins: Tensor, others: Tensor) -> Tensor:
    """Mean over the harder half of the images, those with the smaller margins.

    A trigger's shift moves every image; a natural one moves some far and leaves others: so the others decide.

    Args:
        margins: `[k, n]`.
        others: `[k, n]`, bool: which images count; where none does, the mean is 0.

    Returns:
        `[k]`.
    """
    count = others.sum(1, keepdim=True).add(1).div(2, rounding_mode="floor")
    ordered = margins.masked_fill(~others, math.inf).sort(1).values
    kept = torch.arange(margins.shape[1], device=margins.device) < count
    return ordered.where(kept, 0.0).sum(1) / count[:, 0].clamp_min(1)


@dataclass(frozen=True, eq=False)
class Searched:
    """Where shifts are looked for.

    Args:
        top: maps to logits.
        maps: `[n, c, h, w]`, of clean images.
        labels: `[n]`.
        scale: `[1, c, 1, 1]`, in which shifts are measured.
        classes: `[k]`, those that images are driven towards.
        highest: what no shifted value may exceed.
    """

    top: nn.Module
    maps: Tensor
    labels: Tensor
    scale: Tensor
    classes: Tensor
    highest: float = math.inf

    @property
    def size(self) -> float:
        """Length of a shift whose root mean square over the positions is 1."""
        return math.sqrt(self.maps.shape[2] * self.maps.shape[3])

    @property
    def others(self) -> Tensor:
        """Which images are of another class: `[k, n]`, bool."""
        return self.labels != self.classes[:, None]

    def margins(self, shifts: Tensor, which: Tensor) -> Tensor:
        """Each shifted image's margin towards some of the classes: `[len(which), n]`."""
        tried = shifted(self.maps[None], self.scale[None] * shifts[:, None], self.highest)
        tried = tried.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with autocast(self.maps.device):
            logits = self.top(tried).float().unflatten(0, (len(which), len(self.maps)))
        return margins_towards(logits, self.classes[which])

    def parts(self) -> Sequence[Tensor]:
        """Indices of the classes, about a hundred images at a time."""
        return torch.arange(len(self.classes), device=self.maps.device).split(max(1, 100 // len(self.maps)))

    def slopes(self, shifts: Tensor, further: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Mean margins over all images and over the harder half `[k]`, and the latter's gradient by the shifts.

        Where it goes no further the gradient, half of the work, is left out: it is 0.
        """
        every, half, slopes = list[Tensor](), list[Tensor](), list[Tensor]()
        for part in self.parts():
            moved, others = shifts[part].requires_grad_(True), self.others[part]
            with torch.set_grad_enabled(further):
                margins = self.margins(moved, part)
                values = harder(margins, others)
                slope = torch.autograd.grad(values.sum(), moved)[0] if further else torch.zeros_like(moved)
            every.append(margins.detach().where(others, 0.0).sum(1) / others.sum(1).clamp_min(1))
            half.append(values.detach())
            slopes.append(slope)
        return torch.cat(every), torch.cat(half), torch.cat(slopes)

    @torch.no_grad()
    def judged(self, shifts: Tensor) -> Tensor:
        """Each shifted image's margin towards each class: `[k, n]`."""
        return torch.cat([self.margins(shifts[part], part) for part in self.parts()])


def _direction(slopes: Tensor) -> Tensor:
    """Each class's gradient, of length 1."""
    return slopes / slopes.flatten(1).norm(dim=1).clamp_min(1e-20)[:, None, None, None]


@dataclass(frozen=True, eq=False)
class Walked:
    """How far each class's universal shift goes.

    Args:
        length: of the way on which the middle class is just reached (the lower median of the classes' mean margins is
            0), or of all steps where it isn't. Steps are measured by the root mean square over the positions; where a
            way turns, the shift is shorter than the way.
        radii: how far on its way each class is just reached, `length` where it isn't, `[k]`.
        margins: where the way is judged, the mean over the harder half of the images, `[len(judged), k]`.
    """

    length: float
    radii: Tensor
    margins: Tensor


def walk(folds: Sequence[tuple[Searched, Searched]], paces: int, judged: Sequence[float] = (1.0,)) -> Walked:
    """Grow each class's universal shift from nothing until the middle class is just reached.

    Each step goes along the gradient of the mean margin over the harder half of the images. Every class needs images of
    other classes.

    Args:
        folds: images on which shifts are found, and others by which these are judged. Each fold has shifts of its own;
            their margins are averaged.
        paces: steps to the length that linear extrapolation gives the middle class; at most twice as many are walked.
        judged: parts of the way at which the shifts are judged, in (0, 1].
    """
    searched = [found for found, _ in folds]
    shifts = [torch.zeros(len(fold.classes), *fold.maps.shape[1:], device=fold.maps.device) for fold in searched]
    way, rows, pace, size = [shifts], list[Tensor](), 0.0, searched[0].size
    while True:
        further = len(rows) < 2 * paces
        found = [fold.slopes(by, further) for fold, by in zip(searched, shifts, strict=True)]
        every, harder_half, slopes = zip(*found, strict=True)
        rows.append(torch.stack(every).mean(0))
        if len(rows) == 1:
            steepness = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes]).mean(0) * size
            missing = -torch.stack(harder_half).mean(0)
            pace = float((missing / steepness.clamp_min(1e-20)).median().clamp_min(1e-6)) / paces
        medians = torch.stack(rows).median(1).values.tolist()
        if not further or medians[-1] >= 0:
            break
        shifts = [s + pace * size * _direction(g) for s, g in zip(shifts, slopes, strict=True)]
        way.append(shifts)
    steps = crossing(medians)
    radii = [min(crossing(margins), steps) for margins in torch.stack(rows, 1).tolist()]
    margins = list[Tensor]()
    for part in judged:
        after, over = math.ceil(part * steps), part * steps % 1 or 1.0
        there = [torch.lerp(old, new, over) for old, new in zip(way[max(after - 1, 0)], way[after], strict=True)]
        each = [held.judged(by) for (_, held), by in zip(folds, there, strict=True)]
        margins.append(harder(torch.cat(each, 1), torch.cat([held.others for _, held in folds], 1)))
    return Walked(pace * steps, pace * torch.tensor(radii), torch.stack(margins))


def shift(searched: Searched, length: float) -> Tensor:
    """A universal shift of this length for each class, in six steps along the gradient.

    Returns:
        `[k, c, h, w]`, in units of `scale`, of root mean square at most `length` over the positions.
    """
    size = searched.size
    shifts = torch.zeros(len(searched.classes), *searched.maps.shape[1:], device=searched.maps.device)
    for _ in range(6):
        *_, slopes = searched.slopes(shifts)
        shifts = shifts + 1.6 / 6 * length * size * _direction(slopes)
        norms = shifts.flatten(1).norm(dim=1)[:, None, None, None]
        shifts = shifts * (length * size / norms.clamp_min(1e-20)).clamp_max(1)
    return shifts


def folds(count: int, few: int, seed: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Indices of the images that shifts are found on, and of those that they are judged by: each image once.

    Halves, or `few` // `count` parts where these are more; at most as many as there are images.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    parts = order.chunk(max(2, min(count, few // count)))
    return [(order[~torch.isin(order, part)], part) for part in parts]


def halves(count: int, many: int, seed: int, device: torch.device) -> list[Tensor]:
    """Indices of so many random halves; the first and the second together are all images, and so on."""
    generator, found = torch.Generator().manual_seed(seed), list[Tensor]()
    while len(found) < many:
        order = torch.randperm(count, generator=generator).to(device)
        found += [order[: (count + 1) // 2], order[count // 2 :]]
    return found[:many]
