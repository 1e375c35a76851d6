"""The four components of the suspiciousness score (arXiv 2311.07417), from one pass over the clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.saliency import SALIENCY_LOSSES, gradient_norms, gradient_sum, saliency_loss
from nbtools.networks.maps import passing, watch
from nbtools.networks.precision import real_float32
from nbtools.networks.units import Unit, Units, bn_factor, check_finite, layers_of, prunable_units

Scores = dict[str, Tensor]
"""Convolution name to float64 `[filters]`."""


@real_float32()
@torch.no_grad()
def spectral_norms(model: nn.Module, units: Units | None = None, fold_bn: bool = True) -> Scores:
    """Spectral norm of each filter, the whole network in one eigenvalue call per kernel size.

    sigma_i = || reshape(W_i, [C_in, k*k]) ||_2 * |gamma_i| / sqrt(var_i + eps): the largest eigenvalue of the k*k
    Gram matrix is its square. It bounds how strongly the filter can answer any patch (CLP, Zheng et al. 2022).

    Args:
        model: with convolution-BN pairs; needs no image.
        units: the pairs, where they are known already, and the weights were found to be finite.
        fold_bn: multiply by the batch norm's factor (else the bare weights).

    Returns:
        Convolution name to float64 `[filters]`, not negative.

    Raises:
        ValueError: for NaN weights, or a model without convolution-BN pairs.
    """
    if units is None:
        check_finite(model)
        units = prunable_units(model)
    stacks: dict[int, list[tuple[Unit, Tensor, nn.BatchNorm2d]]] = {}
    for unit, conv, bn in layers_of(model, units):
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1, 2)  # [filters, k * k, c_in], a view where channels-last
        gram = torch.bmm(weight, weight.transpose(1, 2))
        stacks.setdefault(weight.shape[1], []).append((unit, gram, bn))
    order = [layer for stack in stacks.values() for layer in stack]
    norms = torch.cat([_largest_eigenvalues(torch.cat([gram for _, gram, _ in stack])) for stack in stacks.values()])
    sigma = norms.sqrt().double()
    if fold_bn:
        sigma = sigma * bn_factor(*(bn for _, _, bn in order))
    parts = sigma.split([unit.filters for unit, _, _ in order])
    found = {unit.conv: part for (unit, _, _), part in zip(order, parts, strict=True)}
    return {unit.conv: found[unit.conv] for unit in units}


def _largest_eigenvalues(grams: Tensor) -> Tensor:
    """Largest eigenvalue of each of `[n, k, k]` symmetric positive matrices: float32 `[n]`."""
    grams = grams.float()
    if grams.shape[-1] == 1:
        return grams[:, 0, 0].clamp_min(0)
    return torch.linalg.eigvalsh(grams)[:, -1].clamp_min(0)


@dataclass
class MapStatistics:
    """Running sums of one layer's maps, from which norm and correlation follow.

    Products are summed around the first batch's mean, in float64 across batches, so that large means cost no digits.
    """

    images: int = 0
    positions: int = 0
    norm_sum: Tensor | None = None
    shift: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Take in one batch: float `[n, filters, h, w]`."""
        columns = maps.float().permute(0, 2, 3, 1).flatten(1, 2)  # [n, positions, filters], a view where channels-last
        norms = columns.square().sum(1).sqrt().sum(0, dtype=torch.float64)
        shift = columns.mean((0, 1)) if self.shift is None else self.shift
        centred = columns - shift
        first, rows = centred.sum(1).sum(0, dtype=torch.float64), centred.flatten(0, 1)
        second = (rows.T @ rows).double()
        if self.norm_sum is None or self.first is None or self.second is None:
            self.shift, self.norm_sum, self.first, self.second = shift, norms, first, second
        else:
            self.norm_sum, self.first, self.second = self.norm_sum + norms, self.first + first, self.second + second
        self.images += len(maps)
        self.positions += len(rows)

    def activation_norm(self) -> Tensor:
        """a_i = mean over images of || A_i(x) ||_F: float64 `[filters]`."""
        assert self.norm_sum is not None, "no batch was added"
        return self.norm_sum / self.images

    def correlation_matrix(self) -> Tensor:
        """Pearson correlation of each pair of maps over images and positions: float64 `[filters, filters]`.

        Rows and columns of a dead map (no variance) are zero; the diagonal of the others is one.
        """
        return _pearson([self])[0]

    def correlation(self) -> Tensor:
        """r_i = mean over j != i of | Pearson(A_i, A_j) |: float64 `[filters]`, in [0, 1], 0 for a dead map."""
        return correlations({"": self})[""]


def correlations(layers: Mapping[str, MapStatistics]) -> Scores:
    """`MapStatistics.correlation` of many layers, those of one width at once."""
    widths: dict[int, list[str]] = {}
    for name, statistics in layers.items():
        widths.setdefault(0 if statistics.first is None else len(statistics.first), []).append(name)
    found: Scores = {}
    for width, names in widths.items():
        matrices = _pearson([layers[name] for name in names]).abs()
        means = (matrices.sum(2) - matrices.diagonal(dim1=1, dim2=2)) / max(width - 1, 1)
        found |= dict(zip(names, means.unbind(), strict=True))
    return {name: found[name] for name in layers}


def _pearson(layers: Sequence[MapStatistics]) -> Tensor:
    """The correlation matrices of layers of one width: float64 `[layers, filters, filters]`."""
    sums: list[tuple[Tensor, Tensor]] = []
    for part in layers:
        assert part.first is not None and part.second is not None, "no batch was added"
        sums.append((part.first / part.positions, part.second / part.positions))
    means, products = (torch.stack(values) for values in zip(*sums, strict=True))
    covariance = products - means[:, :, None] * means[:, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    alive = variance > 1e-12 * variance.amax(1, keepdim=True).clamp_min(1e-30)
    scale = torch.where(alive, variance.clamp_min(1e-300).rsqrt(), 0)
    return (covariance * scale[:, :, None] * scale[:, None]).clamp(-1, 1)


@dataclass(frozen=True)
class Components:
    """The four measurements of every filter, each convolution name to float64 `[filters]`.

    Args:
        sigma: spectral norm, BN folded.
        saliency: mean over the images of || dL_x/dW_i ||_F, L_x the loss of one image; or || dL/dW_i ||_F of the mean
            loss, as `components` was asked.
        activation: mean over the images of || A_i(x) ||_F.
        correlation: mean over the layer's other filters of |Pearson(A_i, A_j)|, in [0, 1].
        units: the pairs they belong to.
    """

    sigma: Scores
    saliency: Scores
    activation: Scores
    correlation: Scores
    units: Units

    def of(self, term: str) -> Scores:
        """One of the four by name."""
        return getattr(self, term)


AT_ONCE = 5 * 10**7
"""Filters times pixels of the images that go through a network at a time."""
TERMS = ("sigma", "saliency", "activation", "correlation")


def check_clean(clean: Images) -> None:
    """Refuse a clean set that no score can be computed from.

    Raises:
        ValueError: where there is no image.
    """
    if len(clean) == 0:
        raise ValueError("there are no clean images; give at least one (ten a class is what the series uses)")


def check_classes(outputs: int, classes: int) -> None:
    """Refuse a model that tells fewer classes apart than the clean images have.

    Raises:
        ValueError: it names both numbers.
    """
    if outputs < classes:
        raise ValueError(
            f"the model tells {outputs} classes apart, the clean images have {classes}; "
            "use the classes that the model was trained on"
        )


def at_once(units: Units, clean: Images) -> int:
    """How many images go through the network at a time, 1 to 100, so that their maps take a bounded memory.

    Ten of 32 x 32 pixels in a ResNet-18 of width 64 on a CPU, where more are not faster; on a GPU sixteen times that.
    """
    height, width = clean.size
    numbers = AT_ONCE * (1 if clean.images.device.type == "cpu" else 16)
    return min(max(1, numbers // (sum(unit.filters for unit in units) * height * width)), 100)


@real_float32()
def components(
    model: nn.Module,
    clean: Images,
    saliency: str = "cross_entropy",
    fold_bn: bool = True,
    after_relu: bool = True,
    per_image: bool = True,
    batch_size: int = 0,
) -> Components:
    """All four components from one forward and one backward pass over the clean images.

    The model is left as it was: the mode of each of its layers, its gradients and its weights.

    Args:
        model: with convolution-BN pairs.
        clean: the defender's images, at least one.
        saliency: see `saliency_loss`.
        fold_bn: see `spectral_norms`.
        after_relu: measure maps behind BN and ReLU (else behind BN).
        per_image: saliency is the mean of the images' gradient norms (else the norm of their mean gradient, in which
            images that pull in opposite directions cancel).
        batch_size: images at a time; 0 takes as many as `at_once`.

    Raises:
        ValueError: for no images, NaN weights, a model without convolution-BN pairs or with fewer classes than the
            images, or an unknown saliency.
    """
    check_clean(clean)
    check_finite(model)
    if saliency not in SALIENCY_LOSSES:
        raise ValueError(f"unknown saliency {saliency!r}; known: {', '.join(SALIENCY_LOSSES)}")
    units = prunable_units(model, to_floats(clean.images[:1]))
    layers = layers_of(model, units)
    modes = [(module, module.training) for module in model.modules()]
    statistics = {unit.conv: MapStatistics() for unit in units}
    measure = gradient_norms if per_image else gradient_sum
    totals: dict[str, Tensor] = {}
    model.eval()
    try:
        size = batch_size or at_once(units, clean)
        for images, labels in zip(clean.images.split(size), clean.labels.split(size), strict=True):
            with (
                torch.enable_grad(),
                watch(model, units, lambda name, maps: statistics[name].add(maps), after_relu),
                passing(conv for _, conv, _ in layers) as passed,
            ):
                logits = model(to_floats(images).requires_grad_())  # frozen weights or not, every map gets a gradient
                check_classes(logits.shape[1], clean.num_classes)
                loss = saliency_loss(logits, labels, saliency)
            gradients = torch.autograd.grad(loss, [passed[conv][1] for _, conv, _ in layers])
            for (unit, conv, _), gradient in zip(layers, gradients, strict=True):
                part = measure(conv, passed[conv][0].detach(), gradient)
                totals[unit.conv] = part + totals[unit.conv] if unit.conv in totals else part
    finally:
        for module, training in modes:
            module.training = training
    if not per_image:
        totals = {name: gradient.double().norm(dim=1) for name, gradient in totals.items()}
    return Components(
        sigma=spectral_norms(model, units, fold_bn),
        saliency={name: total / len(clean) for name, total in totals.items()},
        activation={name: s.activation_norm() for name, s in statistics.items()},
        correlation=correlations(statistics),
        units=units,
    )
