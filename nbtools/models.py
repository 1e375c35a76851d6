"""CIFAR ResNets with a width, normalisation inside, and the convolution-BN pairs of any model's graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torchvision.models.resnet import BasicBlock

from nbtools.settings import STRIDES

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Channel means and standard deviations of CIFAR-10's training images, in [0, 1]."""


class Normalise(nn.Module):
    """(x - mean) / std by channel, as a layer, so that every model takes images in [0, 1]."""

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


MIN_WIDTH = 16
"""Below this a strided 1x1 convolution (the shortcut) can overrun memory on CPUs: oneDNN issue 6035, open in 2.15."""


def _check_shape(width: int, strides: Sequence[int]) -> None:
    if width < MIN_WIDTH:
        raise ValueError(
            f"width must be at least {MIN_WIDTH}, got {width}: narrower shortcuts crash PyTorch's convolutions on CPUs "
            "(oneDNN issue 6035)"
        )
    if len(strides) != len(STRIDES):
        raise ValueError(f"strides are those of the stem and the four stages, {len(STRIDES)} numbers, got {strides}")


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet18(nn.Module):
    """ResNet-18 (He et al., arXiv 1512.03385) with the CIFAR stem: 3x3, stride 1, no max-pooling.

    Args:
        num_classes: outputs.
        width: channels of the first stage; 64 is the standard network, 32 a quarter of its cost.
        strides: of the stem and the four stages. (1, 2, 2, 2, 2) halves the image in the first stage
            too, for about a quarter of the work.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        _check_shape(width, strides)
        self.normalise = Normalise()
        self.conv1, self.bn1, self.relu = _conv3(3, width, strides[0]), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, width, strides[1])
        self.layer2 = self._stage(width, 2 * width, strides[2])
        self.layer3 = self._stage(2 * width, 4 * width, strides[3])
        self.layer4 = self._stage(4 * width, 8 * width, strides[4])
        self.fc = nn.Linear(8 * width, num_classes)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActBlock(nn.Module):
    """BN, ReLU, convolution, twice (He et al., arXiv 1603.05027); the shortcut starts behind the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(ready)
        return self.conv2(F.relu(self.bn2(self.conv1(ready)))) + kept


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 with the CIFAR stem; arguments as in `ResNet18`."""

    def __init__(self, num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        _check_shape(width, strides)
        self.normalise = Normalise()
        self.conv1 = _conv3(3, width, strides[0])
        sizes = [(width, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
        for number, ((inputs, outputs), stride) in enumerate(zip(sizes, strides[1:], strict=True), 1):
            stage = nn.Sequential(PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1))
            setattr(self, f"layer{number}", stage)
        self.bn = nn.BatchNorm2d(8 * width)
        self.fc = nn.Linear(8 * width, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(self.normalise(images))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"resnet18": ResNet18, "preact_resnet18": PreActResNet18}


def make_model(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """A fresh model by name, in channels-last layout.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](num_classes, **options).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Unit:
    """One convolution and the batch norm that follows it: its filters can be pruned through gamma and beta.

    Args:
        conv: the convolution's module name, e.g. "layer1.0.conv1".
        bn: the batch norm's module name.
        filters: output channels.
        kernel: height and width of the kernel.
        shortcut: whether it is alone on its way around other convolutions, as a ResNet's "downsample" is.
    """

    conv: str
    bn: str
    filters: int
    kernel: tuple[int, int]
    shortcut: bool = False


@dataclass(frozen=True)
class Units:
    """What `prunable_units` finds.

    Args:
        pairs: the pairs, in the order in which the data flows.
        without_bn: convolutions whose output no batch norm takes alone; these can't be pruned through BN.
    """

    pairs: tuple[Unit, ...]
    without_bn: tuple[str, ...]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def prunable_units(model: nn.Module) -> Units:
    """The convolution-BN pairs of a model, read from its graph (torch.fx), never from the order of its modules.

    A pair is a convolution whose output goes to one batch norm and nowhere else, and that batch norm has gamma, beta
    and running statistics. In a pre-activation network a
    block's second convolution is added to the shortcut first, so it has no batch norm of its own.

    Args:
        model: any model that torch.fx can trace (no control flow that depends on values).

    Returns:
        `Units`, pairs in the order of the data flow.

    Raises:
        ValueError: where the graph can't be traced, or holds no such pair.
    """
    tracer = torch.fx.Tracer()
    try:
        nodes = list(tracer.trace(model).nodes)
    except Exception as error:
        raise ValueError(
            f"torch.fx can't trace {type(model).__name__} ({error}); its forward must not branch on values"
        ) from error
    modules = dict(model.named_modules())
    pairs: list[Unit] = []
    alone: list[str] = []
    for node in nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        bn = _only_user(node)
        norm = modules.get(str(bn.target)) if bn is not None and bn.op == "call_module" else None
        if bn is not None and isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats:
            kernel, around = (conv.kernel_size[0], conv.kernel_size[1]), _goes_around(node, bn, modules)
            pairs.append(Unit(str(node.target), str(bn.target), conv.out_channels, kernel, around))
        else:
            alone.append(str(node.target))
    if not pairs:
        raise ValueError(
            f"{type(model).__name__} has no convolution that is followed by a batch norm "
            f"({len(alone)} convolutions without one); filters are pruned through their batch norm"
        )
    return Units(tuple(pairs), tuple(alone))


def layers_of(model: nn.Module, units: Iterable[Unit]) -> list[tuple[Unit, nn.Conv2d, nn.BatchNorm2d]]:
    """The modules that the units name, in the same order."""
    found = []
    for unit in units:
        conv, bn = model.get_submodule(unit.conv), model.get_submodule(unit.bn)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        found.append((unit, conv, bn))
    return found


def bn_factor(bn: nn.BatchNorm2d) -> Tensor:
    """|gamma_i| / sqrt(var_i + eps), how a batch norm in eval mode scales its channels: float64 `[channels]`."""
    assert bn.running_var is not None, "a batch norm without running statistics has no fixed factor"
    return bn.weight.detach().double().abs() * (bn.running_var.double() + bn.eps).rsqrt()


def _goes_around(conv: Node, bn: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the pair is added, as it is, to what another convolution makes of the same input."""
    sums = (operator.add, operator.iadd, torch.add)
    beside = [user for user in conv.all_input_nodes[0].users if user is not conv and user.op == "call_module"]
    return any(user.op == "call_function" and user.target in sums for user in bn.users) and any(
        isinstance(modules[str(user.target)], nn.Conv2d) for user in beside
    )


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def check_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinite weights.

    Raises:
        ValueError: it names the first tensors that hold such values.
    """
    broken = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(
            f"the model holds NaN or infinite values in {', '.join(broken[:3])}"
            f"{' and ' + str(len(broken) - 3) + ' more' if len(broken) > 3 else ''}; its training diverged or "
            "its file is damaged"
        )
