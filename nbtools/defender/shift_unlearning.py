"""Prune gently, find the class that one shift of the maps forces too easily, and unlearn that shift [ours].

A trigger moves the maps of a network nearly the same way in every image. So one *universal shift*, added to the maps of
all clean images at some place of the network, sends them to the target class, and it need not be large. No other class
can be forced so cheaply: that tells the class and the place, without a trigger. Where no class stands out, nothing is
unlearned.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.learning import answers, check_inputs, check_learned
from nbtools.defender.pruning import Mask, apply, hold
from nbtools.defender.repair import Repair, measured
from nbtools.defender.shifts import INPUT, shift, shifted, spread, t_values, walk
from nbtools.defender.suspiciousness import Suspiciousness
from nbtools.networks.above import above, at
from nbtools.networks.training import DivergedError, augment, autocast

FULL = 4.0
"""Standard deviations by which a patch changes its pixels: about the whole range from 0 to 1."""


@dataclass(frozen=True)
class ShiftUnlearning:
    """Repair in three steps [ours].

    1. *Prune* by the suspiciousness score, so gently that no clean accuracy is lost.
    2. *Ask* at each place of the network, and for each class, how far the best universal shift of a given length drives
       all images of other classes towards this class: the mean margin of its logit. The length is the one at which the
       middle class is just reached. A class is suspected where its margin is an outlier among the others' by a t-test
       at `level`, corrected for the number of classes and places; the one that stands out most, if any.
    3. *Unlearn*: everything above a place is tuned so that shifted maps get the answers that the model gave to the
       unshifted ones, and blends of two images' maps the answers that it gave to them. Batch norms keep their
       statistics. To unlearn a backdoor's shift costs the clean task nothing, to unlearn a natural one does; so it is
       *tried* first with one half of the images, at the place that gave the class away and at the last one, and done
       where the answers to the other half change least. Where no class is suspected, the one that comes nearest is
       tried, and unlearned only if those answers hardly change at all.

    At the input the shift is a patch: it may change a small square only, the one where the gradient is largest.

    Args:
        prune: the first step; its `fine_tune` is not used.
        pruned: names, or beginnings of names, of the convolutions that may be pruned; none is everything.
        places: modules whose output is shifted; everything must flow through them.
        patch: side of the square at the input, in pixels; 0 leaves the input out.
        level: probability that a class is suspected by chance, in (0, 1).
        asked: images that are asked at the input, where a patch's effect is strong and each costs most; at least 2.
        paces: steps in which the length is reached that linear extrapolation gives the middle class, at least 2; at
            most twice as many are walked.
        allowed: divergence, in nats, by which a trial may move the answers to images that it did not see; 0 or more,
            and at 0 nothing is tried.
        shifts: how many are unlearned, each found on its own half of the images; at least 1.
        steps: of Adam; 0 unlearns nothing.
        lr: Adam's learning rate.
        batch_size: images a step, at least 1.
        copies: cropped and flipped copies of each image that are learned from besides, 0 or more.
        weight: of the shifted maps in the loss, beside the blends; 0 or more.
        temperature: by which logits are divided in the loss, above 0.
        share: how far the weights go on the way that was tuned, in (0, 1].
        seed: of halves, copies, batches and blends.

    Raises:
        ValueError: for a value out of its range.
    """

    prune: Suspiciousness = field(
        default_factory=lambda: Suspiciousness(mu=3.0, saliency="cross_entropy", fine_tune=None)
    )
    pruned: tuple[str, ...] = ("layer2", "layer3")
    places: tuple[str, ...] = ("layer1", "layer3")
    patch: int = 5
    level: float = 0.05
    asked: int = 40
    paces: int = 6
    allowed: float = 0.1
    shifts: int = 4
    steps: int = 60
    lr: float = 2e-4
    batch_size: int = 50
    copies: int = 4
    weight: float = 1.0
    temperature: float = 2.0
    share: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.paces, self.asked) >= 2 and min(self.shifts, self.batch_size) >= 1
        counts = counts and min(self.patch, self.steps, self.copies) >= 0
        finite = all(0 < value < math.inf for value in (self.lr, self.temperature))
        weights = 0 <= self.weight < math.inf and self.allowed >= 0
        if not (counts and finite and weights and 0 < self.level < 1 and 0 < self.share <= 1):
            raise ValueError(
                "paces and asked >= 2, shifts and batch_size >= 1, patch, steps, copies, weight and allowed >= 0, "
                f"lr and temperature > 0, level in (0, 1) and share in (0, 1] are needed, got {self}"
            )
        if not self.places and not self.patch:
            raise ValueError("name at least one of `places`, or give the side of a `patch`")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        Returns:
            mask and scores are those of the first step; `untuned` is the pruned copy where something was unlearned. The
            history has one row a place: stage "ask", place, length (of the shifts, root mean square over the maps'
            positions in standard deviations), suspect (the class that stands out most there), outlier (its t value),
            bar (above which it counts); then one row a trial: stage "try", place, suspect, change (the divergence
            in nats), kept; then, where something is unlearned, one row a step: stage "unlearn", place, suspect, step,
            loss.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses, or a place that
                `nbtools.networks.above.above` refuses.
            DivergedError: where the model's answers, a loss or a weight are not finite.
        """
        check_inputs(model, clean)
        before = copy.deepcopy(model).eval().requires_grad_(False)
        sites = [*([INPUT] if self.patch else []), *self.places]
        tops = {place: above(before, place) for place in sites}  # refuses a place before any work
        if not bool(torch.isfinite(answers(before, clean)).all()):
            raise DivergedError("the model's answers to the clean images hold nan or inf")
        parts = self.prune.components(model, clean)
        kept = {
            conv: pruned if not self.pruned or conv.startswith(self.pruned) else torch.zeros_like(pruned)
            for conv, pruned in self.prune.mask(parts).pruned.items()
        }
        mask, twin = Mask(kept), copy.deepcopy(model).eval()
        apply(twin, mask)
        found = dict[str, dict[str, Any]]()
        for place in sites:
            some = clean.subset(self._some(len(clean))) if place == INPUT else clean
            found[place] = self._ask(tops[place], place, at(before, place, some), some.labels, len(sites))
        history = list(found.values())
        place = max(sites, key=lambda site: found[site]["outlier"] / found[site]["bar"])
        suspect, sure = found[place]["suspect"], found[place]["outlier"] > found[place]["bar"]
        scores = self.prune.scores(parts)
        if not self.steps or len(clean) < 2 or not (sure or self.allowed):
            return Repair(twin, mask, scores, history)
        if not sure or place != sites[-1]:
            for site in dict.fromkeys([place, sites[-1]] if sure else [place]):
                history.append(self._try(before, twin, mask, clean, site, suspect, found[site]["length"]))
            cheapest = min(history[len(sites) :], key=lambda row: row["change"])
            if not sure and cheapest["change"] > self.allowed:
                return Repair(twin, mask, scores, history)
            cheapest["kept"] = True
            place = INPUT if cheapest["place"] == "input" else cheapest["place"]
        untuned = copy.deepcopy(twin)
        history += self._unlearn(before, twin, mask, clean, place, suspect, found[place]["length"], self.steps)
        check_learned(twin)
        return Repair(twin, mask, scores, history, untuned=untuned, tuned_steps=self.steps)

    def _ask(self, top: nn.Module, place: str, maps: Tensor, labels: Tensor, sites: int) -> dict[str, Any]:
        """Walk the shifts of all classes at a place."""
        classes = top(maps[:1]).shape[1]
        every, window = torch.arange(classes, device=maps.device), self.patch if place == INPUT else 0
        halves = [(maps[half], labels[half]) for half in self._halves(len(maps), 2, maps.device)]
        margins, pace = walk(top, halves, spread(maps), every, self.paces, window)
        reached = (margins.median(1).values >= 0).nonzero()
        step = int(reached[0]) if len(reached) else len(margins) - 1
        outliers = t_values(margins[step])
        return {
            "stage": "ask",
            "place": place or "input",
            "length": FULL if window else pace * step,
            "suspect": int(outliers.argmax()),
            "outlier": float(outliers.max()),
            "bar": float(student_t.ppf(1 - self.level / (classes * sites), max(classes - 2, 1))),
        }

    def _try(
        self, before: nn.Module, pruned: nn.Module, mask: Mask, clean: Images, place: str, suspect: int, length: float
    ) -> dict[str, Any]:
        """What it costs on one half of the images to unlearn with the other: the row of a trial."""
        half = torch.zeros(len(clean), dtype=torch.bool, device=clean.images.device)
        half[self._halves(len(clean), 1, half.device)[0][: len(clean) // 2]] = True
        twin, held = copy.deepcopy(pruned), clean.subset(~half)
        self._unlearn(before, twin, mask, clean.subset(half), place, suspect, length, (self.steps + 1) // 2)
        change = float(_divergence(pruned, twin, held))
        told = {"place": place or "input", "suspect": suspect}
        return {"stage": "try", **told, "change": change if math.isfinite(change) else math.inf, "kept": False}

    def _some(self, count: int) -> Tensor:
        """Indices of the images that are asked at the input."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.asked]

    def _unlearn(
        self,
        before: nn.Module,
        twin: nn.Module,
        mask: Mask,
        clean: Images,
        place: str,
        suspect: int,
        length: float,
        steps: int,
    ) -> list[dict[str, Any]]:
        """Tune, in place, what lies above the place; one row a step."""
        generator, device = torch.Generator().manual_seed(self.seed), clean.images.device
        seen = [clean.images, *(augment(clean.images, generator) for _ in range(self.copies))]
        more = Images(torch.cat(seen), clean.labels.repeat(len(seen)), clean.classes)
        taught, learned = at(before, place, more), at(twin, place, more)
        teacher, pupil = above(before, place), above(twin, place)
        scale, window = spread(taught[: len(clean)]), self.patch if place == INPUT else 0
        only, parts = torch.tensor([suspect], device=device), self._halves(len(clean), self.shifts, device)
        shifts = torch.cat(
            [shift(pupil, learned[part], clean.labels[part], scale, only, length, window) for part in parts]
        )
        weights = list(pupil.parameters())
        wanted, start = [w.requires_grad for w in weights], [w.detach().clone() for w in weights]
        for weight in weights:
            weight.requires_grad_(True)
        optimizer, losses, again = torch.optim.Adam(weights, self.lr), list[Tensor](), hold(twin, mask)
        for _ in range(steps):
            one, two, which = (
                torch.randint(high, (self.batch_size,), generator=generator).to(device)
                for high in (len(taught), len(taught), len(shifts))
            )
            blend, far = torch.rand(2, self.batch_size, 1, 1, 1, generator=generator).to(device)
            moved = (0.5 + far) * scale * shifts[which]
            moved = augment(moved, generator) if place == INPUT else moved
            with autocast(device):
                with torch.no_grad():
                    given = teacher(torch.cat([torch.lerp(taught[two], taught[one], blend), taught[one]])).float()
                tries = pupil(
                    torch.cat([torch.lerp(learned[two], learned[one], blend), shifted(learned[one], moved, place)])
                ).float()
            calm, shaken = (self._distance(a, b) for a, b in zip(tries.chunk(2), given.chunk(2), strict=True))
            loss = calm + self.weight * shaken
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            again()
            losses.append(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, first, flag in zip(weights, start, wanted, strict=True):
                weight.copy_(torch.lerp(first, weight, self.share))
                weight.requires_grad_(flag)
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise DivergedError(
                f"the unlearning's loss is {values[-1]} after {steps} steps; try an lr below {self.lr}"
            )
        told = {"stage": "unlearn", "place": place or "input", "suspect": suspect}
        return [{**told, "step": step, "loss": value} for step, value in enumerate(values, start=1)]

    def _distance(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the softened answers."""
        learned, taught = (F.log_softmax(values / self.temperature, 1) for values in (logits, answers))
        return self.temperature**2 * F.kl_div(learned, taught, reduction="batchmean", log_target=True)

    def _halves(self, count: int, many: int, device: torch.device) -> list[Tensor]:
        """Indices of so many random halves, each two together the whole; a single image is its own half."""
        generator, halves = torch.Generator().manual_seed(self.seed), list[Tensor]()
        while len(halves) < many:
            order = torch.randperm(count, generator=generator).to(device)
            halves += [order[: (count + 1) // 2], order[count // 2 :]]
        return halves[:many]


@torch.no_grad()
def _divergence(before: nn.Module, after: nn.Module, images: Images) -> Tensor:
    """How far the answers of two models in eval mode lie apart: mean Kullback-Leibler divergence in nats."""
    first, second = (F.log_softmax(answers(model, images), 1) for model in (before, after))
    return F.kl_div(second, first, reduction="batchmean", log_target=True)
