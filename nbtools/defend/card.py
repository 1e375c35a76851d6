"""What was asked for, what was found good, and the JSON card: all that is known about a repair."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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


@dataclass(frozen=True, eq=False)
class Job:
    """A request that was found good, with all that it needs."""

    request: Request
    outputs: tuple[Path, Path, Path]
    defence: Defence
    checkpoint: Checkpoint
    fitted: Fitted
    folder: Folder
    learn: Images
    held: Images
    references: list[float] | None


def make_card(
    job: Job, repair: Repair, changes: Mapping[str, Tensor], data: bytes, before: Tensor, after: Tensor, looked: Any
) -> dict[str, Any]:
    """All that is known about the repair, as plain JSON values."""
    request, fitted, checkpoint = job.request, job.fitted, job.checkpoint
    units, mask = prunable_units(fitted.model), repair.mask
    classes = fitted.num_classes
    others = [f"The weights under {o} were left as they are: still to be suspected." for o in checkpoint.others]
    kept = [name for name in checkpoint.beside if name not in checkpoint.others]
    copied = [f"Copied as it is from the file: {', '.join(kept)}."] if kept else []
    own = {unit.conv: fitted.own_name(unit.conv) for unit in units}
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
        "accuracy": compared(before, after),
        "detector": looked,
        "warnings": [
            *warnings_of(job.learn, job.held, before, after, mask, {k: fitted.short_name(k) for k in own}),
            *fitted.warnings,
            *job.folder.warnings,
            *others,
        ],
        "notes": [*fitted.notes, *copied, *job.folder.notes],
        "versions": versions(),
        "hardware": hardware(job.held.images.device),
    }
    return {**card, "verdict": verdict(card)}
