"""FMP, adversarial feature map pruning (arXiv 2307.11565): channels that a small step along their own map blinds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.feature_maps import channel_accuracies, noisy_images
from nbtools.defender.learning import Epochs, check_inputs
from nbtools.defender.pruning import Mask, apply, most_suspicious
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate
from nbtools.networks.units import Units, layers_of


@dataclass(frozen=True)
class FMP:
    """Prune the channels whose adversarial images the model gets wrong most often, then fine-tune (arXiv 2307.11565).

    For each channel i of each convolution L that has a batch norm, one signed gradient step leads from the noisy
    images x~ away from the clean map F_L^i(x); the model's accuracy on those images is the channel's score, and the
    floor(C_L / divisor) channels with the lowest are pruned in each layer [code]. F_L is what the convolution gives,
    before its batch norm. Ties are broken by the cross-entropy, the higher is pruned first [ours].

    Pruned are W_i and gamma_i. With `freeze_pruned` [ours] beta_i is set to zero as well and all are held there, so the
    channel is silent. Without it, as released, no mask is kept and beta_i goes on learning, so the channel becomes a
    constant. It does not come back: where W_i = gamma_i = 0, each is a factor of the other's gradient, and both stay.

    Args:
        n_images: clean images that are scored with, at least 1; drawn by `seed`, or all where there are fewer.
        alpha: size of the noise, in (0, 1]; 0.02 for CIFAR-10, 0.03 for CIFAR-100 and GTSRB [code].
        epsilon: size of the adversarial step, in (0, 1].
        divisor: one channel in so many is pruned, 2 or more; narrower layers than that lose none.
        freeze_pruned: hold pruned channels at zero while tuning.
        fine_tune: how to fine-tune; None prunes only.
        seed: of the images and their noise.

    Raises:
        ValueError: for a value out of its range.
    """

    n_images: int = 32
    alpha: float = 0.02
    epsilon: float = 0.06
    divisor: int = 64
    freeze_pruned: bool = True
    fine_tune: Epochs | None = field(default_factory=lambda: Epochs(epochs=10, lr=0.01, final_lr=1e-4, batch_size=256))
    seed: int = 0

    def __post_init__(self) -> None:
        steps = (self.alpha, self.epsilon)
        if self.n_images < 1 or self.divisor < 2 or not all(0 < step <= 1 for step in steps):
            raise ValueError(f"n_images >= 1, alpha and epsilon in (0, 1] and divisor >= 2 are needed, got {self}")

    def draw(self, clean: Images) -> tuple[Images, Tensor]:
        """The images that are scored with, and x~: the same images with noise, float `[n, 3, h, w]`."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = clean.subset(torch.randperm(len(clean), generator=generator)[: self.n_images])
        return drawn, noisy_images(drawn.floats(), self.alpha, generator)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model` with the clean images.

        Raises:
            ValueError: for no images, NaN weights, a model without convolution-BN pairs or with too few classes.
            DivergedError: where fine-tuning diverges.
        """
        units = check_inputs(model, clean)
        found = channel_accuracies(model, *self.draw(clean), self.epsilon)
        scores = {unit.conv: found[unit.conv].scores() for unit in units}
        mask = most_suspicious(scores, {unit.conv: unit.filters // self.divisor for unit in units})
        twin = duplicate(model).eval()
        _zero(twin, units, mask)
        if self.freeze_pruned:
            apply(twin, mask)
        if self.fine_tune is None:
            return Repair(twin, mask, scores)
        untuned = duplicate(twin)
        history = self.fine_tune(twin, clean, mask=mask if self.freeze_pruned else None)
        return Repair(twin, mask, scores, history, untuned=untuned, tuned_steps=history[-1]["steps"])


@torch.no_grad()
def _zero(model: nn.Module, units: Units, mask: Mask) -> None:
    """W_i = 0 and gamma_i = 0 for pruned channels, in place; a bias that a batch norm takes away again goes too."""
    for unit, conv, bn in layers_of(model, units):
        for values in (conv.weight, conv.bias, bn.weight):
            if values is not None:
                values[mask.pruned[unit.conv]] = 0
