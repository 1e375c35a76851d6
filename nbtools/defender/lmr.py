"""LMR, logit-margin repulsion: push the suspected class's logit down, in the head alone (CVPR 2026), as summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.head import features, linear_head
from nbtools.defender.learning import answers, batches, check_inputs, check_learned, joined, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate
from nbtools.networks.training import DivergedError, augment, sgd


@dataclass(frozen=True)
class LMR:
    """Find the class that a network falls back on when it forgets, and repel it from all other images' answers.

    1. A copy ascends the clean cross-entropy; the class with the highest mean log-probability is suspected: c.
    2. The head alone minimises, with y an image's class and z its logits,
       1[y != c] CE + repel * relu(z_c - max_{j != c} z_j + m1) 1[y != c] + hold * relu(max_{j != y} z_j - z_y + m2).
    3. The weights of c's logit that moved most are set to 0.
    4. The head is tuned once more, briefly, with what was set to 0 held there.

    Written from public summaries, which give the steps, the loss and its four numbers; training, the share that is set
    to 0 and the passes are ours.

    Args:
        repel: weight of the repulsion, 0 or more.
        hold: weight of the true class's margin, 0 or more.
        repel_margin: m1, by which the suspected class is to stay below the others.
        hold_margin: m2, by which the true class is to stay above the others.
        zeroed: share of the suspected class's weights that is set to 0, in [0, 1).
        ascent_lr: SGD learning rate of the copy's ascent, above 0.
        ascent_epochs: passes of the ascent, at least 1.
        lr: Adam's learning rate of the head, above 0.
        epochs: passes of step 2, at least 1.
        final_epochs: passes of step 4, 0 or more.
        batch_size: images a step, at least 2.
        seed: order and augmentation.

    Raises:
        ValueError: for a value out of its range.
    """

    repel: float = 1.0
    hold: float = 0.25
    repel_margin: float = 3.0
    hold_margin: float = 0.5
    zeroed: float = 0.05
    ascent_lr: float = 0.01
    ascent_epochs: int = 5
    lr: float = 0.001
    epochs: int = 40
    final_epochs: int = 10
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.ascent_epochs, self.epochs) >= 1 and self.final_epochs >= 0 and self.batch_size >= 2
        finite = all(math.isfinite(value) for value in (self.repel_margin, self.hold_margin))
        weights = all(0 <= value < math.inf for value in (self.repel, self.hold))
        rates = all(0 < value < math.inf for value in (self.ascent_lr, self.lr))
        if not (counts and finite and weights and rates and 0 <= self.zeroed < 1):
            raise ValueError(
                "ascent_epochs and epochs >= 1, final_epochs >= 0, batch_size >= 2, finite margins, repel and "
                f"hold >= 0, ascent_lr and lr > 0 and zeroed in [0, 1) are needed, got {self}"
            )

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        Returns:
            A repair whose mask prunes nothing and therefore has no scores; `untuned` is the model as it was given. The
            history begins with the suspected class: stage "suspect", class, log_probability; then one row an epoch:
            stage "repel" or "tune", epoch, loss.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses, or a model without
                a linear layer.
            DivergedError: where a loss or a weight is not finite.
        """
        units = check_inputs(model, clean)
        linear_head(model)
        untuned, twin = (duplicate(model).eval() for _ in range(2))
        means = self.fallen_back_on(model, clean)
        suspect = int(means.argmax())
        history: list[dict[str, Any]] = [
            {"stage": "suspect", "class": suspect, "log_probability": float(means[suspect])}
        ]
        generator = torch.Generator().manual_seed(self.seed)
        # the body stands still: what it says of the images and of their cropped and flipped copies is computed once
        seen = joined(clean, 1, generator)
        given, labels = features(twin, seen), seen.labels
        head = linear_head(twin)
        start = head.weight.detach().clone()
        kept = torch.ones_like(start)
        history += self._tune("repel", self.epochs, head, given, labels, suspect, kept, generator)
        with torch.no_grad():
            moved = (head.weight[suspect] - start[suspect]).abs()
            kept[suspect, moved.topk(int(self.zeroed * len(moved))).indices] = 0
            head.weight.mul_(kept)
        history += self._tune("tune", self.final_epochs, head, given, labels, suspect, kept, generator)
        check_learned(twin)
        steps = (self.epochs + self.final_epochs) * len(batches(len(labels), self.batch_size, generator))
        mask = nothing_pruned(units, clean.images.device)
        return Repair(twin, mask, {}, history, untuned=untuned, tuned_steps=steps)

    def fallen_back_on(self, model: nn.Module, clean: Images) -> Tensor:
        """Mean log-probability of each class when a copy has ascended the clean loss: `[classes]`.

        Batch norms keep their statistics. The ascent ends before a pass whose loss would not be finite.
        """
        twin = duplicate(model).eval().requires_grad_(True)
        optimizer = sgd(twin.parameters(), self.ascent_lr, maximize=True)
        generator = torch.Generator().manual_seed(self.seed)
        means = F.log_softmax(answers(twin, clean).double(), 1).mean(0)
        for _ in range(self.ascent_epochs):
            for batch in batches(len(clean), self.batch_size, generator):
                part = clean.subset(batch)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(twin(to_floats(augment(part.images, generator))), part.labels).backward()
                optimizer.step()
            now = F.log_softmax(answers(twin, clean).double(), 1).mean(0)
            if not bool(torch.isfinite(now).all()):
                break
            means = now
        return means

    def loss(self, logits: Tensor, labels: Tensor, suspect: int) -> Tensor:
        """The mean of step 2's loss.

        Args:
            logits: `[b, classes]`.
            labels: `[b]`.
            suspect: c.
        """
        others = (labels != suspect).to(logits.dtype)
        rivals = logits.scatter(1, labels[:, None], -math.inf).amax(1)
        true = logits.gather(1, labels[:, None])[:, 0]
        without = torch.cat([logits[:, :suspect], logits[:, suspect + 1 :]], 1).amax(1)
        repelled = (logits[:, suspect] - without + self.repel_margin).relu()
        held = (rivals - true + self.hold_margin).relu()
        entropy = F.cross_entropy(logits, labels, reduction="none")
        return (others * (entropy + self.repel * repelled) + self.hold * held).mean()

    def _tune(
        self,
        stage: str,
        epochs: int,
        head: nn.Linear,
        given: Tensor,
        labels: Tensor,
        suspect: int,
        kept: Tensor,
        generator: torch.Generator,
    ) -> list[dict[str, Any]]:
        """Adam on the head alone; weights where `kept` is 0 stay 0. One row an epoch."""
        weights = [head.weight, *([head.bias] if head.bias is not None else [])]
        wanted = [weight.requires_grad for weight in weights]
        for weight in weights:
            weight.requires_grad_(True)
        optimizer, rows = torch.optim.Adam(weights, self.lr), list[dict[str, Any]]()
        for epoch in range(1, epochs + 1):
            losses = []
            for batch in batches(len(labels), self.batch_size, generator):
                batch = batch.to(given.device)
                loss = self.loss(head(given[batch]), labels[batch], suspect)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    head.weight.mul_(kept)
                losses.append(loss.detach())
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise DivergedError(f"the head's loss is {mean} in epoch {epoch}; try an lr below {self.lr}")
            rows.append({"stage": stage, "epoch": epoch, "loss": mean})
        optimizer.zero_grad(set_to_none=True)
        for weight, flag in zip(weights, wanted, strict=True):
            weight.requires_grad_(flag)
        return rows
