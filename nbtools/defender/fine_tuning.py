"""Plain fine-tuning on the clean images: the control that every defence must beat."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from nbtools.data.images import Images
from nbtools.defender.learning import Epochs, check_inputs, nothing_pruned
from nbtools.defender.repair import Repair, measured
from nbtools.networks.graph import duplicate


@dataclass(frozen=True)
class FineTuning:
    """Train all weights on with the clean images and their labels; nothing is pruned.

    Cross-entropy by SGD, lr 0.01 falling as a cosine, images cropped and flipped: the baseline "FT" of the field.
    Ten epochs, batches of 128 and weight decay 5e-4 are [ours].

    Args:
        tune: the training.
    """

    tune: Epochs = field(default_factory=Epochs)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Tune a copy of `model`.

        Returns:
            A repair whose mask prunes nothing and therefore has no scores; `untuned` is the model as it was given.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses.
            DivergedError: where the training diverges.
        """
        units = check_inputs(model, clean)
        twin, untuned = duplicate(model), duplicate(model).eval()
        rows = self.tune(twin, clean)
        mask = nothing_pruned(units, clean.images.device)
        return Repair(twin, mask, {}, rows, untuned=untuned, tuned_steps=rows[-1]["steps"])
