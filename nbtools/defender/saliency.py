"""How much the clean loss asks of each filter: the loss, and the norms of its gradients image by image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nbtools.networks.units import is_plain

SALIENCY_LOSSES = ("cross_entropy", "margin", "softened")
TEMPERATURE = 4.0
"""By which the logits are divided in the "softened" loss."""

CHUNK = {"cpu": 2**22, "gpu": 2**26}
"""Floats that the patches and gradients of one piece of a batch may take: 16 MiB, which a CPU's caches like, and
256 MiB on any other device, for few calls."""


def saliency_loss(logits: Tensor, labels: Tensor, kind: str = "cross_entropy") -> Tensor:
    """The summed loss whose gradient is the saliency.

    Args:
        logits: `[n, classes]`.
        labels: `[n]`.
        kind: "cross_entropy"; "margin", the true class's logit minus the largest other; "softened", cross-entropy
            of the logits divided by `TEMPERATURE`. The last two do not vanish where the clean loss is saturated.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="sum")
    if kind == "softened":
        return F.cross_entropy(logits / TEMPERATURE, labels, reduction="sum")
    if kind == "margin":
        true = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        return (true - others).sum()
    raise ValueError(f"unknown saliency {kind!r}; known: {', '.join(SALIENCY_LOSSES)}")


def gradient_sum(conv: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the weights, summed over the batch.

    Args:
        conv: the convolution.
        inputs: what it got, `[n, c_in, h, w]`.
        gradient: of the loss with respect to what it gave, `[n, filters, h', w']`.

    Returns:
        `[filters, k * k * c_in / groups]`, each filter's weights in the order of `_pieces`.
    """
    if not is_plain(conv):
        return torch.stack(list(_one_by_one(conv, inputs, gradient))).sum(0)
    parts = [(g @ patches).sum(0) for g, patches in _pieces(conv, inputs, gradient, conv.weight.numel())]
    return torch.stack(parts).sum(0).flatten(0, 1)


def gradient_norms(conv: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Norms of each filter's weight gradients of single images, summed over the batch; arguments as in `gradient_sum`.

    An image's gradient is G = g U, with g `[filters, positions]` and U `[positions, k * k * c_in]` its patches. Where
    positions are few, || G_i ||^2 = g_i (U U^T) g_i^T is cheaper: the gradient itself, as large as the weights for
    every image, is never made. In float64, since squares lose digits where terms cancel.

    Returns:
        float64 `[filters]`.
    """
    if not is_plain(conv):
        return torch.stack([own.double().norm(dim=1) for own in _one_by_one(conv, inputs, gradient)]).sum(0)
    few = 4 * gradient[0, 0].numel() <= min(conv.weight[0].numel(), conv.out_channels // conv.groups)
    norms = torch.zeros(conv.out_channels, dtype=torch.float64, device=gradient.device)
    for g, patches in _pieces(conv, inputs, gradient, 0 if few else conv.weight.numel()):
        if few:
            g, patches = g.double(), patches.double()
            squares = ((g @ (patches @ patches.transpose(2, 3))) * g).sum(3)
            norms += squares.clamp_min(0).sqrt().sum(0).flatten()
        else:
            norms += (g @ patches).norm(dim=3).sum(0, dtype=torch.float64).flatten()
    return norms


def _one_by_one(conv: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """Each image's gradient of the weights, `[filters, c_in / groups * k * k]`, of a convolution that runs its own way.

    One that pads as it runs sees other patches than those that `_pieces` finds.
    """
    weight = conv.weight.detach().requires_grad_()
    for image, at_output in zip(inputs, gradient, strict=True):
        with torch.enable_grad():
            output = functional_call(conv, {"weight": weight}, (image[None],))
        yield torch.autograd.grad(output, weight, at_output[None])[0].flatten(1)


def _pieces(conv: nn.Conv2d, inputs: Tensor, gradient: Tensor, beside: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch in pieces that fit `CHUNK`: gradients at the outputs, and what each filter saw there.

    A patch is a view of the padded inputs that is copied once, channels together: on a CPU about ten times as fast as
    `F.unfold`.

    Args:
        conv, inputs, gradient: as in `gradient_sum`.
        beside: floats that the caller needs an image.

    Returns:
        `[n, groups, filters / groups, positions]` and `[n, groups, positions, k * k * c_in / groups]`.
    """
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)  # holds "same" and "valid" as numbers too
    windows = padded.permute(0, 2, 3, 1)  # [n, h, w, c_in]
    for axis in (0, 1):
        step = conv.dilation[axis]
        windows = windows.unfold(1 + axis, step * (conv.kernel_size[axis] - 1) + 1, conv.stride[axis])[..., ::step]
    windows = windows.unflatten(3, (conv.groups, -1)).permute(0, 3, 1, 2, 5, 6, 4)
    at_outputs = gradient.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (conv.groups, -1)).permute(0, 2, 3, 1)
    size = max(1, CHUNK["cpu" if inputs.device.type == "cpu" else "gpu"] // (windows[0].numel() + beside))
    for g, patches in zip(at_outputs.split(size), windows.split(size), strict=True):
        yield g, patches.flatten(4).flatten(2, 3)
