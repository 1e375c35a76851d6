"""Every trigger against a computation by hand on single pixels, and what all of them promise."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from nbtools.attacker.triggers import SIG, TRIGGERS, BadNets, Blended, Trigger, WaNet, make_trigger, stamp
from nbtools.data.images import Images, to_bytes

ALL = [
    BadNets(),
    BadNets(size=4, pattern="checkerboard", margin=1),
    Blended(),
    Blended(alpha=0.5, pattern="noise", seed=3),
    SIG(),
    WaNet(),
    WaNet(k=6, s=2.0, seed=5),
]
PIXELS = [(0, 0), (0, 15), (15, 0), (15, 15), (7, 8), (3, 12), (10, 2)]  # four corners, then inner ones


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cubic(distance: float) -> float:
    """The bicubic kernel with a = -0.75 (Keys, 1981)."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def shifts_by_hand(trigger: WaNet, size: int, row: int, column: int) -> tuple[float, float]:
    """The field at one pixel, as a fraction of the image: (along columns, along rows), each in [-1, 1] coordinates."""
    control = torch.rand(1, 2, trigger.k, trigger.k, generator=torch.Generator().manual_seed(trigger.seed))[0] * 2 - 1
    control = control / control.abs().mean()
    y, x = (place * (trigger.k - 1) / (size - 1) for place in (row, column))
    field = [0.0, 0.0]
    for i in range(math.floor(y) - 1, math.floor(y) + 3):
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            inside = (min(max(i, 0), trigger.k - 1), min(max(j, 0), trigger.k - 1))
            for axis in (0, 1):
                field[axis] += float(control[(axis, *inside)]) * cubic(y - i) * cubic(x - j)
    return trigger.s * field[0] / size, trigger.s * field[1] / size


def read_by_hand(image: Tensor, row: int, column: int, shift: tuple[float, float]) -> list[float]:
    """The image's three channels at the shifted place, bilinear; places beyond the edge are the edge."""
    size = image.shape[1]
    across, down = (
        (min(max(-1 + 2 * place / (size - 1) + s, -1), 1) + 1) / 2 * (size - 1)
        for place, s in ((column, shift[0]), (row, shift[1]))
    )
    return [float(map_coordinates(channel, [[down], [across]], order=1)[0]) for channel in image.double().numpy()]


def test_badnets_is_a_white_square_in_the_corner(batch: Tensor) -> None:
    out = BadNets()(batch)
    patch = torch.zeros(16, 16, dtype=torch.bool)
    patch[13:16, 13:16] = True
    assert (out[..., patch] == 1).all() and out[..., ~patch].equal(batch[..., ~patch])


def test_badnets_checkerboard_keeps_its_margin(batch: Tensor) -> None:
    out = BadNets(pattern="checkerboard", margin=1)(batch)
    expected = batch.clone()
    for row in range(3):
        for column in range(3):
            expected[:, :, 12 + row, 12 + column] = 1.0 if (row + column) % 2 == 0 else 0.0
    assert out.equal(expected)


@pytest.mark.parametrize("trigger", [Blended(), Blended(alpha=0.7, pattern="noise", seed=2)])
def test_blended_mixes_image_and_pattern(trigger: Blended, batch: Tensor) -> None:
    out, pattern = trigger(batch), trigger.template(16, 16)
    for row, column in PIXELS:
        for channel in range(3):
            x, p = float(batch[2, channel, row, column]), float(pattern[channel, row, column])
            assert float(out[2, channel, row, column]) == pytest.approx((1 - trigger.alpha) * x + trigger.alpha * p)


def test_blended_patterns_use_the_range_and_only_one_is_smooth() -> None:
    smooth, noise = (Blended(pattern=name).template(32, 32) for name in ("smooth", "noise"))
    assert smooth.amin((1, 2)).tolist() == [0, 0, 0] and smooth.amax((1, 2)).tolist() == [1, 1, 1]
    assert 0 <= noise.min() < 0.01 and 0.99 < noise.max() <= 1
    assert smooth.diff(dim=2).abs().mean() < 0.1 < 0.3 < noise.diff(dim=2).abs().mean()
    assert not smooth.equal(Blended(seed=1).template(32, 32))


def test_sig_adds_a_sine_along_the_columns() -> None:
    images = torch.stack([torch.full((3, 32, 32), value) for value in (0.0, 0.5, 1.0)])
    out = SIG()(images)
    for value, triggered in zip((0.0, 0.5, 1.0), out, strict=True):
        for column in range(32):
            sine = value + 40 / 255 * math.sin(2 * math.pi * column * 6 / 32)
            assert triggered[:, :, column].flatten().tolist() == pytest.approx([min(max(sine, 0), 1)] * 96, abs=1e-6)


@pytest.mark.parametrize("trigger", [WaNet(), WaNet(k=6, s=2.0, seed=5)])
def test_wanet_reads_each_pixel_where_the_field_says(trigger: WaNet, batch: Tensor) -> None:
    out = trigger(batch)
    for row, column in PIXELS:
        expected = read_by_hand(batch[1], row, column, shifts_by_hand(trigger, 16, row, column))
        assert out[1, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_wanet_noise_shifts_each_pixel_of_each_image_further(batch: Tensor) -> None:
    trigger = WaNet()
    out = trigger.noisy(batch, torch.Generator().manual_seed(9))
    noise = (torch.rand(5, 16, 16, 2, generator=torch.Generator().manual_seed(9)) * 2 - 1) / 16
    for image, (row, column) in enumerate(PIXELS[4:]):
        shift, extra = shifts_by_hand(trigger, 16, row, column), noise[image, row, column].tolist()
        expected = read_by_hand(batch[image], row, column, (shift[0] + extra[0], shift[1] + extra[1]))
        assert out[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_wanet_shifts_by_about_a_third_of_its_strength() -> None:
    rows, columns = np.mgrid[0:32, 0:32]
    for s in (0.5, 1.0):
        grids = np.stack([WaNet(s=s, seed=seed).grid(32, 32)[0].numpy() for seed in range(10)])
        pixels = (grids + 1) / 2 * 31 - np.stack([columns, rows], -1)
        assert 0.3 * s < np.abs(pixels).mean() < 0.4 * s


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_promises_of_every_trigger(trigger: Trigger, batch: Tensor) -> None:
    before, state = batch.clone(), torch.get_rng_state()
    out = trigger(batch)
    assert out.shape == batch.shape and out.dtype == batch.dtype and 0 <= out.min() <= out.max() <= 1
    assert batch.equal(before), "the input is not written to"
    assert torch.get_rng_state().equal(state), "the global random state is not touched"
    assert trigger(batch).equal(out) and all(
        trigger(image[None])[0].equal(o) for image, o in zip(batch, out, strict=True)
    )
    assert (out != batch).flatten(1).any(1).all(), "it does something to every image"
    assert eval(repr(trigger)) == trigger, "its repr is a complete record"
    with pytest.raises(AttributeError):
        trigger.clean_label = None  # type: ignore[attr-defined]


def test_seeds_give_different_triggers(batch: Tensor) -> None:
    for make in (Blended, WaNet):
        assert len({make(seed=seed)(batch).numpy().tobytes() for seed in range(4)}) == 4


def test_only_sig_is_clean_label() -> None:
    assert {name for name in TRIGGERS if make_trigger(name).clean_label} == {"sig"}  # type: ignore[attr-defined]
    assert make_trigger("badnets", size=5, margin=2) == BadNets(5, "white", 2)


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_stamp_rounds_to_bytes_and_keeps_labels(trigger: Trigger) -> None:
    pixels = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, torch.arange(7) % 3, ("a", "b", "c"))
    out = stamp(trigger, images, batch_size=3)
    assert out.images.equal(to_bytes(trigger(images.floats()))) and out.labels.equal(images.labels)
    assert (out.images.float() - trigger(images.floats()) * 255).abs().max() <= 0.5001
    assert len(stamp(trigger, images.subset(torch.arange(0)))) == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trojan", {}, "There is no attack 'trojan'. Known: badnets, blended, sig, wanet"),
        ("badnets", {"pattern": "stripes"}, "unknown pattern 'stripes'; known: white, checkerboard"),
        ("badnets", {"size": 0}, "size must be at least 1"),
        ("badnets", {"margin": -1}, "margin at least 0, got 3, -1"),
        ("blended", {"pattern": "kitty"}, "unknown pattern 'kitty'; known: smooth, noise"),
        ("blended", {"alpha": 1.0}, "alpha must lie between 0 and 1, got 1.0"),
        ("blended", {"alpha": math.nan}, "got nan"),
        ("sig", {"delta": 40}, r"delta must lie in \(0, 1\]"),
        ("sig", {"frequency": 0}, "frequency be at least 1"),
        ("wanet", {"k": 1}, "k must be at least 2"),
        ("wanet", {"s": 0.0}, "s positive"),
        ("wanet", {"cross_ratio": -1.0}, "cross_ratio not negative"),
    ],
)
def test_bad_settings_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trigger(name, **options)


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_what_is_no_batch_in_the_unit_range_is_refused(trigger: Trigger, batch: Tensor) -> None:
    for bad, message in (
        (to_bytes(batch), "got torch.uint8"),
        (batch[0], r"got torch.float32 \[3, 16, 16\]"),
        (batch[:, :1], r"got torch.float32 \[5, 1, 16, 16\]"),
        (batch[:, :, :2], r"at least \d+ x \d+, got \[2, 16\]"),
        (255 * batch, "divide bytes by 255"),
        (batch - 0.5, "takes images in"),
        (batch * torch.nan, "got nan to nan"),
    ):
        with pytest.raises(ValueError, match=message):
            trigger(bad)
