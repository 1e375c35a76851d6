"""The convolution-BN pairs of any model: the filters that can be pruned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from nbtools.networks.flow import flow_of
from nbtools.networks.graph import shared


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
        without_bn: the other convolutions, mostly those whose output no batch norm takes alone; they can't be pruned
            through BN.
        how: "graph", read from torch.fx's graph, or "forward", from a forward pass.
    """

    pairs: tuple[Unit, ...]
    without_bn: tuple[str, ...]
    how: str = "graph"

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def prunable_units(model: nn.Module, example: Tensor | None = None) -> Units:
    """The convolution-BN pairs of a model in eval mode, read from the data flow, never from the order of its modules.

    A pair is a convolution whose output goes to one batch norm and nowhere else; both are called once, the convolution
    computes with its weights as they are, and the batch norm has running statistics, gamma and beta of its own, and
    gives constants where these two are 0. Subclasses count, a batch norm with an activation of its own among them. In
    a pre-activation network a block's second convolution is added to the shortcut first, so it has no batch norm of
    its own.

    The flow is torch.fx's graph. Where torch.fx can't trace the model, one forward pass of shapes (no numbers are
    computed) tells it.

    Args:
        model: any model, in any mode (it is read in eval mode) and not changed.
        example: images that the model takes, `[n, 3, h, w]`, for that forward pass; None tries the size that the model
            says, and common ones.

    Returns:
        `Units`, pairs in the order of the data flow.

    Raises:
        ValueError: where neither torch.fx nor a forward pass can follow the model, or it holds no such pair.
    """
    flow = flow_of(model, example)
    modules, calls = dict(model.named_modules()), Counter(flow.convs)
    owners = Counter(id(weight) for module in modules.values() for weight in module._parameters.values())
    pairs: list[Unit] = []
    alone: list[str] = []
    for number, name in enumerate(flow.convs):
        conv, bn = modules[name], flow.norm_after.get(number, "")
        norm = modules[bn] if bn and calls[name] == flow.norm_calls[bn] == 1 else None
        assert isinstance(conv, nn.Conv2d)
        if isinstance(norm, nn.BatchNorm2d) and _is_usable(conv, norm, owners):
            kernel = (conv.kernel_size[0], conv.kernel_size[1])
            pairs.append(Unit(name, bn, conv.out_channels, kernel, number in flow.around, not pairs))
        elif name not in alone:
            alone.append(name)
    if not pairs:
        others = {type(m).__name__ for m in modules.values() if "norm" in type(m).__name__.lower() and not _is_whole(m)}
        listed = " or ".join(f"such a {norm} as it has" for norm in sorted(others))
        raise ValueError(
            f"{type(model).__name__} has no convolution that is followed by a batch norm "
            f"({len(alone)} convolutions without one); filters are pruned through their batch norm"
            + (f", a BatchNorm2d with running statistics, gamma and beta of its own, not {listed}" if others else "")
        )
    return Units(tuple(pairs), tuple(alone), flow.how)


def layers_of(model: nn.Module, units: Iterable[Unit]) -> list[tuple[Unit, nn.Conv2d, nn.BatchNorm2d]]:
    """The modules that the units name, in the same order."""
    found = []
    for unit in units:
        conv, bn = model.get_submodule(unit.conv), model.get_submodule(unit.bn)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        found.append((unit, conv, bn))
    return found


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution runs as PyTorch's own does; a subclass may pad or change its weights as it runs."""
    own = type(conv)
    return own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward


@torch.no_grad()
def takes_weights_as_they_are(conv: nn.Conv2d) -> bool:
    """Whether a convolution answers an even image, away from its edges, with the sums of its weights.

    One that standardises its weights first does not; on the device "meta" nobody can tell, and it is taken to do so.
    """
    if is_plain(conv) or conv.weight.is_meta:
        return True
    filters, per_group, *_ = conv.weight.shape
    extents = [step * (size - 1) + 1 for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    values = torch.linspace(0.5, 1.5, conv.in_channels).to(conv.weight)
    got = conv(values[None, :, None, None].expand(-1, -1, *(4 * extent for extent in extents)))
    sums = conv.weight.sum((2, 3)).unflatten(0, (conv.groups, -1))
    wanted = (sums @ values.view(conv.groups, per_group, 1)).view(filters)
    wanted = wanted if conv.bias is None else wanted + conv.bias
    middle = got[0, :, got.shape[2] // 2, got.shape[3] // 2]
    return torch.allclose(middle, wanted, rtol=1e-3, atol=1e-4 * float(conv.weight.abs().sum((1, 2, 3)).max()))


def _is_usable(conv: nn.Conv2d, norm: nn.BatchNorm2d, owners: Mapping[int, int]) -> bool:
    """Whether filters are pruned by the norm's gamma and beta alone, and nothing else is.

    Args:
        conv, norm: of one pair.
        owners: how many modules have each tensor, by its id.
    """
    own = _is_whole(norm) and owners[id(norm.weight)] == owners[id(norm.bias)] == 1
    return own and takes_weights_as_they_are(conv) and can_be_silent(norm)


def _is_whole(norm: nn.Module) -> bool:
    """Whether it is a batch norm with gamma, beta and running statistics."""
    return isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats


@torch.no_grad()
def can_be_silent(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm gives a constant in eval mode where gamma and beta are 0, whatever comes in.

    One that adds its input to what it gives, or scales by 1 + gamma, does not; on the device "meta" nobody can tell,
    and it is taken to do so.
    """
    if type(norm).forward is nn.BatchNorm2d.forward or norm.weight.is_meta:
        return True
    given = torch.linspace(-3, 3, 4 * norm.num_features).view(1, norm.num_features, 2, 2).to(norm.weight)
    none = {name: torch.zeros_like(value) for name, value in (("weight", norm.weight), ("bias", norm.bias))}
    got = functional_call(shared(norm).eval(), none, (given,)).flatten(2)
    return bool((got.amax(2) == got.amin(2)).all())


def bn_factor(*norms: nn.BatchNorm2d) -> Tensor:
    """|gamma_i| / sqrt(var_i + eps), how a batch norm in eval mode scales its channels: float64 `[channels]`.

    Of several batch norms those of the first come first.
    """
    gammas, variances = [bn.weight.detach() for bn in norms], []
    for bn in norms:
        assert bn.running_var is not None, "a batch norm without running statistics has no fixed factor"
        variances.append(bn.running_var.double() + bn.eps)
    return torch.cat(gammas).double().abs() * torch.cat(variances).rsqrt()


def behind_bn(bn: nn.BatchNorm2d, given: Tensor, output: Tensor) -> Tensor:
    """The maps behind a batch norm, before the activation that its class may have inside.

    Args:
        bn: any batch norm; running statistics are not moved.
        given: what it got, `[n, c, h, w]`.
        output: what it gave.
    """
    return output if type(bn).forward is nn.BatchNorm2d.forward else normalised(bn, given)


def normalised(bn: nn.BatchNorm2d, given: Tensor) -> Tensor:
    """What the batch norm alone makes of `[n, c, h, w]`, in its mode; running statistics are not moved."""
    own = bn.training or bn.running_mean is None
    mean, var = (None, None) if own else (bn.running_mean, bn.running_var)
    return F.batch_norm(given, mean, var, bn.weight, bn.bias, own, 0.0, bn.eps)


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite weights.

    Raises:
        ValueError: it names the first tensors that hold such values.
    """
    held = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors = {name: value for name, value in held.items() if value.is_floating_point() and value.numel()}
    largest = get_total_norm(tensors.values(), math.inf)  # one number, so that the device is asked once
    if not bool(torch.isfinite(largest)):
        broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        raise ValueError(
            f"the model holds NaN or infinite values in {', '.join(broken[:3])}"
            f"{' and ' + str(len(broken) - 3) + ' more' if len(broken) > 3 else ''}; its training diverged or "
            "its file is damaged"
        )
