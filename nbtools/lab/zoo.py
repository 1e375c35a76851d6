"""The detector's zoo: clean and poisoned models of one kind, each of its own seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from nbtools.lab.experiments import Run
from nbtools.lab.trained import Trained
from nbtools.networks.architectures import MIN_WIDTH

FIRST = 100
"""What a member's number is added to for its seed: the detector was developed on models with the seeds 0 to 7."""


def member(run: Run, number: int) -> Run:
    """The run in which the zoo's clean and poisoned model of this number are trained, each number with its own seed.

    Width 16; the stem halves the image, and so does every stage; no crops, as in `Profile.narrowed`.
    """
    train = run.splits.train.subset(torch.arange(min(run.profile.zoo_train, len(run.splits.train))))
    epochs, lr = run.profile.zoo_epochs or run.profile.epochs, run.profile.zoo_lr or run.profile.lr
    profile = replace(run.profile, width=MIN_WIDTH, strides=(2, 2, 2, 2, 2), padding=0, epochs=epochs, lr=lr)
    return replace(run, profile=profile, seed=run.seed + FIRST + number, splits=replace(run.splits, train=train))


def zoo(run: Run, attacks: Sequence[str], poison_rate: float, target: int = 0) -> Iterator[Trained]:
    """Clean and poisoned models in turn, as many of each as the profile says; see `member`.

    Args:
        run: a notebook's run.
        attacks: names in `nbtools.attacker.triggers.TRIGGERS`; the poisoned models take them in turn.
        poison_rate: see `nbtools.attacker.poisoning.poison`.
        target: the target class.

    Yields:
        A clean model, a poisoned one, and so on.
    """
    for number in range(run.profile.zoo):
        one, attack = member(run, number), attacks[number % len(attacks)]
        yield one.clean_model(attack, target)
        yield one.model(attack, poison_rate, target)
