"""Which training images are poisoned, and with which label; the indices are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbtools.attacker.triggers import ALL_TO_ALL, Trigger, WaNet, check_target, led_to, stamp
from nbtools.data.images import Images, to_bytes, to_floats


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set.

    Args:
        images: all training images, the poisoned ones among them.
        poisoned: int64 `[p]`, sorted: which images carry the trigger and the target label.
        cross: int64 `[q]`, sorted: which carry WaNet's noise and their own label (else empty).
        labels_before: int64 `[n]`, the true labels.
    """

    images: Images
    poisoned: Tensor
    cross: Tensor
    labels_before: Tensor


def poison(train: Images, trigger: Trigger, poison_rate: float, target: int = 0, seed: int = 0) -> Poisoned:
    """Poison a training set, all-to-one or all-to-all.

    A dirty-label trigger goes on `poison_rate` of *all* images, drawn from those of the other classes, and their
    label becomes the target (all-to-all: drawn from all, and the label becomes the next class). A clean-label trigger
    (`SIG`) goes on `poison_rate` of the *target class*, whose labels stay as they are.

    Args:
        train: the clean training set.
        trigger: see `nbtools.attacker.triggers`.
        poison_rate: in (0, 1].
        target: the target class, or `nbtools.attacker.triggers.ALL_TO_ALL`.
        seed: which images.

    Raises:
        ValueError: for a rate or target out of range, or a rate that poisons no image or more than there are.
    """
    if not 0 < poison_rate <= 1:
        raise ValueError(f"poison_rate must lie in (0, 1], got {poison_rate}; a clean model is attack='none'")
    check_target(target, train.num_classes)
    generator = torch.Generator().manual_seed(seed)
    clean_label = bool(getattr(trigger, "clean_label", False))
    if clean_label and target == ALL_TO_ALL:
        raise ValueError("a clean-label attack keeps all labels, so it needs one target class; it can't be all-to-all")
    labels = train.labels.cpu()
    candidates = (labels == target if clean_label else labels != target).nonzero().flatten()
    count = round(poison_rate * (len(candidates) if clean_label else len(train)))
    cross_count = round(count * trigger.cross_ratio) if isinstance(trigger, WaNet) else 0
    if not 0 < count <= len(candidates) or count + cross_count > len(train):
        raise ValueError(
            f"poison_rate {poison_rate} asks for {count} poisoned and {cross_count} cross images; "
            f"{len(candidates)} of {len(train)} images can be poisoned; choose another rate, or bring more images"
        )
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[chosen] = False
    others = rest.nonzero().flatten()
    cross = others[torch.randperm(len(others), generator=generator)[:cross_count]].sort().values

    images, new_labels = train.images.clone(), train.labels.clone()
    where = chosen.to(images.device)
    images[where] = stamp(trigger, train.subset(chosen)).images
    new_labels[where] = led_to(train.labels[where], target, train.num_classes)
    if isinstance(trigger, WaNet) and cross_count:
        for part in cross.split(2_000):
            at = part.to(images.device)
            images[at] = to_bytes(trigger.noisy(to_floats(train.images[at]), generator))
    return Poisoned(Images(images, new_labels, train.classes), chosen, cross, train.labels.clone())
