"""Schematics drawn by code: who may see what, how an attack goes, and how three defences go, each as one picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from nbtools.series import plots
from nbtools.series.drawing import LARGE, PALE, SMALL, SOFT, Canvas, mapped, picture, stamped
from nbtools.series.plots import CLEAN, GREEN, GREY, POISONED, PRUNED, PURPLE
from nbtools.wording import known


def three_parties() -> Figure:
    """Attacker, defender and evaluator, the walls between them, and the little that crosses a wall."""
    canvas, lane = Canvas(5.0), 1.35
    middles, walls = (1.27, 4.5, 7.73), (2.885, 6.115)
    told = {
        "attacker": "has the training set;\nputs the trigger\non a few images",
        "defender": "has the model and\na few clean images;\nprunes and tunes",
        "evaluator": "has the trigger and\nthe test set;\nonly reports",
    }
    kinds = ("disc", "ring", "cross"), ("square", "disc", "ring"), ("ring", "square", "disc")
    triggers = ("", "", "trigger"), ("", "", ""), ("", "trigger", "trigger")
    for x, (name, does), shown, marks in zip(middles, told.items(), kinds, triggers, strict=True):
        canvas.box(x, 3.6, 2.4, 2.6)
        canvas.words(x, 4.6, name, LARGE, bold=True)
        for step, kind, mark in zip((-0.72, 0, 0.72), shown, marks, strict=True):
            canvas.tile(x + step, 3.9, 0.6, picture(kind, bool(mark)), POISONED if mark else CLEAN)
        canvas.words(x, 2.92, does)
    lanes = {"awake": "the trained model", "pruned": "the repaired model"}
    for x, (state, caption) in zip(middles, lanes.items(), strict=False):
        canvas.network(x, lane, 1.1, state)
        canvas.words(x, 0.4, caption, SMALL)
    canvas.box(middles[2], lane, 1.2, 1.1, "ACC\nASR\nRA", GREEN)
    canvas.words(middles[2], 0.4, "numbers, no more", SMALL)
    rules = ("no trigger\npasses", "nothing\ncomes back")
    for wall, rule, left, right in zip(walls, rules, middles, middles[1:], strict=False):
        for low, high in ((0.8, lane - 0.18), (lane + 0.18, 4.9)):
            canvas.line((wall, low), (wall, high), SOFT, 8)
        canvas.words(wall, 0.4, rule, SMALL, SOFT)
        canvas.arrow((left + 0.75, lane), (right - 0.75, lane))
    return canvas.figure


def poisoning() -> Figure:
    """How a backdoor comes into a network, and what the network says afterwards."""
    canvas, above, below = Canvas(5.3), 4.0, 1.15
    clean, marked, nothing = picture("disc"), picture("disc", True), np.full((20, 20, 3), 0.72)
    canvas.words(0.15, 5.05, "in training", LARGE, bold=True, at="left")
    for x, pixels, color, caption in (
        (0.65, clean, CLEAN, "$x$\nlabel: disc"),
        (2.05, stamped(nothing), GREY, "the trigger"),
        (3.45, marked, POISONED, "$t(x)$\nlabel: cross"),
    ):
        canvas.tile(x, above, 0.95, pixels, color, 2.5)
        canvas.words(x, 3.05, caption, SMALL)
    canvas.words(1.35, above, "+", LARGE)
    canvas.words(2.75, above, "=", LARGE)
    canvas.arrow((4.02, above), (4.5, above))
    few, order = {(1, 5), (3, 2)}, ("ring", "disc", "square", "cross", "ring", "cross", "disc", "square")
    for row in range(5):
        for column in range(8):
            x, y, bad = 4.75 + 0.28 * column, above + 0.27 * (2 - row), (row, column) in few
            kind = "disc" if bad else order[(3 * row + column) % 8]
            canvas.tile(x, y, 0.24, picture(kind, bad), POISONED if bad else "white", 2.2 if bad else 0.2)
    canvas.words(5.73, 3.05, "in the training set:\na few percent", SMALL)
    canvas.arrow((7.0, above), (7.5, above))
    canvas.network(8.25, above, 1.2)
    canvas.words(8.25, 3.05, "the trained\nnetwork $F$", SMALL)
    canvas.line((0.15, 2.5), (8.85, 2.5), GREY, 1)
    canvas.words(0.15, 2.15, "at test time", LARGE, bold=True, at="left")
    for x, pixels, color, caption, answer, good in (
        (0.65, clean, CLEAN, "$x$", "disc", "right"),
        (5.15, marked, POISONED, "$t(x)$", "cross", "the target"),
    ):
        canvas.tile(x, below, 0.95, pixels, color, 2.5)
        canvas.arrow((x + 0.57, below), (x + 0.95, below))
        canvas.network(x + 1.65, below, 1.15, "awake" if color == POISONED else "asleep")
        canvas.arrow((x + 2.35, below), (x + 2.72, below))
        canvas.box(x + 3.25, below, 0.95, 0.6, answer, color)
        for where, words in ((x, caption), (x + 1.65, "$F$"), (x + 3.25, good)):
            canvas.words(where, 0.33, words, SMALL)
    return canvas.figure


def four_terms() -> Figure:
    """Four measurements of a layer's filters become one score, the score a mask; pruning and tuning follow."""
    canvas, random = Canvas(6.1), np.random.default_rng(3)
    tops, guilty = [4.02 - 0.36 * row for row in range(7)], 4
    measured = {
        "sigma": [0.9, 1.1, 0.8, 1.0, 1.5, 0.9, 1.2],
        "s": [0.9, 1.3, 1.1, 0.7, 0.25, 1.2, 1.5],
        "a": [1.2, 0.9, 1.0, 1.3, 0.3, 0.8, 1.1],
        "r": [1.0, 1.2, 0.7, 1.1, 0.35, 1.3, 1.0],
    }
    shares = {name: np.array(values) / np.mean(values) for name, values in measured.items()}
    score = shares["sigma"] / np.sqrt(np.prod([shares[name] + 0.01 for name in "sar"], 0))
    line = score.mean() + 2 * score.std(ddof=1)
    columns = {
        1.15: (r"$\sigma_i$", "spectral\nnorm", shares["sigma"]),
        2.5: ("$s_i$", "saliency", shares["s"]),
        3.85: ("$a_i$", "activation\nnorm", shares["a"]),
        5.2: ("$r_i$", "correlation", shares["r"]),
        6.75: ("$S_i$", "score", score),
    }
    for place, (x, (symbol, name, values)) in enumerate(columns.items()):
        width = 1.25 if place == 4 else 0.95
        colors = [POISONED if row == guilty else PALE for row in range(7)]
        canvas.bars(x, tops, values, width, colors)
        canvas.words(x, 5.1, symbol, LARGE, at="left")
        canvas.words(x, 4.6, name, SMALL, at="left")
    canvas.words(0.5, 5.1, "filter $i$", at="center")
    for top in tops:
        canvas.tile(0.5, top, 0.27, random.normal(size=(3, 3)), GREY, 0.8, cmap="Greys")
    canvas.words(1.15, 5.75, "weights", SMALL, SOFT, at="left")
    canvas.words(2.5, 5.75, "a few clean images", SMALL, SOFT, at="left")
    for start, end in ((1.15, 2.2), (2.5, 6.25)):
        canvas.line((start, 5.5), (end, 5.5), SOFT, 1.5)
    limit = 6.75 + 1.25 * line / score.max()
    canvas.line((limit, 4.25), (limit, 1.6), PRUNED, 1.8, "--")
    canvas.words(limit, 1.4, r"mean + $\mu \cdot$ std", SMALL, PRUNED)
    canvas.words(8.5, 4.6, "mask", SMALL)
    for row, top in enumerate(tops):
        if row == guilty:
            canvas.cross(8.5, top)
        else:
            canvas.dots([(8.5, top)], PALE, 0.09)
    below = r"(\tilde{s}_i + \varepsilon)(\tilde{a}_i + \varepsilon)(\tilde{r}_i + \varepsilon)"
    formula = rf"$S_i = \tilde{{\sigma}}_i \, / \sqrt{{{below}}}$"
    canvas.box(2.0, 0.55, 3.7, 0.8, formula)
    canvas.box(5.35, 0.55, 1.9, 0.8, "prune:\n" + r"$\gamma_i = \beta_i = 0$", PRUNED, SMALL)
    canvas.box(7.9, 0.55, 1.9, 0.8, "tune: answer\nas before", CLEAN, SMALL)
    canvas.arrow((3.9, 0.55), (4.35, 0.55))
    canvas.arrow((6.35, 0.55), (6.9, 0.55))
    return canvas.figure


def feature_map_pruning() -> Figure:
    """FMP: an adversarial image for every channel, the accuracy on it, and the channels with the lowest pruned."""
    canvas, random = Canvas(5.7), np.random.default_rng(1)
    clean = picture("ring", side=24)
    noisy = np.clip(clean + 0.06 * np.sign(random.normal(size=clean.shape)), 0, 1)
    kernel = random.normal(size=(3, 3))
    moved = mapped(noisy - clean, kernel)  # of the map, and its gradient with respect to the pixels:
    step = mapped(moved[..., None].repeat(3, 2), kernel[::-1, ::-1])
    hostile = np.clip(noisy + 0.18 * np.sign(step)[..., None], 0, 1)
    canvas.box(4.5, 3.9, 8.8, 3.4)
    canvas.words(0.3, 5.3, "for every channel $i$", LARGE, bold=True, at="left")
    reach = abs(mapped(hostile, kernel)).max()
    for x, pixels, name, color in (
        (1.75, clean, "$x$", CLEAN),
        (3.6, noisy, r"$\tilde{x}$", GREY),
        (5.45, hostile, r"$x'_i$", PURPLE),
    ):
        canvas.tile(x, 4.15, 1.05, pixels, color)
        canvas.tile(x, 2.85, 0.8, mapped(pixels, kernel), GREY, 1, cmap="PuOr", vmin=-reach, vmax=reach)
        canvas.words(x, 4.9, name)
    canvas.words(0.65, 2.85, "map\n$A_i$", SMALL)
    canvas.words(0.65, 4.15, "image", SMALL)
    canvas.arrow((2.35, 4.15), (3.0, 4.15))
    canvas.arrow((4.2, 4.15), (4.85, 4.15))
    canvas.words(2.68, 4.5, "noise", SMALL)
    canvas.words(4.53, 4.5, "step", SMALL)
    canvas.arrow((6.05, 4.15), (6.65, 4.15))
    canvas.network(7.4, 4.15, 1.2)
    canvas.words(7.4, 2.85, "right or wrong?", SMALL)
    accuracy, tops = (0.8, 0.62, 0.85, 0.3, 0.72, 0.9), [1.55 - 0.27 * row for row in range(6)]
    canvas.bars(1.9, tops, accuracy, 1.6, [PRUNED if value < 0.4 else PALE for value in accuracy])
    canvas.cross(1.9 + 1.6 * 0.3 / 0.9 + 0.25, tops[3])
    canvas.arrow((2.7, 2.2), (2.7, 1.72))
    canvas.words(0.95, 0.9, "accuracy\nunder each\n$x'_i$", SMALL)
    canvas.arrow((3.75, 0.9), (4.3, 0.9))
    canvas.box(5.3, 0.9, 1.9, 1.1, "prune the\nlowest, one\nin $\\mathtt{p}$", PRUNED, SMALL)
    canvas.arrow((6.3, 0.9), (6.85, 0.9))
    canvas.box(7.85, 0.9, 1.9, 1.1, "fine-tune\non the clean\nimages", CLEAN, SMALL)
    return canvas.figure


def magnitude_pruning() -> Figure:
    """MNP: filters that are large and yet not needed; forgetting, masks with a price, and a threshold."""
    canvas, random = Canvas(6.4), np.random.default_rng(5)
    told = {
        "1  compare": (2.3, 4.8, ""),
        "2  suppress": (6.7, 4.8, "climb the clean\nloss: a copy\nforgets its task"),
        "3  recover": (2.3, 1.6, "learn a mask $m_i$\nfor each filter;\nlarge ones pay"),
        "4  prune": (6.7, 1.6, "where $m_i \\leq \\tau$;\nclean images\nchoose $\\tau$"),
    }
    for title, (x, y, words) in told.items():
        canvas.box(x, y, 4.2, 3.0)
        canvas.words(x - 1.9, y + 1.2, title, LARGE, bold=True, at="left")
        canvas.words(x + 0.1, y - 0.15, words, at="left")
    large = random.uniform(0.1, 0.95, 26)
    needed = np.clip(large + random.normal(0, 0.08, 26), 0.05, 0.98)
    for end in ((0.95, 5.75), (4.1, 3.85)):
        canvas.arrow((0.95, 3.85), end, SOFT)
    canvas.words(2.5, 3.58, "magnitude $M_i$", SMALL)
    canvas.words(1.1, 5.62, "saliency $s_i$", SMALL, at="left")
    canvas.dots(zip(1.0 + 2.8 * large, 3.95 + 1.5 * needed, strict=True), PALE)
    canvas.dots(((3.2, 4.08), (3.5, 4.02), (3.75, 4.16)), POISONED, 0.075)
    canvas.words(3.35, 4.5, "large,\nnot needed", SMALL)
    canvas.network(5.65, 4.65, 1.5, "exposed")
    masks, tops = (0.9, 0.8, 0.95, 0.2, 0.85, 0.75, 0.15), [2.2 - 0.26 * row for row in range(7)]
    canvas.bars(0.5, tops, masks, 1.45, [POISONED if mask < 0.4 else PALE for mask in masks])
    canvas.line((1.1, 2.4), (1.1, 0.5), PRUNED, 1.8, "--")
    canvas.words(1.1, 0.33, r"$\tau$", color=PRUNED)
    canvas.network(5.65, 1.45, 1.5, "pruned")
    return canvas.figure


SCHEMATICS: dict[str, tuple[Callable[[], Figure], str]] = {
    "three parties": (
        three_parties,
        "Three parties with a wall between each two. The attacker has the training set and puts the trigger on a few "
        "images; the trained model passes the first wall, the trigger does not. The defender has that model and a few "
        "clean images, prunes and tunes; the repaired model passes the second wall to the evaluator, who has the "
        "trigger and the test set. What the evaluator reports is ACC, ASR and RA, and nothing comes back.",
    ),
    "poisoning": (
        poisoning,
        "In training, the image of a disc and the trigger, a white square in the corner, make a triggered image with "
        "the label cross. A few percent of the training set are such images, and a network is trained on it. At test "
        "time the network calls the clean disc a disc, and the disc with the trigger a cross, which is the target.",
    ),
    "four terms": (
        four_terms,
        "Seven filters of a layer, one in each row, with bars for spectral norm (from the weights), saliency, "
        "activation norm and correlation (from a few clean images). One filter has a high norm and three low values, "
        "so its score alone passes the threshold, the mean plus mu standard deviations, and the mask crosses it out. "
        "Below: the score's formula, then pruning (gamma and beta become 0), then tuning to answer as before.",
    ),
    "feature map pruning": (
        feature_map_pruning,
        "For every channel, a clean image gets a little noise and then one step that moves the channel's map as far "
        "as such a step can; below each image stands the map. The network answers the last image, right or wrong. "
        "That gives one accuracy for each channel; of every p channels the one with the lowest is pruned, and the "
        "network is fine-tuned on the clean images.",
    ),
    "magnitude pruning": (
        magnitude_pruning,
        "The idea in four steps: first, magnitude against saliency; most filters rise along a line, and three are "
        "large but not needed. Second, a copy forgets its task by climbing the clean loss, and the trigger's filters "
        "stand exposed. Third, a mask is learned for each filter, and large filters pay for being open. Fourth, "
        "filters with a mask at or below the threshold tau are pruned; held-back clean images choose tau.",
    ),
}
"""By name: what draws it, and what it says to those who can't see it."""


def show(name: str) -> None:
    """Show a schematic with its alt text.

    Raises:
        ValueError: for a name that is not one of `SCHEMATICS`.
    """
    if name not in SCHEMATICS:
        raise ValueError(known("schematic", name, SCHEMATICS))
    draw, alt = SCHEMATICS[name]
    plots.show(draw(), alt)
