"""A ten-class picture data set made by code: figures on textured grounds, among clutter, some of them faint."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

CLASSES: tuple[str, ...] = (
    "disc", "ring", "square", "triangle", "pentagon", "star", "cross", "heart", "crescent", "drop",
)  # fmt: skip
MIN_SIZE = 16
"""Pixels: below this the figures cannot be told apart."""
MAX_SEED = 2**32 - 1
"""PyTorch's CPU generator uses only 32 bits of a seed, so a larger one would repeat a smaller one."""

_BLOCK = 250  # images drawn at a time: fixed, so that a longer set begins with the shorter one
_LUMA = torch.tensor([0.299, 0.587, 0.114])


# --- Figures: signed distances in the figure's own frame, negative inside, radius about 1. x, y: [k, h, w] ---


def _polygon(x: Tensor, y: Tensor, sides: int) -> Tensor:
    """Regular polygon with one corner up."""
    step = 2 * math.pi / sides
    angle = torch.remainder(torch.atan2(x, -y) + step / 2, step) - step / 2
    radius = torch.hypot(x, y)
    inner = math.cos(step / 2)
    # the fold puts a corner at angle 0, so the nearest side's normal lies half a step away
    return radius * torch.cos(angle.abs() - step / 2) - inner


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: in the folded sector the outline is the segment from the tip (1.1 out) to the notch (0.46 out)."""
    step = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, y) + step / 2, step) - step / 2).abs()
    radius = torch.hypot(x, y)
    u, v = radius * torch.cos(angle), radius * torch.sin(angle)
    tip, notch = (1.1, 0.0), (0.46 * math.cos(step / 2), 0.46 * math.sin(step / 2))
    du, dv = notch[0] - tip[0], notch[1] - tip[1]
    return ((u - tip[0]) * dv - (v - tip[1]) * du) / math.hypot(du, dv)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.abs(), y.abs()
    return torch.minimum(torch.maximum(a - 0.95, b - 0.32), torch.maximum(a - 0.32, b - 0.95))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two lobes and a wedge."""
    a = x.abs()
    lobe = torch.hypot(a - 0.44, y + 0.34) - 0.5
    wedge = torch.maximum((0.71 * a + 0.71 * y) - 0.50, -0.34 - y)
    wedge = torch.maximum(wedge, a - 0.94)
    return torch.minimum(lobe, torch.maximum(wedge, 0.71 * (y - a) - 0.71))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    """Open to the top, so that a mirrored picture is as likely as the picture itself, like every class."""
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.72 - torch.hypot(x, y + 0.48))


def _drop(x: Tensor, y: Tensor) -> Tensor:
    """A round belly and the two tangents that meet above it."""
    belly = torch.hypot(x, y - 0.3) - 0.62
    lean = 0.62 / 1.45  # sine of the half angle at the tip
    cone = x.abs() * math.sqrt(1 - lean**2) - (y + 1.15) * lean
    touch = 0.3 - 0.62 * lean
    return torch.minimum(belly, torch.maximum(cone, y - touch))


_FIGURES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, y: torch.hypot(x, y) - 0.85,  # disc
    lambda x, y: (torch.hypot(x, y) - 0.65).abs() - 0.24,  # ring
    lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.76,  # square
    lambda x, y: _polygon(x, y, 3) - 0.1,  # triangle
    lambda x, y: _polygon(x, y, 5) - 0.08,  # pentagon
    _star, _cross, _heart, _crescent, _drop,
)  # fmt: skip


# --- Drawing ------------------------------------------------------------------------------------------------


def _uniform(k: int, low: float, high: float, random: Generator) -> Tensor:
    """k numbers in [low, high], shaped [k, 1, 1] to meet images [k, h, w]."""
    return low + (high - low) * torch.rand(k, 1, 1, generator=random)


def _chance(k: int, probability: float, random: Generator) -> Tensor:
    """k zeros and ones, float [k, 1, 1]."""
    return (torch.rand(k, 1, 1, generator=random) < probability).float()


def _colour(luma: Tensor, random: Generator) -> Tensor:
    """Colours [k, 3, 1, 1] of random hue and saturation with the given brightness [k, 1, 1]."""
    k = len(luma)
    phase = torch.tensor([0.0, 1 / 3, 2 / 3])
    hue = torch.rand(k, 1, generator=random)
    wave = torch.cos(2 * math.pi * (hue - phase))
    wave = wave - (wave * _LUMA).sum(1, keepdim=True)
    saturation = 0.08 + 0.27 * torch.rand(k, 1, generator=random)
    return (luma.view(k, 1) + saturation * wave).clamp(0.03, 0.95).view(k, 3, 1, 1)


def _grid(k: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixel centres in [-1, 1]: x (to the right) and y (down), each [k, size, size]."""
    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    return line.view(1, 1, size).expand(k, size, size), line.view(1, size, 1).expand(k, size, size)


def _posed(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, scale: Tensor, stretch: Tensor, shear: Tensor,
           turn: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image coordinates to the figure's own frame: centre, turn, shear, stretch. All the numbers are [k, 1, 1]."""
    x, y = x - cx, y - cy
    u = torch.cos(turn) * x + torch.sin(turn) * y
    v = torch.cos(turn) * y - torch.sin(turn) * x
    return (u + shear * v) * stretch / scale, v / stretch / scale


def _cover(distance: Tensor, scale: Tensor, size: int) -> Tensor:
    """Smooth coverage in [0, 1] [k, 1, h, w] from a distance in the figure's frame: one pixel from out to in."""
    t = (0.5 - distance * scale * size / 2 / 1.3).clamp(0, 1)
    return (t * t * (3 - 2 * t)).unsqueeze(1)


def _smooth_field(k: int, cells: int, size: int, random: Generator) -> Tensor:
    """Smooth random hills in [0, 1], [k, size, size]."""
    coarse = torch.rand(k, 1, cells, cells, generator=random)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)[:, 0].clamp(0, 1)


def _texture(k: int, size: int, random: Generator) -> Tensor:
    """One of five patterns per image, values in [0, 1], [k, 1, size, size]: ramp, stripes, checks, dots, hills."""
    x, y = _grid(k, size)
    turn = _uniform(k, 0, 2 * math.pi, random)
    u = torch.cos(turn) * x + torch.sin(turn) * y
    v = torch.cos(turn) * y - torch.sin(turn) * x
    pitch, shift = _uniform(k, 4.5, 11, random), _uniform(k, 0, 2 * math.pi, random)
    wave_u, wave_v = torch.sin(pitch * u + shift), torch.sin(pitch * v + shift)
    patterns = torch.stack([
        0.5 + 0.5 * u,
        0.5 + 1.5 * wave_u,
        0.5 + 2.5 * wave_u * wave_v,
        2.5 * (wave_u + wave_v) - 1.5,
        _smooth_field(k, 5, size, random) * 1.6 - 0.3,
    ]).clamp(0, 1)  # fmt: skip
    kind = torch.randint(len(patterns), (k,), generator=random)
    return patterns[kind, torch.arange(k)].unsqueeze(1)


def _over(below: Tensor, colour: Tensor, cover: Tensor) -> Tensor:
    return below + cover * (colour - below)


def _figure_distance(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Signed distance to each image's own figure, [k, h, w]."""
    out = torch.empty_like(x)
    for label, figure in enumerate(_FIGURES):
        mine = (labels == label).nonzero().flatten()
        out[mine] = figure(x[mine], y[mine])
    return out


def _random_figure(labels: Tensor, size: int, reach: float, scale: Tensor, random: Generator) -> Tensor:
    """Coverage [k, 1, h, w] of figures in a random pose, centred at most `reach` from the middle."""
    k = len(labels)
    x, y = _grid(k, size)
    cx, cy = _uniform(k, -reach, reach, random), _uniform(k, -reach, reach, random)
    stretch, shear = _uniform(k, 0.88, 1.13, random), _uniform(k, -0.15, 0.15, random)
    x, y = _posed(x, y, cx, cy, scale, stretch, shear, _uniform(k, -0.35, 0.35, random))
    return _cover(_figure_distance(x, y, labels), scale, size)


def _bar(k: int, size: int, random: Generator) -> Tensor:
    """Coverage [k, 1, h, w] of a straight bar through the middle part of the image."""
    x, y = _grid(k, size)
    turn, away = _uniform(k, 0, 2 * math.pi, random), _uniform(k, -0.5, 0.5, random)
    half = _uniform(k, 0.05, 0.15, random)
    return _cover((torch.cos(turn) * x + torch.sin(turn) * y - away).abs() - half, torch.ones(1), size)


def _blur(images: Tensor, random: Generator) -> Tensor:
    """Each image mixed with its blurred self, by a random share."""
    tap = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(tap, tap).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return _over(images, soft, _uniform(len(images), -0.6, 1, random).clamp(0, 1).unsqueeze(1))


def _draw(labels: Tensor, size: int, random: Generator) -> Tensor:
    """One block of images, uint8 [k, 3, size, size]."""
    k = len(labels)
    luma = _uniform(k, 0.22, 0.72, random)
    # ground: two colours of nearly the same brightness, in a pattern
    lift = _uniform(k, -0.08, 0.08, random)
    first, second = _colour(luma + lift, random), _colour(luma - lift, random)
    images = _over(first, second, 0.6 * _texture(k, size, random))

    # behind the figure: smaller figures of any class, near the border, most of them cut by it
    for probability in (0.6, 0.3):
        scale = _uniform(k, 0.18, 0.34, random)
        other = torch.randint(len(CLASSES), (k,), generator=random)
        cover = _random_figure(other, size, 1.0, scale, random) * _chance(k, probability, random).unsqueeze(1)
        images = _over(images, _colour(luma + _uniform(k, -0.3, 0.3, random), random), cover)

    # the figure: brighter or darker than its ground by a contrast that is sometimes small
    sign = 1 - 2 * _chance(k, 0.5, random)
    contrast = 0.12 + 0.4 * torch.rand(k, 1, 1, generator=random)
    sign = torch.where(luma + sign * contrast > 0.88, -1.0, torch.where(luma + sign * contrast < 0.08, 1.0, sign))
    cover = _random_figure(labels, size, 0.18, _uniform(k, 0.5, 0.74, random), random)
    paint = _over(
        _colour(luma + sign * contrast, random),
        _colour(luma + sign * contrast * 0.8, random),
        _texture(k, size, random) * _chance(k, 0.4, random).unsqueeze(1),
    )
    # some figures are faint: this, rather than noise, keeps the task from being solved completely
    faint = _chance(k, 0.2, random)
    opacity = 1 - faint * _uniform(k, 0.55, 0.92, random)
    images = _over(images, paint, cover * opacity.unsqueeze(1))

    # in front of it: now and then a bar
    colour = _colour(_uniform(k, 0.15, 0.85, random), random)
    images = _over(images, colour, _bar(k, size, random) * _chance(k, 0.35, random).unsqueeze(1))

    x, y = _grid(k, size)
    light = 1 + _uniform(k, -0.2, 0.2, random) * x + _uniform(k, -0.2, 0.2, random) * y
    images = _blur(images * light.unsqueeze(1), random)
    noise = torch.randn(images.shape, generator=random) * _uniform(k, 0, 0.03, random).unsqueeze(1)
    return ((images + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def make_shapes(n: int, seed: int = 0, *, size: int = 32) -> tuple[Tensor, Tensor]:
    """Draw n labelled pictures of ten kinds of figure. [ours]

    Args:
        n: number of images, at least 1.
        seed: 0 .. 2**32 - 1. The same seed gives the same bits (same machine and PyTorch); the first m of n images
            are those of `make_shapes(m, seed)`.
        size: height and width, pixels, at least 16.

    Returns:
        images: uint8 [n, 3, size, size]
        labels: int64 [n], indices into `CLASSES`. Every ten images in a row hold each class once, in random order.

    Raises:
        ValueError: n, seed or size is out of range.
    """
    if n < 1:
        raise ValueError(f"make_shapes got n = {n}. Ask for at least 1 image.")
    if size < MIN_SIZE:
        raise ValueError(f"make_shapes got size = {size}. Use at least {MIN_SIZE} pixels (the series uses 32).")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"make_shapes got seed = {seed}. Use a whole number from 0 to {MAX_SEED}.")
    random = Generator().manual_seed(seed)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    labels = torch.empty(n, dtype=torch.int64)
    for start in range(0, n, _BLOCK):
        block = torch.rand(_BLOCK // len(CLASSES), len(CLASSES), generator=random).argsort(1).flatten()
        stop = min(n, start + _BLOCK)
        labels[start:stop] = block[: stop - start]
        images[start:stop] = _draw(block, size, random)[: stop - start]
    return images, labels
