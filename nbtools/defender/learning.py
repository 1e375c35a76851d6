"""What the defences that learn have in common: their door, what they learn from, and their epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.components import check_classes, check_clean
from nbtools.defender.pruning import Mask, hold
from nbtools.networks.training import DivergedError, augment, sgd
from nbtools.networks.units import Units, check_finite, prunable_units

Loss = Callable[[Tensor, Tensor], Tensor]
"""Float batch `[b, 3, h, w]` and labels `[b]` to the mean loss."""


@torch.no_grad()
def check_inputs(model: nn.Module, clean: Images) -> Units:
    """Refuse what no defence can work with, before any work; the model is left as it was.

    Returns:
        The model's convolution-BN pairs.

    Raises:
        ValueError: for no images, NaN weights, a model without convolution-BN pairs, one that gives no logits, or with
            fewer classes than the images.
    """
    check_clean(clean)
    check_finite(model)
    units = prunable_units(model, to_floats(clean.images[:1]))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        given = model(to_floats(clean.images[:1]))
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(given, Tensor) or given.ndim != 2:
        what = f"values of shape {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise ValueError(f"the model gives {what} in eval mode; it must give logits, a tensor [images, classes]")
    check_classes(given.shape[1], clean.num_classes)
    return units


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits `[n, classes]` of a model in training mode.

    GoogLeNet and Inception then give the answers of their auxiliary heads as well, after the logits; those are left
    aside, and the heads, which no answer in eval mode depends on, stay as they are.
    """
    given = model(inputs)
    return given[0] if isinstance(given, tuple) else given


def nothing_pruned(units: Units, device: torch.device) -> Mask:
    """A mask that prunes no filter."""
    return Mask({unit.conv: torch.zeros(unit.filters, dtype=torch.bool, device=device) for unit in units})


@torch.no_grad()
def answers(model: nn.Module, images: Images, batch_size: int = 250) -> Tensor:
    """Logits `[n, classes]` of a model in eval mode."""
    return torch.cat([model(to_floats(batch)) for batch in images.images.split(batch_size)])


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], images: Images, batch_size: int = 500) -> float:
    """Share of images that are classified as labelled, in [0, 1]; a module must be in eval mode."""
    pairs = zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True)
    right = [(model(to_floats(x)).argmax(1) == y).sum() for x, y in pairs]
    return int(torch.stack(right).sum()) / len(images)


def divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean Kullback-Leibler divergence of answers from a teacher's, both `[n, classes]` logits, times temperature^2."""
    learned, wanted = (F.log_softmax(values / temperature, 1) for values in (logits, taught))
    return temperature**2 * F.kl_div(learned, wanted, reduction="batchmean", log_target=True)


def at_most(clean: Images, most: int, generator: torch.Generator) -> Images:
    """The images, or so many of them, drawn, where there are more."""
    if len(clean) <= most:
        return clean
    order = torch.randperm(len(clean), generator=generator)
    return clean.subset(order[:most].to(clean.images.device))


def joined(clean: Images, copies: int, generator: torch.Generator) -> Images:
    """The images, and behind them so many cropped and flipped copies of each."""
    seen = [clean.images, *(augment(clean.images, generator) for _ in range(copies))]
    return Images(torch.cat(seen), clean.labels.repeat(len(seen)), clean.classes)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A grey square of `size` pixels at a random place of each image (DeVries & Taylor, arXiv 1708.04552).

    Args:
        images: float `[b, 3, h, w]` in [0, 1]; it is not changed.
        size: side of the square; at the image's edge it is cut.
        generator: a CPU generator.
    """
    count, _, height, width = images.shape
    centre = torch.rand(2, count, 1, generator=generator).to(images.device)
    inside = [
        (torch.arange(length, device=images.device) - (place * length).floor() + size // 2).div(size).floor() == 0
        for place, length in zip(centre, (height, width), strict=True)
    ]
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return torch.where(hole, torch.full_like(images[:1, :, :1, :1], 0.5), images)


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of one pass over `count` images in a new order, `size` a batch, none with a single image.

    A batch norm in training mode can't take one image's 1x1 map: a last batch of one joins the batch before it, and a
    single image comes twice.
    """
    order = torch.randperm(count, generator=generator)
    if count == 1:
        return [order.repeat(2)]
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def learn(model: nn.Module, frozen_bn: bool) -> None:
    """Training mode and gradients for all weights; frozen batch norms keep their running statistics."""
    model.train().requires_grad_(True)
    for module in model.modules() if frozen_bn else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@dataclass(frozen=True)
class Epochs:
    """Plain fine-tuning: SGD over the clean images, cropped and flipped, the learning rate falling as a cosine.

    All weights move and batch norms follow the batches, as in the public code of the methods that use it. That is how
    a silenced backdoor often comes back: if you train a repaired network further, freeze them (notebook 13).

    Args:
        epochs: passes over the images, at least 1.
        lr: learning rate of the first step.
        final_lr: where the cosine ends.
        momentum: SGD momentum.
        nesterov: Nesterov's momentum.
        weight_decay: on all parameters.
        batch_size: images a step, or all where there are fewer; at least 2.
        cutout: side of the square that hides a part of each image, in pixels; 0 hides nothing.
        seed: order and augmentation.
        frozen_bn: batch norms keep their running statistics.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int = 10
    lr: float = 0.01
    final_lr: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    batch_size: int = 128
    cutout: int = 0
    seed: int = 0
    frozen_bn: bool = False

    def __post_init__(self) -> None:
        numbers = (self.lr, self.final_lr, self.momentum, self.weight_decay, self.cutout)
        counts = self.epochs >= 1 and self.batch_size >= 2  # so that NaN is refused too
        if not counts or not all(0 <= n < math.inf for n in numbers) or self.lr == 0:
            raise ValueError(
                "epochs >= 1, batch_size >= 2, lr > 0, final_lr, momentum, weight_decay and cutout >= 0 are needed, "
                f"got {self}"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"Nesterov's momentum needs a momentum above 0, got {self}")

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch (from 0): half a cosine from `lr` in the first to `final_lr` in the last."""
        share = epoch / max(self.epochs - 1, 1)
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * share)) / 2

    def __call__(
        self,
        model: nn.Module,
        clean: Images,
        loss: Loss | None = None,
        mask: Mask | None = None,
        lr_of: Callable[[int], float] | None = None,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Tune in place.

        Args:
            model: is in eval mode afterwards.
            clean: the defender's images.
            loss: of a batch; by default the model's cross-entropy.
            mask: what stays pruned (gamma = beta = 0 after every step).
            lr_of: learning rate of an epoch (from 0), in place of the cosine.
            before_step: called when the gradients are there, before the optimiser moves the weights.
            after_step: called when it has moved them.

        Returns:
            One row an epoch: epoch (from 1), steps so far, lr, loss.

        Raises:
            DivergedError: where a loss or a weight is not finite.
        """
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        learn(model, self.frozen_bn)
        again = hold(model, mask) if mask is not None and mask.count else lambda: None
        optimizer = sgd(
            model.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )
        generator = torch.Generator().manual_seed(self.seed)
        rows: list[dict[str, Any]] = []
        for epoch in range(self.epochs):
            optimizer.param_groups[0]["lr"] = lr = (lr_of or self.lr_at)(epoch)
            losses = []
            for batch in batches(len(clean), self.batch_size, generator):
                part = clean.subset(batch)
                inputs = to_floats(augment(part.images, generator))
                if self.cutout:
                    inputs = cutout(inputs, self.cutout, generator)
                optimizer.zero_grad(set_to_none=True)
                value = loss(inputs, part.labels) if loss else F.cross_entropy(logits_of(model, inputs), part.labels)
                value.backward()
                before_step()
                optimizer.step()
                again()
                after_step()
                losses.append(value.detach())
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise DivergedError(f"the fine-tuning's loss is {mean} in epoch {epoch + 1}; try an lr below {self.lr}")
            rows.append({"epoch": epoch + 1, "steps": (epoch + 1) * len(losses), "lr": lr, "loss": mean})
        model.eval()
        optimizer.zero_grad(set_to_none=True)
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
        check_learned(model)
        return rows


def check_learned(model: nn.Module) -> None:
    """Refuse to hand out a model that a training broke.

    Raises:
        DivergedError: where a weight or a statistic is not finite.
    """
    try:
        check_finite(model)
    except ValueError as error:
        raise DivergedError(f"the defence's training diverged: {error}") from None
