"""`--shrink`: the repaired network without its silent filters, as safetensors and as ONNX, measured and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from nbtools.data.images import Images, to_floats
from nbtools.defend.checkpoint import Checkpoint
from nbtools.defend.fitting import Fitted
from nbtools.defender.removal import Removal, take_out
from nbtools.networks.graph import duplicate
from nbtools.networks.units import prunable_units

ENDINGS = (".small.safetensors", ".small.onnx")
"""Of the two files, in the order in which they are made."""
CHECKED, TOLERANCE = 256, 1e-4
"""Answers to so many held-back images are compared; a logit may differ by so much of the largest, by rounding."""
TIMED, REPEATS = 32, 15
"""Images in a batch that is timed, at most, and how often each network is timed, in turn."""
SIZES = ("in_channels", "out_channels", "groups", "num_features", "in_features", "out_features")
"""Attributes of layers that cutting changes."""


def check_shrink(model: nn.Module, images: Images) -> None:
    """Refuse, before any work, what can't be written as ONNX.

    Args:
        model: in eval mode.
        images: some that it takes.

    Raises:
        ValueError: where a package is missing, or torch.export can't follow the network.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--shrink writes an ONNX file, and for that {' and '.join(missing)} must be installed: pip install "
            "'.[onnx]', or leave --shrink out"
        )
    _exported(model, images)


def shrink(
    repaired: nn.Module, fitted: Fitted, checkpoint: Checkpoint, held: Images
) -> tuple[dict[str, Any], tuple[bytes, bytes]]:
    """The smaller network's record, for the card, and its two files.

    Args:
        repaired: the repaired model as it is saved, in eval mode; it is not changed.
        fitted: the model as it was given, with the file's names.
        checkpoint: the file.
        held: the held-back images.

    Returns:
        The record as plain JSON values, without the files' names; the safetensors file and the ONNX file.

    Raises:
        ValueError: where one of the files would answer otherwise than the repaired model.
    """
    device = held.images.device
    plain = duplicate(repaired).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = held.subset(torch.arange(min(CHECKED, len(held)), device=device)).to(torch.device("cpu"))
    removal = cut(plain, images, lambda name: own_name(fitted, name))
    weights = serialised(removal.model, fitted, checkpoint)
    onnx = as_onnx(removal.model, images)
    reloaded = duplicate(fitted.model).cpu()
    file = safetensors.torch.load(weights)
    fit_to(reloaded, {ours: file[name] for ours, name in fitted.names.items()})
    runs = {"safetensors": lambda batch: reloaded(batch), "ONNX": _runtime(onnx)}
    batch = to_floats(held.images[:TIMED])
    before, after = (duplicate(model).to(device) for model in (plain, removal.model))
    record = {
        "removed": removal.removed,
        "pruned": removal.pruned,
        "left": [vars(part) for part in removal.left],
        "parameters": [sum(p.numel() for p in model.parameters()) for model in (plain, removal.model)],
        "flops": [_flops(model, to_floats(images.images[:1])) for model in (plain, removal.model)],
        "milliseconds": _milliseconds(before, after, batch),
        "batch": len(batch),
        "same_answers": _checked(plain, runs, images),
        "files": [{"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for data in (weights, onnx)],
    }
    return record, (weights, onnx)


def cut(model: nn.Module, images: Images, name_of: Callable[[str], str] = str) -> Removal:
    """The network without its silent filters: those whose batch norm gives 0 whatever comes in."""
    silent = {}
    for unit in prunable_units(model):
        norm = model.get_submodule(unit.bn)
        assert isinstance(norm, nn.BatchNorm2d)
        silent[unit.conv] = (norm.weight == 0) & (norm.bias == 0)
    return take_out(model, silent, to_floats(images.images[:2]), name_of)


def own_name(fitted: Fitted, module: str) -> str:
    """What the owner's file calls a module, as far as it has it."""
    return fitted.short_name(module) if f"{module}.weight" in fitted.shown else module


def serialised(small: nn.Module, fitted: Fitted, checkpoint: Checkpoint) -> bytes:
    """All tensors of the owner's weights, in a safetensors file: same names and types, those of the network smaller.

    Its metadata are the owner's, and "channels": JSON, the inputs, outputs and groups of each layer that was cut.
    """
    state = {name: value for name, value in checkpoint.state.items() if isinstance(value, Tensor)}
    made = small.state_dict()
    for ours, name in fitted.names.items():
        state[name] = made[ours].to(state[name].dtype)
    channels = {}
    for name, module in small.named_modules():
        before = fitted.model.get_submodule(name)
        sizes = {what: getattr(module, what) for what in SIZES if hasattr(module, what)}
        if sizes != {what: getattr(before, what) for what in sizes}:
            channels[fitted.own_name(name)] = sizes
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    return safetensors.torch.save(tensors, {**(checkpoint.metadata or {}), "channels": json.dumps(channels)})


def fit_to(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make a network of full size, in place, the smaller one whose weights these are.

    Args:
        model: built by its own class, as before it was made smaller.
        state: its names to tensors, as in the file that `--shrink` writes; what it does not name stays.
    """
    for name, module in model.named_modules():
        depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels == module.out_channels
        for part in (*module._parameters, *module._buffers):
            value = state.get(f"{name}.{part}" if name else part)
            old = getattr(module, part)
            if value is None or old is None:
                continue
            value = value.to(old, copy=True)
            setattr(module, part, nn.Parameter(value, old.requires_grad) if part in module._parameters else value)
        if isinstance(module, _ConvNd):
            module.out_channels, per_group = module.weight.shape[:2]
            module.groups = module.out_channels if depthwise else module.groups
            module.in_channels = per_group * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _BatchNorm) and module.weight is not None:
            module.num_features = len(module.weight)


def _exported(model: nn.Module, images: Images) -> torch.export.ExportedProgram:
    """The network as torch.export sees it, for batches of any size."""
    example = to_floats(images.images[:1]).expand(2, -1, -1, -1).contiguous()
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever somebody's forward raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--shrink: torch.export can't follow the network ({reason}); leave --shrink out") from error


def as_onnx(model: nn.Module, images: Images) -> bytes:
    """An ONNX file: `images`, float32 `[n, 3, h, w]` in [0, 1] of any n, to `logits`, `[n, classes]`.

    Args:
        model: in eval mode, on the CPU.
        images: some that it takes, on the CPU.
    """
    program = torch.onnx.export(
        _exported(model, images), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _runtime(onnx: bytes) -> Callable[[Tensor], Tensor] | None:
    """The ONNX file as a function, where onnxruntime is there to run it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime  # type: ignore[import-not-found]

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


@torch.no_grad()
def _checked(
    repaired: nn.Module, runs: Mapping[str, Callable[[Tensor], Tensor] | None], images: Images
) -> dict[str, Any]:
    """How many images each file gives the repaired model's answer to, and the largest difference of a logit.

    Raises:
        ValueError: where a logit differs by more than `TOLERANCE` of the largest.
    """
    batches = images.floats().split(50)  # the last is smaller, as a rule: an ONNX file takes any number
    wanted = torch.cat([repaired(batch) for batch in batches])
    record: dict[str, Any] = {"images": len(images)}
    for name, run in runs.items():
        if run is None:
            record[name] = None
            continue
        found = torch.cat([run(batch) for batch in batches])
        gap = float((found - wanted).abs().max() / wanted.abs().max())
        if not gap <= TOLERANCE:
            raise ValueError(
                f"the smaller network's {name} file would answer otherwise than the repaired model: a logit differs by "
                f"{gap:.1g} of the largest"
            )
        record[name] = {"equal": int((found.argmax(1) == wanted.argmax(1)).sum()), "difference": gap}
    return record


def _flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations for one image, of convolutions and matrix products, as PyTorch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


@torch.no_grad()
def _milliseconds(before: nn.Module, after: nn.Module, batch: Tensor) -> list[float]:
    """The median time of each network for a batch, in ms, timed in turn on the batch's device."""
    seconds: list[list[float]] = [[], []]
    for repeat in range(REPEATS + 2):
        for model, taken in zip((before, after), seconds, strict=True):
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)
            started = time.perf_counter()
            model(batch)
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)
            if repeat >= 2:  # the first calls also choose algorithms
                taken.append(time.perf_counter() - started)
    return [round(1000 * median(taken), 3) for taken in seconds]
