"""The maps of a network's filters while it computes: watched behind batch norm, or kept with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from nbtools.networks.precision import real_float32
from nbtools.networks.units import Unit, behind_bn, layers_of


@contextmanager
def watch(
    model: nn.Module, units: Iterable[Unit], see: Callable[[str, Tensor], None], after_relu: bool = True
) -> Iterator[None]:
    """While the context lasts, `see(conv_name, maps)` gets every unit's maps of each forward pass, in real float32.

    Args:
        model: the model that is called inside the context.
        units: which units to watch.
        see: gets the convolution's name and float `[n, filters, h, w]`, detached.
        after_relu: maps behind BN and ReLU, whatever the network's own activation (else behind BN alone). In a residual
            block the ReLU is applied to the filter's own output here, before the shortcut is added. An activation that
            the batch norm's class has inside is not seen.
    """

    def hook(name: str) -> Callable[[nn.BatchNorm2d, tuple[Tensor, ...], Tensor], None]:
        def look(bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps = behind_bn(bn, inputs[0], output).detach()
            see(name, maps.relu() if after_relu else maps)

        return look

    handles = [bn.register_forward_hook(hook(unit.conv)) for unit, _, bn in layers_of(model, units)]
    try:
        with real_float32():
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
