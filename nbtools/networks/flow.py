"""Who takes what a convolution gives: read from torch.fx's graph, or else from a forward pass of shapes alone."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbtools.networks.graph import UntraceableError, nodes, shapes_alone, shared

SIDES = (224, 32, 64, 96, 128, 256, 299, 384)
"""Sizes in pixels that are tried where a model does not say its own."""
SUMS = (operator.add, operator.iadd, torch.add)
ASKS = ("shape", "ndim", "dtype", "device", "size", "dim")
"""What does not take a tensor's values."""
PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
"""What gives in eval mode what it got."""


@dataclass(frozen=True)
class Flow:
    """What one pass through a model in eval mode tells.

    Args:
        convs: names of the convolutions, one entry a call, in the order of the calls.
        norm_after: of a call (its number in `convs`) the batch norm that takes its output alone.
        around: calls whose pair is added, as it is, to what another convolution makes of the same input.
        norm_calls: how often each batch norm is called.
        how: "graph" or "forward".
    """

    convs: tuple[str, ...]
    norm_after: Mapping[int, str]
    around: frozenset[int]
    norm_calls: Mapping[str, int]
    how: str


def flow_of(model: nn.Module, example: Tensor | None = None) -> Flow:
    """The data flow of a model in eval mode; the model is not changed.

    Args:
        model: any model, in any mode.
        example: images that it takes, `[n, 3, h, w]`, of which the shape is used where torch.fx can't trace it; None
            tries the size that the model says, and `SIDES`.

    Raises:
        ValueError: where neither torch.fx nor a forward pass can follow the model.
    """
    try:
        return by_graph(model)
    except UntraceableError as error:
        return by_forward(model, example, str(error))


def by_graph(model: nn.Module) -> Flow:
    """The flow that torch.fx sees.

    Raises:
        UntraceableError: where it can't trace the model.
    """
    twin = shared(model).eval()
    modules, graph = dict(twin.named_modules()), nodes(twin)

    def module(node: Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    def takers(node: Node) -> Iterator[Node]:
        """The nodes that take a node's values, behind what passes them on as they are."""
        for user in node.users:
            if isinstance(module(user), PASSING):
                yield from takers(user)
            elif user.op == "call_module" or (user.args[1] if user.target is getattr else user.target) not in ASKS:
                yield user

    def source(node: Node) -> Node:
        given = node.all_input_nodes[0]
        return source(given) if isinstance(module(given), PASSING) else given

    convs: list[str] = []
    after: dict[int, str] = {}
    around: set[int] = set()
    for node in graph.nodes:
        if isinstance(module(node), nn.Conv2d):
            found = list(takers(node))
            if len(found) == 1 and isinstance(module(found[0]), nn.BatchNorm2d):
                after[len(convs)] = str(found[0].target)
                beside = [user for user in takers(source(node)) if isinstance(module(user), nn.Conv2d)]
                if len(beside) > 1 and any(user.target in SUMS for user in takers(found[0])):
                    around.add(len(convs))
            convs.append(str(node.target))
    norms = Counter(str(node.target) for node in graph.nodes if isinstance(module(node), nn.BatchNorm2d))
    return Flow(tuple(convs), after, frozenset(around), norms, "graph")


def by_forward(model: nn.Module, example: Tensor | None = None, before: str = "") -> Flow:
    """The flow of one forward pass on the device "meta", where shapes are computed and no numbers.

    Args:
        model: as in `flow_of`.
        example: as in `flow_of`.
        before: what failed already, a sentence for the message.

    Raises:
        ValueError: where no image goes through.
    """
    twin, failed = shapes_alone(model).eval(), ""
    shapes = [tuple(example.shape[1:])] if example is not None else _sizes(model)
    for shape in dict.fromkeys(shapes):
        try:
            return _pass(twin, torch.empty(1, *shape, device="meta"))
        except Exception as error:  # whatever a forward raises, images of this size don't go through
            failed = failed or f"{shape[2]}x{shape[1]}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    tried = ", ".join(f"{shape[2]}x{shape[1]}" for shape in dict.fromkeys(shapes))
    first = f"{before}. " if before else ""
    advice = "its forward branches on values, perhaps"
    if example is None:
        advice = "give one that it takes as `example`, or its height and width as the model's `image_size`"
    raise ValueError(f"{first}No image of {tried} pixels goes through {type(model).__name__} ({failed}); {advice}")


def _sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of an image, the model's own first."""
    own: list[tuple[int, ...]] = []
    for module in model.modules():
        for name in ("pretrained_cfg", "default_cfg"):  # timm's
            told = getattr(module, name, None)
            size = told.get("input_size") if isinstance(told, Mapping) else getattr(told, "input_size", None)
            if isinstance(size, tuple | list) and len(size) == 3:
                own.append(tuple(size))
        for name in ("img_size", "image_size"):
            side = getattr(module, name, None)
            if isinstance(side, int):
                own.append((3, side, side))
            elif isinstance(side, tuple | list) and len(side) == 2:
                own.append((3, *side))
    return own + [(3, side, side) for side in SIDES]


class _Operations(TorchDispatchMode):
    """Keeps what every operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.taken.append((func, tree_leaves((args, kwargs))))
        return func(*args, **(kwargs or {}))


@contextmanager
def _called(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor, Tensor]]]:
    """While the context lasts, name, module, input and output of each call of a convolution or batch norm."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: calls.append((name, module, inputs[0], output))

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _pass(model: nn.Module, images: Tensor) -> Flow:
    with _called(model) as calls, _Operations() as operations:
        model(images)
    takers = Counter[int]()  # all tensors are alive, so an id is one tensor's
    summed: set[int] = set()
    for func, taken in operations.taken:
        ids = {id(value) for value in taken if isinstance(value, Tensor)}
        takers.update(ids)
        if getattr(func, "overloadpacket", None) in (torch.ops.aten.add, torch.ops.aten.add_):
            summed |= ids
    convs = [call for call in calls if isinstance(call[1], nn.Conv2d)]
    norms = [call for call in calls if isinstance(call[1], nn.BatchNorm2d)]
    inputs = Counter(id(given) for _, _, given, _ in convs)
    after: dict[int, str] = {}
    around: set[int] = set()
    for number, (_, _, given, output) in enumerate(convs):
        behind = [(name, out) for name, _, taken, out in norms if taken is output]
        if len(behind) == 1 and takers[id(output)] == 1:
            after[number] = behind[0][0]
            if id(behind[0][1]) in summed and inputs[id(given)] > 1:
                around.add(number)
    names = Counter(name for name, *_ in norms)
    return Flow(tuple(name for name, *_ in convs), after, frozenset(around), names, "forward")
