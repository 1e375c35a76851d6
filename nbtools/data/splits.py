"""A data set's three parts, and how the defender's is set apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nbtools.data.images import Images

SEED = 20231117
"""The fixed permutation that sets the defender's images apart; no option changes it."""


@dataclass(frozen=True, eq=False)
class Splits:
    """One data set in three disjoint parts.

    Args:
        name: its name in `nbtools.data.datasets.DATASETS`.
        train: what the (attacked) model is trained on.
        reserved: what the defender may draw from; the model never trains on it.
        test: what the evaluator alone sees.
        version: of the code that made the images, or of a folder's content; "" where they were published.
    """

    name: str
    train: Images
    reserved: Images
    test: Images
    version: str = ""

    def to(self, device: torch.device | str) -> Splits:
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), reserved=self.reserved.to(device), test=self.test.to(device))


def split_off(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stratified split by a fixed permutation.

    Args:
        labels: int64 `[n]`.
        count: how many indices the second part gets; each class gives its share.

    Returns:
        Two sorted, disjoint index tensors that together hold `0 .. n - 1`.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    grouped = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[grouped]]
    apart = rank < sizes[labels[grouped]] * count // len(labels)
    return grouped[~apart].sort().values, grouped[apart].sort().values


def in_three(
    name: str, learning: Images, testing: Images, train: int, reserved: int, test: int, version: str = ""
) -> Splits:
    """Published halves as three parts: a tenth of the images to learn from, at most 5,000, is the defender's.

    Args:
        name, version: see `Splits`.
        learning, testing: the published halves.
        train, reserved, test: at most so many images; fewer take the first.

    Raises:
        ValueError: where a part would have no image.
    """
    kept, apart = split_off(learning.labels, min(5_000, len(learning) // 10))
    first = torch.arange(min(test, len(testing)))
    parts = learning.subset(kept[:train]), learning.subset(apart[:reserved]), testing.subset(first)
    if not all(map(len, parts)):
        raise ValueError(
            f"each part needs at least one image: {name} has {len(learning)} to learn from and {len(testing)} to test "
            f"with, and train={train}, reserved={reserved}, test={test} were asked for"
        )
    return Splits(name, *parts, version=version)
