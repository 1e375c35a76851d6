"""Fine-pruning: shut the last convolution's dormant channels, then fine-tune (arXiv 1805.12185)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import Epochs, check_inputs, nothing_pruned
from nbtools.defender.pruning import apply
from nbtools.defender.repair import Repair, measured
from nbtools.defender.validation import Validation
from nbtools.networks.graph import UntraceableError, duplicate, traced
from nbtools.networks.maps import watch
from nbtools.networks.units import Unit, Units


@dataclass(frozen=True)
class FinePruning:
    """Prune what sleeps on clean images in the last convolution, then fine-tune (Liu et al., RAID 2018).

    A backdoor's channels should be those that clean images leave dormant. The channels of the last convolution are
    ranked by their mean clean activation behind batch norm and ReLU, the most dormant are pruned first for as long as
    clean accuracy on held-back images holds, and the rest is fine-tuned [code]. How many images are held back, how far
    accuracy may fall, that they join the others for the fine-tuning, and that pruned channels stay at
    gamma = beta = 0 in it, is [ours].

    Args:
        validation: chooses how many channels are pruned; they are ranked by the images that are not held back.
        fine_tune: the training on all clean images afterwards; None prunes only.
        step: channels between two numbers that are tried, at least 1. One channel always stays.

    Raises:
        ValueError: for a value out of its range.
    """

    validation: Validation = field(default_factory=Validation)
    fine_tune: Epochs | None = field(default_factory=Epochs)
    step: int = 1

    def __post_init__(self) -> None:
        if not self.step >= 1:
            raise ValueError(f"step must be 1 or more channels, got {self.step}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Prune and tune a copy of `model`.

        Returns:
            A repair whose scores are the mean activations of the last convolution's channels, the lowest of which are
            pruned. A row of the history says in "phase" whether it is one of "prune", with the number of channels
            pruned, the accuracy held back and whether it was chosen, or one of "tune".

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses.
            DivergedError: where the fine-tuning diverges.
        """
        units = check_inputs(model, clean)
        twin, unit = duplicate(model).eval(), last(units)
        learned, held = self.validation.split(clean)
        activation = mean_activation(twin, unit, learned)
        order = activation.argsort(stable=True)
        counts = range(0, unit.filters, self.step)
        accuracies = pruned_accuracies(twin, unit, order, counts, held)
        chosen = self.validation.choose(accuracies, accuracies[0], len(held))
        mask = nothing_pruned(units, clean.images.device)
        mask.pruned[unit.conv][order[: counts[chosen]]] = True
        apply(twin, mask)
        history: list[dict[str, Any]] = [
            {"phase": "prune", "pruned": count, "accuracy": value, "chosen": number == chosen}
            for number, (count, value) in enumerate(zip(counts, accuracies, strict=True))
        ]
        scores = {unit.conv: activation}
        if self.fine_tune is None:
            return Repair(twin, mask, scores, history)
        untuned = duplicate(twin)
        rows = self.fine_tune(twin, clean, mask=mask)
        history += [{"phase": "tune", **row} for row in rows]
        return Repair(twin, mask, scores, history, untuned=untuned, tuned_steps=rows[-1]["steps"])


def last(units: Units) -> Unit:
    """The last convolution on the main way that has a batch norm of its own.

    In a pre-activation network it is not the very last convolution, which has none.
    """
    return next((unit for unit in reversed(units.pairs) if not unit.shortcut), units.pairs[-1])


@torch.no_grad()
def mean_activation(model: nn.Module, unit: Unit, images: Images, batch_size: int = 500) -> Tensor:
    """Each channel's mean over images and positions behind batch norm and ReLU: float64 `[filters]`.

    Args:
        model: in eval mode.
        unit: whose channels.
        images: at least one.
        batch_size: images a forward pass.
    """
    total = torch.zeros(unit.filters, dtype=torch.float64, device=images.images.device)

    def see(_conv: str, maps: Tensor) -> None:
        total.add_(maps.mean((2, 3), dtype=torch.float64).sum(0))

    with watch(model, [unit], see):
        for part in images.images.split(batch_size):
            model(to_floats(part))
    return total / len(images)


@torch.no_grad()
def pruned_accuracies(
    model: nn.Module, unit: Unit, order: Tensor, counts: Sequence[int], images: Images, batch_size: int = 500
) -> list[float]:
    """Accuracy, in [0, 1], with the first so many channels of `order` pruned, for each of `counts`.

    What stands before the channels' batch norm is computed once for all counts, where torch.fx can trace the model.

    Args:
        model: in eval mode; it is pruned in place and restored.
        unit: whose channels.
        order: the channels, `[filters]`, in the order in which they are pruned.
        counts: how many, ascending.
        images: at least one.
        batch_size: images a forward pass.
    """
    try:
        graph = traced(model)
    except UntraceableError:
        graph = None
    bn = model.get_submodule(unit.bn)
    assert isinstance(bn, nn.BatchNorm2d)
    gamma, beta = bn.weight.clone(), bn.bias.clone()
    correct = torch.zeros(len(counts), dtype=torch.int64, device=images.images.device)
    for part, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
        inputs = to_floats(part)
        known = _up_to(graph, unit.conv, inputs) if graph is not None else {}
        for number, count in enumerate(counts):
            bn.weight[order[:count]] = 0
            bn.bias[order[:count]] = 0
            if graph is None:
                answers = model(inputs)
            else:  # clones, since a layer behind may add to what it gets in place
                begun = {node: value.clone() if isinstance(value, Tensor) else value for node, value in known.items()}
                answers = Interpreter(graph).run(initial_env=begun)
            correct[number] += (answers.argmax(1) == labels).sum()
        bn.weight.copy_(gamma)
        bn.bias.copy_(beta)
    return (correct.double() / len(images)).tolist()


def _up_to(graph: GraphModule, conv: str, inputs: Tensor) -> dict[Node, Any]:
    """The values of all nodes up to a convolution, None where no later node asks for them."""
    nodes = list(graph.graph.nodes)
    end = next(number for number, node in enumerate(nodes) if node.target == conv)
    later = set(nodes[end + 1 :])
    runner = Interpreter(graph)
    runner.args_iter = iter([inputs])
    for node in nodes[: end + 1]:
        runner.env[node] = runner.run_node(node)
    return {node: value if later & set(node.users) else None for node, value in runner.env.items()}
