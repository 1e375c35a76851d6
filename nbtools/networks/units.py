"""The convolution-BN pairs of any model's graph: the filters that can be pruned."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node


@dataclass(frozen=True)
class Unit:
    """One convolution and the batch norm that follows it: its filters can be pruned through gamma and beta.

    Args:
        conv: the convolution's module name, e.g. "layer1.0.conv1".
        bn: the batch norm's module name.
        filters: output channels.
        kernel: height and width of the kernel.
        shortcut: whether it is alone on its way around other convolutions, as a ResNet's "downsample" is.
        first: whether no other pair stands before it in the data flow.
    """

    conv: str
    bn: str
    filters: int
    kernel: tuple[int, int]
    shortcut: bool = False
    first: bool = False


@dataclass(frozen=True)
class Units:
    """What `prunable_units` finds.

    Args:
        pairs: the pairs, in the order in which the data flows.
        without_bn: convolutions whose output no batch norm takes alone; these can't be pruned through BN.
    """

    pairs: tuple[Unit, ...]
    without_bn: tuple[str, ...]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def prunable_units(model: nn.Module) -> Units:
    """The convolution-BN pairs of a model, read from its graph (torch.fx), never from the order of its modules.

    A pair is a convolution whose output goes to one batch norm and nowhere else, and that batch norm has gamma, beta
    and running statistics. In a pre-activation network a
    block's second convolution is added to the shortcut first, so it has no batch norm of its own.

    Args:
        model: any model that torch.fx can trace (no control flow that depends on values).

    Returns:
        `Units`, pairs in the order of the data flow.

    Raises:
        ValueError: where the graph can't be traced, or holds no such pair.
    """
    tracer = torch.fx.Tracer()
    try:
        nodes = list(tracer.trace(model).nodes)
    except Exception as error:
        raise ValueError(
            f"torch.fx can't trace {type(model).__name__} ({error}); its forward must not branch on values"
        ) from error
    modules = dict(model.named_modules())
    pairs: list[Unit] = []
    alone: list[str] = []
    for node in nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        bn = _only_user(node)
        norm = modules.get(str(bn.target)) if bn is not None and bn.op == "call_module" else None
        if bn is not None and isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats:
            kernel, around = (conv.kernel_size[0], conv.kernel_size[1]), _goes_around(node, bn, modules)
            pairs.append(Unit(str(node.target), str(bn.target), conv.out_channels, kernel, around, not pairs))
        else:
            alone.append(str(node.target))
    if not pairs:
        raise ValueError(
            f"{type(model).__name__} has no convolution that is followed by a batch norm "
            f"({len(alone)} convolutions without one); filters are pruned through their batch norm"
        )
    return Units(tuple(pairs), tuple(alone))


def layers_of(model: nn.Module, units: Iterable[Unit]) -> list[tuple[Unit, nn.Conv2d, nn.BatchNorm2d]]:
    """The modules that the units name, in the same order."""
    found = []
    for unit in units:
        conv, bn = model.get_submodule(unit.conv), model.get_submodule(unit.bn)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        found.append((unit, conv, bn))
    return found


def bn_factor(bn: nn.BatchNorm2d) -> Tensor:
    """|gamma_i| / sqrt(var_i + eps), how a batch norm in eval mode scales its channels: float64 `[channels]`."""
    assert bn.running_var is not None, "a batch norm without running statistics has no fixed factor"
    return bn.weight.detach().double().abs() * (bn.running_var.double() + bn.eps).rsqrt()


def _goes_around(conv: Node, bn: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the pair is added, as it is, to what another convolution makes of the same input."""
    sums = (operator.add, operator.iadd, torch.add)
    beside = [user for user in conv.all_input_nodes[0].users if user is not conv and user.op == "call_module"]
    return any(user.op == "call_function" and user.target in sums for user in bn.users) and any(
        isinstance(modules[str(user.target)], nn.Conv2d) for user in beside
    )


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite weights.

    Raises:
        ValueError: it names the first tensors that hold such values.
    """
    broken = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(
            f"the model holds NaN or infinite values in {', '.join(broken[:3])}"
            f"{' and ' + str(len(broken) - 3) + ' more' if len(broken) > 3 else ''}; its training diverged or "
            "its file is damaged"
        )
