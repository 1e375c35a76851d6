"""The same model measured on two devices: how far the numbers lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nbtools.data.images import Images
from nbtools.defender.components import TERMS
from nbtools.defender.suspiciousness import Suspiciousness
from nbtools.evaluator.evaluation import Evaluator
from nbtools.networks.graph import duplicate

DEAD = 1e-6
"""A filter is dead where its activation norm is not above this share of its layer's mean."""


@dataclass(frozen=True)
class Difference:
    """How far the second device's numbers lie from the first's.

    Args:
        acc: of the clean accuracy, in percentage points, with its sign.
        asr: of the attack success rate, likewise.
        components: the largest relative difference of any component of any filter that is not dead.
        other_filters: filters that one of the two masks prunes and the other does not.
    """

    acc: float
    asr: float
    components: float
    other_filters: int

    def __str__(self) -> str:
        return (
            f"ACC {self.acc:+.2f} points, ASR {self.asr:+.2f} points; components at most {self.components:.1e} apart; "
            f"{self.other_filters} filters in one mask alone"
        )


def difference(
    model: nn.Module, clean: Images, evaluator: Evaluator, first: torch.device, second: torch.device
) -> Difference:
    """Measure a copy of the model on each device.

    Args:
        model: in eval mode, on any device; it is not changed.
        clean: the defender's images.
        evaluator: holds the test set and the trigger.
        first: what is compared with.
        second: what is compared.

    Raises:
        ValueError: as `nbtools.defender.components.components`.
    """
    found, masks, parts = [], [], []
    for device in (first, second):
        twin, defence = duplicate(model).to(device), Suspiciousness()
        found.append(Evaluator(evaluator.test.to(device), evaluator.trigger, evaluator.target)(twin))
        parts.append(defence.components(twin, clean.to(device)))
        masks.append(defence.mask(parts[-1]).pruned)
    apart, other = 0.0, 0
    for unit in parts[0].units:
        activation = parts[0].activation[unit.conv].cpu()
        alive = activation > DEAD * activation.mean()
        for term in TERMS:
            one, two = (values.of(term)[unit.conv].cpu()[alive] for values in parts)
            apart = max([apart, *((two - one).abs() / one.abs().clamp_min(1e-30)).tolist()])
        other += int((masks[0][unit.conv].cpu() != masks[1][unit.conv].cpu()).sum())
    return Difference(found[1].acc - found[0].acc, found[1].asr - found[0].asr, apart, other)
