"""Whether another order of the same classes would make a model right: folders have names, outputs have numbers [ours].

Nothing in a checkpoint tells which output is which class. Where the answers fit another order far better, either one
that somebody has a reason for (the names sorted as text, as numbers, ...), or the best that there is, it is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

FOLDS = 5
P_VALUE = 0.01
"""Of the exact sign test over the images whose answer turns right or wrong with the order."""
LEAST_GAIN = 0.1
"""Share of the images that an order must gain to be told; twice that where the given one is at chance level."""
FEW_IMAGES, SHARE_OF_FEW = 3, 0.05
"""By so many images, or this share of them, an order with a name may lie below the best one."""
SEEN, HELD_OUT = 0.6, 0.5
"""Shares of the images that the best order must make right: of all, and of those that it was not chosen with."""


@dataclass(frozen=True)
class Order:
    """Another order of the classes.

    Args:
        how: a name for it, "the names as text"; "" for the best one, which has none.
        classes: the names in the order of the outputs.
        right: images that would be classified as labelled.
        of: images in all.
    """

    how: str
    classes: tuple[str, ...]
    right: int
    of: int


def sorted_orders(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Orders that somebody has a reason for, by what they are called; the given one is left out."""
    orders: dict[str, tuple[str, ...]] = {"the names as text": tuple(sorted(classes))}
    if all(name.isdecimal() for name in classes):
        orders["the names as whole numbers"] = tuple(sorted(classes, key=lambda name: (int(name), name)))
    orders["the names without regard to case"] = tuple(sorted(classes, key=lambda name: (name.casefold(), name)))
    orders["the names with their numbers as numbers"] = tuple(sorted(classes, key=lambda name: (_natural(name), name)))
    orders["the folders reversed"] = tuple(reversed(classes))
    seen = {tuple(classes)}
    return {how: order for how, order in orders.items() if not (order in seen or seen.add(order))}


def _natural(name: str) -> list[int | str]:
    """Text and numbers in turn: "class10" behind "class2"."""
    return [int(part) if odd % 2 else part.casefold() for odd, part in enumerate(re.split(r"(\d+)", name))]


def best_outputs(labels: Tensor, answers: Tensor, count: int) -> Tensor:
    """The output for each class with which most images are right: int64 `[count]`.

    Where several are as good, classes stay at their own number: a class without an image tells nothing.

    Args:
        labels: int64 `[n]`, numbers of the classes as given.
        answers: int64 `[n]`, numbers of the outputs.
        count: classes, and outputs.
    """
    confusion = torch.bincount(labels * count + answers, minlength=count**2).view(count, count)
    worth = confusion * (count + 1) + torch.eye(count, dtype=torch.int64)
    return torch.from_numpy(linear_sum_assignment(worth.numpy(), maximize=True)[1])


def held_out_hits(labels: Tensor, answers: Tensor, count: int) -> Tensor:
    """Which images the best order makes right that was chosen with the others: bool `[n]`; no order fits noise here.

    Each class's images are dealt into folds; where no class has two images, the given order is all that can be tried.
    """
    order = labels.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - torch.searchsorted(labels[order], labels[order])
    folds = min(FOLDS, int(place.max()) + 1)
    hits = answers == labels
    for fold in range(folds if folds > 1 else 0):
        out = place % folds == fold
        hits[out] = answers[out] == best_outputs(labels[~out], answers[~out], count)[labels[out]]
    return hits


def better_order(labels: Tensor, answers: Tensor, classes: Sequence[str], at_chance: bool) -> Order | None:
    """The order that is so much better that it must be told, or None.

    An order with a name is told where it gains a tenth of the images (at chance level a fifth, and is itself above
    chance) and about as much as the best one. The best one is told where it gains as much on images that it was not
    chosen with, and makes most of them right: of few images a class some order always fits the noise.

    Args:
        labels: int64 `[n]`, numbers of the classes as given.
        answers: int64 `[n]`, what the model says, numbers of its outputs.
        classes: the names as given.
        at_chance: whether the given order is right no more often than chance.
    """
    count, total, given = len(classes), len(labels), answers == labels
    if 2 * len(labels.unique()) < count:  # a few classes fit many orders
        return None
    least = total * LEAST_GAIN * (2 if at_chance else 1)

    def gains(hits: Tensor) -> bool:
        gained, lost = int((hits & ~given).sum()), int((given & ~hits).sum())
        if gained - lost < max(least, 1):
            return False
        return float(binomtest(gained, gained + lost, alternative="greater").pvalue) < P_VALUE

    outputs = best_outputs(labels, answers, count)
    most = int((answers == outputs[labels]).sum())
    named: list[tuple[Order, Tensor]] = []
    for how, order in sorted_orders(classes).items():
        output_of = {name: number for number, name in enumerate(order)}
        hits = answers == torch.tensor([output_of[name] for name in classes])[labels]
        named.append((Order(how, order, int(hits.sum()), total), hits))
    found, hits = max(named, key=lambda pair: pair[0].right, default=(None, given))
    if found and found.right >= most - max(FEW_IMAGES, SHARE_OF_FEW * total) and gains(hits):
        chance = binomtest(found.right, total, 1 / count, alternative="greater")
        if not at_chance or float(chance.pvalue) < P_VALUE:
            return found
    if most < SEEN * total:
        return None
    hits = held_out_hits(labels, answers, count)
    if int(hits.sum()) < HELD_OUT * total or not gains(hits):
        return None
    return Order("", tuple(classes[int(label)] for label in outputs.argsort()), most, total)
