"""NFT, neural mask fine-tuning: filters fade under MixUp (Karim et al., ECCV 2024), as summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import batches, check_inputs, check_learned, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.defender.soft_masks import SoftMasks
from nbtools.networks.graph import duplicate
from nbtools.networks.training import DivergedError, augment
from nbtools.networks.units import layers_of


@dataclass(frozen=True)
class NFT:
    """Learn one factor in [0, 1] a filter on blends of clean images; every weight stands still.

    Minimises the cross-entropy of blends u x + (1 - u) x', u drawn from [0, 1] for each step, with both labels in
    their shares, plus penalty * || 1 - m ||_1, m the factors, at first 1. A blended image is far from those that the
    backdoor's filters were trained on, so that they lose more than others. Written from public summaries, which give
    the mask, MixUp and the l1 term; the numbers, the uniform u, and that the factors stand on gamma, are ours.

    Args:
        epochs: passes over the images, at least 1.
        lr: SGD learning rate of the factors, above 0.
        momentum: in [0, 1).
        penalty: on the distance of the factors from one, 0 or more; for the sum over all filters.
        batch_size: images a step, at least 2.
        seed: order, augmentation and blends.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int = 100
    lr: float = 0.05
    momentum: float = 0.9
    penalty: float = 1e-4
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not 0 <= self.momentum < 1 or not 0 <= self.penalty < math.inf:
            raise ValueError(
                f"epochs >= 1, batch_size >= 2, momentum in [0, 1) and penalty >= 0 are needed, got {self}"
            )
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        Returns:
            The model whose gammas are multiplied by the factors; mask prunes no filter; scores are 1 - the factors;
            history has one row an epoch: epoch, steps, loss, mean_mask, least_mask.

        Raises:
            ValueError: see `nbtools.defender.learning.check_inputs`.
            DivergedError: where a loss or a weight is not finite.
        """
        units = check_inputs(model, clean)
        masked = SoftMasks(model, units, batch_statistics=False)
        factors = torch.ones(masked.count, device=clean.images.device, requires_grad=True)
        optimizer = torch.optim.SGD([factors], self.lr, self.momentum)
        generator, history = torch.Generator().manual_seed(self.seed), list[dict[str, Any]]()
        for epoch in range(1, self.epochs + 1):
            losses = []
            for batch in batches(len(clean), self.batch_size, generator):
                part = clean.subset(batch)
                inputs = to_floats(augment(part.images, generator))
                others = torch.randperm(len(inputs), generator=generator).to(inputs.device)
                share = float(torch.rand((), generator=generator))
                logits = masked(share * inputs + (1 - share) * inputs[others], factors)
                loss = share * F.cross_entropy(logits, part.labels)
                loss = loss + (1 - share) * F.cross_entropy(logits, part.labels[others])
                loss = loss + self.penalty * (1 - factors).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    factors.clamp_(0, 1)
                losses.append(loss.detach())
            mean, values = float(torch.stack(losses).mean()), factors.detach()
            if not math.isfinite(mean) or bool(values.isnan().any()):
                raise DivergedError(f"the masks' loss is {mean} in epoch {epoch}; try an lr below {self.lr}")
            sizes = {"mean_mask": float(values.mean()), "least_mask": float(values.min())}
            history.append({"epoch": epoch, "steps": epoch * len(losses), "loss": mean, **sizes})
        twin, parts = duplicate(model).eval(), masked.by_layer(factors.detach())
        with torch.no_grad():
            for unit, _, bn in layers_of(twin, units):
                bn.weight.mul_(parts[unit.conv])
        check_learned(twin)
        scores = {conv: 1 - part for conv, part in parts.items()}
        return Repair(twin, nothing_pruned(units, clean.images.device), scores, history)
