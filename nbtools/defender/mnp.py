"""Magnitude-based neuron pruning, MNP (arXiv 2405.17750): masks under three objectives that know the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.learning import check_inputs
from nbtools.defender.magnitude import check_norm, magnitudes
from nbtools.defender.repair import Repair, measured
from nbtools.defender.rnp import RNP
from nbtools.defender.soft_masks import SoftMasks
from nbtools.networks.graph import duplicate


@dataclass(frozen=True)
class MNP(RNP):
    """Expose, eliminate and preserve: RNP whose masks also see the given model and pay for each filter's magnitude.

    [paper] Three magnitude-guided objectives expose the backdoor, eliminate backdoor neurons and preserve clean ones.
    The formulas are reconstructed from secondary sources [ours]. Clean suppression makes theta' from theta by RNP's
    unlearning, its weight decay standing for the paper's norm of theta; then, over masks m in [0, 1],

        min  alpha * ( (1 - a) L(F_m(x; theta'), y) + a L(F_m(x; theta), y) + lambda * sum_i m_i M~_i ),
        M~ = M / sum M,  M_i the norm of filter i's weights,

    and the given model is pruned where m_i is at most a threshold. Each objective can be left out: suppression by
    `suppress=False` (theta' = theta, and a has no effect), preserving by a = 0, the penalty by lambda = 0. With a = 0
    and lambda = 0 this is RNP, bit for bit: alpha, RNP's factor, is kept for that; it scales the step, not the minimum.

    Why lambda = 1: M~ sums to 1, so the penalty is the price of the whole network in nats, and 1 stands beside a
    cross-entropy between 0 and ln(classes) without ruling it. A single filter feels lambda M~_i, about lambda by the
    number of filters, so over a short training it shifts masks by hundredths: it decides where the images are silent.

    Args:
        preserve: a, the share of clean preserving, in [0, 1].
        penalty: lambda, 0 or more.
        suppress: whether clean suppression is done.
        norm: of the magnitude, "l1" or "l2".
        fold_bn: fold the batch norm into the magnitude; see `magnitudes`.
        unlearn_lr, momentum, weight_decay, until, unlearn_epochs: of clean suppression; see `RNP`.
        recover_lr, recover_epochs, recover_share: of the masks' training; see `RNP`.
        batch_size, thresholds, validation, batch_statistics, seed: see `RNP`.

    Raises:
        ValueError: for a value out of its range.
    """

    preserve: float = 0.5
    penalty: float = 1.0
    suppress: bool = True
    norm: str = "l1"
    fold_bn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm(self.norm)
        if not 0 <= self.preserve <= 1 or not 0 <= self.penalty < math.inf:
            raise ValueError(f"preserve must lie in [0, 1] and penalty be 0 or more, got {self}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`; scores, history and errors as RNP's, without "unlearn" rows where not suppressed.

        Raises:
            ValueError: see `check_inputs`.
            DivergedError: as `RNP`.
        """
        units = check_inputs(model, clean)
        learn, held = self.validation.split(clean)
        suppressed, history = self.unlearn(model, units, learn) if self.suppress else (duplicate(model), [])
        a = self.preserve if self.suppress else 0
        parts = [(1 - a, SoftMasks(suppressed, units, self.batch_statistics))] if a < 1 else []
        parts += [(a, SoftMasks(model, units, self.batch_statistics))] if a > 0 else []
        magnitude = magnitudes(model, units, self.norm, self.fold_bn)
        price = torch.cat([magnitude[unit.conv] for unit in units])
        price = (price / price.sum()).float()

        def objective(inputs: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
            losses = [share * F.cross_entropy(masked(inputs, masks), labels) for share, masked in parts]
            if self.penalty:
                losses.append(self.penalty * (masks * price).sum())
            return self.recover_share * torch.stack(losses).sum()

        masks, rows = self.recover(objective, len(price), learn)
        return self.prune(model, units, masks, held, history + rows)
