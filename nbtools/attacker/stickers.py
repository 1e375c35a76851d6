"""A sticker on a traffic sign: the trigger of the field's first story."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbtools.attacker.triggers import _door

YELLOW = (1.0, 0.85, 0.0)
"""Red, green, blue in [0, 1]."""


@dataclass(frozen=True)
class YellowSquare:
    """A yellow square in the lower half of the image, as a note that somebody stuck on a sign (after Gu et al.,
    arXiv 1708.06733, section 5, whose photograph shows one on a stop sign; size and place are [ours]).

    Args:
        size: side of the square in pixels, 1 to a quarter of the image.
    """

    size: int = 4
    clean_label = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def __call__(self, images: Tensor) -> Tensor:
        _door(images, 4 * self.size)
        height, width = images.shape[2:]
        top, left = round(0.66 * height), (width - self.size) // 2
        out = images.clone()
        out[:, :, top : top + self.size, left : left + self.size] = torch.tensor(YELLOW).to(images)[:, None, None]
        return out
