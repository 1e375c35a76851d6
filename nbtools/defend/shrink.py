"""`--shrink`: the repaired network without its silent filters, as safetensors and as ONNX, measured and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nbtools.data.images import Images, to_floats
from nbtools.defend.checkpoint import Checkpoint
from nbtools.defend.cost import TIMED, flops, timed
from nbtools.defend.fitting import Fitted
from nbtools.defend.names import LEFTOVER, first, unwrapped
from nbtools.defender.removal import Removal, take_out
from nbtools.networks.graph import duplicate
from nbtools.networks.units import prunable_units

ENDINGS = (".small.safetensors", ".small.onnx")
"""Of the two files, in the order in which they are made."""
CHECKED, TOLERANCE = 256, 1e-4
"""Answers to so many held-back images are compared; a logit may differ by so much of the largest, by rounding."""
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
    fit_to(reloaded, {**reloaded.state_dict(), **{ours: file[name] for ours, name in fitted.names.items()}})
    runs = {"safetensors": lambda batch: reloaded(batch), "ONNX": _runtime(onnx)}
    batch = to_floats(held.images[:TIMED])
    before, after = (duplicate(model).to(device) for model in (plain, removal.model))
    record = {
        "removed": removal.removed,
        "pruned": removal.pruned,
        "left": [vars(part) for part in removal.left],
        "parameters": [sum(p.numel() for p in model.parameters()) for model in (plain, removal.model)],
        "flops": [flops(model, to_floats(images.images[:1])) for model in (plain, removal.model)],
        **timed(before, after, batch),
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
    items = checkpoint.state.items()
    state = {name: value for name, value in items if isinstance(value, Tensor) and isinstance(name, str)}
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

    Names are compared without what wrappers put in them (`module.`, `_orig_mod.`) and without a prefix that all names
    of the file share.

    Args:
        model: built by its own class, as before it was made smaller; it may be wrapped.
        state: names to tensors, as in the file that `--shrink` writes.

    Raises:
        ValueError: where a tensor of the file is none of the network's, or one of the network's is not in the file or
            is smaller than it; the network is then as it was. Counters (`num_batches_tracked`) may be missing.
    """
    values = _values(model, state)
    for name, module in model.named_modules():
        depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels == module.out_channels
        for part in (*module._parameters, *module._buffers):
            value = values.get(f"{name}.{part}" if name else part)
            if value is None:
                continue
            old = getattr(module, part)
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
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.GroupNorm) and module.weight is not None:
            module.num_channels = len(module.weight)


def _values(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's names to the file's tensors; raises what `fit_to` does."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    given = {name: value for name, value in state.items() if not LEFTOVER.fullmatch(name) or name in own}
    plain = {unwrapped(name): name for name in own}
    file = {unwrapped(name): name for name in given}
    if len(file) < len(given):
        raise ValueError("two tensors have the same name without wrappers; give the tensors of one network alone")
    ends = [name.removesuffix(f".{ours}") for ours in plain for name in file if name.endswith(f".{ours}")]
    shared = next((f"{start}." for start in dict.fromkeys(ends) if all(n.startswith(f"{start}.") for n in file)), "")
    if shared and not plain.keys() & file.keys():
        file = {name.removeprefix(shared): theirs for name, theirs in file.items()}
    more = [theirs for name, theirs in file.items() if name not in plain]
    less = [ours for name, ours in plain.items() if name not in file and not name.endswith("num_batches_tracked")]
    if more or less:
        parts = [f"{len(more)} are none of the network's ({first(more)})"] if more else []
        parts += [f"{len(less)} of the network's are not in the file ({first(less)})"] if less else []
        raise ValueError(
            f"the file's {len(given)} tensors are not those of this network: {' and '.join(parts)}. Give the weights "
            "that --shrink wrote for it, and a network of the class that was given to it"
        )
    values = {plain[name]: given[theirs] for name, theirs in file.items()}
    for name, value in values.items():
        full, now = own[name].shape, value.shape
        if len(full) != len(now) or full[2:] != now[2:] or any(a < b for a, b in zip(full, now, strict=True)):
            raise ValueError(
                f"{name} is {list(now)} in the file and {list(full)} in the network, and cutting makes it smaller in "
                "channels alone. Build the network at the full size that it had before --shrink"
            )
    return values


def _exported(model: nn.Module, images: Images) -> torch.export.ExportedProgram:
    """The network as torch.export sees it, for batches of any size."""
    example = to_floats(images.images[:1]).expand(2, -1, -1, -1).contiguous()
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever somebody's forward raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--shrink: torch.export can't follow the network ({reason}); leave --shrink out") from error


def as_onnx(model: nn.Module, images: Images) -> bytes:
    """An ONNX file: `images`, float32 `[batch, 3, h, w]` in [0, 1], to `logits`, `[batch, classes]`.

    Args:
        model: in eval mode, on the CPU.
        images: some that it takes, on the CPU.
    """
    program = torch.onnx.export(
        _exported(model, images),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),  # else the exporter makes up a name
        verbose=False,
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
