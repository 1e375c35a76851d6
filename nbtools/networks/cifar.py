"""Two families for images of 32 x 32 pixels, named as in their public code: ResNet-20 to 110, WideResNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nbtools.networks.architectures import Normalise


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


class _Block(nn.Module):
    """Two 3x3 convolutions, and a way around them without weights unless `projected`."""

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs
        changes = projected and (stride > 1 or self.more > 0)
        down = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else None
        self.downsample = down

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.more:  # option A: every second pixel, and channels of zeros on either side
            half = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.more - half))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for small images (He et al., arXiv 1512.03385, section 4.2): three stages of n blocks.

    Args:
        num_classes: outputs.
        depth: 6n + 2: 20, 32, 44, 56, 110.
        width: channels of the first stage; 16 in the paper.
        projected: shortcuts that change the shape are a convolution with a batch norm (the paper's option B), else
            strided copies with channels of zeros (its option A).

    Raises:
        ValueError: for another depth.
    """

    def __init__(self, num_classes: int = 10, depth: int = 20, width: int = 16, projected: bool = False) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"the depth of a ResNet for small images is 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        self.normalise = Normalise()
        self.conv1, self.bn1 = _conv(3, width, 3), nn.BatchNorm2d(width)
        for stage in range(3):
            inputs, outputs = width * 2 ** max(stage - 1, 0), width * 2**stage
            first = _Block(inputs, outputs, 2 if stage else 1, projected)
            rest = [_Block(outputs, outputs, 1, projected) for _ in range(depth // 6 - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalise(images))))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(ready))))
        return y + (x if self.convShortcut is None else self.convShortcut(ready))


class _Group(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = [_WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(_WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-k (Zagoruyko & Komodakis, arXiv 1605.07146), a wide pre-activation network, without dropout.

    A block's second convolution is added to the shortcut first: it has no batch norm of its own.

    Args:
        num_classes: outputs.
        blocks: of each of the three groups; the depth is 6 * blocks + 4: 2 for WRN-16, 4 for WRN-28, 6 for WRN-40.
        widths: channels of the stem and the groups: 16, 16k, 32k, 64k.
    """

    def __init__(
        self, num_classes: int = 10, blocks: int = 4, widths: tuple[int, int, int, int] = (16, 160, 320, 640)
    ) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.conv1 = _conv(3, widths[0], 3)
        for number in (1, 2, 3):
            group = _Group(widths[number - 1], widths[number], 1 if number == 1 else 2, blocks)
            setattr(self, f"block{number}", group)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(self.normalise(images))
        for number in (1, 2, 3):
            x = getattr(self, f"block{number}")(x)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1).flatten(1))
