"""Adversarial weight masking (Chai & Chen, arXiv 2207.04497): weights that a universal perturbation leans on fade."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nbtools.data.images import Images
from nbtools.defender.learning import check_inputs, check_learned, joined, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate
from nbtools.networks.training import DivergedError
from nbtools.networks.units import Units

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class AWM:
    """Fade the convolution weights that a universal perturbation of clean images relies on (arXiv 2207.04497).

    Every convolution weight has a factor m in [0, 1], at first 1; all else stands still, batch norms in eval mode. A
    round first makes one perturbation delta for all images: SGD from zero that ascends the cross-entropy against the
    model's own answers, scaled to an l1 norm of at most tau. Then Adam moves m down
    a * L(x) + (1 - a) * L(clip(x + delta)) + c * ||m||_1, clamped to [0, 1] after each step. No filter is pruned.

    From the public code: numbers, the perturbation's start at zero in each round, the falling learning rate, no
    augmentation. Ours: passes over the images in new orders (the public code draws with replacement and leaves the
    rest of a pass out), and the images are the defender's (the public code takes them from the test set).

    Args:
        rounds: outer rounds, at least 1.
        passes: over the images, both for the perturbation and for the masks of each round; at least 1.
        share: the paper's a, weight of the loss on clean images, in [0, 1].
        tau: largest l1 norm of the perturbation, over pixels and channels in [0, 1]; 0 or more.
        penalty: the paper's c, on the sum of the masks; 0 or more.
        lr: Adam's learning rate in the first round.
        decay: factor on the learning rate after each round [code], in (0, 1].
        ascent: SGD learning rate of the perturbation.
        batch_size: images a step, at least 1.
        copies: augmented copies of each image that are added to the images, once; 0 adds none.
        seed: order and copies.

    Raises:
        ValueError: for a value out of its range.
    """

    rounds: int = 20
    passes: int = 5
    share: float = 0.9
    tau: float = 1000.0
    penalty: float = 1e-8
    lr: float = 0.01
    decay: float = 0.9
    ascent: float = 10.0
    batch_size: int = 128
    copies: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.rounds, self.passes, self.batch_size) >= 1 and self.copies >= 0
        numbers = all(0 <= value < math.inf for value in (self.tau, self.penalty, self.lr, self.ascent))
        if not counts or not numbers or not self.lr > 0 or not 0 <= self.share <= 1 or not 0 < self.decay <= 1:
            raise ValueError(
                "rounds, passes and batch_size >= 1, copies >= 0, lr > 0, tau, penalty and ascent >= 0, share in "
                f"[0, 1] and decay in (0, 1] are needed, got {self}"
            )

    @classmethod
    def few(cls, seed: int = 0) -> AWM:
        """For ten images, one a class [code]: nine augmented copies of each, a = 0.99, tau = 100, batches of 32.

        The copies are cropped and flipped [ours]; the public code also resizes its crops.
        """
        return cls(share=0.99, tau=100.0, batch_size=32, copies=9, seed=seed)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        Returns:
            The model's convolution weights are multiplied by their masks; mask prunes no filter; scores are the means
            of 1 - m over each filter's weights; history has one row a round: round, lr, loss (mean over its steps),
            norm (l1, of delta), changed (share of the images whose class delta changes before the masks move),
            mean_mask.

        Raises:
            ValueError: as `check_inputs`.
            DivergedError: where a perturbation, a loss or a weight is not finite.
        """
        units = check_inputs(model, clean)
        twin = duplicate(model).eval()
        masks, history = self.masks(twin, units, clean)
        with torch.no_grad():
            for name, mask in masks.items():
                twin.get_parameter(name).mul_(mask)
        check_learned(twin)
        scores = {unit.conv: 1 - masks[f"{unit.conv}.weight"].flatten(1).mean(1) for unit in units}
        return Repair(twin, nothing_pruned(units, clean.images.device), scores, history)

    def masks(self, model: nn.Module, units: Units, clean: Images) -> tuple[Weights, list[dict[str, Any]]]:
        """Learn the masks.

        Args:
            model: in eval mode; it is not changed.
            units: name all its convolutions, those without a batch norm of their own too.
            clean: the defender's images.

        Returns:
            Weight name to its masks, of the weight's shape, and the history.

        Raises:
            DivergedError: where a perturbation or a loss is not finite.
        """
        frozen = duplicate(model).requires_grad_(False)
        names = [f"{conv}.weight" for conv in (*(unit.conv for unit in units), *units.without_bn)]
        weights = {name: frozen.get_parameter(name) for name in names}
        masks = {name: torch.ones_like(weight).requires_grad_(True) for name, weight in weights.items()}
        optimizer = torch.optim.Adam(list(masks.values()), self.lr)
        generator = torch.Generator().manual_seed(self.seed)
        inputs, labels = self._examples(clean, generator)
        history: list[dict[str, Any]] = []
        for number in range(1, self.rounds + 1):
            optimizer.param_groups[0]["lr"] = lr = self.lr * self.decay ** (number - 1)
            with torch.no_grad():
                faded = {name: weight * masks[name] for name, weight in weights.items()}
            delta, changed = self._perturbation(frozen, faded, inputs, generator)
            losses = []
            for batch in self._batches(len(labels), generator):
                learned = {name: weight * masks[name] for name, weight in weights.items()}
                loss = self._loss(frozen, learned, inputs[batch], labels[batch], delta)
                loss = loss + self.penalty * torch.stack([mask.sum() for mask in masks.values()]).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for mask in masks.values():
                        mask.clamp_(0, 1)
                losses.append(loss.detach())
            row = {
                "round": number,
                "lr": lr,
                "loss": float(torch.stack(losses).mean()),
                "norm": float(delta.abs().sum()),
            }
            if not math.isfinite(row["loss"] + row["norm"]):
                raise DivergedError(f"the masks' training diverged: {row}; a lower lr than {self.lr}?")
            mean = torch.cat([mask.detach().flatten() for mask in masks.values()]).mean()
            history.append({**row, "changed": changed, "mean_mask": float(mean)})
        return {name: mask.detach() for name, mask in masks.items()}, history

    def _examples(self, clean: Images, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All images as floats, their augmented copies behind them, and the labels of both."""
        seen = joined(clean, self.copies, generator)
        return seen.floats(), seen.labels

    def _batches(self, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Indices of all passes of one round."""
        for _ in range(self.passes):
            yield from torch.randperm(count, generator=generator).split(self.batch_size)

    def _perturbation(
        self, model: nn.Module, weights: Weights, inputs: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """The round's delta, `[1, 3, h, w]`, and the share of images whose class it changes."""
        with torch.no_grad():
            answers = torch.cat([_logits(model, weights, x).argmax(1) for x in inputs.split(self.batch_size)])
        delta = torch.zeros_like(inputs[:1])
        for batch in self._batches(len(inputs), generator):
            delta.requires_grad_(True)
            loss = F.cross_entropy(_logits(model, weights, inputs[batch] + delta), answers[batch])
            (gradient,) = torch.autograd.grad(loss, delta)
            delta = delta.detach() + self.ascent * gradient
        delta = delta * (self.tau / delta.abs().sum().clamp_min(1e-12)).clamp_max(1)
        with torch.no_grad():
            shaken = [_logits(model, weights, (x + delta).clamp(0, 1)).argmax(1) for x in inputs.split(self.batch_size)]
        return delta, float((torch.cat(shaken) != answers).float().mean())

    def _loss(self, model: nn.Module, weights: Weights, inputs: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
        """Cross-entropy with and without delta, in their shares."""
        # one pass for both: with frozen statistics no image of a batch depends on another
        both = torch.cat([inputs, (inputs + delta).clamp(0, 1)])
        calm, shaken = _logits(model, weights, both).chunk(2)
        return self.share * F.cross_entropy(calm, labels) + (1 - self.share) * F.cross_entropy(shaken, labels)


def _logits(model: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    return functional_call(model, weights, (inputs,))
