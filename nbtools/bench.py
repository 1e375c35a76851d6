"""How fast, as ratios measured side by side in one run: `python -m nbtools bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nbtools.images import Images, to_floats
from nbtools.models import layers_of, prunable_units
from nbtools.networks import make_model
from nbtools.scores import components, spectral_norms
from nbtools.settings import STRIDES, default_device, hardware, has_bf16, keep_memory, seed_everything
from nbtools.training import Recipe, train, train_step
from nbtools.triggers import TRIGGERS, make_trigger, stamp


def side_by_side(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Run both in turn, `repeats` times after one warm-up each.

    Returns:
        Median seconds of the first, of the second, and the median of the pairs' ratios (first / second): a slow moment
        of the machine hits both of a pair.
    """
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes, the device's queue included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def random_images(count: int, device: torch.device) -> Images:
    """Noise of CIFAR's shape: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    return Images(pixels, labels, tuple("0123456789")).to(device)


def model_of(width: int, device: torch.device, strides: Sequence[int] = STRIDES) -> nn.Module:
    """A ResNet-18 with random weights: speed does not depend on what it learnt."""
    seed_everything(0)
    return make_model("resnet18", width=width, strides=strides).to(device)


def bench_components(repeats: int, device: torch.device) -> str:
    """(a) All four components of 100 images against one forward and backward pass over them."""
    model, clean = model_of(64, device).eval(), random_images(100, device)

    def one_pass() -> None:
        F.cross_entropy(model(to_floats(clean.images)), clean.labels).backward()
        model.zero_grad()

    ours, reference, ratio = side_by_side(lambda: components(model, clean), one_pass, repeats)
    return (
        f"four components, 100 images, width 64: {ours:.2f} s; one forward and backward {reference:.2f} s; "
        f"ratio {ratio:.2f} (goal: at most 1.5)"
    )


def bench_spectral_norms(repeats: int, device: torch.device) -> str:
    """(b) All spectral norms of a ResNet-18 against one SVD call a filter."""
    model = model_of(64, device).eval()
    units = prunable_units(model)
    weights = [weight.flatten(1) for _, conv, _ in layers_of(model, units) for weight in conv.weight.detach()]
    calls: dict[str, Callable[[torch.Tensor], object]] = {
        "linalg.svd": torch.linalg.svd,
        "linalg.svd, reduced": lambda w: torch.linalg.svd(w, full_matrices=False),
        "linalg.matrix_norm": lambda w: torch.linalg.matrix_norm(w, 2),
        "linalg.svdvals": torch.linalg.svdvals,
    }
    lines = []
    for name, call in calls.items():
        ours, loop, ratio = side_by_side(
            lambda: spectral_norms(model, units), lambda call=call: [call(w) for w in weights], repeats
        )
        lines.append(
            f"spectral norms of {len(weights):,} filters: {1000 * ours:.0f} ms; {name} a filter {1000 * loop:.0f} ms; "
            f"{1 / ratio:.0f} times faster (goal: at least 20)"
        )
    return "\n".join(lines)


def bench_training(repeats: int, device: torch.device) -> str:
    """(c) The training loop against the same step on one fixed batch that is on the device already."""
    width, batch, steps = 32, 128, 8
    images, recipe = random_images(batch * steps, device), Recipe(epochs=1, batch_size=batch)
    looped, fixed = model_of(width, device), model_of(width, device).train()
    optimizer = torch.optim.SGD(fixed.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    inputs, labels = to_floats(images.images[:batch]), images.labels[:batch]

    def same_steps() -> None:
        for _ in range(steps):
            train_step(fixed, optimizer, inputs, labels)

    ours, reference, ratio = side_by_side(lambda: train(looped, images, recipe, log=None), same_steps, repeats)
    return (
        f"training loop, width {width}: {batch * steps / ours:.0f} images/s; one fixed batch "
        f"{batch * steps / reference:.0f} images/s; ratio {1 / ratio:.3f} (goal: at least 0.95)"
    )


def bench_poisoning(repeats: int, device: torch.device) -> str:
    """(d) Every trigger on as many images as CIFAR-10 has."""
    images, lines = random_images(50_000, device), []
    for name in TRIGGERS:
        trigger = make_trigger(name)
        stamp(trigger, images)
        took = statistics.median(seconds(lambda trigger=trigger: stamp(trigger, images)) for _ in range(repeats))
        lines.append(f"{name:<8} on 50,000 images: {took:.2f} s, {50_000 / took:,.0f} images/s")
    return "\n".join(lines)


def main(repeats: int = 5) -> None:
    """Print every benchmark; medians of `repeats` pairs (at least five for numbers to quote)."""
    from nbtools.bench_defences import BENCHES

    keep_memory()
    device = default_device()
    print(f"{hardware(device)}, torch {torch.__version__}, {'bf16' if has_bf16(device) else 'float32'}, x {repeats}")
    for bench in (bench_components, bench_spectral_norms, bench_training, bench_poisoning, *BENCHES):
        print(bench(repeats, device), flush=True)
