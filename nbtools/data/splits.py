"""A data set's three parts, and how the defender's is set apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbtools.data.images import Images

SEED = 20231117
"""The fixed permutation that sets the defender's images apart; no option changes it."""
TRACKS = "tracks-1"
"""Where whole tracks are set apart and the order is `mixed_order`, for `Splits.version`."""
MIXED = "mixed-1"
"""The order that `mixed_order` makes, for `Splits.version`: the same images in another one train another model."""


@dataclass(frozen=True, eq=False)
class Splits:
    """One data set in three disjoint parts.

    Args:
        name: its name in `nbtools.data.datasets.DATASETS`.
        train: what the (attacked) model is trained on.
        reserved: what the defender may draw from; the model never trains on it.
        test: what the evaluator alone sees.
        version: of the code that made the images, or of a folder's content, and of the order that they were brought
            into; "" where they lie as they were published.
        notes: what was left aside, resized or guessed, and what is amiss, in sentences.
    """

    name: str
    train: Images
    reserved: Images
    test: Images
    version: str = ""
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Splits:
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), reserved=self.reserved.to(device), test=self.test.to(device))


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The indices class by class, permuted in each; the place of each within its class, from 0; its class's size."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    grouped = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[grouped]]
    return grouped, rank, sizes[labels[grouped]]


def split_off(labels: Tensor, count: int, *, every_class: bool = False) -> tuple[Tensor, Tensor]:
    """Stratified split by a fixed permutation.

    Args:
        labels: int64 `[n]`.
        count: how many indices the second part gets; each class gives its share, rounded down.
        every_class: whether each class of two or more gives at least one.

    Returns:
        Two sorted, disjoint index tensors that together hold `0 .. n - 1`.
    """
    grouped, rank, sizes = _by_class(labels)
    share = sizes * count // max(1, len(labels))
    if every_class:
        share = share.clamp_min(1).minimum(sizes - 1)
    apart = rank < share
    return grouped[~apart].sort().values, grouped[apart].sort().values


def tracks_off(labels: Tensor, tracks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split by a fixed permutation of whole tracks: near duplicates of one image lie in one part. [ours]

    Args:
        labels: int64 `[n]`; the images of a track have one label.
        tracks: int64 `[n]`, the track of each image; any numbers.
        count: about how many indices the second part gets, at least 1: each class gives whole tracks until its share
            is full, at least one, and keeps at least one. A class of one track keeps it.

    Returns:
        Two sorted, disjoint index tensors that together hold `0 .. n - 1`.

    Raises:
        ValueError: where a track has two labels.
    """
    _, number, sizes = tracks.unique(return_inverse=True, return_counts=True)
    label = torch.zeros_like(sizes).scatter(0, number, labels)
    if not torch.equal(label[number], labels):
        raise ValueError("the images of a track have different labels; a track belongs to one class")
    grouped, rank, of_class = _by_class(label)
    size, own = sizes[grouped], label[grouped]
    totals = torch.zeros(int(label.max()) + 1, dtype=torch.int64).scatter_add(0, label, sizes)
    earlier = (totals.cumsum(0) - totals)[own]  # images of the classes before
    before = size.cumsum(0) - size - earlier  # images of the tracks before, within the class
    apart = torch.zeros(len(sizes), dtype=torch.bool)
    apart[grouped] = (before < totals[own] * count / len(labels)) & (rank < of_class - 1)
    return (~apart[number]).nonzero().flatten(), apart[number].nonzero().flatten()


def mixed_order(labels: Tensor) -> Tensor:
    """A fixed order in which the first m images hold the classes in about their shares, for every m. [ours]

    Each class is permuted and spread evenly, at random within its steps, over the whole length; the first image of
    each class goes before all others. So the first m have min(m, classes) classes, and of a class of s images, with
    s' the mean size of the classes, their share but for 1 + s / s' images at most.

    Args:
        labels: int64 `[n]`, in any order.

    Returns:
        int64 `[n]`, a permutation of `0 .. n - 1`.
    """
    grouped, rank, sizes = _by_class(labels)
    shift = torch.rand(len(labels), dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    place = (rank + shift) / sizes - (rank == 0).double()
    return grouped[place.argsort(stable=True)]


def in_three(
    name: str,
    learning: Images,
    testing: Images,
    train: int,
    reserved: int,
    test: int,
    version: str = "",
    *,
    mix: bool = False,
    tracks: Tensor | None = None,
    notes: tuple[str, ...] = (),
) -> Splits:
    """Published halves as three parts: a tenth of the images to learn from, at most 5,000, is the defender's.

    Args:
        name, version, notes: see `Splits`; a note is added for each part that lacks classes which its half has.
        learning, testing: the published halves.
        train, reserved, test: at most so many images; fewer take the first.
        mix: for halves that are sorted, or in an order that nobody knows: bring each part into `mixed_order`, and
            give the defender at least one image of each class that has two.
        tracks: int64 `[n]`, for images to learn from of which several show the same object: see `tracks_off`.

    Raises:
        ValueError: where a part would have no image, or a track has two labels.
    """
    count = min(5_000, len(learning) // 10)
    if tracks is not None:
        kept, apart = tracks_off(learning.labels, tracks, count)
    else:
        kept, apart = split_off(learning.labels, count, every_class=mix and count > 0)
    there = torch.arange(len(testing))
    if mix:
        kept, apart = (part[mixed_order(learning.labels[part])] for part in (kept, apart))
        there = mixed_order(testing.labels)
    parts = learning.subset(kept[:train]), learning.subset(apart[:reserved]), testing.subset(there[:test])
    if not all(map(len, parts)):
        raise ValueError(
            f"each part needs at least one image: {name} has {len(learning)} to learn from and {len(testing)} to test "
            f"with, and train={train}, reserved={reserved}, test={test} were asked for; a tenth of those to learn "
            "from is the defender's"
        )
    lacking = [
        f"{part}: no image of {missing} of the {half.num_classes} classes among the {len(images)} images."
        for part, images, half in zip(("train", "reserved", "test"), parts, (learning, learning, testing), strict=True)
        if (missing := len(half.labels.unique()) - len(images.labels.unique()))
    ]
    return Splits(name, *parts, version=version, notes=(*notes, *lacking))


def rare(pool: Images, usual: int = 10) -> tuple[str, ...]:
    """A sentence where a class has too few images for the usual draw, so that it is known before a model is trained.

    Args:
        pool: the defender's images.
        usual: clean images of each class.
    """
    number, label = pool.labels.cpu().bincount(minlength=pool.num_classes).min(dim=0)
    told = f"the defender's images hold {number} of class {pool.classes[int(label)]!r}: no draw has more of each class"
    return (told,) if number < usual else ()
