"""Pruned filters cut out of a network for good (torch-pruning), wherever that can't change an answer [ours].

A channel may go where every layer that takes it gets exactly 0 there, whatever the other layers give. What gives 0 is
not guessed from the kinds of the layers in between: the network is run with noise in place of what its convolutions,
linear layers and batch norms give, and only pruned channels are as they are. So a sigmoid (0.5 from 0), a padding with
another constant, a sum with a channel that is not pruned or a norm over the channels is seen where it does harm, and a
gate, a ReLU or a pooling does none. Each step is then compared with the network before it, layer by layer in float64.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nbtools.defender.channels import OUTPUT, answers, given, probes
from nbtools.networks.graph import duplicate

EQUAL = 1e-9
"""Rounding in float64 may move a layer's answers by so much of its largest; a step that moves them more is undone."""
SOLE = "a layer must keep one channel"


@dataclass(frozen=True)
class Left:
    """Pruned filters that are still there, as zeros.

    Args:
        conv: their layer.
        filters: how many.
        reason: why, in plain words, with no full stop.
    """

    conv: str
    filters: int
    reason: str


@dataclass(frozen=True, eq=False)
class Removal:
    """A smaller network, and what could not be taken out of it.

    Args:
        model: the smaller network, in eval mode.
        pruned: pruned filters in all.
        left: those that are still there, by layer and reason.
    """

    model: nn.Module
    pruned: int
    left: tuple[Left, ...]

    @property
    def removed(self) -> int:
        """How many pruned filters are gone."""
        return self.pruned - sum(part.filters for part in self.left)

    def __repr__(self) -> str:
        return f"Removal({self.removed} of {self.pruned} pruned filters)"


class _Refused(ValueError):
    """A step that would change an answer, or that a layer's form does not allow."""


def take_out(
    model: nn.Module, pruned: Mapping[str, Tensor], example: Tensor, name_of: Callable[[str], str] = str
) -> Removal:
    """Cut pruned filters out, one layer after the other.

    Args:
        model: the pruned network, gamma = beta = 0 in the batch norms behind the pruned filters; it is not changed.
        pruned: convolution name to bool `[filters]`.
        example: one float batch `[n, 3, h, w]` of images that the network takes; two of them are compared with, and
            images of noise.
        name_of: what the record calls a layer.
    """
    total = sum(int(part.sum()) for part in pruned.values())
    try:
        cutting = _Cutting(model, pruned, example, name_of)
    except Exception as error:  # whatever a forward raises when it is given noise, or float64
        why = f"the network can't be checked ({_said(error)})"
        left = [Left(name_of(name), int(part.sum()), why) for name, part in pruned.items() if part.any()]
        return Removal(duplicate(model).eval().requires_grad_(False), total, tuple(left))
    for name in pruned:
        cutting.cut(name)
    reasons = {name: Counter(why[i] for i in _numbers(cutting.left[name])) for name, why in cutting.why.items()}
    left = [Left(name_of(name), count, reason) for name, found in reasons.items() for reason, count in found.items()]
    return Removal(cutting.finished(model), total, tuple(left))


class _Cutting:
    """The network as far as it is cut, in float64, and what is known of its layers.

    Args:
        model, pruned, example, name_of: as for `take_out`.
    """

    def __init__(
        self, model: nn.Module, pruned: Mapping[str, Tensor], example: Tensor, name_of: Callable[[str], str]
    ) -> None:
        self.name_of = name_of
        self.model = duplicate(model).eval().double().requires_grad_(True)  # torch-pruning reads the autograd graph
        self.left = {name: part.cpu().clone() for name, part in pruned.items()}  # of the filters that are there now
        self.why = {name: [""] * len(part) for name, part in pruned.items()}
        self.images = probes(example.double())
        self.given = given(self.model, self.images)
        self.answers = answers(self.model, self.images)
        self.graph: Any = None

    def cut(self, conv: str) -> None:
        """Take out what can go of a layer's pruned filters; where a step fails, all is as before but the reason."""
        asked = _numbers(self.left[conv])
        if not asked:
            return
        before, why = _snapshot(self.model), {name: list(reasons) for name, reasons in self.why.items()}
        kept = dict(self.left), dict(self.given), dict(self.answers)
        try:
            self._step(conv, asked)
        except Exception as error:  # torch-pruning fails in many ways where it can't see how channels are coupled
            reason = str(error) if isinstance(error, _Refused) else f"torch-pruning can't cut them out ({_said(error)})"
            (self.left, self.given, self.answers), self.why, self.graph = kept, why, None
            self.why[conv] = [reason if number in asked else old for number, old in enumerate(self.why[conv])]
            for module, attributes in before:
                vars(module).clear()
                vars(module).update(attributes)

    def finished(self, like: nn.Module) -> nn.Module:
        """The network, each tensor of the type that it has in `like`."""

        def named(model: nn.Module) -> dict[str, Tensor]:  # a tensor with several names under each
            return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])

        types = named(like)
        for name, value in named(self.model).items():
            value.data = value.data.to(types[name].dtype)
        return self.model.requires_grad_(False)

    def _step(self, conv: str, asked: list[int]) -> None:
        import torch_pruning as tp

        if self.graph is None:  # a tuple: of a bare tensor it would first try the single images
            self.graph = tp.DependencyGraph().build_dependency(self.model, (self.images[:1],), verbose=False)
        names = {module: name for name, module in self.model.named_modules()}
        root = self.model.get_submodule(conv)

        def group_of(numbers: Iterable[int]) -> Any:
            return self.graph.get_pruning_group(root, tp.prune_conv_out_channels, idxs=list(numbers))

        refused = self._not_silent(group_of(asked), names)
        self._balance(group_of(asked), names, refused)
        gone = [number for number in asked if number not in refused]
        if gone and not self.graph.check_pruning_group(group_of(gone)):
            refused[gone[0]] = SOLE
            self._balance(group_of(asked), names, refused)
            gone = [number for number in asked if number not in refused]
        self.why[conv] = [refused.get(number, old) for number, old in enumerate(self.why[conv])]
        if not gone:
            return
        group = group_of(gone)
        cut = [(item, names.get(item.dep.target.module, "")) for item in group.items]
        for item, _ in cut:
            if self._takes(item) and _grouped(item.dep.target.module):
                group.items.remove(item)
                _cut_inputs(item.dep.target.module, set(item.idxs))
        group.prune(record_history=False)
        self._compare({name for item, name in cut if self.graph.is_out_channel_pruning_fn(item.dep.handler)})
        for item, name in cut:
            if self._takes(item):
                self.given[name] = _without(self.given[name], item.idxs)
            elif name in self.left:
                self.left[name] = _without(self.left[name], item.idxs)
                self.why[name] = [old for number, old in enumerate(self.why[name]) if number not in set(item.idxs)]

    def _takes(self, item: Any) -> bool:
        """Whether a part of a group takes channels in, and gives others; a batch norm gives those that it takes."""
        handler = item.dep.handler
        return self.graph.is_in_channel_pruning_fn(handler) and not self.graph.is_out_channel_pruning_fn(handler)

    def _not_silent(self, group: Any, names: Mapping[nn.Module, str]) -> dict[int, str]:
        """Those numbers of a layer's filters that are not silent for a layer that takes them, and why."""
        refused: dict[int, str] = {}
        for item in filter(self._takes, group.items):
            taker = names.get(item.dep.target.module, "")
            values = self.given.get(taker)
            for number, filter_ in zip(item.idxs, item.root_idxs, strict=True):
                value = float("nan") if values is None else float(values[number])
                if value == 0:
                    continue
                shown = self.name_of(taker) if taker else OUTPUT
                reason = f"{shown} reads something else in their channels too, such as what a skip connection adds"
                if value == value:
                    reason = f"in their channels {shown} gets the constant {value:.3g}, not 0"
                refused.setdefault(filter_, reason)
        return refused

    def _compare(self, cut: set[str]) -> None:
        """Refuse the step if a layer answers otherwise than before; of those that were cut, their takers tell."""
        found = answers(self.model, self.images)
        for (name, call), before in self.answers.items():
            now = found[name, call]
            if now.shape != before.shape and name in cut:
                self.answers[name, call] = now
            elif now.shape != before.shape or not (now - before).abs().max() <= EQUAL * before.abs().max():
                shown = name if name == OUTPUT else self.name_of(name)
                raise _Refused(f"without them {shown} would give something else")

    def _balance(self, group: Any, names: Mapping[nn.Module, str], refused: dict[int, str]) -> None:
        """Refuse as many as it takes for each group of a grouped convolution to lose as many channels as the others."""
        items = [item for item in group.items if _grouped(item.dep.target.module)]
        before = -1
        while before != len(refused):
            before = len(refused)
            for item in items:
                conv = item.dep.target.module
                channels = conv.in_channels if "in_channels" in item.dep.handler.__name__ else conv.out_channels
                parts: list[list[int]] = [[] for _ in range(conv.groups)]
                for number, filter_ in zip(item.idxs, item.root_idxs, strict=True):
                    if filter_ not in refused:
                        parts[number // (channels // conv.groups)].append(filter_)
                least = min(map(len, parts))
                shown = self.name_of(names[conv])
                reason = f"each of the {conv.groups} groups of {shown} must lose as many channels as the others"
                refused.update(dict.fromkeys((filter_ for part in parts for filter_ in part[least:]), reason))


def _grouped(module: object) -> bool:
    """Whether a convolution has groups, and is not depthwise."""
    if not isinstance(module, _ConvNd):
        return False
    return module.groups > 1 and not module.groups == module.in_channels == module.out_channels


def _cut_inputs(conv: _ConvNd, gone: set[int]) -> None:
    """A grouped convolution without some of its inputs, as many of each group (torch-pruning cuts all groups alike)."""
    per = conv.in_channels // conv.groups
    kept = torch.tensor([number for number in range(conv.in_channels) if number not in gone])
    columns = (kept % per).view(conv.groups, -1)
    rows = conv.weight.detach().unflatten(0, (conv.groups, -1))
    parts = [part.index_select(1, chosen.to(part.device)) for part, chosen in zip(rows, columns, strict=True)]
    conv.weight = nn.Parameter(torch.cat(parts))
    conv.in_channels = len(kept)


def _snapshot(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """All modules with their attributes; what is cut gets new tensors and numbers, so that none needs a copy."""
    return [
        (module, {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()})
        for module in model.modules()
    ]


def _without(values: Tensor, gone: Iterable[int]) -> Tensor:
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[list(gone)] = False
    return values[keep]


def _numbers(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
