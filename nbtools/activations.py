"""What each filter does on the clean images: one streaming pass, statistics kept on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbtools.models import Unit, layers_of


@contextmanager
def watch(
    model: nn.Module, units: Iterable[Unit], see: Callable[[str, Tensor], None], after_relu: bool = True
) -> Iterator[None]:
    """While the context lasts, `see(conv_name, maps)` gets every unit's maps of each forward pass.

    Args:
        model: the model that is called inside the context.
        units: which units to watch.
        see: gets the convolution's name and float `[n, filters, h, w]`, detached.
        after_relu: maps behind BN and ReLU (else behind BN alone). In a residual block the ReLU is applied to the
            filter's own output here, before the shortcut is added.
    """

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def look(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            maps = output.detach()
            see(name, maps.relu() if after_relu else maps)

        return look

    handles = [bn.register_forward_hook(hook(unit.conv)) for unit, _, bn in layers_of(model, units)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def passing(convs: Iterable[nn.Conv2d]) -> Iterator[dict[nn.Conv2d, tuple[Tensor, Tensor]]]:
    """While the context lasts, what each convolution got and what it gave in the latest forward pass.

    Both `[n, channels, h, w]` and part of the autograd graph, so that gradients can be asked for.
    """
    passed: dict[nn.Conv2d, tuple[Tensor, Tensor]] = {}

    def look(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passed[conv] = inputs[0], output

    handles = [conv.register_forward_hook(look) for conv in convs]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class MapStatistics:
    """Running sums of one layer's maps, from which norm and correlation follow.

    Products are summed around the first batch's mean, in float64 across batches, so that large means cost no digits.
    """

    images: int = 0
    positions: int = 0
    norm_sum: Tensor | None = None
    shift: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Take in one batch: float `[n, filters, h, w]`."""
        columns = maps.transpose(0, 1).flatten(1).float()
        norms = maps.float().flatten(2).norm(dim=2).sum(0, dtype=torch.float64)
        shift = columns.mean(1, keepdim=True) if self.shift is None else self.shift
        centred = columns - shift
        first, second = centred.sum(1, dtype=torch.float64), (centred @ centred.T).double()
        if self.norm_sum is None or self.first is None or self.second is None:
            self.shift, self.norm_sum, self.first, self.second = shift, norms, first, second
        else:
            self.norm_sum, self.first, self.second = self.norm_sum + norms, self.first + first, self.second + second
        self.images += len(maps)
        self.positions += columns.shape[1]

    def activation_norm(self) -> Tensor:
        """a_i = mean over images of || A_i(x) ||_F: float64 `[filters]`."""
        assert self.norm_sum is not None, "no batch was added"
        return self.norm_sum / self.images

    def correlation_matrix(self) -> Tensor:
        """Pearson correlation of each pair of maps over images and positions: float64 `[filters, filters]`.

        Rows and columns of a dead map (no variance) are zero; the diagonal of the others is one.
        """
        assert self.first is not None and self.second is not None, "no batch was added"
        covariance = self.second / self.positions - torch.outer(self.first, self.first) / self.positions**2
        variance = covariance.diagonal()
        alive = variance > 1e-12 * variance.amax().clamp_min(1e-30)
        scale = torch.where(alive, variance.clamp_min(1e-300).rsqrt(), 0)
        return (covariance * torch.outer(scale, scale)).clamp(-1, 1)

    def correlation(self) -> Tensor:
        """r_i = mean over j != i of | Pearson(A_i, A_j) |: float64 `[filters]`, in [0, 1], 0 for a dead map."""
        matrix = self.correlation_matrix().abs()
        return (matrix.sum(1) - matrix.diagonal()) / max(len(matrix) - 1, 1)
