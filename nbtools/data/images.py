"""Labelled images at rest, and the defender's small draws from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, as they lie in memory.

    Args:
        images: uint8 `[n, 3, h, w]`.
        labels: int64 `[n]`, each in `0 .. len(classes) - 1`.
        classes: the class names, in label order.

    Raises:
        ValueError: where shape, type or a label is off; the message says which.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 [n, 3, h, w], got {self.images.dtype} {list(self.images.shape)}; "
                "grey images can be repeated to three channels, floats in [0, 1] multiplied by 255 and rounded"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each has an image."""
        return len(self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices` (int64 `[m]`, or a bool mask `[n]`), in that order."""
        indices = indices.to(self.images.device)
        return self._like(self.images[indices], self.labels[indices])

    def of_class(self, label: int) -> Images:
        """Only the images of one class."""
        return self.subset(self.labels == label)

    def to(self, device: torch.device | str) -> Images:
        """The same images on `device`."""
        return self._like(self.images.to(device), self.labels.to(device))

    def _like(self, images: Tensor, labels: Tensor) -> Images:
        """Images of the same kind with some of these labels; a check of them would wait for the device."""
        made = copy.copy(self)
        for name, value in (("images", images), ("labels", labels)):
            object.__setattr__(made, name, value)
        return made

    def floats(self) -> Tensor:
        """The images as a model takes them: float32 `[n, 3, h, w]` in [0, 1]."""
        return to_floats(self.images)


def to_floats(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], in the memory layout that convolutions like best."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def to_bytes(images: Tensor) -> Tensor:
    """Float in [0, 1] to the nearest of 256 levels, uint8: what a stored image can hold."""
    return images.mul(255).round_().clamp_(0, 255).to(torch.uint8).contiguous()


def draw_clean(pool: Images, samples_per_class: int = 10, n_total: int = 0, seed: int = 0) -> Images:
    """The defender's clean images: a draw without replacement, balanced over the classes.

    Args:
        pool: images that the model never trained on (`Splits.reserved`).
        samples_per_class: images of each class, at least 1.
        n_total: where it is not 0, so many images *in all* instead, spread as evenly as they go
            over the classes (ten images in all of ten classes: one a class).
        seed: which draw; the same seed gives the same images.

    Returns:
        The drawn images, in class order.

    Raises:
        ValueError: where the pool does not hold as many.
    """
    if n_total < 0 or (n_total == 0 and samples_per_class < 1):
        raise ValueError(
            f"samples_per_class={samples_per_class}, n_total={n_total}: ask for at least one image "
            "(samples_per_class >= 1, or n_total >= 1)"
        )
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.full((pool.num_classes,), samples_per_class)
    if n_total:
        wanted = torch.full((pool.num_classes,), n_total // pool.num_classes)
        wanted[torch.randperm(pool.num_classes, generator=generator)[: n_total % pool.num_classes]] += 1
    order = torch.randperm(len(pool), generator=generator)
    labels = pool.labels.cpu()[order]
    have = torch.bincount(labels, minlength=pool.num_classes)
    if bool((have < wanted).any()):
        poorest = int((have - wanted).argmin())
        raise ValueError(
            f"class {pool.classes[poorest]!r} has {int(have[poorest])} clean images in the pool, "
            f"{int(wanted[poorest])} were asked for; ask for fewer, or bring more images"
        )
    chosen = [order[labels == label][: int(wanted[label])] for label in range(pool.num_classes)]
    return pool.subset(torch.cat(chosen))
