"""The architectures that a checkpoint may have: built from the shapes in the file, normalisation inside.

torchvision is imported where one of its networks is built; see `nbtools.networks.architectures`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.networks.architectures import Normalising, PreActResNet18, ResNet18

Shapes = Mapping[str, Sequence[int]]
WITHIN = "network."
"""What `Normalising` puts before the names of the network that it holds."""


class _PreActPlainEnd(PreActResNet18):
    """A pre-activation ResNet-18 whose sum goes to the pooling as it is: no last batch norm, no last ReLU."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.bn

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(self.normalise(images))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@dataclass(frozen=True)
class Kind:
    """One architecture.

    Args:
        build: from the shapes in the file and the strides; the number of classes is the head's rows.
        stem: the first convolution's name.
        heads: names that the classifier may have.
        renames: patterns of names that others use, and ours.
        strided: whether the strides, which no shape tells, can be given.
        own_statistics: names of the mean and std by which the network normalises its images itself.
        parts: what the names of its own layers begin with, where these may look like a loss's or a measure's.
    """

    build: Callable[[Shapes, Sequence[int], int], nn.Module]
    stem: str
    heads: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    strided: bool = False
    own_statistics: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()

    def our_name(self, name: str) -> str:
        """What a tensor that others call so is called here."""
        for pattern, instead in self.renames:
            name = re.sub(pattern, instead, name)
        return name


def _preact(shapes: Shapes, strides: Sequence[int], classes: int) -> nn.Module:
    kind = PreActResNet18 if "bn.weight" in shapes else _PreActPlainEnd
    return kind(classes, shapes["conv1.weight"][0], strides)


def elsewhere(
    build: Callable[[Shapes, Sequence[int], int], nn.Module],
    stem: str,
    heads: Sequence[str],
    renames: tuple[tuple[str, str], ...] = (),
    own_statistics: Sequence[str] = (),
    parts: Set[str] = frozenset(),
) -> Kind:
    """A kind from one whose network takes images that are normalised already: `Normalising` holds it, under `WITHIN`.

    Args:
        build, stem, heads, renames, own_statistics, parts: as in `Kind`, of the network alone.
    """

    def held(shapes: Shapes, strides: Sequence[int], classes: int) -> nn.Module:
        return Normalising(
            build({name.removeprefix(WITHIN): shape for name, shape in shapes.items()}, strides, classes)
        )

    return Kind(
        held,
        WITHIN + stem,
        tuple(WITHIN + head for head in heads),
        (*renames, (r"^", WITHIN)),
        own_statistics=tuple(WITHIN + name for name in own_statistics),
        parts=frozenset(parts),
    )


def _torchvision_resnet(name: str) -> Kind:
    def build(shapes: Shapes, _strides: Sequence[int], classes: int) -> nn.Module:
        model = _torchvisions(name, classes)
        if shapes["conv1.weight"][2] == 3:
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore
        return model

    return elsewhere(build, "conv1", ("fc",), RESNET_NAMES)


def _torchvisions(name: str, classes: int, **options: Any) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=classes, **options)


def _vgg(shapes: Shapes, _strides: Sequence[int], classes: int) -> nn.Module:
    model = _torchvisions("vgg16_bn", classes, init_weights=False)
    if "classifier.weight" in shapes:  # the form for small images
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, classes)  # type: ignore
    return model


HEAD_NAMES = (r"^(linear|classifier|head)\.(?=weight|bias)", "fc.")
RESNET_NAMES = ((r"\.shortcut\.", ".downsample."), HEAD_NAMES)
KINDS: dict[str, Kind] = {
    "resnet18": Kind(
        lambda s, strides, n: ResNet18(n, s["conv1.weight"][0], strides), "conv1", ("fc",), RESNET_NAMES, True
    ),
    "preact_resnet18": Kind(
        _preact, "conv1", ("fc",), ((r"\.(shortcut|downsample)\.(0\.)?", ".shortcut."), HEAD_NAMES), True
    ),
    "torchvision/resnet18": _torchvision_resnet("resnet18"),
    "torchvision/resnet34": _torchvision_resnet("resnet34"),
    "torchvision/resnet50": _torchvision_resnet("resnet50"),
    "torchvision/vgg16_bn": elsewhere(_vgg, "features.0", ("classifier.6", "classifier")),
    "torchvision/mobilenet_v2": elsewhere(
        lambda s, _, n: _torchvisions("mobilenet_v2", n), "features.0.0", ("classifier.1",)
    ),
    "torchvision/densenet121": elsewhere(
        lambda s, _, n: _torchvisions("densenet121", n),
        "features.conv0",
        ("classifier",),
        ((r"^(fc|linear)\.", "classifier."),),
    ),
}
