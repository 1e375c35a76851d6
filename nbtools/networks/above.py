"""A network cut at one or two of its modules: what a module gives, and what lies above it as a function of that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from nbtools.data.images import Images
from nbtools.networks.graph import UntraceableError, cut, shared, trace
from nbtools.networks.units import prunable_units

INPUT = ""
"""The place of the images themselves."""


def above(model: nn.Module, place: str, until: str | None = None) -> nn.Module:
    """A network from one place on, as a function of what the module there gives; it shares the model's weights.

    Args:
        model: any model that torch.fx can trace; from the images to the logits any model at all.
        place: a module's name, e.g. "layer3", through which everything flows that reaches the end; `INPUT` is the
            images.
        until: a module's name above `place`, whose output is the end; None is the logits.

    Returns:
        The place's output `[n, ...]` to the end's, `[n, ...]` or logits `[n, classes]`. What it is given may be changed
        in place.

    Raises:
        ValueError: where the model is not in eval mode, has no such module, can't be traced, has a way around `place`,
            or `until` does not lie above it.
    """
    if any(module.training for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is in training mode; put it in eval mode first")
    names = [name for name, _ in model.named_modules()]
    for name in (place, until or INPUT):
        if name not in names:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{type(model).__name__} has no {name!r}; its parts are {parts}")
    try:
        return _rest(shared(model), place, until)
    except UntraceableError:
        if place == INPUT and until is None:
            return shared(model)
        raise


def _rest(model: nn.Module, place: str, until: str | None = None) -> GraphModule:
    """`above` of a copy that nothing else is done with, but to be traced again."""
    whole = trace(model, {place, until or INPUT} - {INPUT})
    nodes = list(whole.graph.nodes)
    start = _once(model, nodes, place)
    last = nodes[-1] if until is None else _once(model, nodes, until)
    graph = Graph()
    new: dict[Node, Node] = {start: graph.placeholder("x")}
    rising, below = {start}, set[Node]()  # what depends on the place, and what depends on the images without it
    for node in nodes[: nodes.index(last) + 1]:
        sources = node.all_input_nodes
        if node is start:
            continue
        if any(source in rising for source in sources):
            if around := [source for source in sources if source in below]:
                raise ValueError(
                    f"{type(model).__name__} has a way around {place} (through {around[0].name}); name a module "
                    "that everything flows through"
                )
            rising.add(node)
        elif node.op == "placeholder" or any(source in below for source in sources):
            below.add(node)
            continue
        new[node] = graph.node_copy(node, lambda old: new[old])  # weights and what is made of them alone as well
    if last not in rising:
        end = "what it gives" if until is None else until
        raise ValueError(f"{type(model).__name__}: {end} does not depend on {place or 'the input'}")
    if until is not None:
        graph.output(new[last])
    return cut(whole, graph)


def last_place(model: nn.Module, share: float = 0.25) -> str:
    """The last module that everything flows through and that has this share of the convolution-BN pairs above it.

    Modules are taken from the last registered to the first, which is how networks are written. A module is passed over
    if what lies above it uses weights that are used below as well.

    Args:
        model: any model in eval mode with a convolution-BN pair.
        share: in (0, 1].

    Returns:
        Its name, "layer3.1" of a ResNet-18, which ends its third stage; `INPUT`, the images, where no module qualifies
        or torch.fx can't trace the model.
    """
    twin = shared(model)
    try:
        trace(twin)
    except UntraceableError:
        return INPUT
    convs = [unit.conv for unit in prunable_units(model)]
    order = [name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)]
    for name in reversed(order):
        try:
            rest = _rest(twin, name)
        except ValueError:  # there is a way around it, or it is called more than once
            continue
        there = {found for found, _ in rest.named_modules()}
        if sum(conv in there for conv in convs) < share * len(convs):
            continue
        below = {id(weight) for weight in _rest(twin, INPUT, until=name).parameters()}
        if not any(id(weight) in below for weight in rest.parameters()):
            return name
    return INPUT


def _once(model: nn.Module, nodes: list[Node], place: str) -> Node:
    """The node of a place that is called once."""
    if not place:
        inputs = [node for node in nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ValueError(f"{type(model).__name__} takes {len(inputs)} inputs; one is needed, the images")
        return inputs[0]
    found = [node for node in nodes if node.op == "call_module" and node.target == place]
    if len(found) != 1:
        raise ValueError(
            f"{place} of {type(model).__name__} is called {len(found)} times; name one that is called once"
        )
    return found[0]


@torch.no_grad()
def at(model: nn.Module, place: str, images: Images, batch_size: int = 100) -> Tensor:
    """What the module `place` of a model gives in eval mode for each image: float `[n, ...]`; `INPUT` is the images."""
    if place == INPUT:
        return images.floats()
    below = above(model, INPUT, until=place)
    return torch.cat([below(batch) for batch in images.floats().split(batch_size)])
