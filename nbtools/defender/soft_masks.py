"""Soft masks over filters: a factor in [0, 1] on each filter's batch norm, learned while every weight stands still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        self.following = norms if batch_statistics else []
        for bn in self.norms:  # a parameter could not be what a factor has made of it
            for name in ("weight", "bias"):
                value = getattr(bn, name).detach()
                delattr(bn, name)
                bn.register_buffer(name, value)

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
        gammas = (self.gamma * factors).split(self.sizes)
        betas = (self.beta * shifts).split(self.sizes) if shifts is not None else [bn.bias for bn in self.norms]
        with self._changed(gammas, betas):
            return self.model(inputs)

    @contextmanager
    def _changed(self, gammas: Sequence[Tensor], betas: Sequence[Tensor]) -> Iterator[None]:
        """For one forward pass, these gammas and betas, and the batch's statistics where this was asked for.

        `torch.func.functional_call` does the same for any model, but walks through all its weights each time.
        """
        was = [(bn.weight, bn.bias) for bn in self.norms]
        for bn, gamma, beta in zip(self.norms, gammas, betas, strict=True):
            bn.weight, bn.bias = gamma, beta  # pyright: ignore[reportAttributeAccessIssue]  # buffers here
        for bn in self.following:
            bn.training = True  # itself alone: an activation or a dropout in it stays as it is
            bn.track_running_stats = False  # the batch's statistics are used, the running ones stay as they are
        try:
            yield
        finally:
            for bn, (gamma, beta) in zip(self.norms, was, strict=True):
                bn.weight, bn.bias = gamma, beta
            for bn in self.following:
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
