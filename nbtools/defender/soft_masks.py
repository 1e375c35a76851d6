"""Soft masks over filters: a factor in [0, 1] on each filter's batch norm, learned while every weight stands still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nbtools.defender.pruning import Mask
from nbtools.networks.graph import duplicate
from nbtools.networks.units import Units, layers_of


class SoftMasks:
    """One factor a filter, on gamma; convolutions and all other weights are frozen, so no gradient is made for them.

    Args:
        model: the model to be masked; a copy of it is used.
        units: its convolution-BN pairs; their filters lie in one vector, in the order of the units.
        batch_statistics: batch norms normalise by the batch, as in the public code of ANP and RNP; else by their
            running statistics, as when the model is used. Running statistics are never moved.
    """

    def __init__(self, model: nn.Module, units: Units, batch_statistics: bool = True) -> None:
        self.model, self.units = duplicate(model).eval().requires_grad_(False), units
        self.norms = [bn for _, _, bn in layers_of(self.model, units)]
        self.sizes = [unit.filters for unit in units]
        self.gamma = torch.cat([bn.weight.detach() for bn in self.norms])
        self.beta = torch.cat([bn.bias.detach() for bn in self.norms])
        self.batch_statistics = batch_statistics

    @property
    def count(self) -> int:
        """How many filters there are."""
        return len(self.gamma)

    def __call__(self, inputs: Tensor, factors: Tensor, shifts: Tensor | None = None) -> Tensor:
        """Logits `[n, classes]` of the model whose gamma is gamma * `factors` and whose beta is beta * `shifts`.

        Args:
            inputs: float `[n, 3, h, w]` in [0, 1].
            factors: `[filters]`, of all units in one vector.
            shifts: the same for beta; None leaves it.
        """
        changed: dict[str, Tensor] = {}
        gammas = (self.gamma * factors).split(self.sizes)
        betas = (self.beta * shifts).split(self.sizes) if shifts is not None else None
        for number, unit in enumerate(self.units):
            changed[f"{unit.bn}.weight"] = gammas[number]
            if betas is not None:
                changed[f"{unit.bn}.bias"] = betas[number]
        with self._statistics():
            return functional_call(self.model, changed, (inputs,))

    @contextmanager
    def _statistics(self) -> Iterator[None]:
        """For one forward pass, normalise by the batch where this was asked for."""
        if not self.batch_statistics:
            yield
            return
        every = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        for bn in every:
            bn.training = True  # itself alone: an activation or a dropout in it stays as it is
            bn.track_running_stats = False  # the batch's statistics are used, the running ones stay as they are
        try:
            yield
        finally:
            for bn in every:
                bn.training = False
                bn.track_running_stats = True

    def by_layer(self, values: Tensor) -> dict[str, Tensor]:
        """One vector over all filters to convolution name to `[filters]`."""
        return {unit.conv: part for unit, part in zip(self.units, values.split(self.sizes), strict=True)}


@torch.no_grad()
def shut(model: nn.Module, units: Units, pruned: Tensor) -> nn.Module:
    """A copy whose gamma is 0 where `pruned` `[filters]` is True; beta stays, as in the public code of ANP and RNP."""
    twin = duplicate(model).eval()
    for (_, _, bn), part in zip(layers_of(twin, units), pruned.split([u.filters for u in units]), strict=True):
        bn.weight.masked_fill_(part, 0)
    return twin


def as_mask(units: Units, pruned: Tensor) -> Mask:
    """The mask that one bool vector over all filters of the units means."""
    parts = pruned.split([unit.filters for unit in units])
    return Mask({unit.conv: part for unit, part in zip(units, parts, strict=True)})
