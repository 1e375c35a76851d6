"""One training loop: batched augmentation on the device, one-cycle schedule, resumable to the bit."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.settings import has_bf16

Row = dict[str, float]

PIECE = 2**25
"""Bytes of images that an epoch crops at once (32 MiB, or one batch where that is more); it takes three times that."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: SGD with momentum, crop and flip, one-cycle learning rate.

    Args:
        epochs: passes over the images, at least 1.
        batch_size: images a step.
        lr: the highest learning rate; it rises to it linearly, then falls linearly to zero.
        warm_up: share of the steps that rise, in (0, 1).
        momentum: SGD momentum.
        weight_decay: on all parameters.
        padding: pixels by which a random crop may shift an image.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    warm_up: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    padding: int = 4

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0 or not 0 < self.warm_up < 1 or self.padding < 0:
            raise ValueError(
                f"epochs >= 1, batch_size >= 2, lr > 0, warm_up in (0, 1) and padding >= 0 are needed, got {self}"
            )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` of `steps`."""
        return float(np.interp((step + 1) / steps, [0, self.warm_up, 1], [0, self.lr, 0]))


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where the hardware computes it, else a context that changes nothing."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


def augment(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop (zero padding) and horizontal flip, the whole batch in one gather.

    Args:
        images: uint8 or float `[b, 3, h, w]`.
        generator: a CPU generator; the draw is the same on every device.
        padding: pixels on each side.

    Returns:
        The same shape and type, channels-last.
    """
    return _cropped(images, _crops(1, len(images), generator, padding).to(images.device), padding)


def _crops(batches: int, size: int, generator: torch.Generator, padding: int) -> Tensor:
    """Where the images of each batch in turn are cropped, and whether they are flipped: int64 `[3, batches * size]`."""
    drawn = [
        (torch.randint(0, 2 * padding + 1, (2, size), generator=generator), torch.rand(size, generator=generator))
        for _ in range(batches)
    ]
    shifts, flips = (torch.stack(values) for values in zip(*drawn, strict=True))
    return torch.cat([shifts.transpose(0, 1).flatten(1), (flips < 0.5).flatten()[None]])


def _cropped(images: Tensor, crops: Tensor, padding: int) -> Tensor:
    """The crops of `_crops`, both on one device: as many images as are given, channels-last."""
    count, _, height, width = images.shape
    down, right, flip = crops[:, :, None]
    each, rows, columns = (torch.arange(size, device=images.device) for size in (count, height, width))
    rows, columns = down + rows, right + torch.where(flip > 0, columns.flip(0), columns)
    padded = F.pad(images, [padding] * 4)
    gathered = padded.permute(0, 2, 3, 1)[each[:, None, None], rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2)


def sgd(weights: Iterable[Tensor], lr: float, momentum: float = 0, **rest: Any) -> torch.optim.SGD:
    """SGD that moves all weights of a network in few calls.

    On CUDA in one ("fused"); elsewhere weight by weight inside a call for each operation ("foreach"), which gives the
    bits of PyTorch's plain loop. Fused, a CPU rounds the last weights of a tensor differently.

    Args:
        weights: all on one device.
        lr: learning rate.
        momentum: in [0, 1].
        rest: further arguments of `torch.optim.SGD`.
    """
    weights = list(weights)
    fused = all(weight.is_cuda for weight in weights)
    return torch.optim.SGD(weights, lr, momentum, fused=fused, foreach=not fused, **rest)


Penalty = Callable[[Tensor], Tensor]
"""What an attacker adds to the loss: a float batch in [0, 1] to a scalar in the autograd graph."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    penalty: Penalty | None = None,
) -> Tensor:
    """One SGD step on a float batch; returns the loss, still on the device."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device):
        loss = F.cross_entropy(model(images), labels)
        if penalty is not None:
            loss = loss + penalty(images)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: Path | None = None,
    accuracy: Callable[[nn.Module], float] | None = None,
    log: Callable[[str], None] | None = print,
    penalty: Penalty | None = None,
) -> list[Row]:
    """Train a model in place.

    The order of the images and their augmentation depend on `seed` and the epoch's number alone: they are drawn by a
    CPU generator, so the model sees the same images on every device. A run that is killed and started again with the
    same `checkpoint` ends bit-identical to one that was not (on a CPU, with the same number of threads).

    Args:
        model: lies on the same device as the images.
        images: the training set, uint8.
        recipe: epochs, learning rate and the like.
        seed: order and augmentation.
        checkpoint: a safetensors file, written anew after each epoch; where it is there, training goes on from it.
            One that can't be read is renamed to `.damaged`, with a warning, and training starts anew.
        accuracy: measured after each epoch (a share in [0, 1]), for the row.
        log: takes one aligned line an epoch; None is silent.
        penalty: added to the cross-entropy of each batch, see `nbtools.attacker.adaptive`.

    Returns:
        One row an epoch: epoch, loss, accuracy, seconds.

    Raises:
        DivergedError: where the loss is not finite.
        ValueError: where there are fewer than two images, or the checkpoint is of another model, recipe or seed.
    """
    if len(images) < 2:
        raise ValueError(f"training needs at least two images, got {len(images)}")
    optimizer = sgd(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    made_by = json.dumps([asdict(recipe), seed])
    rows = _resume(checkpoint, model, optimizer, made_by)
    if log:
        log(f"{'epoch':>7} {'loss':>7} {'accuracy':>9} {'seconds':>8} {'left':>7}")
    for epoch in range(len(rows), recipe.epochs):
        started = time.perf_counter()
        loss = _one_epoch(model, optimizer, images, recipe, seed, epoch, penalty)
        if not np.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in epoch {epoch + 1}; a lower learning rate than {recipe.lr}?")
        row = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy(model) if accuracy else float("nan")}
        rows.append({**row, "seconds": time.perf_counter() - started})
        if checkpoint:
            _save(checkpoint, model, optimizer, rows, made_by)
        if log:
            left = sum(r["seconds"] for r in rows) / len(rows) * (recipe.epochs - epoch - 1)
            log(
                f"{epoch + 1:>3}/{recipe.epochs:<3} {loss:>7.3f} {100 * row['accuracy']:>8.1f}% "
                f"{rows[-1]['seconds']:>8.1f} {left:>6.0f}s"
            )
    model.eval()
    return rows


def _one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    recipe: Recipe,
    seed: int,
    epoch: int,
    penalty: Penalty | None,
) -> float:
    model.train()
    batches = len(images) // min(recipe.batch_size, len(images))
    total = torch.zeros((), device=images.images.device)
    for number, (pixels, labels) in enumerate(_batches(images, recipe, seed, epoch)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch * batches + number, recipe.epochs * batches)
        total += train_step(model, optimizer, to_floats(pixels), labels, penalty)
    return float(total) / batches


def _batches(images: Images, recipe: Recipe, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's batches, cropped and flipped: uint8 `[b, 3, h, w]` and labels `[b]`, on the images' device.

    All is drawn on the CPU before the first batch, the order first, then each batch's crops, and goes to the device
    in one copy; the pixels are gathered there, `PIECE` bytes at a time.
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    size = min(recipe.batch_size, len(images))
    count = len(images) // size * size
    order = torch.randperm(len(images), generator=generator)[:count]
    drawn = torch.cat([order[None], _crops(count // size, size, generator, recipe.padding)]).to(images.images.device)
    for part in drawn.split(max(1, PIECE // (images.images[0].numel() * size)) * size, 1):
        pixels = _cropped(images.images[part[0]], part[1:], recipe.padding)
        yield from zip(pixels.split(size), images.labels[part[0]].split(size), strict=True)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rows: list[Row], made_by: str) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer.contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"rows": json.dumps(rows), "made_by": made_by})
    partial.replace(path)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, made_by: str) -> list[Row]:
    if path is None or not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            rows: list[Row] = json.loads(file.metadata()["rows"])
            before = file.metadata().get("made_by", made_by)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        aside = path.replace(path.with_suffix(".damaged"))
        warnings.warn(f"{path} can't be read ({error}); it is now {aside.name}, training starts anew", stacklevel=3)
        return []
    if before != made_by:
        raise ValueError(f"{path} belongs to another training ({before}, this one is {made_by}); give another file")
    state, own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, model.state_dict()
    differ = [
        name for name in own | state if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if differ:
        raise ValueError(f"{path} is of another model ({differ[0]} differs); give another file")
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    return rows
