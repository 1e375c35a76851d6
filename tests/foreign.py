"""A model that is none of the package's: its own class, its own names, trained by hand; and images to go with it."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

CLASSES = ("blue", "green", "grey", "red")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
STRIDES = (1, 2, 2, 2, 2)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Foreign(nn.Module):
    """ResNet-18 as many scripts write it: `shortcut` and `linear`, normalised by whoever loads the images."""

    def __init__(self, width: int = 16, classes: int = len(CLASSES), strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, strides[0], 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, strides[1]), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, strides[2]), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, strides[3]), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, strides[4]), Block(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def normalised(images: Tensor) -> Tensor:
    """uint8 `[n, 3, h, w]` as this model was fed."""
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def squares(each: int, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A coloured square on noise, `each` images a class, classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(each * len(CLASSES)) % len(CLASSES)
    images = torch.randint(0, 120, (len(labels), 3, size, size), generator=generator)
    colours = torch.tensor([[0, 0, 120], [0, 120, 0], [90, 90, 90], [120, 0, 0]])
    corners = torch.randint(0, size // 2, (len(labels), 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels.tolist(), corners, strict=True):
        image[:, top : top + size // 2, left : left + size // 2] += colours[label][:, None, None]
    return images.to(torch.uint8), labels


def trained(steps: int = 40) -> Foreign:
    """The model after a few steps, in eval mode."""
    torch.manual_seed(0)
    model = Foreign().train()
    images, labels = squares(32)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    for step in range(steps):
        batch = torch.arange(32) + 32 * (step % 4)
        optimizer.zero_grad()
        F.cross_entropy(model(normalised(images[batch])), labels[batch]).backward()
        optimizer.step()
    return model.eval()


def write_folder(folder: Path, each: int = 10, size: int = 16, classes: Sequence[str] = CLASSES) -> Path:
    """Clean images as files: folder/<class>/<number>.png; returns the folder."""
    images, labels = squares(each, size, seed=1)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / str(classes[label])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:03d}.png")
    return folder
