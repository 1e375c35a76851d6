"""Small models and images, and the plain reference of the correlation, that several tests share."""

import copy
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import DenseNet, MobileNetV2, vgg

from nbtools.data.images import Images
from nbtools.defender.pruning import Mask
from nbtools.networks.architectures import Normalise, make_model
from nbtools.networks.units import prunable_units

CLASSES = ("red", "green", "blue", "grey")


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with drawn BN statistics and parameters, so that no batch norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def network(name: str = "resnet18", width: int = 16, seed: int = 0) -> nn.Module:
    """A small network of the series, or torchvision's "vgg16_bn", "mobilenet_v2" or "densenet", made thin."""
    torch.manual_seed(seed)
    if name == "densenet":
        return settled(DenseNet(8, (2, 2, 1, 1), 16, num_classes=len(CLASSES)), seed)
    if name == "mobilenet_v2":
        return settled(MobileNetV2(len(CLASSES), width_mult=0.25), seed)
    if name == "vgg16_bn":
        plan: list[str | int] = [size if isinstance(size, str) else size // 16 for size in vgg.cfgs["D"]]
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, len(CLASSES))]
        return settled(nn.Sequential(vgg.make_layers(plan, batch_norm=True), *head), seed)
    return settled(make_model(name, len(CLASSES), width=width), seed)


class Plain(nn.Module):
    """Two convolution-BN pairs and a linear layer: small enough to tune hundreds of times."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.normalise, self.relu = Normalise(), nn.ReLU()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(images))))
        return self.fc(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def plain(seed: int = 0) -> Plain:
    """A `Plain` network, settled."""
    torch.manual_seed(seed)
    model = Plain()
    settled(model, seed)
    return model


def pictures(count: int = 24, size: int = 16, seed: int = 0) -> Images:
    """Noise in which each class has its own tint, so that there is something to learn; classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    tints = torch.tensor([[80, 0, 0], [0, 80, 0], [0, 0, 80], [30, 30, 30]])
    noise = torch.randint(0, 176, (count, 3, size, size), generator=generator)
    return Images((noise + tints[labels][:, :, None, None]).to(torch.uint8), labels, CLASSES)


@functools.cache
def _taught(count: int) -> Plain:
    model, images = plain(), pictures(count)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images.floats()), images.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return model


def taught(count: int = 96) -> Plain:
    """A `Plain` network that has learned from so many `pictures` to tell their classes apart."""
    return copy.deepcopy(_taught(count))


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that the model holds, to compare against later."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal, bit for bit."""
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def raw(value: Tensor) -> bytes:
    """The bits of a tensor, NaN and the sign of zero among them."""
    return value.detach().numpy().tobytes()


def hooks_of(module: nn.Module) -> list[object]:
    """All hooks of the module and what is in it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for part in module.modules() for kind in kinds for hook in getattr(part, kind).values()]


def everything(model: nn.Module, clean: Images) -> dict[str, object]:
    """All that must not change where a model and clean images are only looked at, to compare later."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "weights and statistics": {name: raw(value) for name, value in tensors.items()},
        "modules": repr(model),
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), raw(p.grad)) for p in model.parameters()],
        "hooks": hooks_of(model),
        "images": (raw(clean.images), raw(clean.labels), clean.classes),
        "random state": raw(torch.get_rng_state()),
        "gradients are made": torch.is_grad_enabled(),
    }


@contextmanager
def left_alone(model: nn.Module, clean: Images) -> Iterator[None]:
    """What the block does changes neither the model, in any bit, nor the images, nor PyTorch's random state."""
    before = everything(model, clean)
    yield
    after = everything(model, clean)
    assert [part for part in before if before[part] != after[part]] == [], "these have changed"


def mask_of(model: nn.Module, pruned: Mapping[str, Sequence[int]]) -> Mask:
    """A mask over all of the model's pairs that prunes the given filters: convolution name to their numbers."""
    masks = {unit.conv: torch.zeros(unit.filters, dtype=torch.bool) for unit in prunable_units(model)}
    for name, filters in pruned.items():
        masks[name][list(filters)] = True
    return Mask(masks)


def plain_correlation(maps: Tensor) -> Tensor:
    """Mean absolute entry of numpy.corrcoef beside the diagonal, over images and positions; a dead map counts 0."""
    columns = maps.double().transpose(0, 1).flatten(1).numpy()
    alive = columns.std(1) > 0
    matrix = np.zeros((len(columns), len(columns)))
    matrix[np.ix_(alive, alive)] = np.corrcoef(columns[alive])
    return torch.tensor([np.abs(np.delete(row, i)).mean() for i, row in enumerate(matrix)])


def plain_loss(logits: Tensor, label: int, kind: str) -> Tensor:
    """The loss of one image, `[classes]`, written out."""
    others = [logits[j] for j in range(len(logits)) if j != label]
    if kind == "margin":
        return logits[label] - torch.stack(others).max()
    logits = logits / {"cross_entropy": 1.0, "softened": 4.0}[kind]
    return logits.exp().sum().log() - logits[label]


class Calls(TorchDispatchMode):
    """While the context lasts, counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made[func] += 1
        return func(*args, **(kwargs or {}))


class ConvolutionGradients(TorchDispatchMode):
    """While the context lasts, notes which gradients each convolution is asked for: of (input, weight, bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.asked.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def labelled(*counts: int) -> Images:
    """Images of which so many belong to each class, no two alike, the classes mixed."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).clone()
    return Images(images, labels, tuple("abcdefghij"[: len(counts)]))
