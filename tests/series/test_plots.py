"""Every figure on tiny input: drawn without a warning, shown with words for those who can't see it, and closed."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tiny import pictures

from nbtools.defender.pruning import threshold
from nbtools.series import plots


def drawn(seed: int) -> dict[str, torch.Tensor]:
    """Scores of four layers; one layer has equal scores, one a single filter."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"conv1": 12, "layer1.0.conv1": 12, "layer1.0.conv2": 6, "fc": 1}
    scores = {name: torch.rand(size, dtype=torch.float64, generator=generator) for name, size in sizes.items()}
    return {**scores, "layer1.0.conv2": torch.full((6,), 0.1, dtype=torch.float64)}


SCORES, TAC = drawn(0), drawn(1)
MASK = threshold(SCORES, 1)
IMAGES = pictures(5)
TABLE = {name: {"spearman": 0.5, "precision": 0.4, "chance": 0.1} for name in SCORES}
ROWS = pd.DataFrame({"model": ["a", "a", "b", "b"], "mu": [2, 3, 2, 3], "acc": [80, 90, 79, 91], "asr": [1, 2, 3, 99]})
STAGES = pd.DataFrame(
    {"model": list("aabb"), "stage": ["before", "after"] * 2, "acc": 90.0, "asr": [99, 2, 98, 3], "draw": 0}
)
START = {"a": {"acc": 92, "asr": 100}, "b": {"acc": 91, "asr": 98}}
BEFORE, AFTER = torch.zeros(5, dtype=torch.int64), IMAGES.labels

EXAMPLES: dict[str, list[Callable[[], Figure]]] = {
    "image_grid": [
        lambda: plots.image_grid(IMAGES.images, columns=3),
        lambda: plots.image_grid(IMAGES.floats(), list("vwxyz"), 2, "A finding", ["red"] * 5),
    ],
    "trigger_magnified": [
        lambda: plots.trigger_magnified(IMAGES.floats()[0], IMAGES.floats()[1], "A finding"),
        lambda: plots.trigger_magnified(IMAGES.floats()[0], IMAGES.floats()[0], "Nothing changes", gain=3),
    ],
    "score_against_tac": [
        lambda: plots.score_against_tac(SCORES, TAC, list(SCORES), "score", "A finding", columns=2),
        lambda: plots.score_against_tac(SCORES, TAC, ["conv1"], "score", "A finding"),
    ],
    "agreement_by_layer": [lambda: plots.agreement_by_layer({"sigma": TABLE, "all four": TABLE}, "A finding")],
    "score_distribution": [
        lambda: plots.score_distribution(SCORES, MASK, 1, "A finding", TAC),
        lambda: plots.score_distribution(SCORES, threshold({}, 1), 1, "A finding"),
    ],
    "pruning_sweep": [lambda: plots.pruning_sweep(ROWS, START, "A finding")],
    "before_after": [
        lambda: plots.before_after(STAGES, "A finding"),
        lambda: plots.before_after(STAGES, "A finding", hue="draw", panel="model"),
    ],
    "lines_by_layer": [lambda: plots.lines_by_layer({"one": {"conv1": 0.3, "fc": -0.2}}, "share", "A finding")],
    "flipped": [
        lambda: plots.flipped(IMAGES, BEFORE, AFTER, "A finding"),
        lambda: plots.flipped(IMAGES, AFTER, AFTER, "A finding"),
    ],
}


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """The series' style for one test, and nothing left open after it."""
    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")


def test_every_figure_has_an_example() -> None:
    functions = inspect.getmembers(plots, inspect.isfunction)
    figures = {name for name, function in functions if inspect.signature(function).return_annotation == "Figure"}
    assert figures == set(EXAMPLES)


@pytest.mark.parametrize(
    "draw", [pytest.param(draw, id=f"{name}-{k}") for name, draws in EXAMPLES.items() for k, draw in enumerate(draws)]
)
def test_a_figure_is_drawn_without_a_warning_shown_with_its_alt_text_and_closed(
    draw: Callable[[], Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[SimpleNamespace] = []

    def display(data: dict[str, Any], **options: Any) -> None:
        shown.append(SimpleNamespace(data=data, **options))

    monkeypatch.setattr(IPython.display, "display", display)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw()
        assert isinstance(figure, Figure)
        plots.show(figure, "what is to be seen")
    (output,) = shown
    assert output.raw and output.data["image/png"].startswith(b"\x89PNG")
    assert output.data["text/plain"] == output.metadata["image/png"]["alt"] == "what is to be seen"
    assert plt.get_fignums() == []


def texts(figure: Figure) -> list[str]:
    return [text for axis in figure.axes if (text := axis.get_title(loc="center"))]


def test_flipped_shows_the_predictions_that_turned_right_and_no_others() -> None:
    before = torch.tensor([0, 0, 0, 3, 0])  # true classes: red, green, blue, grey, red
    after = torch.tensor([0, 1, 3, 3, 0])
    assert texts(plots.flipped(IMAGES, before, after, "A finding")) == ["red →\ngreen"]
    assert len(texts(plots.flipped(IMAGES, BEFORE, AFTER, "A finding", count=2))) == 2


def test_scores_stand_at_their_distance_from_the_mean_and_pruned_ones_in_red() -> None:
    figure = plots.score_distribution({"conv1": SCORES["conv1"]}, MASK, 1, "A finding")
    dots = figure.axes[0].collections[:2]  # first the kept filters, then the pruned ones
    score, pruned = SCORES["conv1"], MASK.pruned["conv1"]
    z = (score - score.mean()) / score.std()
    for dot, chosen, color in zip(dots, (~pruned, pruned), (plots.BLUE, plots.PRUNED), strict=True):
        assert np.asarray(dot.get_offsets())[:, 1].tolist() == pytest.approx(z[chosen].tolist())
        assert np.asarray(dot.get_facecolor())[0, :3].tolist() == pytest.approx(to_rgb(color))
    assert [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines] == [[1, 1]]


def test_equal_scores_have_no_rank_correlation() -> None:
    titles = [a.get_title(loc="left") for a in plots.score_against_tac(SCORES, TAC, list(SCORES), "s", "t").axes]
    assert [title for title in titles if "no rank corr." in title] == [
        "layer1.0.conv2  (no rank corr.)",
        "fc  (no rank corr.)",
    ]


def test_heat_labels_every_cell() -> None:
    _, axis = plt.subplots()
    plots.heat(axis, pd.DataFrame([[1, 22], [33, 100]]), "percent")
    assert [text.get_text() for text in axis.texts] == ["1", "22", "33", "100"]


def test_lines_by_layer_draws_every_layer_in_order() -> None:
    figure = plots.lines_by_layer(
        {"a": {"l1": 0.2, "l2": 0.4}, "b": {"l1": 0.5, "l2": -0.1}}, "share", "t", legend="who"
    )
    (axis,) = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axis.lines] == [[0.2, 0.4], [0.5, -0.1]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]  # type: ignore[union-attr]
    assert axis.get_ylim()[0] <= -0.1 and axis.get_ylabel() == "share"
