"""How much to prune, chosen by held-back clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nbtools.data.images import Images


@dataclass(frozen=True)
class Validation:
    """How much to prune, chosen by held-back clean images alone [ours].

    The settings are walked from the gentlest to the strongest, and the last one is taken before the held-back
    accuracy falls by more than `allowed`, or by more than one image where that is more, below that of the model as it
    was given. (Of twenty held-back images one is 5 %: a rule that forbids it stops at the first chance dip.)

    Args:
        share: of each class's images that is held back, in (0, 1).
        allowed: loss of held-back accuracy that is accepted, in [0, 1).
        seed: which images.

    Raises:
        ValueError: for a value out of its range.
    """

    share: float = 0.2
    allowed: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 0 <= self.allowed < 1:
            raise ValueError(f"share must lie in (0, 1) and allowed in [0, 1), got {self}")

    def split(self, clean: Images) -> tuple[Images, Images]:
        """Images to learn from and images held back, about `share` of each class but never all of it.

        Where no class has enough images, single images of the whole are held back; where there is one image in all,
        it serves for both.
        """
        if len(clean) == 1:
            return clean, clean
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(clean), generator=generator)
        labels = clean.labels.cpu()[order]
        held = torch.zeros(len(clean), dtype=torch.bool)
        for label in labels.unique():
            of_class = (labels == label).nonzero().flatten()
            held[of_class[: min(int(self.share * len(of_class) + 0.5), len(of_class) - 1)]] = True
        if not held.any():
            held[: max(1, int(self.share * len(clean)))] = True
        return clean.subset(order[~held].sort().values), clean.subset(order[held].sort().values)

    def choose(self, accuracies: Sequence[float], before: float, images: int = 0) -> int:
        """Index of the strongest setting that passes, -1 where none does.

        Args:
            accuracies: held-back accuracy of each setting, the gentlest first, in [0, 1].
            before: that of the model as it was given.
            images: how many were held back; 0 grants no image beyond `allowed`.
        """
        allowed = max(self.allowed, 1 / images if images else 0)
        for index, value in enumerate(accuracies):
            if not value >= before - allowed - 1e-9:
                return index - 1
        return len(accuracies) - 1
