"""A model's graph by torch.fx, and copies of a model: neither changes it, whatever its forward keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Set

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer

LAYERS = (nn.Conv2d, nn.BatchNorm2d)


class UntraceableError(ValueError):
    """torch.fx can't follow a forward."""


class _Tracer(Tracer):
    """Looks only into what has a layer of `LAYERS` inside, so that each of those is one node, a subclass as well.

    By itself torch.fx stops at the classes of torch.nn alone. It would look into a batch norm with an activation of its
    own, and stumble over what attention does with shapes.
    """

    def __init__(self, whole: Set[str]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        name = module_qualified_name
        if name in self.whole or isinstance(m, LAYERS) or super().is_leaf_module(m, name):
            return True
        inside = any(isinstance(part, LAYERS) for part in m.modules())
        return not inside and not any(place.startswith(f"{name}.") for place in self.whole)


def traced(model: nn.Module, whole: Set[str] = frozenset()) -> GraphModule:
    """A model in eval mode as a graph; it shares the model's weights, and the model is not changed.

    Args:
        model: any model, in any mode.
        whole: names of modules that shall be one node each.

    Returns:
        The graph's own form of the model, `[n, 3, h, w]` to logits, in eval mode.

    Raises:
        UntraceableError: where the forward branches on values or on shapes outside of modules without convolutions.
    """
    return trace(shared(model).eval(), whole)


def trace(model: nn.Module, whole: Set[str] = frozenset()) -> GraphModule:
    """`traced` without the copy: a forward that keeps what it computes keeps nodes of the graph afterwards."""
    return GraphModule(model, nodes(model, whole)).eval()


def nodes(model: nn.Module, whole: Set[str] = frozenset()) -> Graph:
    """The nodes of `trace` alone, to be read and not to be run: no code is made of them."""
    try:
        return _Tracer(whole).trace(model)
    except Exception as error:
        raise UntraceableError(
            f"torch.fx can't trace {type(model).__name__} ({_first_line(error)}); its forward must not branch on values"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def cut(root: nn.Module, graph: Graph) -> GraphModule:
    """A graph without what leads nowhere, and without the modules that nothing calls."""
    rest = GraphModule(root, graph)
    rest.graph.eliminate_dead_code()
    rest.delete_all_unused_submodules()
    rest.recompile()
    return rest.eval()


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy, of a model too that keeps a tensor of its last forward pass (which `copy.deepcopy` refuses).

    Such a tensor, as LeViT keeps its attention biases, is copied without its history.
    """
    return _copied(model, lambda value: None if value.is_leaf else value.detach().clone())


def shared(model: nn.Module) -> nn.Module:
    """A copy of all modules that has the model's own weights and statistics: what a trace leaves behind stays in it."""
    return _copied(model, lambda value: value)


def shapes_alone(model: nn.Module) -> nn.Module:
    """A copy on the device "meta", where a forward pass computes shapes and no numbers."""

    def empty(value: Tensor) -> Tensor:
        same = torch.empty_like(value, device="meta", requires_grad=False)
        return nn.Parameter(same, requires_grad=False) if isinstance(value, nn.Parameter) else same

    return _copied(model, empty)


def _copied(model: nn.Module, instead: Callable[[Tensor], Tensor | None]) -> nn.Module:
    """A deep copy in which each tensor of the modules is what `instead` says; None copies it as it is."""
    memo = {}
    for module in model.modules():
        for value in _tensors(vars(module).values()):
            if id(value) not in memo and (new := instead(value)) is not None:
                memo[id(value)] = new
    return copy.deepcopy(model, memo)


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among values, and in the dicts, lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
