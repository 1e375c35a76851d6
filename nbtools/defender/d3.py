"""D3, distance-driven detoxification: leave the place where the backdoor was learned (ICCV 2025), as summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.head import linear_head
from nbtools.defender.learning import Epochs, check_inputs, logits_of, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate


@dataclass(frozen=True)
class D3:
    """Move the linear head as far away as the clean loss allows, all other weights following it.

    Minimises -|| W - W_0 || + lambda * max(0, L - eps), with W the head's weights, W_0 those it had, L the
    cross-entropy on clean images. After each step W is scaled back to the norm that it had. Written from public
    summaries: they give the loss, eps, a range for lambda and the projection; the training is ours.

    Args:
        hold: lambda, above 0 (0.5 to 10 in the paper).
        allowed: eps, the clean loss that costs nothing; 0 or more.
        tune: the training; lr, epochs and the rest [ours].

    Raises:
        ValueError: for a value out of its range.
    """

    hold: float = 10.0
    allowed: float = 0.1
    tune: Epochs = field(default_factory=lambda: Epochs(epochs=50))

    def __post_init__(self) -> None:
        if not 0 < self.hold < math.inf or not 0 <= self.allowed < math.inf:
            raise ValueError(f"hold must be above 0 and allowed 0 or more, got {self}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Tune a copy of `model`.

        Returns:
            A repair whose mask prunes nothing and therefore has no scores; `untuned` is the model as it was given.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses, or a model that
                does not end in a linear layer.
            DivergedError: where the training diverges.
        """
        units = check_inputs(model, clean)
        twin, untuned = duplicate(model), duplicate(model).eval()
        head = linear_head(twin)
        start, length = head.weight.detach().clone(), head.weight.detach().norm()
        # at the start the distance is 0, where its gradient has no direction; a thousandth of the norm gives it one
        generator = torch.Generator().manual_seed(self.tune.seed)
        nudge = torch.randn(start.shape, generator=generator).to(start)
        with torch.no_grad():
            head.weight.add_(1e-3 * length * nudge / nudge.norm())

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            clean_loss = F.cross_entropy(logits_of(twin, inputs), labels)
            return self.hold * (clean_loss - self.allowed).clamp_min(0) - (head.weight - start).norm()

        @torch.no_grad()
        def project() -> None:
            head.weight.mul_(length / head.weight.norm().clamp_min(1e-12))

        rows = self.tune(twin, clean, loss, after_step=project)
        mask = nothing_pruned(units, clean.images.device)
        return Repair(twin, mask, {}, rows, untuned=untuned, tuned_steps=rows[-1]["steps"])
