"""A network that is right without any training: its own answers are the labels of its images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from foreign import Foreign
from PIL import Image
from torch import Tensor

from nbtools.networks.architectures import MEAN, STD


def fed(images: Tensor) -> Tensor:
    """uint8 `[n, 3, h, w]` as the network takes them: with CIFAR-10's normalisation, which no file of it tells."""
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def right_on(count: int, each: int, size: int = 16) -> tuple[Foreign, Tensor]:
    """A network of `count` classes, and the images `[count, each, 3, size, size]` of which it is surest."""
    torch.manual_seed(0)
    model = Foreign(classes=count).eval()
    generator = torch.Generator().manual_seed(0)
    tints = torch.randint(0, 200, (900, 3, 1, 1), generator=generator)
    images = (tints + torch.randint(0, 56, (900, 3, size, size), generator=generator)).to(torch.uint8)
    logits = model(fed(images))
    model.linear.weight /= logits.std(0)[:, None]  # so that every class is the answer to some
    model.linear.bias.copy_((model.linear.bias - logits.mean(0)) / logits.std(0))
    top = model(fed(images)).topk(2)
    sure, answer = (top.values[:, 0] - top.values[:, 1]).argsort(descending=True), top.indices[:, 0]
    return model, images[torch.stack([sure[answer[sure] == label][:each] for label in range(count)])]


def write(folder: Path, images: Tensor, names: Sequence[str]) -> Path:
    """Images of output k in a folder named `names[k]`; returns the folder of them all."""
    for name, of_class in zip(names, images, strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(of_class):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{number}.png")
    return folder
