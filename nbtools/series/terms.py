"""The walk of notebooks 03 to 05: a term of the score against TAC, as a score of its own, and behind the norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from nbtools.data.images import Images, draw_clean
from nbtools.defender.components import Components, Scores
from nbtools.defender.pruning import Mask, pruned_copy
from nbtools.defender.score import EPSILON, suspiciousness
from nbtools.evaluator.agreement import stability, tac
from nbtools.lab.experiments import Run
from nbtools.lab.trained import Trained
from nbtools.networks.units import Units
from nbtools.series import plots

Agreement = Mapping[str, Mapping[str, float]]
"""What `nbtools.evaluator.agreement.agreement` returns: convolution name to "spearman", "precision" and "chance"."""


def ground_truth(
    models: Sequence[Trained], test: Images, seed: int, samples_per_class: int = 20
) -> tuple[Images, dict[str, Scores]]:
    """What the trigger really moves in each model: the evaluator's TAC, see `nbtools.evaluator.agreement.tac`.

    Args:
        models: of one target class, for instance the poisoned model and its clean twin.
        test: the evaluator's images.
        seed: of the draw from them.
        samples_per_class: how many of each class, at least 1.

    Returns:
        The drawn images without those of the target class; and for each model's name its TAC, convolution name to
        float64 `[filters]`.

    Raises:
        ValueError: where the models have different target classes, or an image is missing for the draw.
    """
    targets = {model.target for model in models}
    if len(targets) != 1:
        raise ValueError(f"TAC leaves out the images of the target class; give models of one target, got {targets}")
    drawn = draw_clean(test, samples_per_class, seed=seed)
    others = drawn.subset(drawn.labels != targets.pop())
    return others, {model.name: tac(model.model, others, model.trigger) for model in models}


def deep_layers(units: Units) -> list[str]:
    """The convolutions of a ResNet's stages 3 and 4 without the shortcuts, in order."""
    return [unit.conv for unit in units if unit.conv.startswith(("layer3", "layer4")) and not unit.shortcut]


def low_is_suspicious(values: Mapping[str, Tensor]) -> Scores:
    """A score from one measurement of which low values are suspicious [ours].

    1 / (z_i / mean over the layer + epsilon), epsilon = 0.01: `nbtools.defender.score.suspiciousness` with this term
    alone and the power -1, but for any measurement.

    Args:
        values: convolution name to `[filters]`, not negative.

    Returns:
        Convolution name to `[filters]`, positive and at most 1 / epsilon, high = suspicious.
    """
    return {name: 1 / (value / value.mean().clamp_min(1e-30) + EPSILON) for name, value in values.items()}


def mean_agreement(tables: Mapping[str, Agreement], layers: Sequence[str]) -> pd.DataFrame:
    """The agreement with TAC of several scores, each averaged over these layers.

    Args:
        tables: the score's name to its agreement by layer.
        layers: convolution names, at least one.

    Returns:
        One row for each score, columns "spearman" in [-1, 1], "precision" and "chance" in [0, 1].

    Raises:
        KeyError: for a layer that a table does not hold.
    """
    return pd.DataFrame({name: pd.DataFrame(table).T.loc[list(layers)].mean() for name, table in tables.items()}).T


def behind_norm(parts: Components, term: str, low: str, high: str) -> dict[str, Scores]:
    """The spectral norm as a score, without another term and with it in either sign, as `suspiciousness` joins them.

    sigma~_i, then sigma~_i * sqrt(1 / (z~_i + epsilon)) and sigma~_i * sqrt(z~_i + epsilon), with z~ = z / mean over
    the layer and epsilon = 0.01 [reconstructed, see `nbtools.defender.score`].

    Args:
        parts: the measurements of one model.
        term: "saliency", "activation" or "correlation".
        low, high: what to call the score that suspects low values of the term, and the one that suspects high values.

    Returns:
        Three scores in this order, the first called "norm alone": convolution name to float64 `[filters]`.

    Raises:
        ValueError: for an unknown term.
    """
    powers = {"norm alone": {"sigma": 1}, low: {"sigma": 1, term: -0.5}, high: {"sigma": 1, term: 0.5}}
    return {name: suspiciousness(parts, power) for name, power in powers.items()}


def prune_by_each(trained: Trained, scores: Mapping[str, Scores], mu: float) -> pd.DataFrame:
    """Prune copies of one model by several scores at the same threshold, see `nbtools.lab.trained.Trained.pruned`.

    Args:
        trained: the model, which stays as it is.
        scores: the rule's name to its score, convolution name to `[filters]`, high = suspicious.
        mu: the threshold, standard deviations above the layer's mean.

    Returns:
        One row for each rule: pruned (filters), acc, asr, ra (percent).
    """
    rows = [{"rule": name, **trained.pruned(score, mu)} for name, score in scores.items()]
    return pd.DataFrame(rows).set_index("rule").drop(columns=["model", "mu"])


def prune_in_parts(trained: Trained, mask: Mask, truth: Scores) -> pd.DataFrame:
    """Which of the pruned filters do the work? A mask as a whole, and the two parts into which TAC divides it.

    Args:
        trained: the model, which stays as it is.
        mask: the filters that are pruned.
        truth: the model's TAC, see `ground_truth`.

    Returns:
        Three rows, each a copy of the model at a glance: "all", "those that the trigger moves" (among the quarter of
        their layer with the highest TAC) and "the others"; with pruned (filters), acc, asr, ra (percent).
    """
    loud = {name: change >= change.quantile(0.75) for name, change in truth.items()}
    parts = {
        "all": mask.pruned,
        "those that the trigger moves": {name: gone & loud[name] for name, gone in mask.pruned.items()},
        "the others": {name: gone & ~loud[name] for name, gone in mask.pruned.items()},
    }
    rows = {}
    for who, pruned in parts.items():
        part = Mask(pruned)
        rows[who] = {"pruned": part.count} | trained.glance(pruned_copy(trained.model, part)).row()
    found = pd.DataFrame(rows).T.rename_axis("pruned are")
    return found.astype({"pruned": int})


def who_does_the_work(parts: pd.DataFrame, before: float) -> str:
    """What `prune_in_parts` says, in words.

    Args:
        parts: its table.
        before: ASR before pruning, percent. To work means: to leave less than half of it.

    Returns:
        Whole sentences with the table's numbers.
    """
    whole, moved, others = (row for _, row in parts.iterrows())
    share = 100 * moved.pruned / max(whole.pruned, 1)
    told = (
        f"Of the {whole.pruned:.0f} pruned filters the trigger moves {moved.pruned:.0f}, which is {share:.0f} % (by "
        f"chance it would be 25 %). Pruned alone, these leave an ASR of {moved.asr:.1f} %, and the other "
        f"{others.pruned:.0f} leave {others.asr:.1f} %. "
    )
    if whole.asr >= before / 2:
        return told + "So most of the backdoor stands on filters below the threshold."
    if moved.asr >= before / 2 and others.asr >= before / 2:
        return told + "So neither part is enough by itself: the backdoor goes only when both are pruned."
    if others.asr >= before / 2:
        return told + (
            "So those that the trigger moves do the work, and it is enough that some of them are at the top. The rank "
            "correlation cannot see that: it looks at the order of all filters."
        )
    if moved.asr >= before / 2:
        return told + (
            "So it is not the filters with the highest TAC that do the work: TAC alone does not tell on which filters "
            "a backdoor depends."
        )
    return told + "So each part is enough by itself: the backdoor depends on filters in both."


def redrawn(
    run: Run, measure: Callable[[Images], Scores], amounts: Sequence[int], draws: int
) -> dict[str, dict[str, float]]:
    """How alike several draws of clean images rank the filters, for each number of images.

    Args:
        run: draws the defender's images.
        measure: images to convolution name to `[filters]`.
        amounts: images of each class, at least 1.
        draws: how many draws to compare, at least 2.

    Returns:
        "10 a class" and so on to `nbtools.evaluator.agreement.stability`: convolution name to a number in [-1, 1].

    Raises:
        ValueError: for fewer than two draws, or more images than the defender has.
    """
    return {
        f"{number} a class": stability([measure(run.draw(number, draw=draw)) for draw in range(draws)])
        for number in amounts
    }


def show_against_tac(
    scores: Mapping[str, Tensor], truth: Mapping[str, Tensor], layers: Sequence[str], what: str, title: str
) -> None:
    """Show what `low_is_suspicious` makes of a measurement against TAC, one scatter plot for each layer.

    Args:
        scores: convolution name to `[filters]`.
        truth: TAC, same shapes.
        layers: which convolutions, in order.
        what: the measurement in one word, "saliency".
        title: the finding.
    """
    plots.show(
        plots.score_against_tac(scores, truth, layers, f"1 / ({what} / mean + {EPSILON:g})", title),
        f"Scatter plots, one for each layer of stages three and four: TAC across, the inverse of the {what} upwards.",
    )


def show_agreement(tables: Mapping[str, Agreement], title: str) -> None:
    """Show the agreement of several scores with TAC along the layers; see `nbtools.series.plots.agreement_by_layer`."""
    plots.show(
        plots.agreement_by_layer(tables, title),
        "Two line charts over the layers: rank correlation with TAC, and precision among the top ten.",
    )


def show_sweep(sweep: pd.DataFrame, models: Sequence[Trained], title: str) -> None:
    """Show what pruning at several thresholds left of each model: first as a table, then as a figure.

    Args:
        sweep: rows of `nbtools.lab.trained.Trained.pruned`: model, mu, pruned (filters), acc, asr (percent).
        models: those that were pruned, the poisoned one and its clean twin.
        title: the finding, for the figure.
    """
    from IPython.display import display

    display(sweep.pivot(index="mu", columns="model", values=["acc", "asr", "pruned"]).round(1))
    before = {model.name: model.before_at_a_glance.row() for model in models}
    plots.show(
        plots.pruning_sweep(sweep, before, title),
        "ACC and ASR against mu for the poisoned model and the clean twin.",
    )


def show_redrawn(
    lines: Mapping[str, Mapping[str, float]],
    title: str,
    alt: str,
    colors: Sequence[str] = plots.LINES,
    legend: str = "",
) -> None:
    """Show how alike several draws of clean images rank the filters, along the layers, and print each line's mean.

    Args:
        lines: a name to what `nbtools.evaluator.agreement.stability` returns.
        title: the finding.
        alt: the figure in words.
        colors: one for each line.
        legend: what the names are.
    """
    plots.show(plots.lines_by_layer(lines, "rank correlation between draws", title, colors, legend), alt)
    print("mean over the layers:  " + "  ".join(f"{name} {pd.Series(v).mean():.2f}" for name, v in lines.items()))


def strip_with_rings(
    axis: Axes,
    values: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    color: str,
    shift: float = 0.0,
    spread: float = 0.5,
    label: str | None = None,
) -> None:
    """Draw each filter as a dot over its layer, with a ring at the three of each layer that the trigger moves most.

    Args:
        axis: where to draw.
        values: convolution name to `[filters]`.
        truth: TAC, same shapes; a layer has at least three filters.
        color: of the dots.
        shift: how far to the right of the layer's place, 1 being the next layer's.
        spread: width of the strip, in the same unit.
        label: of the dots, for the legend.
    """
    generator = torch.Generator().manual_seed(0)
    for column, (name, value) in enumerate(values.items()):
        height, top = value.cpu(), truth[name].cpu().topk(3).indices
        across = column + shift + spread * (torch.rand(len(height), generator=generator) - 0.5)
        axis.scatter(across, height, s=8, color=color, alpha=0.4, linewidth=0, label=label if column == 0 else None)
        axis.scatter(across[top], height[top], s=55, facecolor="none", edgecolor="black", linewidth=0.9)
    axis.set_xticks(range(len(values)), list(values), rotation=90, fontsize=8)
