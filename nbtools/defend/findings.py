"""What is measured around a repair: accuracy on held-back images, the detector's number, and what to be warned of."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nbtools.data.images import Images, to_floats
from nbtools.defender.detection import judge, statistic_of
from nbtools.defender.magnitude import last_stage, magnitudes, rank_correlations, saliencies_of_sets
from nbtools.defender.pruning import Mask
from nbtools.evaluator.evaluation import wilson

FEW_HELD_BACK, FEW_PER_CLASS = 100, 10
MUCH_PRUNED, MUCH_OF_A_LAYER = 0.1, 0.5
"""Shares of the filters above which the page warns."""
CLASS_FELL = 30.0
"""Points of a class's accuracy, with at least `CLASS_IMAGES` held back, from which it is named."""
CLASS_IMAGES = 5
DETECTOR_IMAGES, HALVES = 200, 6
"""The detector looks at so many images, and again at so many random halves of them, for the spread."""


@torch.no_grad()
def answers(model: nn.Module, images: Images, batch_size: int = 100) -> Tensor:
    """The output that is highest for each image: int64 `[n]`, on the CPU. In float32, whatever the hardware has."""
    return torch.cat([model(to_floats(batch)).argmax(1) for batch in images.images.split(batch_size)]).cpu()


def right(model: nn.Module, images: Images) -> Tensor:
    """Which images are classified as labelled: bool `[n]`, on the CPU."""
    return answers(model, images) == images.labels.cpu()


def share(hits: Tensor) -> dict[str, Any]:
    """Right answers with their Wilson 95 % interval, in percent."""
    count = int(hits.sum())
    low, high = wilson(count, len(hits))
    return {"right": count, "of": len(hits), "percent": 100 * count / len(hits), "interval": [low, high]}


def compared(before: Tensor, after: Tensor) -> dict[str, Any]:
    """The same images before and after: how many answers were lost and gained, and how likely that is by chance.

    The p-value is the exact sign test's over the images whose answer changed (McNemar).
    """
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return {
        "before": share(before),
        "after": share(after),
        "points": 100 * (gained - lost) / len(before),
        "lost": lost,
        "gained": gained,
        "p_value": p,
    }


def detector(model: nn.Module, clean: Images, references: Sequence[float] | None, seed: int = 0) -> dict[str, Any]:
    """The magnitude-saliency statistic with its spread, and its verdict where clean models are there to compare with.

    The standard error is the delete-half jackknife's: the spread of the statistic over random halves of the images.

    Args:
        model: the model as it was given.
        clean: the defender's images.
        references: the statistic of clean models of the same kind.
        seed: which images, and which halves.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = clean.subset(torch.randperm(len(clean), generator=generator)[:DETECTOR_IMAGES])
    sets = torch.ones(1, len(chosen), dtype=torch.bool)  # all, then the halves
    for _ in range(HALVES // 2 if len(chosen) >= 4 else 0):
        first = torch.zeros(len(chosen), dtype=torch.bool)
        first[torch.randperm(len(chosen), generator=generator).chunk(2)[0]] = True
        sets = torch.cat([sets, first[None], ~first[None]])
    try:
        magnitude, last = magnitudes(model, fold_bn=True), last_stage(model, chosen)
        saliency = saliencies_of_sets(model, chosen, sets)
        statistic, *halves = [statistic_of(magnitude, part, last) for part in saliency]
    except ValueError as error:
        return {"statistic": None, "reason": str(error)}
    layers = rank_correlations(magnitude, saliency[0])
    found: dict[str, Any] = {"statistic": statistic, "images": len(chosen), "layers": layers, "standard_error": None}
    if halves:
        found["standard_error"] = float((torch.tensor(halves) - statistic).square().mean().sqrt())
    if references is not None:
        found["verdict"] = {**asdict(judge(statistic, references))}
    return found


def read_references(path: Path) -> list[float]:
    """Statistics of clean models: a JSON list of numbers, or a CSV file with a column `statistic`.

    Raises:
        ValueError: for anything else.
    """
    wanted = "a JSON list of numbers, or CSV with a column named statistic"
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            values: Any = [float(row["statistic"]) for row in csv.DictReader(text.splitlines())]
        else:
            values = json.loads(text)
        if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise ValueError
        judge(0.0, values)
    except (OSError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no statistics of clean models; --references takes {wanted}") from None
    return [float(value) for value in values]


def low_start(before: Tensor, num_classes: int) -> str:
    """A warning where the model was wrong on most held-back images before anything was done to it; else ""."""
    first, chance = share(before), 100 / num_classes
    if (first["interval"][0] > chance and first["percent"] >= 50) or bool(before.all()):
        return ""
    doubt = "" if first["percent"] <= chance else "perhaps "
    than = f"{doubt}no better than chance" if first["interval"][0] <= chance else "low"
    return (
        f"Before the repair the model was right on {first['percent']:.1f} % of the held-back images, which is {than}. "
        "If it should be better, the normalisation, the images' size, the strides or the order of the classes is not "
        "the model's own, and then this repair means nothing."
    )


def warnings_of(
    learn: Images, held: Images, before: Tensor, after: Tensor, mask: Mask, names: dict[str, str]
) -> list[str]:
    """What the owner should be warned of, in sentences, the gravest first.

    Args:
        learn, held: the images that the defence had, and those held back.
        before, after: which held-back images were classified rightly.
        mask: what was pruned.
        names: the mask's names of layers to those that the owner knows.
    """
    table, said = compared(before, after), []
    last = table["after"]
    if low := low_start(before, held.num_classes):
        said.append(low)
    if table["points"] <= -5 or (table["points"] < 0 and table["p_value"] < 0.05):
        doubt = "" if table["p_value"] < 0.05 else ", though so few images could show that by chance"
        said.append(
            f"Clean accuracy fell by {-table['points']:.1f} points{doubt}: a larger mu or threshold prunes less."
        )
    labels = held.labels.cpu()
    for label, name in enumerate(held.classes):
        of_class = labels == label
        fall = 100 * float(before[of_class].double().mean() - after[of_class].double().mean()) if of_class.any() else 0
        if of_class.sum() >= CLASS_IMAGES and fall >= CLASS_FELL:
            hits = f"{int(before[of_class].sum())} to {int(after[of_class].sum())} of {int(of_class.sum())}"
            said.append(f"Class {name} fell from {hits} held-back images.")
    if mask.share > MUCH_PRUNED:
        said.append(f"{100 * mask.share:.0f} % of all filters were pruned, which is much; backdoors sit in a few.")
    for layer, count in mask.by_layer().items():
        if count > MUCH_OF_A_LAYER * len(mask.pruned[layer]):
            said.append(f"{count} of the {len(mask.pruned[layer])} filters of {names.get(layer, layer)} were pruned.")
    if len(held) < FEW_HELD_BACK:
        low, high = last["interval"]
        said.append(
            f"Only {len(held)} images were held back, so accuracy is known roughly: the interval is {high - low:.0f} "
            "points wide."
        )
    counts = torch.bincount(learn.labels.cpu(), minlength=learn.num_classes)
    poor = int(((counts > 0) & (counts < FEW_PER_CLASS)).sum())
    if poor:
        said.append(
            f"{poor} of {learn.num_classes} classes gave the defence fewer than {FEW_PER_CLASS} images; its defaults "
            f"were settled with {FEW_PER_CLASS} a class."
        )
    return said
