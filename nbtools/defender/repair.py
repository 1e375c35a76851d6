"""What every defence returns, and the one fine-tuning loop that they share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.learning import learn, logits_of
from nbtools.defender.memory import peak
from nbtools.defender.pruning import Mask, hold
from nbtools.networks.graph import duplicate
from nbtools.networks.training import augment, sgd
from nbtools.networks.units import check_finite


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired model and the record of its making.

    Args:
        model: the repaired copy, in eval mode; the model that was given is untouched.
        mask: which filters were pruned.
        scores: convolution name to `[filters]`, what the mask was made from.
        history: what happened on the way, one row a step.
        seconds: the defence's own time.
        defence: the defence's `repr`, a complete record of its settings.
        untuned: the copy as it was pruned, before its weights were tuned; None where nothing was tuned.
        tuned_steps: optimiser steps that the weights of the repaired model took.
        peak_bytes: memory that the defence took at its highest, above what was taken before; see
            `nbtools.defender.memory.peak`.
    """

    model: nn.Module
    mask: Mask
    scores: dict[str, Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    defence: str = ""
    untuned: nn.Module | None = None
    tuned_steps: int = 0
    peak_bytes: int = 0


class Defence(Protocol):
    """A model and clean images in, a repair out; nothing else is ever seen."""

    def __call__(self, model: nn.Module, clean: Images) -> Repair: ...


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """While the context lasts, PyTorch's global random state is that of seed 0; afterwards it is what it was before.

    The defences draw from generators of their own. A model may not: its dropout takes the global state.

    Args:
        device: where the work is done.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


Call = TypeVar("Call", bound=Callable[..., Repair])


def measured(call: Call) -> Call:
    """A defence's `__call__` whose repair knows its seconds, its memory and the defence's `repr`.

    What the model draws while it is trained, such as dropout, is the same each time.
    """

    @functools.wraps(call)
    def timed(self: object, model: nn.Module, clean: Images) -> Repair:
        started = time.perf_counter()
        with peak(clean.images.device) as memory, own_randomness(clean.images.device):
            repair = call(self, model, clean)
            if clean.images.is_cuda:
                torch.cuda.synchronize(clean.images.device)
        return replace(repair, seconds=time.perf_counter() - started, peak_bytes=memory.size, defence=repr(self))

    return cast(Call, timed)


@dataclass(frozen=True)
class FineTune:
    """Fine-tuning on few clean images that stops by itself, and does nothing where it can't be shown to help [ours].

    The pruned model learns to answer the clean images, cropped and flipped, as the model did before it was pruned: its
    softened answers say more about an image than its label does, and a hundred labels are learned by heart within a
    few passes. No clean image carries the trigger, so the teacher's backdoor stays silent, or nearly so.

    When to stop: the clean images are dealt into folds. Each fold is held back once while a copy is tuned on the
    others, and its cross-entropy is written down before tuning and at every look. The look that is best over all
    held-back images is taken if its mean gain is more than `confidence` standard errors above zero; then the model is
    tuned on all images for so many steps, else it stays as it was.

    Args:
        steps: at most so many.
        every: steps between two looks at the held-back images.
        lr: SGD learning rate of the first step; it falls linearly over `steps`. At 0 nothing moves but the batch norms'
            statistics, where these are not frozen.
        momentum: SGD momentum.
        batch_size: images a step, or all where there are fewer.
        teacher: "before", the model before pruning, or "labels", plain cross-entropy.
        temperature: divides both models' logits where a model is the teacher.
        mixed: blend each image with another of its batch, with a weight drawn from [0, 1] (teacher "before" only).
            In narrow networks it helped clean accuracy, but could bring a blended trigger's backdoor back; at width 64
            it did not (notebook 06).
        folds: parts of the cross-validation, at least 2.
        confidence: standard errors that the gain must exceed; 0 or more.
        frozen_bn: keep the batch norms' running statistics (else they follow the clean batches, which is how a
            pruned backdoor comes back; notebook 06).
        seed: folds, order and augmentation.
    """

    steps: int = 40
    every: int = 10
    lr: float = 1e-3
    momentum: float = 0.9
    batch_size: int = 16
    teacher: str = "before"
    temperature: float = 2.0
    mixed: bool = False
    folds: int = 3
    confidence: float = 1.0
    frozen_bn: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.steps, self.every, self.batch_size)
        if counts < 1 or not self.lr >= 0 or self.folds < 2 or not self.confidence >= 0:  # so that NaN is refused too
            raise ValueError(
                "steps, every and batch_size >= 1, lr >= 0, folds >= 2 and confidence >= 0 are needed, got "
                + repr(self)
            )
        if self.teacher not in ("before", "labels") or not self.temperature > 0:
            raise ValueError(f"teacher is 'before' or 'labels', temperature is above 0, got {self}")

    def __call__(self, model: nn.Module, clean: Images, mask: Mask, before: nn.Module) -> list[dict[str, Any]]:
        """Tune in place, the mask held after every step.

        Args:
            model: the pruned model.
            clean: the defender's images.
            mask: what stays pruned.
            before: the model before pruning, the teacher; it is not changed.

        Returns:
            One row a look of the cross-validation: step, gain (mean fall of the held-back cross-entropy), error
            (its standard error), chosen (whether tuning stopped there). Empty for fewer than two images.
        """
        gains = self.held_back_gains(model, clean, mask, before)
        if gains is None:
            return []
        mean, error = gains.mean(1), gains.std(1) / gains.shape[1] ** 0.5
        best = int(mean.argmax())
        chosen = best if bool(mean[best] > self.confidence * error[best]) else 0
        for _ in self.tune(model, clean, mask, before, chosen * self.every):
            pass
        check_finite(model)
        return [
            {"step": k * self.every, "gain": float(mean[k]), "error": float(error[k]), "chosen": k == chosen}
            for k in range(len(mean))
        ]

    def held_back_gains(self, model: nn.Module, clean: Images, mask: Mask, before: nn.Module) -> Tensor | None:
        """Fall of each image's cross-entropy while it is held back: `[looks + 1, n]`, or None for too few images."""
        folds = min(self.folds, len(clean))
        if folds < 2:
            return None
        device = clean.images.device
        order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(self.seed)).to(device)
        curves = []
        for fold in range(folds):
            held = torch.arange(len(clean), device=device) % folds == fold
            rest, test = clean.subset(order[~held]), clean.subset(order[held])
            twin = duplicate(model)
            curve = [_losses(twin, test)]
            curve += [_losses(twin, test) for _ in self.tune(twin, rest, mask, before, self.steps)]
            curves.append(torch.stack(curve))
        losses = torch.cat(curves, 1)
        return losses[0] - losses

    def tune(self, model: nn.Module, images: Images, mask: Mask, before: nn.Module, steps: int) -> Iterator[int]:
        """Tune in place; after every `every` of the first `steps` steps yield their number, the model in eval mode."""
        again, generator = hold(model, mask), torch.Generator().manual_seed(self.seed)
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        optimizer = sgd(model.parameters(), self.lr, self.momentum)
        size, queue = min(self.batch_size, len(images)), torch.empty(0, dtype=torch.int64)
        for step in range(1, steps + 1):
            learn(model, self.frozen_bn)
            optimizer.param_groups[0]["lr"] = self.lr * (1 - (step - 1) / self.steps)
            if len(queue) < size:  # all images once, in a new order, before any comes again
                queue = torch.cat([queue, torch.randperm(len(images), generator=generator)])
            batch, queue = queue[:size], queue[size:]
            if size == 1 and not self.frozen_bn:  # a batch norm that follows its batch can't take one image's 1x1 map
                batch = batch.repeat(2)
            optimizer.zero_grad(set_to_none=True)
            self._loss(model, before, images.subset(batch), generator).backward()
            optimizer.step()
            again()
            if step % self.every == 0:
                model.eval()
                yield step
        model.eval()
        optimizer.zero_grad(set_to_none=True)
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)

    def _loss(self, model: nn.Module, before: nn.Module, batch: Images, generator: torch.Generator) -> Tensor:
        inputs = to_floats(augment(batch.images, generator))
        if self.teacher == "labels":
            return F.cross_entropy(logits_of(model, inputs), batch.labels)
        if self.mixed:
            share = torch.rand(len(inputs), 1, 1, 1, generator=generator).to(inputs)
            others = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            inputs = torch.lerp(inputs[others], inputs, share)
        with torch.no_grad():
            taught = F.log_softmax(before(inputs) / self.temperature, 1)
        answers = F.log_softmax(logits_of(model, inputs) / self.temperature, 1)
        return self.temperature**2 * F.kl_div(answers, taught, reduction="batchmean", log_target=True)


@torch.no_grad()
def _losses(model: nn.Module, images: Images) -> Tensor:
    """Cross-entropy of each image: `[n]`."""
    model.eval()
    batches = zip(images.images.split(250), images.labels.split(250), strict=True)
    return torch.cat([F.cross_entropy(model(to_floats(x)), y, reduction="none") for x, y in batches])
