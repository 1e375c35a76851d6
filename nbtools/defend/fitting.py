"""A state dict's names and shapes fitted to an architecture: other names, other widths, other precisions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.defend.architecture import OWN, check_arch, kind_of
from nbtools.defend.kinds import KINDS, WITHIN, Shapes
from nbtools.defend.names import SeveralNetworks, find, first
from nbtools.networks.architectures import MEAN, STD, Normalise
from nbtools.settings import STRIDES

EARLY = re.compile(r"^layer1\.0\.(?:shortcut|downsample)\.")
IN_PARTS = re.compile(r"(?:.*\.)?(?:parametrizations\..*|weight_(?:orig|mask|g|v))")
"""A tensor of which, with others, a weight is made each time that the network runs."""
EARLY_STRIDES = (1, 2, 2, 2, 2)
"""No shape tells strides, but the first stage has a convolution on its shortcut only where it halves the image."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model with the file's weights, and how they were read.

    Args:
        model: float32, in eval mode, takes images in [0, 1].
        names: the model's name of a tensor to the file's.
        shown: the same without wrappers and prefix: the name that was matched with the architecture's.
        arch: the architecture's name.
        width: channels of the first convolution.
        num_classes: the classifier's outputs.
        strides: of stem and stages, None where the architecture fixes them.
        mean, std: the normalisation in the model.
        dtypes: of the weights in the file.
        notes: how the file was read, in sentences.
        warnings: what in it may be wrong, in sentences.
    """

    model: nn.Module
    names: dict[str, str]
    shown: dict[str, str]
    arch: str
    width: int
    num_classes: int
    strides: tuple[int, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtypes: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def own_name(self, module: str) -> str:
        """What the file calls one of the model's modules."""
        return self.names[f"{module}.weight"].removesuffix(".weight")

    def short_name(self, module: str) -> str:
        """The same without what wrappers and the owner put before it."""
        return self.shown[f"{module}.weight"].removesuffix(".weight")


def fit(
    state: Mapping[str, Any],
    arch: str,
    strides: Sequence[int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    key: str = "",
) -> Fitted:
    """The model that the file's names and shapes describe, with the file's weights.

    Args:
        state: the file's names to tensors; what is no tensor is left aside.
        arch: as in `nbtools.defend.architecture.kind_of`.
        strides: of the stem and the four stages; None is (1, 1, 2, 2, 2), or what `EARLY_STRIDES` says.
        mean, std: of the normalisation; None takes the network's or the file's own, or CIFAR-10's.
        key: what stands before the names of the network that is meant, where there are several: "teacher".

    Raises:
        ValueError: where the file doesn't fit; it names the first keys that don't, and an architecture that does fit.
    """
    check_arch(arch, strides)
    kind = kind_of(arch)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and isinstance(name, str)}
    try:
        network = find(tensors, kind, partial(_match, arch=arch, strides=strides), key)
    except SeveralNetworks:
        raise
    except ValueError as error:
        if parts := [name for name in tensors if IN_PARTS.fullmatch(name)]:
            raise ValueError(
                f"The file holds weights in parts ({first(parts)}), as masks and weight norms leave them. Make each "
                "one tensor before you save it, with torch.nn.utils.prune.remove, remove_weight_norm, "
                "remove_spectral_norm or parametrize.remove_parametrizations"
            ) from None
        fitting = [other for other in (*KINDS, *OWN) if other != arch and _matches(tensors, other, key)]
        advice = f". It fits --arch {' or '.join(fitting)}" if fitting else ""
        raise ValueError(f"{error}{advice}") from None
    model, shown, taken = network.matched
    names = {ours: network.keys[theirs] for ours, theirs in shown.items()}
    dtypes = _dtypes({ours: state[key] for ours, key in names.items()}, names)
    normalise, source, doubt = _normalisation(network.statistics, mean, std, bool(kind.own_statistics))
    notes = [*network.notes, source]
    if strides is None and taken == EARLY_STRIDES:
        notes.append(f"The first stage has a shortcut of its own, so the strides were taken to be {EARLY_STRIDES}.")
    elif strides is None and kind.strided:
        notes.append(f"No shape tells the strides; they were taken to be {STRIDES}.")
    if dtypes != ("float32",):
        notes.append(f"The weights are {' and '.join(dtypes)}: computed with in float32, written back as they came.")
    _load(model, {ours: state[key] for ours, key in names.items()}, normalise)
    stem = state[names[f"{kind.stem}.weight"]]
    if arch.startswith("torchvision/resnet") and stem.shape[2] == 3:
        notes.append("The 3x3 stem was taken to have stride 1 and no max-pooling behind it.")
    return Fitted(
        model=model,
        names=names,
        shown=shown,
        arch=arch,
        width=len(stem),
        num_classes=_classes({ours: tuple(state[key].shape) for ours, key in names.items()}, arch),
        strides=taken if kind.strided else None,
        mean=tuple(round(float(value), 6) for value in normalise.mean.flatten()),
        std=tuple(round(float(value), 6) for value in normalise.std.flatten()),
        dtypes=dtypes,
        notes=tuple(note for note in notes if note),
        warnings=(*network.doubts, *([doubt] if doubt else [])),
    )


def _classes(shapes: Shapes, arch: str) -> int:
    """Rows of the classifier."""
    kind = kind_of(arch)
    weights = [shapes[f"{head}.weight"] for head in kind.heads if f"{head}.weight" in shapes]
    if not weights:
        heads = " or ".join(head.removeprefix(WITHIN) for head in kind.heads)
        raise ValueError(
            f"The file does not fit {arch}: it has no classifier ({heads}), which tells the "
            f"number of classes; its names begin {first(list(shapes))} and end {', '.join(list(shapes)[-2:])}"
        )
    return weights[0][0]


def _match(
    plain: Shapes, arch: str, strides: Sequence[int] | None
) -> tuple[nn.Module, dict[str, str], tuple[int, ...]]:
    """An empty model that the shapes fit, its names to the plain names, and its strides.

    Raises:
        ValueError: where they don't.
    """
    kind = kind_of(arch)
    early = strides is None and kind.strided and any(EARLY.search(name) for name in plain)
    taken = tuple(strides or (EARLY_STRIDES if early else STRIDES))
    renamed: dict[str, str] = {}
    for name in plain:
        ours = kind.our_name(name)
        if ours in renamed:
            raise ValueError(f"The file does not fit {arch}: {renamed[ours]} and {name} would both be {ours}")
        renamed[ours] = name
    shapes = {ours: plain[name] for ours, name in renamed.items()}
    stem = shapes.get(f"{kind.stem}.weight", ())
    if len(stem) != 4:
        missed = f"{kind.stem.removeprefix(WITHIN)}.weight"
        raise ValueError(f"The file does not fit {arch}: it has no {missed}; its names: {first(list(plain))}")
    if stem[1] % 3:  # some stems take the pixels of a square as channels
        raise ValueError(f"The model takes images of {stem[1]} channels, and only models of colour images are repaired")
    classes = _classes(shapes, arch)
    with torch.device("meta"):  # shapes alone: no memory, no drawing of weights
        model = kind.build(shapes, taken, classes)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith("normalise.")}
    missing = [name for name in wanted if name not in shapes and not name.endswith("num_batches_tracked")]
    missing = [name.removeprefix(WITHIN) for name in missing]
    unexpected = [renamed[name] for name in shapes if name not in wanted]
    wrong = [f"{renamed[n]} {list(shapes[n])}, not {list(s)}" for n, s in wanted.items() if shapes.get(n, s) != s]
    parts = [
        f"{len(names)} {what} ({first(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"))
        if names
    ]
    if parts:
        large = kind.strided and stem[2] == 7
        why = ". A 7x7 stem is ImageNet's; this architecture has the 3x3 stem of small images" if large else ""
        raise ValueError(f"The file does not fit {arch}: {'; '.join(parts)}{why}")
    return model, {name: renamed[name] for name in wanted if name in renamed}, taken


def _matches(tensors: Mapping[str, Tensor], arch: str, key: str) -> bool:
    with suppress(ValueError):
        find(tensors, kind_of(arch), partial(_match, arch=arch, strides=None), key)
        return True
    return False


def _dtypes(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[str, ...]:
    """Types of the weights; integers among them are refused."""
    weights = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    for name, value in weights.items():
        if not value.is_floating_point() or value.layout != torch.strided:
            raise ValueError(
                f"{names[name]} holds {value.dtype}, {value.layout}: a quantised or sparse model; give the model "
                "before it was made so"
            )
    return tuple(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}))


def _normalisation(
    own: Mapping[str, Tensor], mean: tuple[float, ...] | None, std: tuple[float, ...] | None, inside: bool
) -> tuple[Normalise, str, str]:
    """The layer, where its numbers are from, and what may be wrong with them; "" where one of them is nothing."""
    theirs = None
    if own.keys() == {"mean", "std"}:
        theirs = tuple(tuple(float(value) for value in own[name].flatten()) for name in ("mean", "std"))
    if mean is not None and std is not None:
        differ = theirs is not None and not torch.allclose(torch.tensor([mean, std]), torch.tensor(theirs), atol=1e-3)
        doubt = (
            f"The file has a normalisation of its own, {theirs}; --mean and --std were used instead." if differ else ""
        )
        if inside:
            doubt = "The network normalises its images itself, and --mean and --std were used before that."
        return Normalise(mean, std), "The normalisation is that of --mean and --std.", doubt
    if inside:
        return Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "The network normalises its images itself.", ""
    if theirs is not None and not min(theirs[1]) > 0:
        raise ValueError(f"The file's own normalisation divides by {theirs[1]}; give --mean and --std")
    if theirs is not None and max(theirs[0]) > 1:
        mean, std = (tuple(value / 255 for value in values) for values in theirs)
        return Normalise(mean, std), "The normalisation is the file's own, which is of pixels from 0 to 255.", ""
    if theirs is not None:
        return Normalise(*theirs), "The normalisation is the file's own.", ""
    doubt = "Neither --mean and --std nor the file gave a normalisation, so CIFAR-10's was used."
    return Normalise(MEAN, STD), "", doubt


def _load(model: nn.Module, tensors: Mapping[str, Tensor], normalise: Normalise) -> None:
    """Give an empty model its weights, in float32 and in memory of its own."""
    weights = {
        name: value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for name, value in tensors.items()
    }
    model.normalise = normalise
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    for name in model.state_dict():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, torch.zeros((), dtype=torch.int64))
    own = {f"normalise.{name}": value for name, value in normalise.state_dict().items()}
    model.load_state_dict({**weights, **own}, assign=True)
    for one, *others in tied.values():  # what was one weight with several names has become several
        for other in others:
            if not torch.equal(model.get_parameter(one), model.get_parameter(other)):
                names = " and ".join(name.removeprefix(WITHIN) for name in (one, other))
                raise ValueError(f"{names} are one weight in this architecture, and the file holds two that differ")
            module, _, part = other.rpartition(".")
            setattr(model.get_submodule(module), part, model.get_parameter(one))
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
