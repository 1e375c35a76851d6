"""Adversarial neuron pruning (Wu & Wang, arXiv 2110.14430): what collapses under small noise on BN is pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import check_inputs
from nbtools.defender.repair import Repair, measured
from nbtools.defender.soft_masks import SoftMasks, as_mask, shut
from nbtools.defender.threshold_sweep import check_thresholds, choose_threshold
from nbtools.defender.validation import Validation
from nbtools.networks.training import DivergedError, augment

LOOK = 100
"""Iterations between two rows of the history."""


@dataclass(frozen=True)
class ANP:
    """Learn one mask a filter that holds against adversarial noise on BN, prune where it is small (arXiv 2110.14430).

    Every gamma becomes gamma * (m + d), every beta becomes beta * (1 + xi). Each iteration draws d and xi uniformly
    from [-epsilon, epsilon], takes one signed ascent step of size epsilon on the cross-entropy, and then one SGD step
    on m alone, clamped to [0, 1], down
    a * L(m, no noise) + (1 - a) * L(m, noise). Where m <= t the original model's gamma becomes 0; beta stays [code].

    From the public code: crop and flip, batch statistics, pruning at t = 0, 0.05, ... Ours: t is chosen by held-back
    clean images, from the gentlest to the strongest (the public code prints what each t does to the poisoned images
    and leaves the choice to the reader); a batch is drawn without replacement, so it never holds an image twice; only
    batch norms that follow a convolution are masked; convolutions are frozen, since their gradients are never used.

    Args:
        epsilon: largest relative noise on gamma and beta, 0 or more.
        share: the paper's a, weight of the loss without noise, in [0, 1].
        lr: SGD learning rate of the masks.
        momentum: SGD momentum, in [0, 1).
        iterations: steps on the masks, at least 1.
        batch_size: images a step, or all where there are fewer; at least 2.
        thresholds: values of t to choose from, in [0, 1).
        validation: how many clean images are held back for the choice, and what it may cost.
        batch_statistics: batch norms normalise by the batch [code], else by their running statistics, as when the
            model is used.
        projected: the noise is put back into [-epsilon, epsilon] after its step, the set that the paper maximises
            over; False is the public code, whose noise reaches 2 * epsilon.
        seed: batches, augmentation and noise.

    Raises:
        ValueError: for a value out of its range.
    """

    epsilon: float = 0.4
    share: float = 0.2
    lr: float = 0.2
    momentum: float = 0.9
    iterations: int = 2000
    batch_size: int = 128
    thresholds: tuple[float, ...] = tuple(k / 20 for k in range(20))
    validation: Validation = field(default_factory=Validation)
    batch_statistics: bool = True
    projected: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        weights = 0 <= self.epsilon < math.inf and 0 <= self.share <= 1
        steps = 0 < self.lr < math.inf and 0 <= self.momentum < 1 and self.iterations >= 1 and self.batch_size >= 2
        if not weights or not steps:
            raise ValueError(
                "epsilon >= 0, share in [0, 1], lr > 0, momentum in [0, 1), iterations >= 1 and batch_size >= 2 are "
                f"needed, got {self}"
            )
        check_thresholds(self.thresholds)
        if not all(0 <= value < 1 for value in self.thresholds):
            raise ValueError(f"thresholds must lie in [0, 1): at 1 every filter is pruned; got {self.thresholds}")

    def masks(self, model: nn.Module, clean: Images) -> tuple[SoftMasks, Tensor, list[dict[str, Any]]]:
        """Learn the masks, and prune nothing.

        Args:
            model: is not changed.
            clean: images to learn from, all of them.

        Returns:
            The masked model, m in [0, 1] `[filters]` in the order of its units, and one row every 100 iterations and
            at the end: kind ("iteration"), iteration, loss (mean since the row before), mean_mask, at_zero (share of
            masks that are 0).

        Raises:
            ValueError: as `check_inputs`.
            DivergedError: where the loss or a mask is not finite.
        """
        soft = SoftMasks(model, check_inputs(model, clean), self.batch_statistics)
        generator = torch.Generator().manual_seed(self.seed)
        m = torch.ones_like(soft.gamma).requires_grad_(True)
        optimizer = torch.optim.SGD([m], self.lr, self.momentum)
        rows: list[dict[str, Any]] = []
        losses: list[Tensor] = []
        for iteration in range(1, self.iterations + 1):
            chosen = torch.randperm(len(clean), generator=generator)[: self.batch_size]
            # a single image comes twice: a batch norm can't take the statistics of one image's 1x1 map
            part = clean.subset(chosen if len(chosen) > 1 else chosen.repeat(2))
            inputs = to_floats(augment(part.images, generator))
            d, xi = self._noise(soft, m.detach(), inputs, part.labels, generator)
            calm = F.cross_entropy(soft(inputs, m), part.labels)
            shaken = F.cross_entropy(soft(inputs, m + d, 1 + xi), part.labels)
            loss = self.share * calm + (1 - self.share) * shaken
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                m.clamp_(0, 1)
            losses.append(loss.detach())
            if iteration % LOOK == 0 or iteration == self.iterations:
                rows.append(self._row(iteration, torch.stack(losses), m.detach()))
                losses = []
        return soft, m.detach(), rows

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`: masks from most of the clean images, the threshold from those held back.

        Returns:
            scores are 1 - m; history is that of `masks`, then one row a threshold: kind ("threshold"), threshold,
            pruned, held_back (accuracy in [0, 1]), chosen.

        Raises:
            ValueError: as `check_inputs`.
            DivergedError: as `masks`.
        """
        units = check_inputs(model, clean)
        learn, held = self.validation.split(clean)
        soft, m, rows = self.masks(model, learn)
        chosen, swept = choose_threshold(model, units, m, self.thresholds, held, self.validation)
        pruned = m <= (-math.inf if chosen is None else chosen)
        history = rows + [{"kind": "threshold", **row} for row in swept]
        return Repair(shut(model, units, pruned), as_mask(units, pruned), soft.by_layer(1 - m), history)

    def _noise(self, soft: SoftMasks, m: Tensor, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The adversarial d and xi: `[2, filters]`."""
        start = self.epsilon * (2 * torch.rand(2, soft.count, generator=generator) - 1).to(m)
        start.requires_grad_(True)
        loss = F.cross_entropy(soft(inputs, m + start[0], 1 + start[1]), labels)
        noise = start.detach() + self.epsilon * torch.autograd.grad(loss, start)[0].sign()
        return noise.clamp(-self.epsilon, self.epsilon) if self.projected else noise

    def _row(self, iteration: int, losses: Tensor, m: Tensor) -> dict[str, Any]:
        loss = float(losses.mean())
        if not math.isfinite(loss) or not bool(m.isfinite().all()):
            raise DivergedError(
                f"the masks' loss is {loss} at iteration {iteration}; a lower lr than {self.lr}, or a lower epsilon "
                f"than {self.epsilon}?"
            )
        at_zero = float((m == 0).float().mean())
        return {
            "kind": "iteration",
            "iteration": iteration,
            "loss": loss,
            "mean_mask": float(m.mean()),
            "at_zero": at_zero,
        }
