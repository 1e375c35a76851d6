"""What `--arch` may name: the kinds whose files are known, and any network of torchvision, timm or the owner's code."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nbtools.defend.kinds import HEAD_NAMES, KINDS, RESNET_NAMES, Kind, Shapes, elsewhere
from nbtools.defend.names import is_statistic
from nbtools.networks.cifar import CifarResNet, WideResNet

FORMS = "torchvision/NAME, timm/NAME, PACKAGE.MODULE:FUNCTION"
PROBES = (7, 11)
"""Two numbers of classes; the tensors that differ between the two networks are the classifier's."""


@dataclass(frozen=True)
class _Builder:
    """A function that gives a network.

    Args:
        call: the function.
        options: what it is always given.
        named: the names of its arguments, of which `num_classes` and `aux_logits` are used.
    """

    call: Callable[..., Any]
    options: dict[str, Any]
    named: frozenset[str]

    def __call__(self, classes: int, aux: bool = False) -> nn.Module:
        """A network on the CPU, in memory of its own: what no file holds (an index, say) must have its values."""
        given = {"num_classes": classes, "aux_logits": aux}
        options = self.options | {name: value for name, value in given.items() if name in self.named}
        with torch.random.fork_rng([]), torch.device("cpu"):
            model = self.call(**options)
        if not isinstance(model, nn.Module):
            raise ValueError(f"it gives a {type(model).__name__}, and not a torch.nn.Module")
        return model


def kind_of(arch: str) -> Kind:
    """How a model of an architecture is built.

    Args:
        arch: a name in `KINDS` or of `OWN`, or one of `FORMS`; the function is called with `num_classes`, where it has
            such an argument.

    Raises:
        ValueError: for what does not exist, can't be imported or does not give a network.
    """
    if (found := KINDS.get(arch) or OWN.get(arch)) is not None:
        return found
    library, _, name = arch.partition("/")
    if library in ("torchvision", "timm") and name:
        return _built(arch)
    module, _, function = arch.partition(":")
    if module and function and "/" not in arch:
        return _built(arch)
    raise ValueError(f"unknown architecture {arch!r}; known: {', '.join([*KINDS, *OWN])}, {FORMS}")


def check_arch(arch: str, strides: Sequence[int] | None) -> None:
    """Refuse an unknown architecture, or strides for one that has its own.

    Raises:
        ValueError: with the list of what exists.
    """
    if strides is not None and not kind_of(arch).strided:
        raise ValueError(f"--strides is for {', '.join(n for n, k in KINDS.items() if k.strided)}; {arch} has its own")
    kind_of(arch)


@functools.cache
def _built(arch: str) -> Kind:
    """A kind whose classifier, stem and own normalisation are found by building it twice."""
    try:
        builder = _builder(arch)
        one, two = (builder(classes, aux=True) for classes in PROBES)
    except ImportError as error:
        raise ValueError(f"--arch {arch}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever somebody's function raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--arch {arch}: no network was built: {reason}") from error
    shapes = {name: tuple(value.shape) for name, value in one.state_dict().items()}
    other = {name: tuple(value.shape) for name, value in two.state_dict().items()}
    heads = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight") and _rows(shapes, other, name)]
    linear = [name for name, module in one.named_modules() if isinstance(module, nn.Linear)]
    convs = [name for name, module in one.named_modules() if isinstance(module, nn.Conv2d)]
    if not convs or not (heads or linear):
        raise ValueError(f"--arch {arch}: its network has no {'classifier' if convs else 'convolution'}")

    def build(given: Shapes, _strides: Sequence[int], classes: int) -> nn.Module:
        return builder(classes, aux=any("aux" in name.lower() for name in given))

    values = [*one.named_buffers(), *one.named_parameters()]
    own = [name for name, value in values if is_statistic(name, value)]
    parts = {name.partition(".")[0] for name in shapes}
    return elsewhere(build, convs[0], heads[::-1] or linear[::-1], own_statistics=own, parts=parts)


def _rows(one: Shapes, other: Shapes, name: str) -> bool:
    """Whether a tensor has a row a class."""
    return (one[name][:1], other.get(name, ())[:1]) == ((PROBES[0],), (PROBES[1],))


def _builder(arch: str) -> _Builder:
    library, _, name = arch.partition("/")
    if library == "torchvision" and name:
        from torchvision import models

        _check_name(library, name, models.list_models(module=models))
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        named = {"num_classes"} | ({"aux_logits"} if quick else set())
        return _Builder(models.get_model_builder(name), {"weights": None, **quick}, frozenset(named))
    if library == "timm" and name:
        try:
            import timm  # type: ignore[import-not-found]
        except ImportError:
            raise ImportError("this needs timm, which is not installed; `pip install timm` gets it") from None
        _check_name(library, name.partition(".")[0], timm.list_models())
        return _Builder(functools.partial(timm.create_model, name), {"pretrained": False}, frozenset({"num_classes"}))
    module, _, function = arch.partition(":")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ImportError(f"{module} has no function or class {function}")
    parameters = inspect.signature(found).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return _Builder(found, {}, frozenset({"num_classes"} if anything else parameters))


def _check_name(library: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        advice = f"; near it are {', '.join(near)}" if near else ""
        raise ImportError(f"{library} has no network for classes of images named {name}{advice}")


def _cifar_resnet(depth: int) -> Kind:
    def build(shapes: Shapes, _strides: Sequence[int], classes: int) -> nn.Module:
        projected = any(".downsample." in name for name in shapes)
        return CifarResNet(classes, depth, shapes["conv1.weight"][0], projected)

    return Kind(build, "conv1", ("fc",), RESNET_NAMES)


def _wide(shapes: Shapes, _strides: Sequence[int], classes: int) -> nn.Module:
    firsts = [shapes.get(f"block{group}.layer.0.conv1.weight", (16,))[0] for group in (1, 2, 3)]
    blocks = sum(name.startswith("block1.layer.") and name.endswith(".conv1.weight") for name in shapes)
    return WideResNet(classes, max(blocks, 1), (shapes["conv1.weight"][0], firsts[0], firsts[1], firsts[2]))


OWN: dict[str, Kind] = {f"resnet{depth}": _cifar_resnet(depth) for depth in (20, 32, 44, 56, 110)}
OWN["wideresnet"] = Kind(_wide, "conv1", ("fc",), (HEAD_NAMES,))
"""Networks for 32 x 32 pixels whose depth the name says, or (wideresnet) the file."""
