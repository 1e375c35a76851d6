"""Adversarial feature maps (arXiv 2307.11565): images that a small step drives away from one channel's map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.utils import fuse_conv_bn_eval

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import check_inputs
from nbtools.networks.graph import duplicate
from nbtools.networks.maps import passing
from nbtools.networks.precision import real_float32
from nbtools.networks.units import Unit, Units, is_plain, layers_of

CHUNK = 128
"""Images that go through the network at once: it bounds the memory; a CPU's caches like no more."""
PIXELS = 512 * 32 * 32
"""On a GPU, more images at once as long as they have no more pixels."""


def noisy_images(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """x~ = clip(x + alpha sign(u), 0, 1), u uniform in [-1, 1] [code].

    Args:
        images: x, float `[n, 3, h, w]` in [0, 1].
        alpha: in [0, 1].
        generator: a CPU generator; the noise is the same on every device.
    """
    noise = torch.rand(images.shape, generator=generator).mul_(2).sub_(1).sign_().to(images)
    return (images + alpha * noise).clamp_(0, 1)


def at_once(device: torch.device, height: int, width: int) -> int:
    """How many images of this size go through the network at once."""
    return CHUNK if device.type == "cpu" else max(CHUNK, PIXELS // (height * width))


@dataclass(frozen=True, eq=False)
class ChannelAccuracies:
    """What the model makes of the adversarial images of one layer's channels.

    Args:
        correct: `[filters]`, images that are classified as labelled.
        loss: mean cross-entropy, float64 `[filters]`.
        images: how many there are of each channel.
    """

    correct: Tensor
    loss: Tensor
    images: int

    @property
    def accuracy(self) -> Tensor:
        """Accuracy on each channel's adversarial images, in [0, 1]: float64 `[filters]`."""
        return self.correct.double() / self.images

    def scores(self) -> Tensor:
        """1 - accuracy, plus a tie-break by the loss that stays below one image's step: float64 `[filters]`."""
        return 1 - self.accuracy + (1 - 1 / (1 + self.loss)) / self.images


@dataclass(frozen=True, eq=False)
class AdversarialMaps:
    """Some channels of one layer: their adversarial images, and their maps before and after.

    Args:
        noisy: x~, `[n, 3, h, w]`.
        images: x', `[channels, n, 3, h, w]`.
        before: F(x), the maps of the clean images, `[channels, n, h', w']`.
        after: F(x'), the same channels' maps of their adversarial images.
    """

    noisy: Tensor
    images: Tensor
    before: Tensor
    after: Tensor


@real_float32()
@torch.no_grad()
def channel_accuracies(
    model: nn.Module, clean: Images, noisy: Tensor, epsilon: float = 0.06
) -> dict[str, ChannelAccuracies]:
    """The model's accuracy and loss on each channel's adversarial images [code].

    A channel costs one backward pass from its layer down and one whole forward pass, in batches, and no more; in the
    released loop it costs two whole forward passes besides. All in float32: the images are those of the loop, bit for
    bit, except where a gradient is zero up to rounding.

    Args:
        model: is not changed; it is scored in eval mode, whatever its mode.
        clean: the images x and their labels.
        noisy: x~, float `[n, 3, h, w]` in [0, 1].
        epsilon: size of the step.

    Returns:
        Convolution name to `ChannelAccuracies`.

    Raises:
        ValueError: as `check_inputs`, or where `noisy` does not fit the clean images.
    """
    units = _check(model, clean, noisy)
    model = duplicate(model).eval().requires_grad_(False)
    twin, device = folded(model, units), noisy.device
    correct = {unit.conv: torch.zeros(unit.filters, dtype=torch.int64, device=device) for unit in units}
    losses = {unit.conv: torch.zeros(unit.filters, dtype=torch.float64, device=device) for unit in units}
    most = at_once(device, *clean.size)
    blocks = zip(clean.images.split(most), clean.labels.split(most), noisy.split(most), strict=True)
    for images, labels, block in blocks:
        gradients = MapGradients(model, twin, units, to_floats(images), block)
        for unit in units:
            for channels, stepped in gradients.steps(unit, range(unit.filters), epsilon):
                logits = twin(stepped.flatten(0, 1))
                loss = F.cross_entropy(logits, labels.repeat(len(channels)), reduction="none")
                right = logits.argmax(1).unflatten(0, (-1, len(labels))) == labels
                correct[unit.conv][channels] += right.sum(1)
                losses[unit.conv][channels] += loss.unflatten(0, (-1, len(labels))).sum(1, dtype=torch.float64)
    return {name: ChannelAccuracies(correct[name], losses[name] / len(clean), len(clean)) for name in correct}


@real_float32()
@torch.no_grad()
def adversarial_maps(
    model: nn.Module, unit: Unit, channels: Sequence[int], clean: Images, noisy: Tensor, epsilon: float = 0.06
) -> AdversarialMaps:
    """The adversarial images of some channels of one layer, to look at.

    Args:
        model: is not changed.
        unit: which layer; one of `prunable_units(model)`.
        channels: which of its channels, each below `unit.filters`.
        clean: the images x, at most as many as `at_once` says.
        noisy: x~, float `[n, 3, h, w]` in [0, 1].
        epsilon: size of the step.

    Raises:
        ValueError: as `channel_accuracies`, for a channel that the layer does not have, or too many images.
    """
    units = _check(model, clean, noisy)
    most = at_once(noisy.device, *clean.size)
    if len(clean) > most or not channels or not all(0 <= channel < unit.filters for channel in channels):
        raise ValueError(
            f"{unit.conv} has the channels 0 to {unit.filters - 1} and at most {most} images are looked at, "
            f"got the channels {list(channels)} and {len(clean)} images"
        )
    model = duplicate(model).eval().requires_grad_(False)
    gradients = MapGradients(model, folded(model, units), units, clean.floats(), noisy)
    images, after = [], []
    for chosen, stepped in gradients.steps(unit, channels, epsilon):
        images.append(stepped)
        maps = _maps(model, [unit], stepped.flatten(0, 1))[unit.conv].unflatten(0, (len(chosen), -1))
        after.append(maps[torch.arange(len(chosen)), :, chosen])
    before = _maps(model, [unit], clean.floats())[unit.conv][:, list(channels)].transpose(0, 1)
    return AdversarialMaps(noisy, torch.cat(images), before, torch.cat(after))


def _check(model: nn.Module, clean: Images, noisy: Tensor) -> Units:
    if noisy.shape != clean.images.shape or not noisy.is_floating_point():
        raise ValueError(
            f"the noisy images must be floats of the clean images' shape {list(clean.images.shape)}, "
            f"got {noisy.dtype} {list(noisy.shape)}; `noisy_images` makes them"
        )
    return check_inputs(model, clean)


@torch.no_grad()
def folded(model: nn.Module, units: Units) -> nn.Module:
    """A copy of a model in eval mode that answers the same in less time: convolutions take in their batch norms."""
    twin = duplicate(model)
    for unit, conv, bn in layers_of(twin, units):
        twin.set_submodule(unit.conv, fuse_conv_bn_eval(conv, bn))
        if type(bn).forward is nn.BatchNorm2d.forward:
            twin.set_submodule(unit.bn, nn.Identity())
            continue
        # An activation inside stays: the batch norm becomes the identity before it. torch 2.11 refuses an eps of 0, and
        # 1 plus this one is 1.
        bn.eps = 1e-30
        for value, same in ((bn.running_mean, 0), (bn.running_var, 1), (bn.weight, 1), (bn.bias, 0)):
            if value is not None:
                value.fill_(same)
    return twin


def _maps(model: nn.Module, units: Sequence[Unit] | Units, images: Tensor) -> dict[str, Tensor]:
    """What the units' convolutions give: convolution name to `[n, filters, h', w']`."""
    convs = {unit.conv: conv for unit, conv, _ in layers_of(model, units)}
    with passing(convs.values()) as passed:
        model(images)
    return {name: passed[conv][1] for name, conv in convs.items()}


class MapGradients:
    """Gradients of single channels' map errors with respect to the noisy images, many channels at once.

    The noisy images go through the network once, several copies of them side by side, and the graph is kept. Since a
    network in eval mode treats each image alone, each copy can carry another channel's gradient back, from the layer's
    input down; a layer's own step is cheap, as one channel's error meets one filter alone.

    Args:
        model: in eval mode, without gradients on its weights.
        twin: `folded(model, units)`.
        units: the layers.
        images: x, float `[n, 3, h, w]` in [0, 1].
        noisy: x~, likewise.
    """

    def __init__(self, model: nn.Module, twin: nn.Module, units: Units, images: Tensor, noisy: Tensor) -> None:
        clean, noised = _maps(model, units, images), _maps(model, units, noisy)
        self.errors = {name: noised[name] - clean[name] for name in clean}
        self.convs = {unit.conv: conv for unit, conv, _ in layers_of(model, units)}
        limit = max(1, at_once(noisy.device, *noisy.shape[2:]) // len(noisy))
        # the last copies of a layer may stay idle: as few as can be
        self.copies = min(
            range(limit // 2 + 1, limit + 1),
            key=lambda k: (sum(math.ceil(unit.filters / k) * k for unit in units), -k),
        )
        self.noisy = noisy.repeat(self.copies, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        twins = {unit.conv: cast(nn.Conv2d, twin.get_submodule(unit.conv)) for unit in units}
        with torch.enable_grad(), passing(twins.values()) as passed:
            twin(self.noisy.requires_grad_())
        self.inputs = {name: passed[conv][0] for name, conv in twins.items()}

    def steps(self, unit: Unit, channels: Sequence[int], epsilon: float) -> Iterator[tuple[Tensor, Tensor]]:
        """x' = clip(x~ + epsilon sign(g), 0, 1): channel numbers `[k]` and their images `[k, n, 3, h, w]`, in turn."""
        for chosen in torch.tensor(channels, device=self.noisy.device).split(self.copies):
            below = self._below(unit.conv, chosen)
            reached, count = self.inputs[unit.conv], len(below)
            if count < len(reached):
                below = torch.cat([below, below.new_zeros(len(reached) - count, *below.shape[1:])])
            (gradient,) = torch.autograd.grad(reached, self.noisy, below, retain_graph=True)
            images = self.noisy.detach()[:count]
            stepped = gradient[:count].sign_().mul_(epsilon).add_(images).clamp_(0, 1)
            yield chosen, stepped.unflatten(0, (len(chosen), -1))

    def _below(self, name: str, chosen: Tensor) -> Tensor:
        """The gradient at the layer's input, up to a positive factor, for each chosen channel: `[k * n, c_in, h, w]`.

        The mean squared error's gradient at the map is 2 / m times the error; the sign does not know the factor.
        """
        conv, error = self.convs[name], self.errors[name][:, chosen]
        n, k, groups = len(error), len(chosen), conv.groups
        height, width = self.inputs[name].shape[2:]
        if not is_plain(conv):  # it may pad as it runs; all copies go through it, each with an error at one channel
            with torch.enable_grad():
                inputs = error.new_zeros(k * n, conv.in_channels, height, width).requires_grad_()
                outputs = conv(inputs)
            at_output = torch.zeros_like(outputs)
            at_output.unflatten(0, (k, n))[torch.arange(k), :, chosen] = error.transpose(0, 1)
            return torch.autograd.grad(outputs, inputs, at_output)[0]
        size, pads = (n, k * conv.weight.shape[1], height, width), conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        with torch.enable_grad():
            inputs = error.new_zeros(size).requires_grad_()
            padded = F.pad(inputs, pads, mode)
        stride, dilation = cast(int, conv.stride), cast(int, conv.dilation)  # pairs are taken too, its types don't say
        at_padded = conv2d_input(padded.shape, conv.weight[chosen], error, stride, 0, dilation, k)
        (at_input,) = torch.autograd.grad(padded, inputs, at_padded)
        at_input = at_input.unflatten(1, (k, -1)).permute(1, 0, 3, 4, 2)  # [k, n, h, w, c_in / groups]
        if groups > 1:
            spread = at_input.new_zeros(*at_input.shape[:4], groups, at_input.shape[4])
            spread[torch.arange(k), :, :, :, chosen // (conv.out_channels // groups)] = at_input
            at_input = spread.flatten(4)
        return at_input.reshape(k * n, *at_input.shape[2:]).permute(0, 3, 1, 2)
