"""How fast, as ratios measured side by side in one run: `python -m nbtools bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import astuple

import torch
import torch.nn.functional as F
from torch import nn

from nbtools.attacker.triggers import TRIGGERS, make_trigger, stamp
from nbtools.data.images import Images, to_floats
from nbtools.defender.components import components, spectral_norms
from nbtools.lab.bench_defences import BENCHES
from nbtools.lab.devices import Difference, difference
from nbtools.lab.experiments import Run, start
from nbtools.lab.timing import Calls, calls, model_of, random_images, seconds, side_by_side
from nbtools.networks.graph import shapes_alone
from nbtools.networks.training import Recipe, sgd, train, train_step
from nbtools.networks.units import Units, layers_of, prunable_units
from nbtools.settings import default_device, hardware_and_precision, keep_memory


def bench_components(repeats: int, device: torch.device) -> str:
    """(a) All four components of 100 images against one forward and backward pass over them."""
    model, clean = model_of(64, device).eval(), random_images(100, device)

    def one_pass() -> None:
        F.cross_entropy(model(to_floats(clean.images)), clean.labels).backward()
        model.zero_grad()

    ours, reference, ratio = side_by_side(lambda: components(model, clean), one_pass, repeats)
    return (
        f"four components, 100 images, width 64: {ours:.2f} s; one forward and backward {reference:.2f} s; "
        f"ratio {ratio:.2f} (goal: at most 1.3)"
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
    lines.append(_units_known_or_not(model, units, repeats))
    return "\n".join(lines)


def _units_known_or_not(model: nn.Module, units: Units, repeats: int) -> str:
    known, unknown, _ = side_by_side(
        lambda: spectral_norms(model, units), lambda: spectral_norms(model, prunable_units(model)), repeats
    )
    return (
        f"spectral norms, the convolution-BN pairs known: {1000 * known:.1f} ms; looked for first: "
        f"{1000 * unknown:.1f} ms"
    )


def bench_training(repeats: int, device: torch.device) -> str:
    """(c) The training loop against the same step on one fixed batch that is on the device already."""
    width, batch, steps = 32, 128, 8
    images, recipe = random_images(batch * steps, device), Recipe(epochs=1, batch_size=batch)
    looped, fixed = model_of(width, device), model_of(width, device).train()
    optimizer = sgd(fixed.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    inputs, labels = to_floats(images.images[:batch]), images.labels[:batch]

    def same_steps() -> None:
        for _ in range(steps):
            train_step(fixed, optimizer, inputs, labels)

    ours, reference, ratio = side_by_side(lambda: train(looped, images, recipe, log=None), same_steps, repeats)
    return (
        f"training loop, width {width}: {batch * steps / ours:.0f} images/s; one fixed batch "
        f"{batch * steps / reference:.0f} images/s; ratio {1 / ratio:.3f} (goal: at least 0.97)"
    )


def bench_calls(_repeats: int, _device: torch.device) -> str:
    """What a scoring pass and a training step ask of a GPU, counted on the device "meta": no number is computed."""
    images = random_images(16 * 128, torch.device("cpu")).to("meta")
    few = images.subset(torch.arange(100))
    model = shapes_alone(model_of(64, torch.device("cpu"))).requires_grad_(True).eval()
    scoring = calls(lambda: components(model, few))
    one_pass = calls(lambda: F.cross_entropy(model(to_floats(few.images)), few.labels).backward())
    step, bare = training_calls(images, 128)
    return "\n".join(
        f"{what}: {ours.operators:,} operator calls, {plain.operators:,} of {beside} (ratio "
        f"{ours.operators / plain.operators:.2f}{goal}); {ours.waits} waits, {ours.copies} copies to the device{per}"
        for what, ours, plain, beside, goal, per in (
            ("four components", scoring, one_pass, "one forward and backward", "", ""),
            ("16 training steps", step, bare, "the bare steps", ", goal: at most 1.05", " (an epoch)"),
        )
    )


def training_calls(images: Images, batch_size: int) -> tuple[Calls, Calls]:
    """Calls of an epoch of `train`, beyond what any training does once, and of as many bare steps on one batch."""
    epoch, steps = [], len(images) // batch_size
    for epochs in (1, 2):
        model = shapes_alone(model_of(32, torch.device("cpu"))).requires_grad_(True)
        recipe = Recipe(epochs=epochs, batch_size=batch_size)
        epoch.append(calls(lambda model=model, recipe=recipe: train(model, images, recipe, log=None)))
    model = shapes_alone(model_of(32, torch.device("cpu"))).requires_grad_(True).train()
    optimizer = sgd(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    inputs, labels = to_floats(images.images[:batch_size]), images.labels[:batch_size]
    train_step(model, optimizer, inputs, labels)
    bare = calls(lambda: [train_step(model, optimizer, inputs, labels) for _ in range(steps)])
    return Calls(*(b - a for a, b in zip(astuple(epoch[0]), astuple(epoch[1]), strict=True))), bare


def bench_whole_training(_repeats: int, device: torch.device) -> str:
    """30 epochs as the profile `paper` trains, the images on the device: on a GPU alone."""
    if device.type != "cuda":
        return "30 epochs of ResNet-18, width 64, 45,000 images on the device: measured on a GPU alone"
    model, images = model_of(64, device), random_images(45_000, device)
    took = seconds(lambda: train(model, images, Recipe(30, 512, lr=0.4), log=None))
    return f"30 epochs of ResNet-18, width 64, 45,000 images on the device: {took:.0f} s"


def bench_two_devices(_repeats: int, device: torch.device) -> str:
    """A small backdoored model measured on the GPU and on the CPU."""
    what = "BadNets in profile quick, GPU against CPU"
    if device.type != "cuda":
        return f"{what}: measured on a GPU alone"
    return f"{what}: {two_devices(start('quick', device=device, quiet=True), torch.device('cpu'), device)}"


def two_devices(run: Run, first: torch.device, second: torch.device) -> Difference:
    """How far the run's BadNets model, and what a defender measures on it, differ between two devices."""
    trained = run.model("badnets", 0.1)
    return difference(trained.model, run.draw(), trained.evaluate, first, second)


def bench_poisoning(repeats: int, device: torch.device) -> str:
    """(d) Every trigger on as many images as CIFAR-10 has."""
    images, lines = random_images(50_000, device), []
    for name in TRIGGERS:
        trigger = make_trigger(name)
        stamp(trigger, images)
        took = statistics.median(seconds(lambda trigger=trigger: stamp(trigger, images)) for _ in range(repeats))
        lines.append(f"{name:<8} on 50,000 images: {took:.2f} s, {50_000 / took:,.0f} images/s")
    return "\n".join(lines)


MORE = (bench_calls, bench_whole_training, bench_two_devices, bench_poisoning)


def main(repeats: int = 5) -> None:
    """Print every benchmark; medians of `repeats` pairs (at least five for numbers to quote)."""

    keep_memory()
    device = default_device()
    print(f"{hardware_and_precision(device)}, torch {torch.__version__}, x {repeats}")
    for bench in (bench_components, bench_spectral_norms, bench_training, *MORE, *BENCHES):
        print(bench(repeats, device), flush=True)
