"""Tune the last part of a pruned network alone: what reaches it is computed once, so a step costs little."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.descent import sgd_steps
from nbtools.defender.learning import answers, at_most, check_learned, divergence, joined
from nbtools.defender.pruning import Mask, hold
from nbtools.networks.above import above, at, last_place

AT_ONCE = 50
"""Images that go through a network at once, where nothing is learned from them: it bounds the memory."""


@dataclass(frozen=True)
class LastStage:
    """A short tuning of the highest part of a network, with the network before pruning as teacher [ours].

    The clean images and a few cropped and flipped copies go once through what lies below. Then the part above learns
    to answer them as the whole network did before it was pruned (distillation). Batch norms keep their running
    statistics, and the mask holds. It is taken back where the answers to the clean images are then no nearer, as a
    mean of the Kullback-Leibler divergence, than before.

    Args:
        share: the place is the highest one that has at least this share of the convolution-BN pairs above it, in
            (0, 1]; see `nbtools.networks.above.last_place`. Above that of a ResNet-18 lies its fourth stage.
        steps: of SGD, at least 1.
        lr: learning rate of the first step, above 0; it falls linearly to 0.
        momentum: SGD momentum, in [0, 1).
        batch_size: images a step, at least 1.
        copies: cropped and flipped copies of each image, 0 or more.
        most: images, at least 1; of more, so many are drawn, since the maps of all of them are kept.
        temperature: divides both networks' logits, above 0.
        seed: of that draw, of copies and batches.

    Raises:
        ValueError: for a value out of its range.
    """

    share: float = 0.25
    steps: int = 40
    lr: float = 1e-3
    momentum: float = 0.9
    batch_size: int = 16
    copies: int = 2
    most: int = 500
    temperature: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.steps, self.batch_size, self.most) >= 1 and self.copies >= 0
        finite = all(0 < value < math.inf for value in (self.lr, self.temperature))  # so that NaN is refused too
        if not (counts and finite and 0 < self.share <= 1 and 0 <= self.momentum < 1):
            raise ValueError(
                "share in (0, 1], steps, batch_size and most >= 1, lr and temperature > 0, momentum in [0, 1) and "
                f"copies >= 0 are needed, got {self}"
            )

    def __call__(self, model: nn.Module, clean: Images, mask: Mask, before: nn.Module) -> list[dict[str, Any]]:
        """Tune in place.

        Args:
            model: the pruned model, in eval mode.
            clean: the defender's images.
            mask: what stays pruned.
            before: the model before pruning, in eval mode; it is not changed.

        Returns:
            Two rows: step 0 and `steps`, gain (mean fall of the clean images' divergence), chosen.
        """
        generator, place = torch.Generator().manual_seed(self.seed), last_place(model, self.share)
        clean = at_most(clean, self.most, generator)
        more = joined(clean, self.copies, generator)
        taught, learned = answers(before, more, AT_ONCE), at(model, place, more, AT_ONCE)
        pupil, same = above(model, place), len(clean)
        weights = list(pupil.parameters())
        was, wanted = [weight.detach().clone() for weight in weights], [weight.requires_grad for weight in weights]
        first = self._distance(pupil, learned[:same], taught[:same])
        try:
            self._tune(pupil, learned, taught, hold(model, mask), generator)
        finally:
            for weight, flag in zip(weights, wanted, strict=True):
                weight.requires_grad_(flag)
        gain = float(first - self._distance(pupil, learned[:same], taught[:same]))
        if not gain > 0:
            with torch.no_grad():
                for weight, old in zip(weights, was, strict=True):
                    weight.copy_(old)
        check_learned(model)
        return [
            {"step": 0, "gain": 0.0, "chosen": not gain > 0},
            {"step": self.steps, "gain": gain, "chosen": gain > 0},
        ]

    @torch.no_grad()
    def _distance(self, pupil: nn.Module, learned: Tensor, taught: Tensor) -> Tensor:
        """How far the answers are from the teacher's, from what reaches the part that is tuned."""
        given = [pupil(part.clone()) for part in learned.split(AT_ONCE)]  # it may change in place what it is given
        return divergence(torch.cat(given), taught, self.temperature)

    def _tune(
        self,
        pupil: nn.Module,
        learned: Tensor,
        taught: Tensor,
        again: Callable[[], None],
        generator: torch.Generator,
    ) -> None:
        """All steps, the mask held after each."""
        pupil.requires_grad_(True)
        go = sgd_steps(list(pupil.parameters()), self.momentum)
        for step in range(self.steps):
            which = torch.randint(len(learned), (self.batch_size,), generator=generator).to(learned.device)
            loss = divergence(pupil(learned[which]), taught[which], self.temperature)
            go(loss, self.lr * (1 - step / self.steps))
            again()
