"""Trained models that come with the checkout, in half precision, so that a laptop need not train them for hours.

data/models/<name>.safetensors   the weights as float16; counters as they are
data/models/<name>.json          the configuration that shaped them, their training's history, a checksum
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nbtools.settings import ROOT

FOLDER = ROOT / "data" / "models"
KEPT = ("history", "seconds", "hardware", "bf16", "torch")
"""What a model's card tells of its training."""


def find(config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The weights (float32) and the card of a shipped model that was made by exactly this configuration, or None.

    One whose file is missing or damaged is passed over with a warning.
    """
    wanted = json.loads(json.dumps(config))
    for path in sorted(FOLDER.glob("*.json")):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            if card["config"] != wanted:
                continue
            data = path.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError("its checksum is another")
            halves = load(data)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"the shipped model {path.stem} can't be used ({error}); it is trained anew", stacklevel=2)
            continue
        tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in halves.items()}
        return tensors, {**{name: card[name] for name in KEPT}, "shipped": path.stem}
    return None


def write(name: str, tensors: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Ship a model: its weights in half precision and its card, the card last, neither ever half-written.

    Args:
        name: of the two files, without a suffix.
        tensors: a state dict.
        card: of the cache, see `nbtools.lab.trained.Trained`: it holds the configuration.
        folder: where to.

    Returns:
        The card's path.

    Raises:
        ValueError: where half precision can't hold a value.
    """
    halves = {n: v.half().contiguous() if v.is_floating_point() else v.contiguous() for n, v in tensors.items()}
    if broken := [n for n, v in halves.items() if not bool(torch.isfinite(v).all())]:
        raise ValueError(f"half precision can't hold {', '.join(broken[:3])}")
    data = save(halves)
    facts = {"config": card["config"], "sha256": hashlib.sha256(data).hexdigest()}
    facts |= {kept: card[kept] for kept in KEPT}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    for target, content in ((path.with_suffix(".safetensors"), data), (path, json.dumps(facts, indent=1).encode())):
        partial = target.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(target)
    return path
