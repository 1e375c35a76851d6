"""The exercises of 08 · Magnitude-based pruning."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.detection import detector_statistic, roc_auc
from nbtools.defender.magnitude import magnitudes
from nbtools.defender.mnp import MNP
from nbtools.lab.trained import Trained
from nbtools.series import checks


def folded_magnitude(answer: object, model: nn.Module, layer: str) -> None:
    """Exercise 1: `[filters]` of one layer."""
    checks.same(
        answer,
        lambda: magnitudes(model, fold_bn=True)[layer],
        "sum |weights| over all dimensions but the first; then bn.weight, bn.running_var and bn.eps",
    )


def pushed_by_the_penalty(answer: object, defence: MNP, price: Tensor, steps: int) -> None:
    """Exercise 2: a number; `price` is each filter's share of all magnitude, `[filters]`."""

    def expected() -> float:
        masks = torch.ones(len(price), dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([masks], defence.recover_lr, defence.momentum)
        for _ in range(steps):
            sgd.zero_grad()
            (defence.recover_share * defence.penalty * (masks * price.cpu().double()).sum()).backward()
            sgd.step()
        return float((1 - masks.detach()).mean())

    checks.same(
        answer, expected, "the gradient is the same at every step, but the velocity grows: write down its first three"
    )


def other_areas(answer: object, zoo: Iterable[Trained], clean: Images) -> None:
    """Exercise 3: `[2, 2]`; the l2 norm and the bare l1 norm, area and difference of the means; `zoo` is read once."""

    @cache
    def expected() -> np.ndarray:
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        for trained in zoo:
            l2, bare = (
                detector_statistic(trained.model, clean, norm=norm, fold_bn=norm == "l2") for norm in ("l2", "l1")
            )
            found[trained.name != "clean"].append([l2, bare])
        sound, backdoored = np.array(found[False]), np.array(found[True])  # [models, settings]
        areas = [roc_auc(list(ours), list(theirs))[0] for ours, theirs in zip(sound.T, backdoored.T, strict=True)]
        return np.stack([areas, backdoored.mean(0) - sound.mean(0)], axis=1)

    checks.same(
        answer,
        expected,
        "detector_statistic(model, clean, norm='l2') and (…, fold_bn=False) for each model of zoo(…); then `area`",
    )
