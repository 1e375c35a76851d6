"""Magnitude and saliency of each filter, and how they go together in a layer (arXiv 2405.17750).

[paper] "Backdoor neurons deviate from the magnitude-saliency correlation of the model". The formulas are reconstructed
[ours].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, fx, nn
from torch.func import functional_call

from nbtools.data.images import Images, to_floats
from nbtools.defender.components import Scores, check_classes, check_clean
from nbtools.networks.graph import duplicate, traced
from nbtools.networks.maps import watch
from nbtools.networks.precision import real_float32
from nbtools.networks.units import Units, bn_factor, check_finite, layers_of, prunable_units

NORMS = {"l1": 1, "l2": 2}
AT_ONCE = 1000
"""Images that one forward pass of the exact saliency takes: some filters' copies of a batch."""


def check_norm(norm: str) -> None:
    """Refuse an unknown norm.

    Raises:
        ValueError: it lists the known ones.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")


def magnitudes(model: nn.Module, units: Units | None = None, norm: str = "l1", fold_bn: bool = False) -> Scores:
    """M_i = || W_i ||, the norm of each filter's weights [ours]; needs no image.

    Args:
        model: with convolution-BN pairs.
        units: the pairs, where they are known already.
        norm: "l1" or "l2".
        fold_bn: multiply by |gamma_i| / sqrt(var_i + eps).

    Returns:
        Convolution name to float64 `[filters]`.

    Raises:
        ValueError: for an unknown norm, or a model without convolution-BN pairs.
    """
    check_norm(norm)
    scores = {}
    for unit, conv, bn in layers_of(model, units or prunable_units(model)):
        weights = conv.weight.detach().flatten(1)
        norms = torch.linalg.vector_norm(weights, NORMS[norm], dim=1, dtype=torch.float64)
        scores[unit.conv] = norms * bn_factor(bn) if fold_bn else norms
    return scores


@real_float32()
def saliencies(model: nn.Module, clean: Images, exact: bool = False, batch_size: int = 250) -> Scores:
    """How much the clean loss L, the mean cross-entropy, depends on each filter [ours].

    With m_i a factor on what filter i's batch norm gives (on gamma_i and beta_i), exact is L(m_i = 0) - L(m_i = 1), and
    the fast form is |dL/dm_i| at m = 1: the size of the exact one's first-order estimate, all filters from one backward
    pass. The model is left as it was.

    Args:
        model: with convolution-BN pairs.
        clean: the defender's images, at least one.
        exact: take each filter out in turn. A forward pass a filter, begun at its layer; minutes instead of seconds.
        batch_size: images at a time.

    Returns:
        Convolution name to float64 `[filters]`; the exact form may be negative.

    Raises:
        ValueError: for no images, NaN weights, a model without convolution-BN pairs or with fewer classes than the
            images.
    """
    check_clean(clean)
    check_finite(model)
    units, twin = prunable_units(model), duplicate(model).eval().requires_grad_(False)
    measure = _losses_without if exact else _gradients
    totals: Scores = {}
    for images, labels in zip(clean.images.split(batch_size), clean.labels.split(batch_size), strict=True):
        for name, part in measure(twin, units, to_floats(images), labels, clean.num_classes).items():
            totals[name] = totals[name] + part if name in totals else part
    return {name: (total if exact else total.abs()) / len(clean) for name, total in totals.items()}


def saliencies_of_sets(model: nn.Module, clean: Images, sets: Tensor, batch_size: int = 50) -> list[Scores]:
    """The fast `saliencies` of several sets of the same images, though each image goes through the model once.

    dL/dm_i of a set is the mean of its images' own. Images that are in the same sets are summed together, so the work
    is that of `saliencies` on all images, however many sets there are.

    Args:
        model, clean: as in `saliencies`.
        sets: bool `[sets, n]`, which images are in each set; at least one.
        batch_size: images at a time; it bounds the memory.

    Returns:
        The saliencies of each set; they differ from `saliencies` by the rounding of float32 sums.

    Raises:
        ValueError: as `saliencies`, or for a set without an image.
    """
    check_clean(clean)
    check_finite(model)
    sizes = sets.sum(1).tolist()
    if not all(sizes):
        raise ValueError(f"each set needs at least one image, got sets of {sizes}")
    kinds, kind_of = sets.unique(dim=1, return_inverse=True)  # [sets, kinds], [n]
    units, twin = prunable_units(model), duplicate(model).eval().requires_grad_(False)
    found: list[Scores] = [{} for _ in sizes]
    for kind, members in enumerate(kinds.T.tolist()):
        if not any(members):
            continue
        chosen = (kind_of == kind).nonzero().flatten()
        for part in chosen.split(batch_size):
            batch = clean.subset(part)
            gradients = _gradients(twin, units, batch.floats(), batch.labels, clean.num_classes)
            for totals in itertools.compress(found, members):
                for name, gradient in gradients.items():
                    totals[name] = totals[name] + gradient if name in totals else gradient
    return [
        {name: total.abs() / size for name, total in totals.items()} for totals, size in zip(found, sizes, strict=True)
    ]


def _gradients(model: nn.Module, units: Units, inputs: Tensor, labels: Tensor, classes: int) -> Scores:
    """dL/dm_i at m = 1, summed over the batch."""
    layers = layers_of(model, units)
    with torch.enable_grad():
        masks = [torch.ones_like(bn.weight).requires_grad_() for _, _, bn in layers]
        changed = {}
        for (unit, _, bn), mask in zip(layers, masks, strict=True):
            changed |= {f"{unit.bn}.weight": bn.weight * mask, f"{unit.bn}.bias": bn.bias * mask}
        loss = _losses(functional_call(model, changed, (inputs,)), labels, classes).sum()
        gradients = torch.autograd.grad(loss, masks)
    return {unit.conv: gradient.double() for (unit, _, _), gradient in zip(layers, gradients, strict=True)}


@torch.no_grad()
def _losses_without(model: nn.Module, units: Units, inputs: Tensor, labels: Tensor, classes: int) -> Scores:
    """L(m_i = 0) - L(m_i = 1), summed over the batch.

    One walk along the graph. At each batch norm all that later layers need is repeated, once a filter, each copy loses
    its filter, and the rest of the graph runs on these copies: what lies before a layer is computed once.
    """
    graph = traced(model)
    steps = list(enumerate(graph.graph.nodes))
    needed = {given: number for number, node in steps for given in node.all_input_nodes}  # the last step that does
    units_by_bn = {unit.bn: unit for unit in units}
    walk, count = fx.Interpreter(graph), len(inputs)
    walk.args_iter = iter([inputs])
    losses: Scores = {}
    logits = inputs
    for number, node in steps:
        logits = _run(walk, [(number, node)], needed)
        unit = units_by_bn.get(str(node.target)) if node.op == "call_module" else None
        if unit is None:
            continue
        parts, bn = [], graph.get_submodule(unit.bn)
        shut = {name: torch.zeros_like(value) for name, value in bn.named_parameters() if name in ("weight", "bias")}
        without = functional_call(bn, shut, (logits[:1],))[0]  # not 0 where an activation inside makes more of it
        for filters in torch.arange(unit.filters, device=inputs.device).split(max(1, AT_ONCE // count)):
            branch = fx.Interpreter(graph)
            for name, value in walk.env.items():
                many = isinstance(value, Tensor) and name.op != "get_attr" and value.shape[:1] == (count,)
                branch.env[name] = value.repeat(len(filters), *[1] * (value.ndim - 1)) if many else value
            maps = branch.env[node].unflatten(0, (len(filters), count))
            maps[torch.arange(len(filters), device=inputs.device), :, filters] = without[filters, None]
            answers = _run(branch, steps[number + 1 :], needed)
            parts.append(_losses(answers, labels.repeat(len(filters)), classes).unflatten(0, (-1, count)).sum(1))
        losses[unit.conv] = torch.cat(parts)
    whole = _losses(logits, labels, classes).sum()
    return {name: part - whole for name, part in losses.items()}


def _run(walk: fx.Interpreter, steps: Iterable[tuple[int, fx.Node]], needed: dict[fx.Node, int]) -> Tensor:
    """Go these steps, forget each value after its last use, and return what the last step gave."""
    value = torch.empty(0)
    for number, node in steps:
        walk.env[node] = value = walk.run_node(node)
        walk.env = {name: kept for name, kept in walk.env.items() if needed.get(name, -1) > number}
    return value


def _losses(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cross-entropy of each image, float64 `[n]`."""
    check_classes(logits.shape[1], classes)
    return F.cross_entropy(logits.double(), labels, reduction="none")


def rank_correlations(magnitude: Scores, saliency: Scores) -> dict[str, float]:
    """Spearman's correlation of magnitude and saliency over the filters of each layer, tied values at their mean rank.

    Returns:
        Convolution name to a number in [-1, 1]. A layer where either is the same for all filters has none and is left
        out.
    """
    ranks = _ranks(magnitude, saliency)
    return {name: float((first * second).mean()) for name, (first, second) in ranks.items()}


def rank_residuals(magnitude: Scores, saliency: Scores) -> Scores:
    """How far each filter's saliency lies below what its magnitude lets expect [ours].

    The residuals, sign turned, of the regression of saliency ranks on magnitude ranks within a layer, divided by their
    standard deviation there: high for a filter that is large and matters little to the clean images.

    Returns:
        Convolution name to float64 `[filters]`; layers as in `rank_correlations`.
    """
    found = {}
    for name, (first, second) in _ranks(magnitude, saliency).items():
        residual = (first * second).mean() * first - second
        spread = residual.std()
        found[name] = torch.from_numpy(residual / spread if spread > 1e-9 else np.zeros_like(residual))
    return found


def _ranks(magnitude: Scores, saliency: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both as ranks of mean 0 and variance 1, layers without spread left out."""
    found = {}
    for name, values in magnitude.items():
        ranks = [rankdata(part.cpu().numpy()) for part in (values, saliency[name])]
        if all(rank.std() > 0 for rank in ranks):
            found[name] = tuple((rank - rank.mean()) / rank.std() for rank in ranks)
    return found


def magnitude_saliency(
    model: nn.Module, clean: Images, norm: str = "l1", fold_bn: bool = False, exact: bool = False
) -> dict[str, float]:
    """Spearman's correlation of magnitude and saliency, layer by layer [paper; the two formulas are ours].

    Args:
        model, clean, exact: as in `saliencies`.
        norm, fold_bn: as in `magnitudes`.

    Returns:
        See `rank_correlations`.

    Raises:
        ValueError: as `magnitudes` and `saliencies`.
    """
    return rank_correlations(magnitudes(model, None, norm, fold_bn), saliencies(model, clean, exact))


@torch.no_grad()
def last_stage(model: nn.Module, clean: Images) -> list[str]:
    """The convolutions whose maps are the smallest, a ResNet's layer4, in the order of the data flow."""
    twin, units, sizes = duplicate(model).eval(), prunable_units(model), {}
    with watch(twin, units, lambda name, maps: sizes.update({name: maps[0, 0].numel()})):
        twin(to_floats(clean.images[:1]))
    return [unit.conv for unit in units if sizes[unit.conv] == min(sizes.values())]
