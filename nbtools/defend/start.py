"""How right the model is before anything is done to it: at chance level a repair means nothing [ours]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.data.listing import LIST
from nbtools.defend.findings import answers, low_start
from nbtools.defend.order import Order, better_order

CHANCE = 0.05
"""Above this p-value of the one-sided exact binomial test, right answers are no more than chance gives."""
TIMES = 2.5
"""An order with so many times the right answers shows that the given one is wrong, even where that is above chance: a
few classes stand at their place in nearly every order."""
SHOWN, LISTED = 4, 20
"""Of an order with a name so many classes are shown; of up to so many a warning lists all."""


@dataclass(frozen=True, eq=False)
class Start:
    """The model as it was given, on all images.

    Args:
        before: which of the held-back images are classified as labelled: bool `[held]`.
        right: of all images, how many are.
        of: all images.
        classes: their names, in the order as given.
        unseen: those without an image.
        p_value: of the one-sided exact binomial test of `right` against one in as many as there are classes.
        other: an order of the classes that is better by far, where there is one.
    """

    before: Tensor
    right: int
    of: int
    classes: tuple[str, ...]
    unseen: tuple[str, ...]
    p_value: float
    other: Order | None

    @property
    def at_chance(self) -> bool:
        """Whether it is right no more often than chance; where all are right it is not, however few they are."""
        return self.p_value > CHANCE and self.right < self.of

    @property
    def hopeless(self) -> bool:
        """Whether a repair would mean nothing."""
        return self.at_chance or (self.other is not None and self.other.right >= TIMES * self.right)

    @property
    def warnings(self) -> list[str]:
        """What to be warned of where the work goes on, the gravest first."""
        low = low_start(self.before, len(self.classes))
        if self.at_chance and not low:
            low = f"Before the repair {self._level()}: if it should be better, this repair means nothing."
        return [line for line in (low, self._order_warning()) if line]

    @property
    def record(self) -> dict[str, Any]:
        """For the card, as plain JSON values."""
        other = self.other and {
            "how": self.other.how or "best for these images",
            "classes": list(self.other.classes),
            "right": self.other.right,
        }
        chance = 100 * self._chance
        level = {"chance": chance, "p_value": self.p_value, "at_chance": self.at_chance}
        return {"right": self.right, "of": self.of, **level, "other_order": other}

    def refusal(self, folder: Path, fed: Sequence[str]) -> str:
        """Why there is no work to do, and what to do instead.

        Args:
            folder: of the images.
            fed: how they were fed to the model, in phrases that name the options.
        """
        first = f"Nothing was repaired: {self._level()}."
        last = "To go on all the same, give --anyway."
        if self.other:
            what = f"Write this order into {folder / LIST}, a name a line, or rename the folders:"
            return "\n".join([f"{first} {self._better(self.other)} {what}", *self.other.classes, last])
        few = "" if self.right <= self._chance * self.of else " So few images can't show that it is better: give more."
        return (
            f"{first}{few} What may not be the model's own: {'; '.join(fed)}; the order of the classes, "
            f"{_some(self.classes)} ({folder / LIST}), though no other order of them was found to be right. "
            f"Give what the model was trained with. {last}"
        )

    @property
    def _chance(self) -> float:
        return 1 / len(self.classes)

    def _level(self) -> str:
        level = f"the model is right on {self.right:,} of {self.of:,} images ({100 * self.right / self.of:.1f} %)"
        chance = f"no better than chance among {len(self.classes)} classes ({100 * self._chance:.1f} %)"
        return f"{level}, {chance}" if self.at_chance else level

    def _better(self, other: Order) -> str:
        """Which other order is better, and how much."""
        count = f"{other.right:,} of {other.of:,} would be right"
        if other.how:
            return f"In the order of {other.how} ({_some(other.classes, self.classes)}) {count}."
        lost = f" Nothing tells the place of {_some(self.unseen)}, without an image." if self.unseen else ""
        return f"In another order of the classes, found from the answers to these images, {count}.{lost}"

    def _order_warning(self) -> str:
        other = self.other
        if other is None:
            return ""
        moved = sum(new != old for new, old in zip(other.classes, self.classes, strict=True))
        listed = f"{moved} of {len(other.classes)} classes have another place, see other_order in the card"
        if len(other.classes) <= LISTED:
            listed = ", ".join(other.classes)
        return (
            f"{self._better(other)} In the given order {self.right:,} are. If that is the model's own, {LIST} in the "
            f"folder of the images should list it, a name a line: {listed}."
        )


def begin(model: nn.Module, learn: Images, held: Images) -> Start:
    """One pass over all images.

    Args:
        model: in eval mode, on the images' device.
        learn: what the defence will have.
        held: what is held back.
    """
    parts = [answers(model, learn), answers(model, held)]
    labels, said = torch.cat([learn.labels, held.labels]).cpu(), torch.cat(parts)
    count = held.num_classes
    right = int((said == labels).sum())
    seen = torch.bincount(labels, minlength=count) > 0
    unseen = tuple(name for name, known in zip(held.classes, seen.tolist(), strict=True) if not known)
    p = float(binomtest(right, len(labels), 1 / count, alternative="greater").pvalue)
    other = better_order(labels, said, held.classes, at_chance=p > CHANCE)
    return Start(parts[1] == held.labels.cpu(), right, len(labels), held.classes, unseen, p, other)


def _some(names: Sequence[str], given: Sequence[str] = ()) -> str:
    """The first names, in quotes; as far as the first that differs from the given ones, where that is not far."""
    differ = next((i for i, pair in enumerate(zip(names, given, strict=False)) if pair[0] != pair[1]), 0)
    shown = names[: max(SHOWN, min(differ + 1, 2 * SHOWN))]
    return ", ".join(f'"{name}"' for name in shown) + (", ..." if len(shown) < len(names) else "")
