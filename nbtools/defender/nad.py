"""NAD, neural attention distillation: a student that looks where a fine-tuned teacher looks (arXiv 2101.05930)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import Epochs, check_inputs, logits_of, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate

RECIPE = Epochs(lr=0.01, final_lr=0.01, nesterov=True, weight_decay=1e-4, batch_size=64, cutout=9)
"""What teacher and student have in common: the public code's SGD; that the rate stays and the hole's side [ours]."""


@dataclass(frozen=True)
class NAD:
    """Fine-tune a teacher, then train the model to pay attention where the teacher does (Li et al., ICLR 2021).

    L = cross-entropy + sum_l beta_l * mean over the images of || A_l(student) - A_l(teacher) ||^2, where A_l(x) = sum
    over channels of |F_l(x)|^p is the map of stage l, flattened and divided by its l2 norm + 1e-6. Student and teacher
    begin as copies of the model that is to be repaired. Layers, epochs, SGD settings, crop, flip and cutout are those
    of the public code [code]; batch norms of the student follow its batches, the teacher stands still in eval mode.

    The public code takes the mean over the positions of a map as well, with betas of 500, 1000 and 1000 for maps of
    16 x 16, 8 x 8 and 4 x 4. Here these numbers of positions divide its betas: the same loss on such maps, and no
    stronger a pull on smaller ones, where the mean over few positions would tear the network apart [ours].

    Args:
        teacher: how the teacher is fine-tuned.
        student: how the student is trained.
        betas: weight of each layer's term, 0 or more.
        layers: names of the modules whose outputs `[b, c, h, w]` are compared.
        power: p, at least 1.
        first_lr: the student's learning rate in its first two epochs, above 0 (0.1 in the public code); None uses the
            student's own throughout [ours].

    Raises:
        ValueError: for a value out of its range.
    """

    teacher: Epochs = field(default_factory=lambda: replace(RECIPE, epochs=10))
    student: Epochs = field(default_factory=lambda: replace(RECIPE, epochs=20))
    betas: tuple[float, ...] = (500 / 256, 1000 / 64, 1000 / 16)
    layers: tuple[str, ...] = ("layer2", "layer3", "layer4")
    power: float = 2.0
    first_lr: float | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(self.betas) != len(self.layers) or not all(0 <= b < math.inf for b in self.betas):
            raise ValueError(
                f"one beta of 0 or more for each of at least one layer is needed, got betas={self.betas} for "
                f"layers={self.layers}"
            )
        if not 1 <= self.power < math.inf:
            raise ValueError(f"power must be 1 or more, got {self.power}")
        if self.first_lr is not None and not 0 < self.first_lr < math.inf:
            raise ValueError(f"first_lr must be above 0, or None for the student's own, got {self.first_lr}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Train a copy of `model`.

        Returns:
            A repair whose mask prunes nothing and therefore has no scores; `untuned` is the model as it was given, and
            `tuned_steps` are the student's. A row of the history says in "phase" whose epoch it is.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses, or layers that
                the model does not have or that give no maps.
            DivergedError: where a training diverges.
        """
        units = check_inputs(model, clean)
        untuned, teacher, student = (duplicate(model).eval() for _ in range(3))
        self._check_layers(untuned, clean)
        history: list[dict[str, Any]] = [{"phase": "teacher", **row} for row in self.teacher(teacher, clean)]
        with outputs(teacher, self.layers) as taught, outputs(student, self.layers) as learned:

            def loss(inputs: Tensor, labels: Tensor) -> Tensor:
                with torch.no_grad():
                    teacher(inputs)
                entropy = F.cross_entropy(logits_of(student, inputs), labels)
                return entropy + self.distance(learned, taught)

            rows = self.student(student, clean, loss, lr_of=self._lr)
        history += [{"phase": "student", **row} for row in rows]
        mask = nothing_pruned(units, clean.images.device)
        return Repair(student, mask, {}, history, untuned=untuned, tuned_steps=rows[-1]["steps"])

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """The second term of L, of layer name to output `[b, c, h, w]`."""
        terms = [
            beta * (attention(student[name], self.power) - attention(teacher[name], self.power)).square().sum(1).mean()
            for name, beta in zip(self.layers, self.betas, strict=True)
        ]
        return torch.stack(terms).sum()

    def _lr(self, epoch: int) -> float:
        return self.first_lr if self.first_lr is not None and epoch < 2 else self.student.lr_at(epoch)

    @torch.no_grad()
    def _check_layers(self, model: nn.Module, clean: Images) -> None:
        missing = sorted(set(self.layers) - {name for name, _ in model.named_modules() if name})
        if missing:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"{type(model).__name__} has no {', '.join(missing)}; its parts are {children}: "
                "name those whose outputs NAD shall compare in `layers`, with a beta for each"
            )
        with outputs(model, self.layers) as seen:
            model(to_floats(clean.images[:1]))
        for name in self.layers:
            shape = list(seen[name].shape) if name in seen else None
            if shape is None or len(shape) != 4 or shape[2] * shape[3] < 2:
                raise ValueError(
                    f"{name} gives {shape or 'nothing'} where a map [n, channels, h, w] of at least two positions is "
                    "needed: over a single position attention is 1 whatever the weights are, and teaches nothing; "
                    "name layers before the pooling, or use larger images"
                )


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """Where a layer looks: sum over channels of |F|^p, divided by its l2 norm + 1e-6.

    Args:
        maps: `[b, c, h, w]`.
        power: p.

    Returns:
        `[b, h * w]`, 0 or more.
    """
    energy = maps.abs().pow(power).sum(1).flatten(1)
    return energy / (energy.norm(dim=1, keepdim=True) + 1e-6)


@contextmanager
def outputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While the context lasts, layer name to what it gave in the latest forward pass, part of the autograd graph."""
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            given[name] = output

        return look

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()
