"""Every defence on the same terms: the line-up, the table, and its summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbtools.data.images import Images
from nbtools.defender import Defence, SpectralNorm, Suspiciousness
from nbtools.defender.anp import ANP
from nbtools.defender.awm import AWM
from nbtools.defender.d3 import D3
from nbtools.defender.fine_pruning import FinePruning
from nbtools.defender.fine_tuning import FineTuning
from nbtools.defender.fmp import FMP
from nbtools.defender.ft_sam import FTSAM
from nbtools.defender.lmr import LMR
from nbtools.defender.mnp import MNP
from nbtools.defender.nad import NAD
from nbtools.defender.nft import NFT
from nbtools.defender.rnp import RNP
from nbtools.defender.shift_unlearning import ShiftUnlearning
from nbtools.lab.experiments import Run, asked
from nbtools.lab.trained import Trained
from nbtools.networks.training import DivergedError
from nbtools.settings import PROFILES, Profile

TOOK = 50
"""ASR (%) below which nothing can be said about a backdoor's removal: the model did not learn it."""


@dataclass(frozen=True)
class Contender:
    """A defence as its paper sets it.

    Args:
        defence: with the paper's hyperparameters where it states them.
        per_class: clean images of each class that the paper gives it on CIFAR-10; 0 where it needs none.
        source: where settings and amount come from.
    """

    defence: Defence
    per_class: int
    source: str


def contenders(profile: Profile | None = None) -> dict[str, Contender]:
    """The line-up: the name in figures to the defence, one setting for all attacks.

    Amounts are those of 50,000 training images: 1 % is 50 a class, 5 % is 250, 10 % is 500.

    Args:
        profile: may cut ANP's iterations, AWM's rounds and the images that FMP scores with; None is the papers' scale.
    """
    scale = profile or PROFILES["paper"]
    fmp, anp = FMP(n_images=scale.fmp_images), ANP(iterations=scale.anp_iterations)
    awm = AWM(rounds=scale.awm_rounds)
    return {
        "suspiciousness": Contender(Suspiciousness(), 10, "2311.07417; the formula, mu and the tuning are ours"),
        "shift unlearning": Contender(ShiftUnlearning(), 10, "ours: not of any paper"),
        "CLP": Contender(SpectralNorm(), 0, "CLP, ECCV 2022, u = 3; needs no image"),
        "FMP": Contender(fmp, 500, "2307.11565 and its code, 10 %; the tie-break and frozen pruned channels are ours"),
        "MNP": Contender(MNP(), 50, "2405.17750; its formulas are reconstructed, the amount is RNP's"),
        "RNP": Contender(RNP(), 50, "2305.14876 and its code, 500 images; the choice of the threshold is ours"),
        "ANP": Contender(anp, 50, "2110.14430 and its code, 500 images; the choice of the threshold is ours"),
        "AWM": Contender(awm, 50, "2207.04497 and its code, 500 images"),
        "NAD": Contender(NAD(), 250, "2101.05930 and its code, 5 %; a steady lr and betas per position are ours"),
        "D3": Contender(D3(), 250, "ICCV 2025, 5 %, as summarised; the training is ours"),
        "LMR": Contender(LMR(), 50, "CVPR 2026, 1 %, as summarised; the training is ours"),
        "FT-SAM": Contender(FTSAM(), 250, "2304.11823, 5 %, as summarised; the epochs are ours"),
        "NFT": Contender(NFT(), 50, "ECCV 2024, 500 images, as summarised; the numbers are ours"),
        "fine-pruning": Contender(FinePruning(), 250, "1805.12185; the recipe is ours, the amount is NAD's"),
        "fine-tuning": Contender(FineTuning(), 250, "the field's baseline; the recipe is ours, the amount is NAD's"),
    }


def cuts(line_up: Mapping[str, Contender]) -> dict[str, str]:
    """What is smaller than its paper has it: the name in the line-up to, say, "iterations 40 instead of 2000"."""
    found, whole = {}, contenders()
    for name, entry in line_up.items():
        mine, papers = vars(entry.defence), vars(whole[name].defence)
        if changed := [f"{n} {mine[n]} instead of {papers[n]}" for n in mine if mine[n] != papers[n]]:
            found[name] = ", ".join(changed)
    return found


@dataclass(frozen=True)
class _Job:
    trained: Trained
    name: str
    defence: Defence
    per_class: int
    amount: str
    images: int
    draw: int = 0

    @property
    def kind(self) -> tuple[str, str]:
        return self.name, self.amount


def compare(
    run: Run,
    models: Sequence[Trained],
    line_up: Mapping[str, Contender],
    samples_per_class: int = 10,
    most_per_class: int = 0,
    draws: int = 1,
    patience: float = 120.0,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Each defence on each model with the same clean images, and once more with as many as its paper gives it.

    Every row is found again once it was measured, so an interrupted comparison goes on where it stopped. All rows of
    draw 0 come first.

    Args:
        run: profile, data, seed.
        models: poisoned and clean ones.
        line_up: see `contenders`.
        samples_per_class: clean images of each class that all get.
        most_per_class: the papers' amounts are cut to so many, and to what the pool holds; 0 is what the profile says,
            -1 leaves these rows out. A row is left out as well where it asks for no more than `samples_per_class`.
        draws: of the clean images.
        patience: seconds; further draws are for what took less on that model in draw 0.
        log: takes one line a row.

    Returns:
        The rows of `Run.defend`, and besides: name; amount ("10 a class", "the paper's: 50 a class", or "20 a class of
        the paper's 50"); images (clean images in all; 0 where none is needed); model_seed; error (where a defence
        diverged its message, and NaN for what it would have left, else "").

    Raises:
        ValueError: for no models, no defences, or a number out of its range.
    """
    if not models or not line_up or min(samples_per_class, draws) < 1 or most_per_class < -1 or not patience >= 0:
        raise ValueError(
            "a model, a defence, samples_per_class and draws >= 1, most_per_class >= -1 and patience >= 0 "
            f"are needed, got {len(models)} models, {len(line_up)} defences, {samples_per_class=}, {draws=}, "
            f"{most_per_class=}, {patience=}"
        )
    reserved = run.splits.reserved
    pool = int(torch.bincount(reserved.labels, minlength=reserved.num_classes).min())
    most = 0 if most_per_class < 0 else min(most_per_class or run.profile.most_per_class, pool)
    _warm_up(models[0].model, run.draw(samples_per_class))
    log(f"{'model':<14} {'defence':<15} {'clean images':<27} draw    ACC   ASR    RA   seconds     left")
    first = [job for trained in models for job in _jobs(trained, line_up, samples_per_class, most, reserved)]
    rows: list[dict[str, Any]] = []
    taken: dict[tuple[str, str], list[float]] = {}

    def work(jobs: Sequence[_Job], after: Callable[[_Job], int]) -> None:
        for number, job in enumerate(jobs, start=1):
            started = time.monotonic()
            rows.append(_row(run, job))
            taken.setdefault(job.kind, []).append(time.monotonic() - started)
            log(_line(rows[-1], _left(taken, jobs[number:], after)))

    # what uses no image gives the same with every draw
    further = {job.kind: range(1, draws if job.images else 1) for job in first}
    work(first, lambda job: len(further[job.kind]))
    quick = [job for job, row in zip(first, rows, strict=True) if row["seconds"] < patience]
    work([replace(job, draw=draw) for job in quick for draw in further[job.kind]], lambda _: 0)
    return pd.DataFrame(rows)


def _jobs(
    trained: Trained, line_up: Mapping[str, Contender], per_class: int, most: int, pool: Images
) -> Iterator[_Job]:
    for name, entry in line_up.items():
        needs = min(entry.per_class, 1) * per_class * pool.num_classes
        yield _Job(trained, name, entry.defence, per_class, f"{per_class} a class", needs)
        given = min(entry.per_class, most)
        if given > per_class:
            cut = f"{given} a class of the paper's {entry.per_class}"
            amount = f"the paper's: {given} a class" if given == entry.per_class else cut
            yield _Job(trained, name, entry.defence, given, amount, given * pool.num_classes)


def _row(run: Run, job: _Job) -> dict[str, Any]:
    trained = job.trained
    told = {"name": job.name, "amount": job.amount, "images": job.images, "model_seed": trained.card["config"]["seed"]}
    try:
        return told | run.defend(trained, job.defence, job.per_class, draw=job.draw) | {"error": ""}
    except DivergedError as error:
        about = asked(trained, job.defence, job.per_class, 0, job.draw)
        numbers = ("pruned", "acc_after", "asr_after", "ra_after", "der", "seconds", "peak_mb")
        nothing = dict.fromkeys(numbers, math.nan)
        return told | about | trained.before.row("_before") | nothing | {"error": str(error)}


def _warm_up(model: nn.Module, clean: Images) -> None:
    """One forward and backward pass, so that the first defence's seconds hold no library's first call."""
    inputs = clean.floats().requires_grad_()
    with torch.enable_grad():
        model(inputs).sum().backward()


def _left(taken: Mapping[tuple[str, str], list[float]], jobs: Sequence[_Job], after: Callable[[_Job], int]) -> float:
    """Seconds that the rest will take, were each row as long as those of its kind, or else as the mean of all."""
    mean = float(np.mean([seconds for part in taken.values() for seconds in part]))
    return sum((1 + after(job)) * float(np.mean(taken.get(job.kind, [mean]))) for job in jobs)


def _line(row: Mapping[str, Any], left: float) -> str:
    start = f"{row['model']:<14} {row['name']:<15} {row['amount']:<27} {row['draw']:>4}  "
    if row["error"]:
        return f"{start} no result: {row['error']}"
    numbers = " ".join(f"{row[f'{part}_after']:5.1f}" for part in ("acc", "asr", "ra"))
    return f"{start}{numbers} {row['seconds']:9.1f} {left:7.0f}s"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a kind of model, defence and amount: means over the models, each the mean of its draws.

    Args:
        rows: of `compare`.

    Returns:
        kind: "backdoored", "clean" (what does it cost when nothing is there?), or "did not take" where the ASR was
            below 50 % before any repair.
        name, amount.
        acc, asr, ra, der, acc_lost (points), seconds, peak_mb, images, pruned: means.
        acc_sd and so on, of the first five: s.d. over the models, or over the draws where there is one model; `over`
            says which. NaN where there is one of either.
        worst_asr: of all models and draws.
        models, draws: how many models, and the most draws that one of them has.
        failed: rows without a result, which no mean contains.
    """
    table: Any = rows.rename(columns={f"{part}_after": part for part in ("acc", "asr", "ra")})
    table["acc_lost"] = table.acc_before - table.acc
    took = np.where(table.asr_before >= TOOK, "backdoored", "did not take")
    table["kind"] = np.where(table.attack == "none", "clean", took)
    spread = ["acc", "asr", "ra", "der", "acc_lost"]
    means = [*spread, "seconds", "peak_mb", "images", "pruned"]
    found = []
    for (kind, name, amount), part in table.groupby(["kind", "name", "amount"], sort=False):
        by_model = part.groupby(["model", "model_seed"], sort=False)
        each, over = by_model[means].mean(), "models" if by_model.ngroups > 1 else "draws"
        deviation = (each if over == "models" else part)[spread].std().add_suffix("_sd")
        counts = {"models": by_model.ngroups, "draws": by_model.size().max(), "failed": (part.error != "").sum()}
        numbers = {**each.mean(), **deviation, "over": over, "worst_asr": part.asr.max(), **counts}
        found.append({"kind": kind, "name": name, "amount": amount, **numbers})
    return pd.DataFrame(found)
