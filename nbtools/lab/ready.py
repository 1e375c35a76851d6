"""Trained models that lie ready as files, so that nobody trains them again: found by what shaped them [ours].

A file is one safetensors. In its metadata, `card` is JSON: `config` (all that shaped the model), `history`, `seconds`,
`hardware`, `bf16` and `torch` of its training, and `sha256` of its tensors where the file was written by `write`.
A tensor NAME may lie as it is, in half precision, or as `NAME#int8` (same shape) with `NAME#scale` (float32, one number
for each index of the first axis): then it is int8 * scale.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from nbtools.settings import ROOT

SHIPPED = ROOT / "data" / "models"
"""The folder of those that come with the checkout."""

KEPT = ("history", "seconds", "hardware", "bf16", "torch")
"""What a model's card tells of its training."""

_INT8, _SCALE = "#int8", "#scale"


def folders() -> list[Path]:
    """Where models are looked for, in order: `NBTOOLS_MODELS` where it is set, then `SHIPPED`.

    Raises:
        NotADirectoryError: where `NBTOOLS_MODELS` names no folder.
    """
    given = [Path(chosen).expanduser()] if (chosen := os.environ.get("NBTOOLS_MODELS")) else []
    for folder in given:
        if not folder.is_dir():
            raise NotADirectoryError(f"NBTOOLS_MODELS is {folder}, and there is no such folder")
    return [*given, SHIPPED]


def find(config: Mapping[str, Any], like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The weights (float32) and the card of a model that was made by exactly this configuration, or None.

    A file that can't be used is named in a warning and passed over.

    Args:
        config: what shaped the model, see `nbtools.lab.trained.model_config`.
        like: the state dict of such a model; a file must hold the same names and shapes.

    Raises:
        NotADirectoryError: see `folders`.
    """
    wanted = json.loads(json.dumps(config))
    for path in [path for folder in folders() for path in sorted(folder.glob("*.safetensors"))]:
        try:
            card = _card(path)
            if card["config"] != wanted:
                continue
            tensors = read(path, like)
        except (OSError, ValueError) as error:
            warnings.warn(f"the model {path} can't be used: {error}", stacklevel=2)
            continue
        return tensors, {**{name: card[name] for name in KEPT}, "file": path.name}
    return None


def read(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, floats as float32.

    Raises:
        ValueError: where the file is damaged, not of this format, or not like `like`; it says how.
        OSError: where it can't be read.
    """
    stored, card = _stored(path), _card(path)
    if "sha256" in card and card["sha256"] != digest(stored):
        raise ValueError("its checksum is another: the file is damaged")
    tensors: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(_INT8):
            name = name.removesuffix(_INT8)
            scale = stored.get(name + _SCALE)
            if scale is None or scale.shape != value.shape[:1]:
                raise ValueError(f"{name} has no scale for each index of its first axis")
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        if not name.endswith(_SCALE):
            tensors[name] = value.float() if value.is_floating_point() else value
    if odd := sorted(like.keys() ^ tensors.keys()):
        raise ValueError(f"its tensors are not those of the network that its card names ({', '.join(odd[:3])})")
    for name, value in tensors.items():
        if value.shape != like[name].shape or value.is_floating_point() != like[name].is_floating_point():
            raise ValueError(f"{name} is {_told(value)}, the network that its card names has {_told(like[name])}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite")
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a model that `find` finds, a quarter as large as its weights are in memory; never half-written.

    Floats of two or more dimensions are rounded to 255 levels for each index of their first axis.

    Args:
        path: ends in ".safetensors"; its folder is made.
        tensors: a state dict.
        card: of the cache, see `nbtools.lab.trained.Trained`: it holds the configuration.

    Raises:
        ValueError: where a value is not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite")
        if value.is_floating_point() and value.ndim > 1:
            scale = (value.abs().flatten(1).amax(1).float() / 127).clamp_min(torch.finfo(torch.float32).tiny)
            stored[name + _INT8] = (value / scale.view(-1, *[1] * (value.ndim - 1))).round().to(torch.int8).contiguous()
            stored[name + _SCALE] = scale
        else:
            stored[name] = value.contiguous()
    save(path, stored, {"config": card["config"], **{name: card[name] for name in KEPT}})


def save(path: Path, stored: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors as they are to lie in the file, and the card with their checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        # not safetensors' save_file, whose files nobody but their owner can read
        partial.write_bytes(as_bytes(dict(stored), {"card": json.dumps({**card, "sha256": digest(stored)})}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def digest(stored: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names and values, in the order of the names."""
    total = hashlib.sha256()
    for name, value in sorted(stored.items()):
        total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _card(path: Path) -> dict[str, Any]:
    """The card in a file's metadata, which is a few kilobytes at its front."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            complete = isinstance(card["config"], dict) and all(name in card for name in KEPT)
    except SafetensorError as error:
        raise ValueError(f"it is damaged, or no safetensors ({error})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("it has no card of this series") from error
    if not complete:
        raise ValueError(f"its card lacks one of config, {', '.join(KEPT)}")
    return card


def _stored(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _told(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
