"""The data of the explorable in `book/explorable`: what pruning at each `mu` does to four networks of CIFAR-10 [ours].

    python -m nbtools.series.explorable

writes `data.js` and `explorable.png` anew. It needs CIFAR-10. On one core the network of the attacker who hides takes a
quarter of an hour, and the rest about three quarters; what is in the cache is not done again. How a page includes the
explorable stands in `book/explorable/explorable.html`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nbtools.attacker.adaptive import Hide
from nbtools.attacker.triggers import stamp
from nbtools.data.images import Images
from nbtools.defender import Suspiciousness
from nbtools.defender.components import Components, Scores
from nbtools.defender.pruning import Mask, pruned_copy
from nbtools.defender.score import POWERS
from nbtools.evaluator.evaluation import predict
from nbtools.lab.cache import cached, source_hash
from nbtools.lab.experiments import Run, start
from nbtools.lab.trained import MEASURING, Trained, precision
from nbtools.networks.units import prunable_units
from nbtools.series.plots import CLEAN, POISONED, style
from nbtools.settings import ROOT

FOLDER = ROOT / "book" / "explorable"
"""Where the page, its script and its data lie."""

STEPS = 10
"""Parts of a standard deviation: scores are told as whole numbers of them, and each `mu` is one."""

MUS = (6, 5, 4.5, 4, 3.5, 3.2, 3, 2.8, 2.6, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1, 0.8, 0.5, 0)
"""The thresholds of the slider, from left to right; before them stands "nothing pruned"."""

SCORES: Mapping[str, Mapping[str, float]] = {"whole": POWERS, **{term: {term: POWERS[term]} for term in POWERS}}
"""By which number the filters are pruned: the whole score, or one of its terms with the sign that it has there."""

DRAWS: Mapping[str, Mapping[str, int]] = {"100": {"samples_per_class": 10}, "10": {"n_total": 10}}
"""How many clean images the defender has: ten of each class, or ten in all."""

SHOWN = 6
"""Triggered images whose answers are shown, each of another class."""

PREFIX = "window.nbtoolsExplorable = "
"""What makes the JSON a script: a page that is opened from disk may not fetch a file."""


def networks(run: Run) -> dict[str, Trained]:
    """The four networks of the explorable by their names in the data.

    The attacker who hides has a tenth of the usual weight: it hides as well (data/lab_notes.md), and trains more
    steadily.
    """
    return {
        "badnets": run.model("badnets", 0.1),
        "blended": run.model("blended", 0.1),
        "hide": run.model("badnets", 0.1, adaptive=Hide(0.1)),
        "clean": run.clean_model(),
    }


def explore(run: Run, models: Mapping[str, Trained], mus: Sequence[float] = MUS) -> dict[str, Any]:
    """All that the page shows, as plain JSON values.

    Args:
        run: from which the defender's clean images are drawn.
        models: a name to a network; all of one architecture.
        mus: multiples of 1 / `STEPS`, each 0 or more.
    """
    units = prunable_units(next(iter(models.values())).model)
    shown = chosen(list(models.values()))
    classes = run.splits.test.classes
    return {
        "steps": STEPS,
        "mus": [None, *mus],  # the first prunes nothing
        "layers": [[unit.conv, unit.filters] for unit in units],
        "classes": list(classes),
        "images": len(next(iter(models.values())).glance.test),
        "truth": shown.labels.tolist(),
        "networks": {name: of_network(run, trained, shown, mus) for name, trained in models.items()},
    }


def chosen(models: Sequence[Trained]) -> Images:
    """Clean test images to show, the first of each class that every network answers as one expects.

    Right without the trigger; with it, the target where the network is backdoored, else right again. No pruned network
    is asked.
    """
    test = models[0].glance.test
    fine = torch.ones_like(test.labels, dtype=torch.bool)
    for trained in models:
        wanted = test.labels if trained.attack == "none" else torch.full_like(test.labels, trained.target)
        fine &= (predict(trained.model, test) == test.labels) & (test.labels != trained.target)
        fine &= predict(trained.model, stamp(trained.trigger, test)) == wanted
    firsts = [(fine & (test.labels == label)).nonzero().flatten()[:1] for label in range(test.num_classes)]
    return test.subset(torch.cat(firsts)[:SHOWN])


def of_network(run: Run, trained: Trained, shown: Images, mus: Sequence[float]) -> dict[str, Any]:
    """One network: the pictures with its trigger, and what each way to prune does at each `mu`."""
    triggered = stamp(trained.trigger, shown)
    measure = measured_once(trained, triggered)
    ways = {}
    for images, draw in DRAWS.items():
        parts = Suspiciousness().components(trained.model, run.draw(**draw))
        for score, powers in SCORES.items():
            defence = Suspiciousness(powers=dict(powers), fine_tune=None)
            ways[f"{score} {images}"] = of_way(defence, parts, measure, mus)
            print(f"{trained.name}, {score}, {images} images: measured", flush=True)
    pictures = [picture(image) for image in triggered.images]
    return {"target": trained.target, "pictures": pictures, "ways": ways}


def measured_once(trained: Trained, triggered: Images) -> Callable[[Mask], tuple[float, float, str]]:
    """A function from a mask to ACC and ASR in percent and the answers to the triggered images, a digit each.

    What was measured of a mask, at a glance, is found in the cache.
    """
    shaped = {
        "weights": trained.card["sha256"],
        "trigger": repr(trained.trigger),
        "target": trained.target,
        "test_images": len(trained.glance.test),
        "code": source_hash(*MEASURING, "defender/pruning.py"),
        **precision(),
    }

    def measure(mask: Mask) -> tuple[float, float, str]:
        model = pruned_copy(trained.model, mask)
        which = hashlib.sha256(torch.cat(list(mask.pruned.values())).cpu().numpy().tobytes()).hexdigest()
        row = cached("masks", {"mask": which, **shaped}, lambda _work: ({}, {"row": trained.glance(model).row()}))
        acc, asr = row.card["row"]["acc"], row.card["row"]["asr"]
        return round(acc, 2), round(asr, 2), "".join(map(str, predict(model, triggered).tolist()))

    return measure


def of_way(
    defence: Suspiciousness,
    parts: Components,
    measure: Callable[[Mask], tuple[float, float, str]],
    mus: Sequence[float],
) -> dict[str, list[Any]]:
    """One way to prune: every filter's score, and ACC, ASR and answers where nothing is pruned and at each `mu`.

    Raises:
        ValueError: where the scores, rounded as they are told, would not give the masks that the defence gives.
    """
    score = in_steps(defence.scores(parts))
    masks = [replace(defence, mu=mu).mask(parts) for mu in (float("inf"), *mus)]
    for mu, mask in zip(mus, masks[1:], strict=True):
        if not torch.equal(torch.cat(list(mask.pruned.values())), score > round(mu * STEPS)):
            raise ValueError(f"at mu {mu} the rounded scores prune other filters than {defence}")
    acc, asr, answers = zip(*map(measure, masks), strict=True)
    return {"score": score.tolist(), "acc": list(acc), "asr": list(asr), "answers": list(answers)}


def in_steps(scores: Scores) -> Tensor:
    """Standard deviations above the layer's mean, in parts of 1 / `STEPS`, rounded up: int64 `[filters of all layers]`.

    Rounded up, so that a filter lies above k parts exactly where its number is greater than k.
    """
    parts = []
    for score in scores.values():
        spread = len(score) > 1 and bool(score.amax() > score.amin())
        z = (score - score.mean()) / score.std() if spread else torch.zeros_like(score)
        parts.append((z * STEPS).ceil().long())
    return torch.cat(parts)


def picture(image: Tensor) -> str:
    """An image, uint8 `[3, h, w]`, as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(data: Mapping[str, Any], path: Path) -> None:
    """Write the data as a script, a line for each way to prune."""
    text = json.dumps(data, separators=(",", ":"))
    text = text.replace('{"score":', '\n{"score":')
    path.write_text(f"{PREFIX}{text};\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """The data of a file that `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8").removeprefix(PREFIX).rstrip().removesuffix(";"))


def still(data: Mapping[str, Any]) -> Figure:
    """What a reader without JavaScript sees: ACC and ASR against `mu`, pruned by the whole score with 100 images."""
    style()
    names = {
        "badnets": "BadNets",
        "blended": "Blended",
        "hide": "BadNets, hiding",
        "clean": "clean twin",
    }
    figure, axes = plt.subplots(1, len(names), figsize=(11, 3), sharey=True)
    places = range(len(data["mus"]))
    for axis, (network, name) in zip(axes, names.items(), strict=True):
        way = data["networks"][network]["ways"]["whole 100"]
        axis.plot(places, way["acc"], "o-", ms=3, color=CLEAN, label="ACC")
        axis.plot(places, way["asr"], "s-", ms=3, color=POISONED, label="ASR")
        ticks = [place for place, mu in enumerate(data["mus"]) if mu in (None, 4, 3, 2, 1, 0)]
        axis.set_xticks(ticks, ["none" if data["mus"][place] is None else f"{data['mus'][place]:g}" for place in ticks])
        axis.set(title=name, xlabel="mu", ylim=(-3, 103))
    axes[0].set_ylabel("percent of images")
    axes[-1].legend(frameon=False, loc="center left")
    return figure


def main() -> None:
    """Measure everything and write the files."""
    run = start("laptop", small=True)
    data = explore(run, networks(run))
    write(data, FOLDER / "data.js")
    still(data).savefig(FOLDER / "explorable.png", dpi=100, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
