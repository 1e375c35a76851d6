"""A network cut in two at one of its modules: what that module gives, and the rest as a function of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from nbtools.data.images import Images, to_floats


class _Tracer(Tracer):
    """Keeps one module whole, so that its output is a node of the graph."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.whole or super().is_leaf_module(m, module_qualified_name)


def above(model: nn.Module, place: str) -> GraphModule:
    """The rest of a network as a function of what the module `place` gives; it shares the model's weights.

    Args:
        model: any model that torch.fx can trace.
        place: a module's name, e.g. "layer3", through which everything flows that reaches the logits; "" is the input.

    Returns:
        In eval mode: the place's output `[n, ...]` to logits `[n, classes]`.

    Raises:
        ValueError: where the model has no such module, can't be traced, or has a way around it.
    """
    names = [name for name, _ in model.named_modules()]
    if place not in names:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"{type(model).__name__} has no {place!r}; its parts are {parts}")
    try:
        nodes = list(_Tracer(place).trace(model).nodes)
    except Exception as error:
        raise ValueError(f"torch.fx can't trace {type(model).__name__} ({error})") from error
    cut = [node for node in nodes if (node.op == "placeholder" if not place else node.target == place)]
    if len(cut) != 1:
        raise ValueError(f"{place} of {type(model).__name__} is called {len(cut)} times; name one that is called once")
    graph = Graph()
    new: dict[Node, Node] = {cut[0]: graph.placeholder("x")}
    for node in nodes[nodes.index(cut[0]) + 1 :]:
        sources = node.all_input_nodes
        if node.op == "get_attr" or any(source in new and new[source].op != "get_attr" for source in sources):
            if around := [source for source in sources if source not in new]:
                raise ValueError(
                    f"{type(model).__name__} has a way around {place} (through {around[0].name}); name a module "
                    "that everything flows through"
                )
            new[node] = graph.node_copy(node, lambda old: new[old])
    rest = GraphModule(model, graph)
    rest.graph.eliminate_dead_code()
    rest.delete_all_unused_submodules()
    rest.recompile()
    return rest.eval()


@torch.no_grad()
def at(model: nn.Module, place: str, images: Images, batch_size: int = 100) -> Tensor:
    """What the module `place` of a model in eval mode gives for each image: float `[n, ...]`; "" gives the images."""
    if not place:
        return images.floats()
    kept: list[Tensor] = []
    handle = model.get_submodule(place).register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.clone())
    )
    try:
        for batch in images.images.split(batch_size):
            model(to_floats(batch))
    finally:
        handle.remove()
    return torch.cat(kept)
