"""The speed of the defences that learn, as ratios measured side by side; part of `python -m nbtools bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender import (
    ANP,
    AWM,
    FMP,
    MNP,
    NAD,
    RNP,
    Defence,
    FinePruning,
    FineTuning,
    ShiftUnlearning,
    SpectralNorm,
    Suspiciousness,
)
from nbtools.defender.feature_maps import channel_accuracies
from nbtools.defender.learning import accuracy
from nbtools.defender.pruning import most_suspicious
from nbtools.defender.soft_masks import SoftMasks, shut
from nbtools.defender.threshold_sweep import sweep
from nbtools.lab.timing import model_of, random_images, seconds, side_by_side
from nbtools.networks.units import layers_of, prunable_units

WIDTH, NARROW = 16, (1, 2, 2, 2, 2)
SLOWER = ("NAD", "ANP", "AWM", "RNP", "FMP", "MNP")
"""Against these the paper of the suspiciousness score claims to be about three times as fast."""


def bench_fmp(_repeats: int, device: torch.device) -> str:
    """FMP's scores against the released loop: two forwards, a backward and a ranking forward a channel; once each."""
    model, images = model_of(WIDTH, device, NARROW).eval().requires_grad_(False), random_images(32, device)
    defence = FMP()
    clean, noisy = defence.draw(images)
    units, found = prunable_units(model), {}

    def ours() -> None:
        found["ours"] = {n: c.scores() for n, c in channel_accuracies(model, clean, noisy, defence.epsilon).items()}

    def loop() -> None:
        found["loop"] = {unit.conv: _plain_scores(model, conv, clean, noisy, defence.epsilon)
                         for unit, conv, _ in layers_of(model, units)}  # fmt: skip

    fast, slow = seconds(ours), seconds(loop)  # once: the loop alone takes minutes
    cut = [most_suspicious(found[k], {u.conv: u.filters // 16 for u in units}).pruned for k in ("ours", "loop")]
    same = all(torch.equal(cut[0][name], cut[1][name]) for name in cut[0])
    return (
        f"FMP's scores, {sum(u.filters for u in units):,} channels, width {WIDTH}, 32 images: {fast:.1f} s; "
        f"the plain loop {slow:.1f} s; {slow / fast:.1f} times faster (goal: at least 3); "
        f"the same sets pruned: {'yes' if same else 'NO'}"
    )


def _plain_scores(model: nn.Module, conv: nn.Conv2d, clean: Images, noisy: Tensor, epsilon: float) -> Tensor:
    """Step by step what the released loop does for one layer; see `nbtools.defender.fmp`."""
    seen: list[Tensor] = []

    def look(_conv: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    handle = conv.register_forward_hook(look)
    scores = []
    for channel in range(conv.out_channels):
        seen.clear()
        x = noisy.clone().requires_grad_()
        with torch.no_grad():
            model(clean.floats())
        model(x)
        (gradient,) = torch.autograd.grad(F.mse_loss(seen[1][:, channel], seen[0][:, channel]), x)
        with torch.no_grad():
            logits = model((x + epsilon * gradient.sign()).clamp(0, 1))
        loss = float(F.cross_entropy(logits, clean.labels))
        wrong = float((logits.argmax(1) != clean.labels).double().mean())
        scores.append(wrong + (1 - 1 / (1 + loss)) / len(clean))
    handle.remove()
    return torch.tensor(scores, dtype=torch.float64)


def bench_iterations(repeats: int, device: torch.device) -> str:
    """An iteration of ANP's and RNP's masks with frozen convolutions against one that makes their gradients too."""
    model, clean = model_of(WIDTH, device, NARROW).eval(), random_images(100, device)
    soft = SoftMasks(model, prunable_units(model))
    free = SoftMasks(model, prunable_units(model))
    free.model.requires_grad_(True)
    inputs, labels, eps = to_floats(clean.images), clean.labels, 0.4

    def rnp(masked: SoftMasks) -> None:
        m = torch.ones(masked.count, device=device, requires_grad=True)
        F.cross_entropy(masked(inputs, m), labels).backward()

    def anp(masked: SoftMasks) -> None:
        m = torch.ones(masked.count, device=device, requires_grad=True)
        noise = torch.zeros(2, masked.count, device=device, requires_grad=True)
        F.cross_entropy(masked(inputs, m + noise[0], 1 + noise[1]), labels).backward()
        d, xi = eps * noise.grad.sign()  # pyright: ignore[reportOptionalMemberAccess]
        loss = 0.2 * F.cross_entropy(masked(inputs, m), labels)
        (loss + 0.8 * F.cross_entropy(masked(inputs, m + d, 1 + xi), labels)).backward()

    lines = []
    for name, step in (("ANP", anp), ("RNP", rnp)):
        frozen, whole, ratio = side_by_side(lambda step=step: step(soft), lambda step=step: step(free), repeats)
        lines.append(
            f"an iteration of {name}, 100 images, width {WIDTH}: {1000 * frozen:.0f} ms with frozen convolutions, "
            f"{1000 * whole:.0f} ms with their gradients; {1 / ratio:.2f} times faster"
        )
    return "\n".join(lines)


def bench_sweep(repeats: int, device: torch.device) -> str:
    """A sweep of 20 thresholds on one copy against pruning neuron by neuron and measuring after each."""
    model, held = model_of(WIDTH, device, NARROW).eval(), random_images(100, device)
    units = prunable_units(model)
    count = sum(unit.filters for unit in units)
    values = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(device)
    thresholds = [k / 20 for k in range(20)]

    def one_by_one() -> None:
        order = values.argsort()[:some]
        for k in range(1, some + 1):
            pruned = torch.zeros(count, dtype=torch.bool, device=device)
            pruned[order[:k]] = True
            accuracy(shut(model, units, pruned), held)

    some = 40
    ours = statistics.median(
        seconds(lambda: sweep(model, units, values, thresholds, lambda m: accuracy(m, held))) for _ in range(repeats)
    )
    each = statistics.median(seconds(one_by_one) for _ in range(repeats)) / some
    return (
        f"20 thresholds over {count:,} filters, 100 images: {ours:.1f} s; neuron by neuron "
        f"{each * count:.0f} s ({1000 * each:.0f} ms a neuron, measured on {some}); "
        f"{each * count / ours:.0f} times faster"
    )


def bench_defences(_repeats: int, device: torch.device) -> str:
    """Every defence at its defaults on the same model with the same 100 images, once (ANP and AWM take minutes)."""
    model, clean = model_of(WIDTH, device, NARROW).eval(), random_images(100, device)
    defences: dict[str, Defence] = {
        "suspiciousness": Suspiciousness(),
        "its pruning alone": Suspiciousness(fine_tune=None),
        "shift unlearning": ShiftUnlearning(level=1.0),  # a class is suspected and unlearned, whatever stands out
        "CLP": SpectralNorm(),
        "fine-tuning": FineTuning(),
        "fine-pruning": FinePruning(),
        "NAD": NAD(),
        "ANP": ANP(iterations=100),
        "AWM": AWM(rounds=2),
        "RNP": RNP(),
        "FMP": FMP(),
        "MNP": MNP(),
    }
    scale = {"ANP": 20, "AWM": 10}
    defences["CLP"](model, clean)  # warm
    took: dict[str, float] = {}
    for name, defence in defences.items():
        took[name] = scale.get(name, 1) * defence(model, clean).seconds
    lines = [
        f"{name:<18} {value:>8.1f} s  {value / took['suspiciousness']:>7.2f} times suspiciousness"
        + (f"  ({scale[name]} times a run of 1/{scale[name]} of its iterations)" if name in scale else "")
        for name, value in took.items()
    ]
    met = [name for name in SLOWER if took[name] >= 3 * took["suspiciousness"]]
    lines.append(
        f"at least three times as slow as suspiciousness: {', '.join(met) or 'none'} (claimed: all of {SLOWER})"
    )
    return "\n".join([f"every defence, 100 images, width {WIDTH}:", *lines])


BENCHES: tuple[Callable[[int, torch.device], str], ...] = (bench_fmp, bench_iterations, bench_sweep, bench_defences)
