"""Every figure of the series, in one style: white ground, colour-blind palette, a title that states the finding."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from nbtools.data.images import Images
from nbtools.defender.pruning import Mask

BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = sns.color_palette("colorblind", 10).as_hex()
LINES = (GREEN, PURPLE, BROWN, PINK)
CLEAN, POISONED, PRUNED = BLUE, ORANGE, RED
"""What a colour means, everywhere: the clean model, the poisoned model, what is pruned."""


def style() -> None:
    """Set the series' look; `show` needs it once a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update(
        {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
         "axes.titleweight": "bold", "figure.titleweight": "bold", "figure.titlesize": "medium",
         "figure.constrained_layout.use": True, "svg.hashsalt": "nbtools"}
    )  # fmt: skip


def show(figure: Figure, alt: str) -> None:
    """Display a figure with an `alt` text for those who can't see it, and close it."""
    from IPython.display import display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    display({"image/png": buffer.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def pixels(image: Tensor) -> np.ndarray:
    """uint8 or [0, 1] float `[3, h, w]` to what `imshow` takes."""
    return image.detach().cpu().permute(1, 2, 0).numpy()


def _frame(axis: Axes, color: str = GREY, width: float = 0.5) -> None:
    """Frame a picture: a white patch at its edge must not melt into the page."""
    for spine in axis.spines.values():
        spine.set(visible=True, color=color, linewidth=width)


def image_grid(
    images: Tensor,
    titles: Sequence[str] = (),
    columns: int = 8,
    title: str = "",
    edges: Sequence[str] = (),
    size: float = 1.15,
) -> Figure:
    """Images side by side.

    Args:
        images: uint8 or float `[n, 3, h, w]`.
        titles: one a picture, or none.
        columns: pictures a row.
        title: the finding.
        edges: a colour a picture for its frame, or none.
        size: inches a picture.
    """
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0)
    height = rows * (0.97 * size + 0.17 * lines) + (0.4 if title else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, height), squeeze=False)
    for number, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
        if number >= len(images):
            continue
        axis.imshow(pixels(images[number]), interpolation="nearest")
        if titles:
            axis.set_title(titles[number], fontsize=8, fontweight="normal", loc="center", pad=2)
        _frame(axis, edges[number] if edges else GREY, 2.5 if edges else 0.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def trigger_magnified(clean: Tensor, triggered: Tensor, title: str, gain: float = 0.0) -> Figure:
    """One image before and after, what changed (amplified), and the corner where the patch sits.

    Args:
        clean, triggered: float `[3, h, w]` in [0, 1].
        title: the finding.
        gain: how far the change is amplified; 0 fills the range.
    """
    change = triggered - clean
    gain = gain or float(0.5 / change.abs().amax().clamp_min(1e-6))
    zoom = slice(-10, None)
    panels = [
        (clean, "clean"),
        (triggered, "with the trigger"),
        ((0.5 + gain * change).clamp(0, 1), f"the change, x {gain:.1f}"),
        (clean[:, zoom, zoom], "clean, corner"),
        (triggered[:, zoom, zoom], "triggered, corner"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 2.5))
    for axis, (picture, name) in zip(axes, panels, strict=True):
        axis.imshow(pixels(picture), interpolation="nearest")
        axis.set_title(name, fontweight="normal", fontsize=9, loc="center")
        axis.set(xticks=[], yticks=[])
        _frame(axis)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def score_against_tac(
    scores: Mapping[str, Tensor],
    tac: Mapping[str, Tensor],
    layers: Sequence[str],
    name: str,
    title: str,
    columns: int = 4,
) -> Figure:
    """One small scatter a layer: each point a filter, its score against what the trigger really changes.

    Args:
        scores: convolution name to `[filters]`.
        tac: trigger-activated change, same shapes.
        layers: which convolutions, in order.
        name: of the score, for the axis.
        title: the finding.
        columns: panels a row.
    """
    rows = -(-len(layers) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.3 * rows + 0.4), squeeze=False)
    for axis in list(axes.flat)[len(layers) :]:
        axis.axis("off")
    for axis, layer in zip(axes.flat, layers, strict=False):
        x, y = tac[layer].cpu().numpy(), scores[layer].cpu().numpy()
        axis.scatter(x, y, s=14, color=BLUE, alpha=0.7, linewidth=0)
        axis.set_title(f"{layer}  ({_rank_correlation(x, y)})", fontsize=8.5, fontweight="normal")
    figure.supxlabel("trigger-activated change, TAC (evaluator only)", fontsize=10)
    figure.supylabel(name, fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's rank correlation for a title; equal values have no ranks."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "no rank corr."
    return f"rank corr. {spearmanr(x, y).statistic:+.2f}"  # type: ignore[attr-defined]


def agreement_by_layer(tables: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Figure:
    """Rank correlation and precision at k with TAC, a line a score, along the layers.

    Args:
        tables: the score's name to what `nbtools.evaluator.agreement.agreement` returns.
        title: the finding.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9), sharex=True)
    for number, (name, table) in enumerate(tables.items()):
        style_of = {"marker": "o", "ms": 4, "color": sns.color_palette("colorblind")[number], "label": name}
        axes[0].plot(list(table), [row["spearman"] for row in table.values()], **style_of)
        axes[1].plot(list(table), [row["precision"] for row in table.values()], **style_of)
    last = list(tables.values())[-1]
    axes[1].plot(list(last), [row["chance"] for row in last.values()], color=GREY, ls=":", label="by chance")
    axes[0].axhline(0, color=GREY, lw=1)
    for axis, label in zip(axes, ("rank correlation with TAC", "share of TAC's top ten"), strict=True):
        axis.set_ylabel(label)
        axis.tick_params(axis="x", labelrotation=90, labelsize=8)
    figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right center")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def score_distribution(
    scores: Mapping[str, Tensor], mask: Mask, mu: float, title: str, truth: Mapping[str, Tensor] | None = None
) -> Figure:
    """Every filter's score in standard deviations above its layer's mean, with the threshold.

    Args:
        scores: convolution name to `[filters]`.
        mask: what is pruned.
        mu: the threshold.
        title: the finding.
        truth: TAC; where given, the three filters of each layer that the trigger moves most are ringed.
    """
    figure, axis = plt.subplots(figsize=(10.5, 4))
    rng = np.random.default_rng(0)
    for column, (name, score) in enumerate(scores.items()):
        spread = len(score) > 1 and bool(score.amax() > score.amin())
        z = ((score - score.mean()) / score.std() if spread else torch.zeros_like(score)).cpu().numpy()
        x = column + rng.uniform(-0.25, 0.25, len(z))
        gone = mask.pruned[name].cpu().numpy() if name in mask.pruned else np.zeros(len(z), bool)
        axis.scatter(x[~gone], z[~gone], s=9, color=BLUE, alpha=0.45, linewidth=0)
        axis.scatter(x[gone], z[gone], s=24, color=PRUNED, marker="X", linewidth=0)
        if truth:
            top = truth[name].cpu().topk(min(3, len(z))).indices.numpy()
            axis.scatter(x[top], z[top], s=70, facecolor="none", edgecolor="black", linewidth=0.9)
    axis.axhline(mu, color=PRUNED, ls="--", lw=1)
    axis.text(1.005, mu, f"mu = {mu:g}", transform=axis.get_yaxis_transform(), color=PRUNED, fontsize=9, va="center")
    axis.set_xticks(range(len(scores)), list(scores), rotation=90, fontsize=8)
    ringed = "  (ringed: the three filters that the trigger moves most)" if truth else ""
    axis.set(title=title, xlabel="layer" + ringed, ylabel="score, standard deviations\nabove the layer's mean")
    return figure


def pruning_sweep(rows: pd.DataFrame, before: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """ACC and ASR (columns `model`, `mu`, `acc`, `asr`, in percent) against mu, one panel a model.

    Args:
        rows: what pruning at each mu left.
        before: the model's name to its ACC and ASR before pruning, drawn as dotted lines.
        title: the finding.
    """
    figure, axes = plt.subplots(1, len(before), figsize=(5 * len(before), 3.4), sharey=True, squeeze=False)
    for axis, (name, start) in zip(axes[0], before.items(), strict=True):
        part = rows[rows["model"] == name]
        for column, mark, color in (("acc", "o-", CLEAN), ("asr", "s-", POISONED)):
            axis.plot(part["mu"], part[column], mark, color=color, label=f"{column.upper()} after pruning")
            axis.axhline(start[column], color=color, ls=":", lw=1.2, label=f"{column.upper()} before")
        axis.set(title=name, xlabel="mu", ylabel="percent" if axis is axes[0, 0] else "", ylim=(-3, 103))
        axis.set_xticks(sorted(set(part["mu"])))
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center right")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def before_after(table: pd.DataFrame, title: str, hue: str = "model", panel: str = "") -> Figure:
    """ACC and ASR (columns `acc`, `asr`, in percent) at each `stage`, one line a value of `hue`; bars span all draws.

    Where `panel` names a column, each of its values gets panels of its own, ACC above ASR.
    """
    parts = dict(list(table.groupby(panel, sort=False))) if panel else {"": table}
    shape, size = ((2, len(parts)), (2.2 + 2.1 * len(parts), 5.2)) if panel else ((1, 2), (10, 3.6))
    figure, axes = plt.subplots(*shape, figsize=size, sharey="row" if panel else "none")
    look = {"hue": hue, "hue_order": list(dict.fromkeys(table[hue])), "errorbar": ("pi", 100), "capsize": 0.08}
    look |= {"lw": 1.5, "dodge": 0.15 if look["hue_order"][1:] else False}  # seaborn 0.13 divides by zero for one
    limits = {"acc": (table.acc.min() - 4, min(table.acc.max() + 2, 101)), "asr": (-3, 103)}
    labels = {"acc": "clean accuracy (%)", "asr": "attack success rate (%)"}
    for pair, (name, part) in zip(axes.reshape(2, -1).T, parts.items(), strict=True):
        for axis, (column, label) in zip(pair, labels.items(), strict=True):
            sns.pointplot(part, x="stage", y=column, ax=axis, legend=axis is figure.axes[-1], markersize=4, **look)
            axis.set(xlabel="", ylabel=label, ylim=limits[column], title=name if column == "acc" else "")
            if panel:
                axis.tick_params(axis="x", labelrotation=30)
                axis.label_outer()
    figure.axes[-1].legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def flipped(images: Images, before: Tensor, after: Tensor, title: str, count: int = 10) -> Figure:
    """Triggered images whose prediction flips back to the truth: true class, prediction before and after.

    Args:
        images: triggered images with their true labels.
        before, after: predicted classes `[n]`.
        title: the finding.
        count: how many to show.
    """
    back = ((before != images.labels) & (after == images.labels)).nonzero().flatten()[:count]
    if not len(back):
        figure, axis = plt.subplots(figsize=(6, 1))
        axis.text(0, 0.5, "no prediction flipped back")
        axis.axis("off")
        return figure
    names = images.classes
    titles = [f"{names[int(before[i])]} →\n{names[int(after[i])]}" for i in back]
    return image_grid(images.images[back], titles, columns=min(count, 10), title=title)


def heat(
    axis: Axes, table: pd.DataFrame, label: str, form: str = ".0f", limits: Sequence[float | None] = (None, None)
) -> None:
    """A labelled heat map of a small table, percent by default; `limits` are the colour scale's."""
    look = {"cmap": "cividis", "vmin": limits[0], "vmax": limits[1], "linewidths": 0.5, "cbar_kws": {"label": label}}
    sns.heatmap(table, annot=True, fmt=form, ax=axis, **look)


def lines_by_layer(
    lines: Mapping[str, Mapping[str, float]], label: str, title: str, colors: Sequence[str] = LINES, legend: str = ""
) -> Figure:
    """One line over the layers for each name; `label` says what is measured, a share or correlation up to 1."""
    figure, axis = plt.subplots(figsize=(8.5, 3.8))
    for (name, values), color in zip(lines.items(), colors, strict=False):
        axis.plot(list(values), list(values.values()), "o-", ms=4, color=color, label=name)
    axis.set(title=title, ylabel=label, ylim=(min(0, axis.get_ylim()[0]), 1.02))
    axis.tick_params(axis="x", labelrotation=90, labelsize=8)
    axis.legend(frameon=False, fontsize=9, title=legend or None)
    return figure
