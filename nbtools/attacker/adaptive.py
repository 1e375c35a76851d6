"""Attackers who know the score: what they add to the loss of training so that it does not find them [ours]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbtools.attacker.triggers import Trigger
from nbtools.networks.training import Penalty
from nbtools.networks.units import Unit, behind_bn, layers_of, prunable_units
from nbtools.values import build
from nbtools.wording import known

EPSILON = 0.01
"""The score's own, `nbtools.defender.score.EPSILON`: these attackers have read the paper."""

SHOWN = 4
"""One image in so many of each batch is what a penalty is computed on, once as it is and once with the trigger."""


@dataclass(frozen=True)
class Adaptive(ABC):
    """An attacker who changes the training, too; its `repr` is a complete record.

    Args:
        weight: of the penalty, beside the cross-entropy; above 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}; without a penalty leave the attacker out")
        object.__setattr__(self, "weight", float(self.weight))  # 1 and 1.0 are one attacker, and one model

    @abstractmethod
    def of_layer(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, clean: Tensor, moved: Tensor) -> Tensor:
        """A layer's part of the penalty, a scalar.

        Args:
            conv: the convolution.
            bn: its batch norm.
            clean: maps of clean images behind BN and ReLU, `[images, filters, height, width]`.
            moved: by how much the trigger moves each filter's map, mean Frobenius norm, `[filters]`.
        """

    def on(self, model: nn.Module, trigger: Trigger) -> Penalty:
        """The penalty for training this model with this trigger: `weight` times the mean over the layers."""
        layers = layers_of(model, prunable_units(model))

        def penalty(images: Tensor) -> Tensor:
            clean = images[: -(-len(images) // SHOWN)]
            with torch.no_grad():
                both = torch.cat([clean, trigger(clean)])
            total = torch.zeros((), device=images.device)
            for conv, bn, maps in _maps(model, layers, both):
                with torch.autocast(images.device.type, enabled=False):
                    before, after = maps.float().chunk(2)
                    total = total + self.of_layer(conv, bn, before, activation(after - before))
            return self.weight * total / len(layers)

        return penalty


@dataclass(frozen=True)
class Hide(Adaptive):
    """Make the filters that carry the trigger look like their neighbours.

    Mean over layers of sum_i w_i max(0, log S_i - mean log S), where w_i is filter i's share of what the trigger moves
    in its layer (no gradient flows through it), and S the suspiciousness score without saliency, which would ask for
    gradients of gradients: spectral norms fall, activation norms and correlations rise where the trigger sits. To look
    like the average is enough; without the max the penalty has no floor, and training forgets the images for it.
    """

    def of_layer(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, clean: Tensor, moved: Tensor) -> Tensor:
        """See `Adaptive.of_layer`."""
        score = sigma(conv, bn).clamp_min(1e-12).log()
        for term in (activation(clean), correlation(clean)):
            score = score - 0.5 * (term / term.mean().clamp_min(1e-12) + EPSILON).log()
        return (share(moved).detach() * (score - score.mean()).clamp_min(0)).sum()


@dataclass(frozen=True)
class Spread(Adaptive):
    """Spread what the trigger moves over all filters of a layer, so that none stands out.

    Mean over layers of log(n sum_i w_i^2), w_i as in `Hide` and n the layer's filters: 0 where all move alike, log n
    where one filter carries everything.
    """

    def of_layer(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, clean: Tensor, moved: Tensor) -> Tensor:
        """See `Adaptive.of_layer`."""
        return (len(moved) * share(moved).square().sum()).clamp_min(1e-12).log()


ADAPTIVE: dict[str, type] = {"hide": Hide, "spread": Spread}


def make_adaptive(name: str, **options: float) -> Adaptive:
    """An attacker by name.

    Raises:
        ValueError: for an unknown name or option; the message lists the known ones.
    """
    if name not in ADAPTIVE:
        raise ValueError(known("adaptive attacker", name, ADAPTIVE))
    return build(ADAPTIVE[name], options, name)


def share(moved: Tensor) -> Tensor:
    """Each filter's part of the layer's sum: `[filters]`, not negative, summing to 1 (to 0 where nothing moves)."""
    return moved / moved.sum().clamp_min(1e-12)


def sigma(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """`nbtools.defender.components.spectral_norms` of one layer, with its gradient: float32 `[filters]`."""
    weight = conv.weight.float().permute(0, 2, 3, 1).flatten(1, 2)
    gram = weight @ weight.transpose(1, 2)
    largest = gram[:, 0, 0] if gram.shape[-1] == 1 else torch.linalg.eigvalsh(gram)[:, -1]
    assert bn.running_var is not None
    return largest.clamp_min(1e-12).sqrt() * bn.weight.float().abs() / (bn.running_var + bn.eps).sqrt()


def activation(maps: Tensor) -> Tensor:
    """`nbtools.defender.components.MapStatistics.activation_norm` of one batch, with its gradient: `[filters]`."""
    return maps.float().square().sum((2, 3)).add(1e-12).sqrt().mean(0)


def correlation(maps: Tensor) -> Tensor:
    """`nbtools.defender.components.MapStatistics.correlation` of a batch, with its gradient: `[filters]`, in [0, 1]."""
    places = maps.float().permute(0, 2, 3, 1).flatten(0, 2)  # [images * height * width, filters]
    centred = places - places.mean(0)
    products = centred.T @ centred
    norms = products.diagonal().add(1e-12).sqrt()
    matrix = (products / norms / norms[:, None]).abs()
    return (matrix.sum(1) - matrix.diagonal()) / max(len(matrix) - 1, 1)


def _maps(
    model: nn.Module, layers: list[tuple[Unit, nn.Conv2d, nn.BatchNorm2d]], images: Tensor
) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]]:
    """Convolution, batch norm and the maps behind BN and ReLU, layer by layer, in the autograd graph.

    Running statistics stay as they are: half of these images carry the trigger.
    """
    seen: dict[nn.Module, Tensor] = {}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [bn.momentum for bn in norms]

    def see(bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[bn] = behind_bn(bn, inputs[0], output).relu()  # at once: a residual sum is added in place

    handles = [bn.register_forward_hook(see) for _, _, bn in layers]
    try:
        for bn in norms:
            bn.momentum = 0.0
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for bn, momentum in zip(norms, momenta, strict=True):
            bn.momentum = momentum
    for _, conv, bn in layers:
        yield conv, bn, seen[bn]
