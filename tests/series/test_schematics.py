"""Every schematic: drawn without a warning, no word on top of anything, large enough to read, with an alt text."""

import inspect
import re
import warnings
from itertools import combinations, pairwise
from typing import Any

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from nbtools.series import drawing, plots, schematics

each_schematic = pytest.mark.parametrize("name", schematics.SCHEMATICS)

Things = list[tuple[str, Bbox]]


def drawn(name: str) -> Figure:
    return schematics.SCHEMATICS[name][0]()


def parts(figure: Figure) -> tuple[Things, Things, Things]:
    """Words, boxes and all else, each with the rectangle that it covers, in pixels; a line comes in short pieces."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (axes,) = canvas.get_renderer(), figure.axes
    words = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
    boxes, rest = [], [("picture", image.get_window_extent(renderer)) for image in axes.images]
    for patch in axes.patches:
        if isinstance(patch, FancyBboxPatch):
            boxes.append((f"box at {patch.get_x():.1f}, {patch.get_y():.1f}", patch.get_window_extent(renderer)))
        elif patch.get_fill():
            rest.append((type(patch).__name__, patch.get_window_extent(renderer)))
    for line in axes.lines:
        half = line.get_linewidth() / 2 * figure.dpi / 72
        path = np.asarray(line.get_path().interpolated(20).transformed(line.get_transform()).vertices)
        rest += [("line", Bbox([np.minimum(*ends) - half, np.maximum(*ends) + half])) for ends in pairwise(path)]
    return words, boxes, rest


def meet(one: Bbox, other: Bbox) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def within(one: Bbox, other: Bbox, gap: float) -> bool:
    room = other.padded(-gap)
    return one.x0 >= room.x0 and one.x1 <= room.x1 and one.y0 >= room.y0 and one.y1 <= room.y1


def collisions(figure: Figure) -> list[str]:
    """What lies on top of what: words on words or on anything drawn, or across the edge of a box or of the page."""
    words, boxes, rest = parts(figure)
    page = Bbox.from_bounds(0, 0, *figure.canvas.get_width_height())
    found = [f"{a!r} on {b!r}" for (a, one), (b, two) in combinations(words, 2) if meet(one, two)]
    found += [f"{a!r} on a {b}" for a, one in words for b, two in rest if meet(one, two)]
    found += [f"{a!r} crosses the {b}" for a, one in words for b, two in boxes
              if meet(one, two) and not within(one, two, 3)]  # fmt: skip
    found += [f"{a} on {b}" for (a, one), (b, two) in combinations(boxes, 2) if meet(one, two)]
    found += [f"{a!r} leaves the page" for a, one in words + boxes + rest if not within(one, page, 1)]
    return found


@each_schematic
def test_no_word_lies_on_anything_or_leaves_its_box_or_the_page(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = drawn(name)
    assert collisions(figure) == []


def test_words_that_collide_are_found() -> None:
    canvas = drawing.Canvas(3, 4)
    canvas.box(2, 2, 1, 0.5, "far too long for this box")
    canvas.words(1, 1, "one")
    canvas.words(1.1, 1, "two")
    canvas.words(3, 1, "three")
    canvas.arrow((2.6, 1), (3.2, 1))
    canvas.words(3.9, 0.3, "outside")
    canvas.words(1, 0.4, "struck")
    canvas.line((0.5, 0.2), (1.5, 0.6))
    found = collisions(canvas.figure)
    for part in ("'far too long for this box' crosses", "'one' on 'two'", "'three' on a FancyArrowPatch",
                 "'outside' leaves the page", "'struck' on a line"):  # fmt: skip
        assert any(part in one for one in found), (part, found)


@each_schematic
def test_words_are_large_enough_on_white_and_stand_the_same_under_any_style(name: str) -> None:
    plain = drawn(name)
    assert plain.get_figwidth() == 9
    assert min(float(text.get_fontsize()) for axis in plain.axes for text in axis.texts) >= 9
    assert plain.get_facecolor() == (1, 1, 1, 1)
    with plt.rc_context():
        plots.style()
        styled = drawn(name)
        styled.set_dpi(plain.dpi)
        assert [box.bounds for _, box in parts(styled)[0]] == [box.bounds for _, box in parts(plain)[0]]


@each_schematic
def test_it_is_shown_with_two_to_four_sentences_for_those_who_cannot_see_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **_: shown.append(data))
    schematics.show(name)
    assert shown[0]["image/png"].startswith(b"\x89PNG")
    alt = shown[0]["text/plain"]
    assert alt == schematics.SCHEMATICS[name][1]
    assert 2 <= len(re.findall(r"[a-zA-Z0-9]\.(?: [A-Z]|$)", alt)) <= 4
    assert plt.get_fignums() == []


def test_every_drawing_has_a_name_and_an_unknown_name_is_refused_with_the_known_ones() -> None:
    functions = inspect.getmembers(schematics, inspect.isfunction)
    figures = {function for _, function in functions if inspect.signature(function).return_annotation == "Figure"}
    assert figures == {draw for draw, _ in schematics.SCHEMATICS.values()}
    with pytest.raises(ValueError, match=r"Did you mean four terms\? Known: three parties, poisoning, four terms"):
        schematics.show("four term")
