"""What was asked for, what was found good, and the JSON card: all that is known about a repair."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbtools.data.folder import Folder
from nbtools.data.images import Images
from nbtools.defend.checkpoint import Checkpoint
from nbtools.defend.findings import compared, warnings_of
from nbtools.defend.fitting import Fitted
from nbtools.defend.report import verdict
from nbtools.defend.start import Start
from nbtools.defender import Defence, Repair
from nbtools.networks.units import prunable_units
from nbtools.settings import hardware, versions


@dataclass(frozen=True)
class Request:
    """What was asked for; see the command's help for what each means."""

    model: Path
    arch: str
    images: Path
    out: Path
    defence: str = "suspiciousness"
    settings: tuple[tuple[str, str], ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    strides: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    key: str | None = None
    held_back: float = 0.2
    references: Path | None = None
    device: str | None = None
    force: bool = False
    anyway: bool = False
    shrink: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """A request that was found good, with all that it needs."""

    request: Request
    outputs: tuple[Path, ...]
    defence: Defence
    checkpoint: Checkpoint
    fitted: Fitted
    folder: Folder
    learn: Images
    held: Images
    references: list[float] | None
    start: Start

    @property
    def notes(self) -> list[str]:
        """How everything was read, in sentences."""
        kept = [name for name in self.checkpoint.beside if name not in self.checkpoint.others]
        copied = [f"Copied as it is from the file: {', '.join(kept)}."] if kept else []
        return list(dict.fromkeys([*self.fitted.notes, *copied, *self.folder.notes]))

    @property
    def doubts(self) -> list[str]:
        """What may be wrong with what was read, in sentences."""
        others = [
            f"The weights under {o} were left as they are: still to be suspected." for o in self.checkpoint.others
        ]
        return list(dict.fromkeys([*self.fitted.warnings, *self.folder.warnings, *others]))

    @property
    def warnings(self) -> list[str]:
        """What is to be warned of before anything is done, the gravest first."""
        return list(dict.fromkeys([*self.start.warnings, *self.doubts]))

    def fed(self) -> list[str]:
        """How the images were fed to which weights, in phrases that name the options."""
        fitted, checkpoint, (height, width) = self.fitted, self.checkpoint, self.held.size
        said = [
            f"the normalisation, mean {fitted.mean} and std {fitted.std} (--mean, --std)",
            f"the images' size, {width}x{height} (--size)",
        ]
        if fitted.strides:
            said.append(f"the strides, {fitted.strides} (--strides)")
        if checkpoint.others:
            taken, left = ".".join(checkpoint.place), ", ".join(checkpoint.others)
            said.append(f"the weights, those under {taken} and not {left} (--key)")
        return said


def make_card(
    job: Job, repair: Repair, changes: Mapping[str, Tensor], data: bytes, after: Tensor, looked: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is known about the repair, as plain JSON values.

    Args:
        job: what was asked for.
        repair: what the defence made of it.
        changes: the file's names of the tensors that differ in the repaired file.
        data: the repaired file.
        after: which held-back images the model in that file classifies as labelled: bool `[held]`.
        looked: what `nbtools.defend.findings.detector` found.
    """
    request, fitted, checkpoint = job.request, job.fitted, job.checkpoint
    units, mask = prunable_units(fitted.model), repair.mask
    classes, before = fitted.num_classes, job.start.before
    own = {unit.conv: fitted.own_name(unit.conv) for unit in units}
    found = warnings_of(job.learn, job.held, before, after, mask, {conv: fitted.short_name(conv) for conv in own})
    if looked.get("layers"):
        looked = {**looked, "layers": {own[layer]: value for layer, value in looked["layers"].items()}}
    card: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": {
            "file": request.model.name,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size,
            "kind": checkpoint.kind,
            "weights_at": ".".join(checkpoint.place),
            "dtypes": list(fitted.dtypes),
        },
        "output": {
            "file": request.out.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "changed_tensors": sorted(changes),
        },
        "model": {
            "arch": fitted.arch,
            "width": fitted.width,
            "num_classes": classes,
            "strides": list(fitted.strides) if fitted.strides else None,
            "mean": list(fitted.mean),
            "std": list(fitted.std),
        },
        "images": {
            "classes": list(job.held.classes),
            "height_width": list(job.held.size),
            "for_the_defence": torch.bincount(job.learn.labels.cpu(), minlength=classes).tolist(),
            "held_back": torch.bincount(job.held.labels.cpu(), minlength=classes).tolist(),
        },
        "defence": {
            "name": request.defence,
            "settings": repair.defence,
            "seconds": round(repair.seconds, 3),
            "peak_bytes": repair.peak_bytes,
            "tuned_steps": repair.tuned_steps,
        },
        "pruned": {
            "count": mask.count,
            "filters": sum(unit.filters for unit in units),
            "layers": {
                own[unit.conv]: {
                    "shown_as": fitted.short_name(unit.conv),
                    "filters": unit.filters,
                    "pruned": mask.pruned[unit.conv].nonzero().flatten().tolist() if unit.conv in mask.pruned else [],
                }
                for unit in units
            },
            "without_batch_norm": [fitted.own_name(name) for name in units.without_bn],
        },
        "start": job.start.record,
        "accuracy": compared(before, after),
        "detector": looked,
        "warnings": list(
            dict.fromkeys([*job.start.warnings, *suspected(repair.history, job.held.classes), *found, *job.doubts])
        ),
        "notes": job.notes,
        "versions": versions(),
        "hardware": hardware(job.held.images.device),
    }
    return {**card, "verdict": verdict(card)}


def suspected(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """What a defence that asks for a suspicious class found, in a sentence; nothing where it found none.

    Args:
        history: see `nbtools.defender.ShiftUnlearning`.
        classes: their names.
    """
    judged = [row for row in history if row.get("stage") == "judge"]
    if not judged or not any(row.get("stage") == "unlearn" for row in history):  # RNP unlearns, but suspects no class
        return []
    (told,) = judged
    where = "the image" if told["place"] == "image" else f"the maps at {told['place']}"
    rough = "under 0.1" if told["chance"] < 1e-3 else f"{100 * told['chance']:.1f}"
    return [
        f"The class {classes[told['suspect']]} stood out: one shift of {where} sends other images to it too easily. "
        f"Were no class easier than others by nature, this would happen by chance in {rough} % of clean models. "
        "Shifts towards it were unlearned."
    ]
