"""The networks of the series: for images of 32 x 32 pixels, with a width, normalisation inside.

torchvision is imported where one of its networks is built: it loads torch's compiler, 170 MB that a ResNet needs not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.settings import MIN_WIDTH, STRIDES

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
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # shapes alone: nothing to draw
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Convolution, BN, ReLU, convolution, BN, and the sum with what went in; names and order are torchvision's."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = _conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU(True)
        self.conv2, self.bn2, self.downsample = _conv3(outputs, outputs), nn.BatchNorm2d(outputs), downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., arXiv 1512.03385) with the CIFAR stem: 3x3, stride 1, no max-pooling.

    Args:
        num_classes: outputs.
        width: channels of the first stage; 64 is the standard network, 32 a quarter of its cost.
        strides: of the stem and the four stages. (1, 2, 2, 2, 2) halves the image in the first stage
            too, for about a quarter of the work.
    """

    blocks = (2, 2, 2, 2)

    def __init__(self, num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        _check_shape(width, strides)
        self.normalise = Normalise()
        self.conv1, self.bn1, self.relu = _conv3(3, width, strides[0]), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, width, strides[1], self.blocks[0])
        self.layer2 = self._stage(width, 2 * width, strides[2], self.blocks[1])
        self.layer3 = self._stage(2 * width, 4 * width, strides[3], self.blocks[2])
        self.layer4 = self._stage(4 * width, 8 * width, strides[4], self.blocks[3])
        self.fc = nn.Linear(8 * width, num_classes)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        rest = [BasicBlock(outputs, outputs) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), *rest)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet34(ResNet18):
    """ResNet-34: the same with more blocks."""

    blocks = (3, 4, 6, 3)


class Normalising(nn.Module):
    """Any network, `network`, with `normalise` before it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = Normalise(), network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))


def vgg16_bn(num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> nn.Module:
    """VGG-16 with batch norm (Simonyan & Zisserman, arXiv 1409.1556) and one linear layer behind the last pooling.

    Args:
        num_classes: outputs.
        width: channels of the first two convolutions; 64 is the paper's.
        strides: the first convolution has the first two's product; where that is more than 1, the last pooling is left
            out.
    """
    from torchvision.models import vgg

    _check_shape(width, strides)
    plan = [size if isinstance(size, str) else size * width // 64 for size in vgg.cfgs["D"]]
    first = strides[0] * strides[1]
    features = vgg.make_layers(plan[:-1] if first > 1 else plan, batch_norm=True)
    features[0].stride = (first, first)  # type: ignore[assignment]
    _initialise(features)
    return Normalising(
        nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, num_classes))
    )


def mobilenet_v2(num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> nn.Module:
    """MobileNetV2 (Sandler et al., arXiv 1801.04381) for 32 x 32 pixels: stem and second stage keep the image's size.

    Args:
        num_classes: outputs.
        width: 64 is the paper's network (width multiplier 1).
        strides: the stem has the first two's product.
    """
    from torchvision.models import MobileNetV2

    _check_shape(width, strides)
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    network = MobileNetV2(num_classes, width / 64, inverted_residual_setting=stages)
    first = strides[0] * strides[1]
    network.features[0][0].stride = (first, first)  # type: ignore[index]
    return Normalising(network)


def densenet(num_classes: int = 10, width: int = 64, strides: Sequence[int] = STRIDES) -> nn.Module:
    """DenseNet-BC (Huang et al., arXiv 1608.06993) for 32 x 32 pixels: three blocks of eight, growth 12 at width 64.

    Args:
        num_classes: outputs.
        width: 64 is a growth of 12.
        strides: the stem has the first two's product.
    """
    from torchvision.models import DenseNet

    _check_shape(width, strides)
    growth = max(4, 12 * width // 64)
    network = DenseNet(growth, (8, 8, 8), 2 * growth, num_classes=num_classes)  # type: ignore[arg-type]
    first = strides[0] * strides[1]
    network.features.conv0 = _conv3(3, 2 * growth, first)
    network.features.pool0 = nn.Identity()
    return Normalising(network)


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


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "preact_resnet18": PreActResNet18,
    "vgg16_bn": vgg16_bn,
    "mobilenet_v2": mobilenet_v2,
    "densenet": densenet,
}


def make_model(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """A fresh model by name, in channels-last layout.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](num_classes, **options).to(memory_format=torch.channels_last)
