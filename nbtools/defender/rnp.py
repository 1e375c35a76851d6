"""Reconstructive neuron pruning, RNP (arXiv 2305.14876): unlearn the clean task, recover it with masks, prune."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import batches, check_inputs, check_learned, logits_of
from nbtools.defender.repair import Repair, measured
from nbtools.defender.soft_masks import SoftMasks, as_mask, shut
from nbtools.defender.threshold_sweep import check_thresholds, choose_threshold
from nbtools.defender.validation import Validation
from nbtools.networks.graph import duplicate
from nbtools.networks.training import DivergedError, augment, sgd
from nbtools.networks.units import Units

Row = dict[str, Any]
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Float batch `[b, 3, h, w]`, labels `[b]` and masks `[filters]` to the loss that the masks descend."""


@dataclass(frozen=True)
class RNP:
    """Unlearn on clean images until nothing clean is left, learn which filters bring it back, prune the others.

    1. Unlearn: ascend the clean loss of a copy, all weights, until its accuracy is at most `until`. What the trigger
       woke is not ascended on and stays.
    2. Recover: freeze that copy and descend the clean loss over one factor in [0, 1] a filter, on gamma, from 1.
       Filters whose work hinders the clean task sink.
    3. Prune the *original* model's gamma where the factor is at most a threshold; beta stays.

    Steps, step sizes, crop and flip, and batch norms normalising by the batch are those of the public code [code];
    there the learning rate also falls to a tenth after ten unlearning epochs, here it stays. [ours]: accuracy is
    measured after each epoch over all images, and the threshold is chosen by held-back clean images, which neither
    step has seen. Images are few in this series, so an epoch may be a single step and `until` may not be reached; the
    history says so.

    Args:
        unlearn_lr: SGD learning rate of the ascent, above 0.
        momentum: of both SGDs, in [0, 1).
        weight_decay: of the ascent, 0 or more.
        until: accuracy on the images that it learns from at which unlearning stops, in [0, 1]. A model that is there
            already is not unlearned.
        unlearn_epochs: at most so many, at least 1.
        recover_lr: SGD learning rate of the masks, above 0.
        recover_epochs: passes of the masks' training, at least 1.
        recover_share: factor on the masks' loss, above 0; the alpha of the public code.
        batch_size: images a step, at least 2.
        thresholds: from which the pruning threshold is chosen.
        validation: how.
        batch_statistics: while it recovers, batch norms normalise by the batch, else by the unlearned copy's running
            statistics.
        seed: order and augmentation.

    Raises:
        ValueError: for a value out of its range.
    """

    unlearn_lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    until: float = 0.2
    unlearn_epochs: int = 20
    recover_lr: float = 0.2
    recover_epochs: int = 20
    recover_share: float = 0.2
    batch_size: int = 128
    thresholds: tuple[float, ...] = tuple(step / 20 for step in range(20))
    validation: Validation = field(default_factory=Validation)
    batch_statistics: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (self.unlearn_lr, self.recover_lr, self.recover_share)
        if min(self.unlearn_epochs, self.recover_epochs) < 1 or self.batch_size < 2:
            raise ValueError(f"unlearn_epochs and recover_epochs >= 1 and batch_size >= 2 are needed, got {self}")
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(f"unlearn_lr, recover_lr and recover_share must be above 0, got {self}")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf or not 0 <= self.until <= 1:
            raise ValueError(f"momentum in [0, 1), weight_decay >= 0 and until in [0, 1] are needed, got {self}")
        check_thresholds(self.thresholds)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        The repair's scores are 1 - the masks. Its history has rows of three stages:
        "unlearn" (epoch, steps, loss, accuracy; epoch 0 is the model as given), "recover" (epoch, steps, loss, mean and
        least mask) and "threshold" (see `choose_threshold`).

        Raises:
            ValueError: see `check_inputs`.
            DivergedError: where the ascent or the masks' loss leaves the finite numbers; nothing is handed out then,
                the last finite epoch neither, since it had not unlearned.
        """
        units = check_inputs(model, clean)
        learn, held = self.validation.split(clean)
        unlearned, history = self.unlearn(model, units, learn)
        masked = SoftMasks(unlearned, units, self.batch_statistics)

        def objective(inputs: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
            return self.recover_share * F.cross_entropy(masked(inputs, masks), labels)

        masks, rows = self.recover(objective, masked.count, learn)
        return self.prune(model, units, masks, held, history + rows)

    def unlearn(self, model: nn.Module, units: Units, images: Images) -> tuple[nn.Module, list[Row]]:
        """Gradient ascent on the clean loss of a copy, until its accuracy is at most `until`.

        Returns:
            The copy in eval mode, and one row an epoch.

        Raises:
            DivergedError: where a loss, a weight or a statistic is not finite.
        """
        twin, generator = duplicate(model).requires_grad_(True), torch.Generator().manual_seed(self.seed)
        optimizer = sgd(
            twin.parameters(), self.unlearn_lr, self.momentum, weight_decay=self.weight_decay, maximize=True
        )
        rows = [{"stage": "unlearn", "epoch": 0, "steps": 0, **self._measure(twin, units, images)}]
        while rows[-1]["accuracy"] > self.until and rows[-1]["epoch"] < self.unlearn_epochs:
            twin.train()
            parts = batches(len(images), self.batch_size, generator)
            for batch in parts:
                part = images.subset(batch)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits_of(twin, to_floats(augment(part.images, generator))), part.labels).backward()
                optimizer.step()
            epoch = rows[-1]["epoch"] + 1
            found = self._measure(twin, units, images)
            if not math.isfinite(found["loss"]):
                raise DivergedError(
                    f"the loss is {found['loss']} after epoch {epoch} of unlearning; "
                    f"try an unlearn_lr below {self.unlearn_lr}"
                )
            rows.append({"stage": "unlearn", "epoch": epoch, "steps": epoch * len(parts), **found})
        check_learned(twin)
        return twin.eval().requires_grad_(False), rows

    @torch.no_grad()
    def _measure(self, model: nn.Module, units: Units, images: Images) -> dict[str, float]:
        """Loss and accuracy, with the batch norms as the masks will meet them; running statistics stay as they are."""
        masked = SoftMasks(model, units, self.batch_statistics)
        ones, generator = (
            torch.ones(masked.count, device=images.images.device),
            torch.Generator().manual_seed(self.seed),
        )
        loss, right, seen = torch.zeros((), device=ones.device), torch.zeros((), device=ones.device), 0
        for batch in batches(len(images), self.batch_size, generator):
            part = images.subset(batch)
            logits = masked(part.floats(), ones)
            loss += F.cross_entropy(logits, part.labels, reduction="sum")
            right += (logits.argmax(1) == part.labels).sum()
            seen += len(batch)
        return {"loss": float(loss) / seen, "accuracy": float(right) / seen}

    def recover(self, objective: Objective, filters: int, images: Images) -> tuple[Tensor, list[Row]]:
        """SGD on the masks alone, from 1, clamped to [0, 1] after each step.

        Returns:
            Masks `[filters]`, and one row an epoch.

        Raises:
            DivergedError: where the loss is not finite.
        """
        masks = torch.ones(filters, device=images.images.device, requires_grad=True)
        optimizer = torch.optim.SGD([masks], self.recover_lr, self.momentum)
        generator, rows = torch.Generator().manual_seed(self.seed), []
        for epoch in range(1, self.recover_epochs + 1):
            losses = []
            for batch in batches(len(images), self.batch_size, generator):
                part = images.subset(batch)
                optimizer.zero_grad(set_to_none=True)
                loss = objective(to_floats(augment(part.images, generator)), part.labels, masks)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    masks.clamp_(0, 1)
                losses.append(loss.detach())
            mean, values = float(torch.stack(losses).mean()), masks.detach()
            if not math.isfinite(mean) or bool(values.isnan().any()):
                raise DivergedError(
                    f"the masks' loss is {mean} in epoch {epoch}; try a recover_lr below {self.recover_lr}"
                )
            sizes = {"mean_mask": float(values.mean()), "least_mask": float(values.min())}
            rows.append({"stage": "recover", "epoch": epoch, "steps": epoch * len(losses), "loss": mean, **sizes})
        return masks.detach(), rows

    def prune(self, model: nn.Module, units: Units, masks: Tensor, held: Images, history: list[Row]) -> Repair:
        """The repair whose gamma is 0 where a mask is at most the threshold that the held-back images allow."""
        threshold, rows = choose_threshold(model, units, masks, self.thresholds, held, self.validation)
        pruned = masks <= (-math.inf if threshold is None else threshold)
        parts = masks.split([unit.filters for unit in units])
        scores = {unit.conv: 1 - part for unit, part in zip(units, parts, strict=True)}
        history = history + [{"stage": "threshold", **row} for row in rows]
        return Repair(shut(model, units, pruned), as_mask(units, pruned), scores, history)
