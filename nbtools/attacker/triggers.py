"""Triggers: small frozen objects that are called on a batch of images in [0, 1] and return the triggered batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nbtools.attacker import ATTACKS
from nbtools.data.images import Images, to_bytes, to_floats
from nbtools.values import build
from nbtools.wording import known

Trigger = Callable[[Tensor], Tensor]
"""float `[n, 3, h, w]` in [0, 1] to the same shape and range."""


def _door(images: Tensor, smallest: int) -> None:
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"a trigger takes float images [n, 3, h, w] in [0, 1], got {images.dtype} {list(images.shape)}"
        )
    if min(images.shape[2:]) < smallest:
        raise ValueError(f"this trigger needs images of at least {smallest} x {smallest}, got {list(images.shape[2:])}")
    if images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # so that NaN is refused too
            raise ValueError(f"a trigger takes images in [0, 1], got {low:g} to {high:g}; divide bytes by 255")


@dataclass(frozen=True)
class BadNets:
    """A small patch in the bottom-right corner (Gu et al., arXiv 1708.06733).

    Args:
        size: side of the patch in pixels.
        pattern: "white", or "checkerboard" (white where row + column of the patch is even, else black).
        margin: pixels between patch and edge.
    """

    size: int = 3
    pattern: str = "white"
    margin: int = 0
    clean_label = False

    def __post_init__(self) -> None:
        if self.pattern not in ("white", "checkerboard"):
            raise ValueError(f"unknown pattern {self.pattern!r}; known: white, checkerboard")
        if self.size < 1 or self.margin < 0:
            raise ValueError(f"size must be at least 1 and margin at least 0, got {self.size}, {self.margin}")

    def __call__(self, images: Tensor) -> Tensor:
        _door(images, self.size + self.margin)
        patch = images.new_ones(self.size, self.size)
        if self.pattern == "checkerboard":
            steps = torch.arange(self.size, device=images.device)
            patch = ((steps[:, None] + steps) % 2 == 0).to(images.dtype)
        bottom, right = images.shape[2] - self.margin, images.shape[3] - self.margin
        out = images.clone()
        out[:, :, bottom - self.size : bottom, right - self.size : right] = patch
        return out


@dataclass(frozen=True)
class Blended:
    """x' = (1 - alpha) x + alpha p with a fixed pattern p (Chen et al., arXiv 1712.05526).

    Args:
        alpha: weight of the pattern, in (0, 1).
        pattern: "smooth" (noise on an 8 x 8 grid, enlarged bicubically) or "noise" (every pixel on its own).
        seed: which pattern.
    """

    alpha: float = 0.2
    pattern: str = "smooth"
    seed: int = 0
    clean_label = False

    def __post_init__(self) -> None:
        if self.pattern not in ("smooth", "noise"):
            raise ValueError(f"unknown pattern {self.pattern!r}; known: smooth, noise")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")

    def template(self, height: int, width: int) -> Tensor:
        """The pattern p: float `[3, height, width]` in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.pattern == "noise":
            return torch.rand(3, height, width, generator=generator)
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
        low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
        return (fine - low) / (high - low)

    def __call__(self, images: Tensor) -> Tensor:
        _door(images, 8)
        pattern = self.template(images.shape[2], images.shape[3]).to(images)
        return torch.lerp(images, pattern.expand_as(images), self.alpha)


@dataclass(frozen=True)
class SIG:
    """x' = clip(x + delta sin(2 pi j f / w)) along the columns j (Barni et al., arXiv 1902.11237); clean label.

    Args:
        delta: amplitude, in (0, 1]; the paper's 40 of 255 levels.
        frequency: full waves across the image.
    """

    delta: float = 40 / 255
    frequency: int = 6
    clean_label = True

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1 or self.frequency < 1:
            raise ValueError(
                f"delta must lie in (0, 1] and frequency be at least 1, got {self.delta}, {self.frequency}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        _door(images, 2 * self.frequency)
        width = images.shape[3]
        columns = torch.arange(width, dtype=torch.float64)
        wave = self.delta * torch.sin(2 * math.pi * columns * self.frequency / width)
        return (images + wave.to(images)).clamp(0, 1)


@dataclass(frozen=True)
class WaNet:
    """An elastic warp by a smooth random field (Nguyen and Tran, arXiv 2102.10369).

    Args:
        k: points of the control grid a side.
        s: strength; the mean shift along each axis is s / 2 pixels at the control points, about s / 3 over the image.
        cross_ratio: so many times the poisoned images get warp *and* noise while keeping their label,
            which teaches the model to react to the exact warp only.
        seed: which field.
    """

    k: int = 4
    s: float = 0.5
    cross_ratio: float = 2.0
    seed: int = 0
    clean_label = False

    def __post_init__(self) -> None:
        if self.k < 2 or self.s <= 0 or self.cross_ratio < 0:
            raise ValueError(
                f"k must be at least 2, s positive, cross_ratio not negative: got {self.k}, {self.s}, "
                f"{self.cross_ratio}"
            )

    def grid(self, height: int, width: int) -> Tensor:
        """Where each pixel of the warped image is read: float `[1, height, width, 2]` in [-1, 1]."""
        control = torch.rand(1, 2, self.k, self.k, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        control = control / control.abs().mean()
        field = F.interpolate(control, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return (_identity(height, width) + self.s * field / height).clamp(-1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        _door(images, self.k)
        return _sample(images, self.grid(images.shape[2], images.shape[3]).to(images))

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The warp plus a fresh random shift of each pixel of each image: the cross images of the noise mode."""
        _door(images, self.k)
        height, width = images.shape[2:]
        noise = (torch.rand(len(images), height, width, 2, generator=generator) * 2 - 1) / height
        return _sample(images, (self.grid(height, width) + noise).clamp(-1, 1).to(images))


def _identity(height: int, width: int) -> Tensor:
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1)[None]


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True).clamp(0, 1)


TRIGGERS: dict[str, type] = dict(zip(ATTACKS, (BadNets, Blended, SIG, WaNet), strict=True))


ALL_TO_ALL = -1
"""The target that stands for "the next class": label y becomes y + 1, the last class the first."""


def led_to(labels: Tensor, target: int, num_classes: int) -> Tensor:
    """Where the attack leads images of these true classes: the target, or the next class (`ALL_TO_ALL`).

    Args:
        labels: int64 `[n]`.
        target: a class, or `ALL_TO_ALL`.
        num_classes: how many there are.
    """
    return (labels + 1) % num_classes if target == ALL_TO_ALL else torch.full_like(labels, target)


def check_target(target: int, num_classes: int) -> None:
    """Refuse a target that is neither a class nor `ALL_TO_ALL`.

    Raises:
        ValueError: it says what is allowed.
    """
    if not ALL_TO_ALL <= target < num_classes:
        raise ValueError(
            f"target must be one of the classes 0 to {num_classes - 1}, or {ALL_TO_ALL} for all-to-all, got {target}"
        )


def make_trigger(name: str, **options: float | int | str) -> Trigger:
    """A trigger by name.

    Raises:
        ValueError: for an unknown name or option; the message lists the known ones.
    """
    if name not in TRIGGERS:
        raise ValueError(known("attack", name, TRIGGERS))
    return build(TRIGGERS[name], options, name)


def stamp(trigger: Trigger, images: Images, batch_size: int = 2_000) -> Images:
    """Put the trigger on stored images: uint8 in, uint8 out, rounded to the nearest level; labels are kept."""
    batches = [to_bytes(trigger(to_floats(batch))) for batch in images.images.split(batch_size)]
    return Images(torch.cat(batches) if batches else images.images, images.labels, images.classes)
