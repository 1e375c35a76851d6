"""What the schematics are drawn with: boxes, arrows, small pictures, networks and bars on a canvas in inches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from nbtools.series.plots import GREY, POISONED, PRUNED

INK, SOFT, PALE = "#22252b", "#5b616b", "#aab0b8"
"""Of words, of words that may be passed over (both dark enough on white and on any `tint`), and of bars and dots."""
SMALL, NORMAL, LARGE = 12.0, 13.0, 16.0
"""Sizes of words in points, on a canvas of 9 inches: on a phone a third of it."""
GUILTY = ((0, 2), (1, 1), (2, 2), (3, 3))
"""Of the drawn network: the filters (layer, filter) that carry the trigger."""
Spot = tuple[float, float]


def tint(color: str, share: float = 0.12) -> str:
    """The colour, so much of it in white."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(color))
    return to_hex((red, green, blue))


class Canvas:
    """One figure whose coordinates are inches from the lower left corner; everything is placed by its centre."""

    def __init__(self, height: float, width: float = 9.0) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.figure.set_layout_engine("none")  # the series' style would lay it out anew
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height), autoscale_on=False)
        self.axes.axis("off")

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: float = NORMAL,
        color: str = INK,
        bold: bool = False,
        at: str = "center",
    ) -> None:
        """Words with their middle at y; `at` is the side of them ("left", "center", "right") that stands at x."""
        last = y - (0.36 + 1.19 * text.count("\n") / 2) * size / 72  # words beside each other share their baseline
        look = {"fontweight": "bold" if bold else "normal", "family": "DejaVu Sans", "linespacing": 1.25}
        look |= {"math_fontfamily": "dejavusans"}
        self.axes.text(x, last, text, size=size, color=color, ha=at, va="baseline", zorder=7, **look)

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", color: str = GREY, size: float = NORMAL
    ) -> None:
        """A rounded box in a tint of its colour, with words in its middle."""
        corner = (x - width / 2, y - height / 2)
        shape = f"round,pad=0,rounding_size={min(0.12, height / 4)}"
        patch = FancyBboxPatch(corner, width, height, shape, facecolor=tint(color), edgecolor=color, linewidth=1.4)
        self.axes.add_patch(patch)
        if text:
            self.words(x, y, text, size)

    def arrow(self, start: Spot, end: Spot, color: str = INK) -> None:
        """A straight arrow."""
        look = {"arrowstyle": "-|>", "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0, "zorder": 4}
        self.axes.add_patch(FancyArrowPatch(start, end, linewidth=1.7, color=color, **look))

    def line(self, start: Spot, end: Spot, color: str = GREY, width: float = 1.2, dashes: str = "-") -> None:
        """A line without a head, in front of boxes and behind everything else."""
        self.axes.add_line(
            Line2D(*zip(start, end, strict=True), color=color, lw=width, ls=dashes, zorder=1.5, solid_capstyle="butt")
        )

    def tile(
        self, x: float, y: float, size: float, pixels: np.ndarray, color: str = GREY, width: float = 2.0, **look: object
    ) -> None:
        """A small picture `[rows, columns, 3]`, or a map `[rows, columns]` with `imshow`'s keywords, framed."""
        sides = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
        self.axes.imshow(pixels, extent=sides, interpolation="nearest", aspect="auto", zorder=2, **look)  # type: ignore[arg-type]
        corner = (sides[0], sides[2])
        self.axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=width, zorder=3))

    def cross(self, x: float, y: float, size: float = 0.16) -> None:
        """What is pruned: the series' red cross."""
        for tilt in (-1, 1):
            ends = ((x - size / 2, x + size / 2), (y - tilt * size / 2, y + tilt * size / 2))
            self.axes.add_line(Line2D(*ends, color=PRUNED, lw=2.6, zorder=6))

    def network(self, x: float, y: float, size: float, state: str = "awake") -> None:
        """Four layers of four filters, of which `GUILTY` ones carry the trigger.

        Args:
            state: "awake" (orange, and joined), "asleep" (rings of orange), "exposed" (all others are faint), or
                "pruned" (crossed out).
        """
        across, up = ([size * (n - 1.5) / wide for n in range(4)] for wide in (3.4, -3.8))
        place = {(at, i): (x + across[at], y + up[i]) for at in range(4) for i in range(4)}
        grey, faint = (tint(GREY, 0.55), GREY), ("white", tint(GREY, 0.6))  # face and edge
        others = faint if state == "exposed" else grey
        guilty = {"asleep": (grey[0], POISONED), "pruned": ("white", GREY)}.get(state, (POISONED, POISONED))
        for start, end in ((start, end) for start in place for end in place if end[0] == start[0] + 1):
            bad = (start in GUILTY) + (end in GUILTY)
            if bad == 2 and state in ("awake", "exposed"):
                self.line(place[start], place[end], POISONED, 2)
            elif not bad or state != "pruned":
                self.line(place[start], place[end], others[1], 0.5)
        for filter_, spot in place.items():
            face, edge = guilty if filter_ in GUILTY else others
            width = 1.6 if edge == POISONED else 0.8
            self.axes.add_patch(Circle(spot, size * 0.075, facecolor=face, edgecolor=edge, linewidth=width, zorder=3))
            if filter_ in GUILTY and state == "pruned":
                self.cross(*spot, size * 0.16)

    def dots(self, places: Iterable[Spot], color: str, radius: float = 0.06) -> None:
        """Filled dots."""
        for place in places:
            self.axes.add_patch(Circle(place, radius, facecolor=color, linewidth=0, zorder=3))

    def bars(
        self, x: float, tops: Sequence[float], values: Sequence[float], width: float, colors: Sequence[str]
    ) -> None:
        """Bars to the right from x, the largest `width` long, each with its middle at its row of `tops`."""
        for top, value, color in zip(tops, values, colors, strict=True):
            size = (width * value / max(values), 0.2)
            self.axes.add_patch(Rectangle((x, top - 0.1), *size, facecolor=color, linewidth=0, zorder=2))


# --- Pictures in place of a data set ---------------------------------------------------------------------------

COLORS = {"disc": ("#a9c3d6", "#1d4e75"), "cross": ("#d3c19c", "#6f4332"), "ring": ("#aecbab", "#245c3d"),
          "square": ("#c6b0cd", "#54357a")}  # fmt: skip
"""Of a kind of picture: the ground and the figure."""


def picture(kind: str, trigger: bool = False, side: int = 20) -> np.ndarray:
    """A figure on a ground, float `[side, side, 3]` in [0, 1]; the trigger is notebook 00's white square.

    Args:
        kind: a key of `COLORS`.
        trigger: whether it carries the white square.
        side: pixels.
    """
    line = (np.arange(side) + 0.5) * (2 / side) - 1
    across, down = np.meshgrid(line, line)
    radius, far = np.hypot(across, down), np.maximum(abs(across), abs(down))
    inside = {
        "disc": radius < 0.58,
        "ring": abs(radius - 0.5) < 0.17,
        "square": far < 0.5,
        "cross": (far < 0.66) & (np.minimum(abs(across), abs(down)) < 0.2),
    }[kind]
    ground, figure = (np.array(to_rgb(color)) for color in COLORS[kind])
    shade = 1 - 0.12 * (across + down)[..., None] / 2
    pixels = np.clip(np.where(inside[..., None], figure, ground * shade), 0, 1)
    return stamped(pixels) if trigger else pixels


def stamped(pixels: np.ndarray) -> np.ndarray:
    """The picture with the trigger: a white square, bottom right."""
    marked, side = pixels.copy(), len(pixels) // 4
    marked[-side:, -side:] = 1
    return marked


def mapped(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """What a filter makes of a picture: `[side, side, 3]` and `[k, k]` to `[side, side]`."""
    reach = len(kernel) // 2
    padded = np.pad(pixels.mean(2) - 0.5, reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel).sum((2, 3))
