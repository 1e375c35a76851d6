"""FT-SAM: fine-tuning with sharpness-aware minimisation (Zhu et al., ICCV 2023, arXiv 2304.11823), as summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.learning import Epochs, check_inputs, logits_of, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate


@dataclass(frozen=True)
class FTSAM:
    """Fine-tune towards weights that answer well in their whole neighbourhood, each weight in its own scale.

    Each step first moves the weights uphill, by rho * |w|^2 g / || |w| g ||, with g the gradient of the cross-entropy;
    the gradient found there moves the weights from where they were. A backdoor's filters have large weights, which
    plain fine-tuning hardly moves. Written from public summaries, which give the step and rho; the epochs, and that
    every weight is scaled by itself, are ours.

    Args:
        rho: length of the step uphill, 0 or more; 0 is plain fine-tuning.
        tune: the training.

    Raises:
        ValueError: for a value out of its range.
    """

    rho: float = 2.0
    tune: Epochs = field(default_factory=lambda: Epochs(epochs=50))

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"rho must be 0 or more, got {self.rho}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Tune a copy of `model`.

        Returns:
            A repair whose mask prunes nothing and therefore has no scores; `untuned` is the model as it was given.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses.
            DivergedError: where the training diverges.
        """
        units = check_inputs(model, clean)
        twin, untuned = duplicate(model), duplicate(model).eval()
        weights = list(twin.parameters())
        norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
        here: list[Tensor] = []

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                F.cross_entropy(logits_of(twin, inputs), labels), weights, allow_unused=True, materialize_grads=True
            )
            here[:] = [weight.detach().clone() for weight in weights]
            with torch.no_grad():
                for weight, step in zip(weights, uphill(here, gradients, self.rho), strict=True):
                    weight.add_(step)
            momenta = [norm.momentum for norm in norms]
            for norm in norms:  # the statistics follow the batches where the weights are, once a step
                norm.momentum = 0.0
            value = F.cross_entropy(logits_of(twin, inputs), labels)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            return value

        @torch.no_grad()
        def back() -> None:
            for weight, value in zip(weights, here, strict=True):
                weight.copy_(value)

        rows = self.tune(twin, clean, loss, before_step=back)
        mask = nothing_pruned(units, clean.images.device)
        return Repair(twin, mask, {}, rows, untuned=untuned, tuned_steps=rows[-1]["steps"])


def uphill(weights: list[Tensor], gradients: tuple[Tensor, ...], rho: float) -> list[Tensor]:
    """The step that raises the loss most, to first order, among steps e with || e / |w| || <= rho.

    Args:
        weights: any shapes.
        gradients: of the loss, the same shapes.
        rho: 0 or more.

    Returns:
        rho * |w|^2 g / || |w| g ||, the same shapes; zeros where every gradient is zero.
    """
    scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    length = torch.stack([part.norm() for part in scaled]).norm().clamp_min(1e-12)
    return [rho * weight.abs() * part / length for weight, part in zip(weights, scaled, strict=True)]
