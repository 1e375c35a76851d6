"""Prune gently, find the class that one shift of the maps forces too easily, and unlearn that shift [ours].

A trigger moves the maps of a network nearly the same way in every image. So one *universal shift*, added to the maps of
all clean images at some place of the network, sends them to the target class, and it need not be large. A natural class
can be forced as well, but not from everywhere: the images that resist most tell the two apart, without a trigger. Where
no class stands out, nothing is unlearned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.descent import adam_steps
from nbtools.defender.learning import answers, check_inputs, check_learned, divergence, joined
from nbtools.defender.pruning import Mask, apply, hold
from nbtools.defender.repair import Repair, measured
from nbtools.defender.shifts import (
    Searched,
    Walked,
    folds,
    halves,
    joint,
    log_p_values,
    shift,
    shifted,
    spread,
    t_values,
    walk,
)
from nbtools.defender.suspiciousness import Suspiciousness
from nbtools.networks.above import INPUT, above, at
from nbtools.networks.graph import duplicate
from nbtools.networks.precision import real_float32
from nbtools.networks.training import DivergedError, autocast


def _highest(place: str) -> float:
    """What no value at a place may exceed: images end at 1."""
    return 1.0 if place == INPUT else math.inf


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a place answered.

    Args:
        place: its name.
        scale: spread of its maps, `[1, c, 1, 1]`.
        walked: how far each class's shift goes.
    """

    place: str
    scale: Tensor
    walked: Walked


def _told(asked: Sequence[_Asked]) -> list[dict[str, Any]]:
    """A row of the history for each place, and one of all places together; none where nothing was asked."""
    rows, logs = list[dict[str, Any]](), list[Tensor]()
    for place in asked:
        margins = place.walked.margins
        outliers = torch.stack([t_values(part) for part in margins]).amax(0)
        logs.append(log_p_values(outliers, len(margins)))
        suspect, chance = joint(logs[-1][None])
        told = {"stage": "ask", "place": place.place or "image", "length": place.walked.length}
        rows.append({**told, "suspect": suspect, "outlier": float(outliers.max()), "chance": chance})
    if not rows:
        return []
    suspect, chance = joint(torch.stack(logs))
    most = min(range(len(rows)), key=lambda k: float(logs[k][suspect]))
    return [*rows, {"stage": "judge", "suspect": suspect, "place": rows[most]["place"], "chance": chance}]


@dataclass(frozen=True)
class ShiftUnlearning:
    """Repair in three steps [ours].

    1. *Prune* by the suspiciousness score, so gently that no clean accuracy is lost.
    2. *Ask* the model as it was given, at each place and for each class: how far does a universal shift drive images of
       other classes towards this class? The shift grows until the middle class is just reached. On parts of this way it
       is judged by images that it was not found on. What counts is the margin of the class's logit, as a mean over the
       harder half of the images. At each place a t-test tells how far a class is an outlier among the others; what the
       places say of a class is joined by Fisher's method. The class that stands out most is suspected, where this would
       happen by chance with a probability of at most `level`, corrected for the number of classes and parts. With two
       classes nobody stands out, with three only where t is very large. Where all clean images are of one class nothing
       is asked: a class is judged by the images of others.
    3. *Unlearn*: the last stage alone is tuned, so that images that a shift towards the suspect moves, in their pixels
       or in the maps below that stage, get the answers that the model gave to them unmoved, and blends of two images'
       maps the answers that it gave to those. Batch norms keep their statistics.

    A shortcut through channels that are silent in all clean images isn't found; see `nbtools.defender.shifts.spread`.

    Args:
        prune: the first step; its `fine_tune` is not used.
        pruned: names, or beginnings of names, of the convolutions that may be pruned; none is everything.
        places: modules whose output is shifted, from below to above; "" is the image. Everything must flow through
            them, and what lies above the last one is tuned.
        level: highest probability, in (0, 1], of some class standing out so far by chance, were the places independent
            and no class easier than others by nature. Neither holds exactly: it is a threshold, not a rate of errors.
            With 1 the class that stands out most is always suspected.
        few: images, 0 or more. With so many or more, shifts are found on either half and judged by the other. Fewer
            are joined by a cropped and flipped copy of each, and dealt into `few` // n parts, at least two: shifts are
            found on all parts but one and judged by that one.
        judged: parts of the way to the middle class at which the classes are compared, in (0, 1].
        paces: so many steps are planned to the middle class, by linear extrapolation from its first gradient; at least
            2. At most twice as many are walked.
        reach: longest shift that is unlearned, as a multiple of the one at which the suspect is just reached, above 0;
            it is never longer than the one at which the middle class is.
        shifts: how many are unlearned at each place, each found on its own half of the images; at least 1.
        steps: of Adam; 0 unlearns nothing.
        lr: Adam's learning rate is this number divided by the number of channels at the last place, and falls linearly
            to 0. Adam moves every weight by about as much, so an output moves the more, the more inputs it has (Yang et
            al., arXiv 2203.03466).
        batch_size: images a step, at least 1.
        copies: cropped and flipped copies of each image that are learned from besides, 0 or more.
        weight: of the shifted maps in the loss; the blends' weight is 1. 0 or more.
        temperature: by which logits are divided in the loss, above 0.
        seed: of halves, copies, batches and blends.

    Raises:
        ValueError: for a value out of its range.
    """

    prune: Suspiciousness = field(
        default_factory=lambda: Suspiciousness(mu=3.0, saliency="cross_entropy", fine_tune=None)
    )
    pruned: tuple[str, ...] = ("layer2", "layer3")
    places: tuple[str, ...] = (INPUT, "layer3")
    level: float = 0.03
    few: int = 50
    judged: tuple[float, ...] = (0.5, 1.0)
    paces: int = 4
    reach: float = 2.0
    shifts: int = 4
    steps: int = 90
    lr: float = 0.05
    batch_size: int = 50
    copies: int = 4
    weight: float = 0.5
    temperature: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = min(self.paces - 1, self.shifts, self.batch_size) >= 1 and min(self.steps, self.copies, self.few) >= 0
        finite = all(0 < value < math.inf for value in (self.lr, self.temperature, self.reach))
        weights = 0 <= self.weight < math.inf
        if not (counts and finite and weights and 0 < self.level <= 1):
            raise ValueError(
                "paces >= 2, shifts and batch_size >= 1, steps, copies, few and weight >= 0, lr, temperature and "
                f"reach > 0 and level in (0, 1] are needed, got {self}"
            )
        if not self.places:
            raise ValueError('`places` must name a module or more; "" is the image')
        if not self.judged or not all(0 < part <= 1 for part in self.judged):
            raise ValueError(f"`judged` must hold parts of the way, in (0, 1], got {self.judged}")

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        """Repair a copy of `model`.

        Returns:
            mask and scores are those of the first step; `untuned` is the pruned copy where something was unlearned. The
            history has one row a place: stage "ask", place ("image" is the input), length (of the way; root mean
            square over the maps' positions, in standard deviations), suspect (the class that stands out most there),
            outlier (its largest t value at the judged lengths), chance (that some class stands out so far there); then
            one row of all places together: stage "judge", suspect, place (where it stands out most), chance (up to
            `level` it counts); then, where something is unlearned, one row a step: stage "unlearn", suspect, step,
            loss.

        Raises:
            ValueError: for images or a model that `nbtools.defender.learning.check_inputs` refuses, a place that
                `nbtools.networks.above.above` refuses or that gives no maps, or where `pruned` names no convolution.
            DivergedError: where the model's answers, a loss or a weight are not finite.
        """
        check_inputs(model, clean)
        before = duplicate(model).eval().requires_grad_(False)
        for place in self.places:  # refused before any work
            above(before, place, None if place == self.places[-1] else self.places[-1])
            if (maps := at(before, place, clean.subset(torch.zeros(1, dtype=torch.int64)))).ndim != 4:
                raise ValueError(f"{place} gives values of shape {list(maps.shape)}; name a module that gives maps")
        if self.pruned and not any(conv.startswith(self.pruned) for conv, _ in model.named_modules()):
            raise ValueError(f"the model has no module {' or '.join(self.pruned)}; name in `pruned` what may be pruned")
        logits = answers(before, clean)
        if not bool(torch.isfinite(logits).all()):
            raise DivergedError("the model's answers to the clean images hold nan or inf")
        parts = self.prune.components(model, clean)
        kept = {
            conv: pruned if not self.pruned or conv.startswith(self.pruned) else torch.zeros_like(pruned)
            for conv, pruned in self.prune.mask(parts).pruned.items()
        }
        mask, twin = Mask(kept), duplicate(model).eval()
        apply(twin, mask)
        several = bool((clean.labels != clean.labels[0]).any())
        asked = [self._ask(before, place, clean, logits.shape[1]) for place in self.places if several]
        history, scores = _told(asked), self.prune.scores(parts)
        if not self.steps or not history or history[-1]["chance"] > self.level:
            return Repair(twin, mask, scores, history)
        untuned = duplicate(twin)
        history += self._unlearn(before, twin, mask, clean, asked, history[-1]["suspect"])
        check_learned(twin)
        return Repair(twin, mask, scores, history, untuned=untuned, tuned_steps=self.steps)

    @real_float32()
    def _ask(self, before: nn.Module, place: str, clean: Images, classes: int) -> _Asked:
        """Walk the shifts of all classes at a place."""
        count, copies = len(clean), int(len(clean) < self.few)
        seen = joined(clean, copies, torch.Generator().manual_seed(self.seed))
        maps, top = at(before, place, seen), above(before, place)
        every, scale = torch.arange(classes, device=maps.device), spread(maps)

        def searched(part: Tensor) -> Searched:
            both = torch.cat([part + count * turn for turn in range(copies + 1)])
            return Searched(top, maps[both], seen.labels[both], scale, every, _highest(place))

        dealt = [(searched(found), searched(held)) for found, held in folds(count, self.few, self.seed, maps.device)]
        walked = walk(dealt, self.paces, self.judged)
        if not bool(torch.isfinite(walked.margins).all()):
            raise DivergedError(f"shifted images get answers that hold nan or inf ({place or 'the image'} was shifted)")
        return _Asked(place, scale, walked)

    def _forced(
        self, twin: nn.Module, more: Images, learned: Tensor, count: int, asked: _Asked, suspect: int, seed: int
    ) -> Tensor:
        """What reaches the last place, `learned`, when images are shifted at one: each twice, `[2n, c, h, w]`."""
        generator, scale, highest = torch.Generator().manual_seed(seed), asked.scale, _highest(asked.place)
        top, last = above(twin, asked.place), self.places[-1]
        maps = learned if asked.place == last else at(twin, asked.place, more)
        only = torch.tensor([suspect], device=maps.device)
        length = min(asked.walked.length, self.reach * float(asked.walked.radii[suspect]))
        parts = halves(count, self.shifts, self.seed, maps.device)
        shifts = torch.cat(
            [shift(Searched(top, maps[part], more.labels[part], scale, only, highest), length) for part in parts]
        )
        between = nn.Identity() if asked.place == last else above(twin, asked.place, last)
        forced = list[Tensor]()
        for part in torch.arange(len(maps), device=maps.device).repeat(2).split(100):
            which = torch.randint(len(shifts), (len(part),), generator=generator).to(maps.device)
            far = 0.5 + 0.5 * torch.rand(len(part), 1, 1, 1, generator=generator).to(maps.device)
            with torch.no_grad(), autocast(maps.device):
                forced.append(between(shifted(maps[part], far * scale * shifts[which], highest)).float())
        return torch.cat(forced)

    def _unlearn(
        self,
        before: nn.Module,
        twin: nn.Module,
        mask: Mask,
        clean: Images,
        asked: list[_Asked],
        suspect: int,
    ) -> list[dict[str, Any]]:
        """Tune, in place, what lies above the last place; one row a step."""
        generator, device, last = torch.Generator().manual_seed(self.seed), clean.images.device, self.places[-1]
        more = joined(clean, self.copies, generator)
        taught, learned = at(before, last, more), at(twin, last, more)
        teacher, pupil = above(before, last), above(twin, last)
        with torch.no_grad():  # of copies, since what is given may be changed in place
            truth = torch.cat([teacher(part.clone()) for part in taught.split(100)])
        common = (twin, more, learned, len(clean))
        forced = torch.cat([self._forced(*common, place, suspect, self.seed + k) for k, place in enumerate(asked)])
        weights = list(pupil.parameters())
        wanted = [w.requires_grad for w in weights]
        for weight in weights:
            weight.requires_grad_(True)
        lr = self.lr / taught.shape[1]
        go, losses, again = adam_steps(weights), list[Tensor](), hold(twin, mask)
        for step in range(self.steps):
            one, two, moved = (
                torch.randint(high, (self.batch_size,), generator=generator).to(device)
                for high in (len(taught), len(taught), len(forced))
            )
            blend = torch.rand(self.batch_size, 1, 1, 1, generator=generator).to(device)
            with autocast(device):
                with torch.no_grad():
                    given = teacher(torch.lerp(taught[two], taught[one], blend)).float()
                tries = pupil(torch.cat([torch.lerp(learned[two], learned[one], blend), forced[moved]])).float()
            calm, shaken = tries.chunk(2)
            loss = divergence(calm, given, self.temperature)
            loss = loss + self.weight * divergence(shaken, truth[moved % len(truth)], self.temperature)
            go(loss, lr * (1 - step / self.steps))
            again()
            losses.append(loss.detach())
        for weight, flag in zip(weights, wanted, strict=True):
            weight.requires_grad_(flag)
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise DivergedError(
                f"the unlearning's loss is {values[-1]} after {self.steps} steps; try an lr below {self.lr}"
            )
        told = {"stage": "unlearn", "suspect": suspect}
        return [{**told, "step": step, "loss": value} for step, value in enumerate(values, start=1)]
