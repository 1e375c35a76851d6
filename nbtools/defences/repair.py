"""What every defence returns, and the one fine-tuning loop that they share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.images import Images, to_floats
from nbtools.models import check_finite
from nbtools.pruning import Mask, hold
from nbtools.training import augment


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired model and the record of its making.

    Args:
        model: the repaired copy, in eval mode; the model that was given is untouched.
        mask: which filters were pruned.
        scores: convolution name to `[filters]`, what the mask was made from.
        history: what happened on the way, one row a step.
        seconds: the defence's own time.
        defence: the defence's `repr`, a complete record of its settings.
    """

    model: nn.Module
    mask: Mask
    scores: dict[str, Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    defence: str = ""


class Defence(Protocol):
    """A model and clean images in, a repair out; nothing else is ever seen."""

    def __call__(self, model: nn.Module, clean: Images) -> Repair: ...


@dataclass(frozen=True)
class FineTune:
    """Fine-tuning on few clean images that stops by itself, and does nothing where it can't be shown to help [ours].

    The clean images are dealt into folds. Each fold is held back once while a copy is tuned on the others, and its
    cross-entropy is written down before tuning and after each epoch. The epoch that is best over all held-back images
    is taken if its mean gain is more than `confidence` standard errors above zero; then the model is tuned on all
    images for so many epochs, else it stays as it was.

    Args:
        epochs: at most so many.
        lr: SGD learning rate, constant.
        momentum: SGD momentum.
        batch_size: images a step.
        folds: parts of the cross-validation, at least 2.
        confidence: standard errors that the gain must exceed; 0 or more.
        frozen_bn: keep the batch norms' running statistics (else they follow the clean batches, which is how a
            pruned backdoor comes back; notebook 06).
        seed: folds, order and augmentation.
    """

    epochs: int = 20
    lr: float = 3e-4
    momentum: float = 0.9
    batch_size: int = 32
    folds: int = 5
    confidence: float = 1.0
    frozen_bn: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.folds < 2 or self.confidence < 0 or self.batch_size < 1:
            raise ValueError(
                f"epochs >= 1, lr > 0, batch_size >= 1, folds >= 2 and confidence >= 0 are needed, got {self}"
            )

    def __call__(self, model: nn.Module, clean: Images, mask: Mask) -> list[dict[str, Any]]:
        """Tune in place, the mask held after every step.

        Returns:
            One row an epoch of the cross-validation: epoch, gain (mean fall of the held-back cross-entropy), error
            (its standard error), chosen (whether tuning stopped there).
        """
        gains = self.held_back_gains(model, clean, mask)
        if gains is None:
            return []
        mean, error = gains.mean(1), gains.std(1) / gains.shape[1] ** 0.5
        best = int(mean.argmax())
        chosen = best if bool(mean[best] > self.confidence * error[best]) else 0
        for _ in self.epochs_on(model, clean, mask, chosen):
            pass
        check_finite(model)
        return [
            {"epoch": epoch, "gain": float(mean[epoch]), "error": float(error[epoch]), "chosen": epoch == chosen}
            for epoch in range(len(mean))
        ]

    def held_back_gains(self, model: nn.Module, clean: Images, mask: Mask) -> Tensor | None:
        """Fall of each image's cross-entropy while it is held back: `[epochs + 1, n]`, or None for too few images."""
        folds = min(self.folds, len(clean))
        if folds < 2:
            return None
        device = clean.images.device
        order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(self.seed)).to(device)
        curves = []
        for fold in range(folds):
            held = torch.arange(len(clean), device=device) % folds == fold
            rest, test = clean.subset(order[~held]), clean.subset(order[held])
            twin = copy.deepcopy(model)
            curve = [_losses(twin, test)]
            curve += [_losses(twin, test) for _ in self.epochs_on(twin, rest, mask, self.epochs)]
            curves.append(torch.stack(curve))
        losses = torch.cat(curves, 1)
        return losses[0] - losses

    def epochs_on(self, model: nn.Module, images: Images, mask: Mask, epochs: int) -> Iterator[int]:
        """Tune in place and yield after each epoch; the model is in eval mode whenever this yields or ends."""
        again = hold(model, mask)
        generator = torch.Generator().manual_seed(self.seed)
        frozen = [p.requires_grad for p in model.parameters()]
        model.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), self.lr, self.momentum)
        for epoch in range(epochs):
            model.train()
            if self.frozen_bn:
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
            order = torch.randperm(len(images), generator=generator).to(images.images.device)
            for batch in order.split(self.batch_size):
                if len(batch) < 2 and not self.frozen_bn:
                    continue  # a batch norm in training mode can't take one image
                optimizer.zero_grad(set_to_none=True)
                inputs = to_floats(augment(images.images[batch], generator))
                F.cross_entropy(model(inputs), images.labels[batch]).backward()
                optimizer.step()
                again()
            model.eval()
            yield epoch
        model.eval()
        for parameter, flag in zip(model.parameters(), frozen, strict=True):
            parameter.requires_grad_(flag)


@torch.no_grad()
def _losses(model: nn.Module, images: Images) -> Tensor:
    """Cross-entropy of each image: `[n]`."""
    model.eval()
    batches = zip(images.images.split(250), images.labels.split(250), strict=True)
    return torch.cat([F.cross_entropy(model(to_floats(x)), y, reduction="none") for x, y in batches])
