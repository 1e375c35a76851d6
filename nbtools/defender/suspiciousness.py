"""Pruning by the suspiciousness score (arXiv 2311.07417), with a chosen threshold, and its controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import nn

from nbtools.data.images import Images
from nbtools.defender.components import Components, Scores, components, spectral_norms
from nbtools.defender.last_stage import LastStage
from nbtools.defender.learning import accuracy, check_inputs
from nbtools.defender.pruning import Mask, apply, at_random, check_threshold, pruned_copy, threshold
from nbtools.defender.renormalise import Renormalise
from nbtools.defender.repair import FineTune, Repair, measured
from nbtools.defender.saliency import SALIENCY_LOSSES
from nbtools.defender.score import POWERS, check_powers, suspiciousness
from nbtools.defender.validation import Validation
from nbtools.networks.graph import duplicate
from nbtools.networks.units import check_finite, prunable_units

Mending = FineTune | LastStage | Renormalise
"""What may follow the pruning: called with the pruned model, the clean images, the mask and the model before."""


@dataclass(frozen=True)
class Suspiciousness:
    """Prune every filter whose suspiciousness stands out in its layer, then mend the rest (arXiv 2311.07417).

    The formula is a reconstruction [ours]; see `nbtools.defender.score.suspiciousness`. The defaults were settled on
    networks of full width (data/lab_notes.md).

    Args:
        mu: prune where S > mean + mu * std; 0 or more.
        saliency: the loss whose gradient is the saliency; see `nbtools.defender.saliency.saliency_loss`.
        per_image: saliency is the mean of the images' gradient norms, else the norm of their mean gradient.
        powers: term to its exponent in the score; see `nbtools.defender.score.POWERS`.
        normalise: divide each term by its layer's mean.
        fold_bn: fold the batch norm into the spectral norm.
        after_relu: measure activations behind the ReLU.
        scope: mean and std over the "layer", or "global".
        rounds: the threshold is taken so often, each time over the filters that are left [ours]; see notebook 12.
        alive: filters whose spectral norm is not above this share of their layer's mean are dead: they are left out of
            mean and std, and not pruned [ours]; 0 counts all. 0.25 helped MobileNetV2 and long trainings on CIFAR-10,
            with `first` False, since it can make the few living ones of a narrow layer stand out; it failed a test on
            networks that it was not chosen on, and is not the default (notebook 13).
        shortcuts: prune the 1x1 convolutions on the shortcuts as well.
        first: prune the first of the prunable convolutions as well.
        fine_tune: what follows: `LastStage`, a short tuning of the highest part; `FineTune`, one of the whole network
            that stops by itself; `Renormalise`, which trains nothing; None prunes only.
    """

    mu: float = 2.0
    saliency: str = "cross_entropy"
    per_image: bool = True
    powers: dict[str, float] = field(default_factory=lambda: dict(POWERS))
    normalise: bool = True
    fold_bn: bool = True
    after_relu: bool = True
    scope: str = "layer"
    rounds: int = 1
    alive: float = 0.0
    shortcuts: bool = True
    first: bool = True
    fine_tune: Mending | None = field(default_factory=LastStage)

    def __post_init__(self) -> None:
        check_threshold(self.mu, self.scope, self.rounds)
        if not 0 <= self.alive < 1:
            raise ValueError(
                f"alive must lie in [0, 1), got {self.alive}: it is a share of a layer's mean spectral norm"
            )
        check_powers(self.powers)
        if self.saliency not in SALIENCY_LOSSES:
            raise ValueError(f"unknown saliency {self.saliency!r}; known: {', '.join(SALIENCY_LOSSES)}")

    def components(self, model: nn.Module, clean: Images) -> Components:
        """The four measurements of this defence; see `nbtools.defender.components.components`."""
        return components(model, clean, self.saliency, self.fold_bn, self.after_relu, self.per_image)

    def scores(self, parts: Components) -> Scores:
        """The score of this defence from its components."""
        return suspiciousness(parts, self.powers, self.normalise)

    def mask(self, parts: Components) -> Mask:
        """What this defence prunes, from its components."""
        scores = self.scores(parts)
        units = [u for u in parts.units if (self.shortcuts or not u.shortcut) and (self.first or not u.first)]
        kept = {unit.conv: scores[unit.conv] for unit in units}
        sigma = parts.of("sigma")
        counted = {conv: sigma[conv] > self.alive * sigma[conv].mean() for conv in kept} if self.alive else None
        return threshold(kept, self.mu, self.scope, self.rounds, counted)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model` with the clean images.

        Raises:
            ValueError: for no images, NaN weights, or a model without convolution-BN pairs.
        """
        parts = self.components(model, clean)
        return _repair(model, clean, self.scores(parts), self.mask(parts), self.fine_tune)


@dataclass(frozen=True)
class ChosenMu:
    """Pruning by the suspiciousness score with a threshold that the clean images choose [ours].

    mu is walked down from the gentlest; the last one is taken before the accuracy of the pruned copy on the clean
    images falls by more than `allowed`, or by more than one image where that is more, below the model's own. These are
    the images that the score was measured with; so few numbers learn from them that none needs to be held back.

    Args:
        like: the defence; its own `mu` does not matter. By default that with which the rule was tried.
        mus: thresholds to try, in any order, each 0 or more.
        allowed: loss of accuracy that is accepted, in [0, 1).
    """

    like: Suspiciousness = field(default_factory=lambda: Suspiciousness(saliency="margin", fine_tune=FineTune()))
    mus: tuple[float, ...] = (4.0, 3.5, 3.0, 2.75, 2.5, 2.25, 2.0, 1.75, 1.5)
    allowed: float = 0.03

    def __post_init__(self) -> None:
        if not self.mus:
            raise ValueError("mus must hold one threshold or more")
        for mu in self.mus:
            check_threshold(mu)
        if not 0 <= self.allowed < 1:
            raise ValueError(f"allowed must lie in [0, 1), got {self.allowed}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`; the history begins with the walk: mu, pruned, accuracy in [0, 1], chosen.

        Raises:
            ValueError: as `Suspiciousness`.
        """
        parts = self.like.components(model, clean)
        mus = sorted(self.mus, reverse=True)
        masks = [replace(self.like, mu=mu).mask(parts) for mu in (math.inf, *mus)]  # the first prunes nothing
        before, *kept = [accuracy(pruned_copy(model, mask).eval(), clean) for mask in masks]
        chosen = Validation(allowed=self.allowed).choose(kept, before, len(clean))
        repair = _repair(model, clean, self.like.scores(parts), masks[chosen + 1], self.like.fine_tune)
        walk = [
            {"mu": mu, "pruned": mask.count, "accuracy": share, "chosen": number == chosen}
            for number, (mu, mask, share) in enumerate(zip(mus, masks[1:], kept, strict=True))
        ]
        return replace(repair, history=[*walk, *repair.history])


@dataclass(frozen=True)
class SpectralNorm:
    """Prune by the spectral norm alone, no image needed: CLP (Zheng et al., ECCV 2022), conv-BN pairs by the graph.

    Args:
        mu: prune where sigma > mean + mu * std; CLP's u, 3 in its paper.
        fine_tune: what follows, see `Suspiciousness`; None (the paper) prunes only.
    """

    mu: float = 3.0
    fine_tune: Mending | None = None

    def __post_init__(self) -> None:
        check_threshold(self.mu)

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`; the clean images serve the fine-tuning alone.

        Raises:
            ValueError: for NaN weights, or a model without convolution-BN pairs; with fine-tuning also for no images,
                or a model with fewer classes than the images.
        """
        if self.fine_tune is not None:
            check_inputs(model, clean)
        check_finite(model)
        scores = spectral_norms(model, prunable_units(model))
        return _repair(model, clean, scores, threshold(scores, self.mu), self.fine_tune)


@dataclass(frozen=True)
class RandomPruning:
    """Prune as many filters of each layer as another defence would, drawn at random: a control.

    Args:
        like: the defence whose numbers of filters are copied.
        seed: which draw.
    """

    like: Suspiciousness
    seed: int = 0

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`."""
        parts = self.like.components(model, clean)
        mask = at_random(self.like.mask(parts), self.seed)
        return _repair(model, clean, self.like.scores(parts), mask, self.like.fine_tune)


def _repair(model: nn.Module, clean: Images, scores: Scores, mask: Mask, fine_tune: Mending | None) -> Repair:
    twin, before = duplicate(model).eval(), duplicate(model).eval()
    apply(twin, mask)
    if fine_tune is None:
        return Repair(twin, mask, scores)
    untuned = duplicate(twin)
    history = fine_tune(twin, clean, mask, before)
    chosen = next((index for index, row in enumerate(history) if row["chosen"]), 0)  # the first is the pruned copy
    steps = history[chosen]["step"] if history else 0
    return Repair(twin, mask, scores, history, untuned=untuned if chosen else None, tuned_steps=steps)
