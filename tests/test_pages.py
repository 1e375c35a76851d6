"""How the notebooks speak to a reader: predictions that are answered, times that are true, little code that draws."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtools.series import notebooks

ROOT = Path(__file__).parent.parent
SOURCES = notebooks.find_sources(ROOT / "notebooks" / "src")
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

WORDS, LINES, FIGURES = 120, 12, 1.5
"""What a student who reads English as a second language takes in: words and lines of code a minute, figures too."""
DRAWING = {"axis", "axes", "figure", "plots", "plt", "sns"}


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def visible_code(source: Path) -> list[str]:
    """What stands open on the page: without parameters and setup, folded cells and those that are removed."""
    cells = [cell for cell in notebooks.read_script(source).cells if cell.cell_type == "code"]
    hidden = {"parameters", "hide-input", "hide-cell", "remove-cell", "remove-input"}
    return [cell.source for cell in cells if not hidden & set(tags(cell))]


@each_source
def test_every_prediction_is_answered_before_the_next_one(source: Path) -> None:
    order = []
    for cell in notebooks.read_script(source).cells:
        if cell.cell_type == "markdown":
            order += ["?"] * len(re.findall(r"\*\*Predict first[.,*]", cell.source))
        elif re.search(r"^\s*answer\(", cell.source, re.MULTILINE):
            order.append("!")
    assert order and order == ["?", "!"] * (len(order) // 2), "".join(order)


def statements(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The innermost statements: a loop's or a function's body counts by itself."""
    for node in nodes:
        inner = [part for name in ("body", "orelse", "finalbody") for part in getattr(node, name, [])]
        yield from statements(inner) if inner else (node,)


@each_source
def test_at_most_a_third_of_the_visible_lines_draw(source: Path) -> None:
    drawn = seen = 0
    for text in visible_code(source):
        for statement in statements(ast.parse(text).body):
            length = (statement.end_lineno or statement.lineno) - statement.lineno + 1
            seen += length
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                drawn += length * bool(names & DRAWING)
    assert drawn <= seen / 3, f"{drawn} of {seen} visible lines draw: fold them (hide-input), or move them to `plots`"


def minutes_to_read(source: Path) -> float:
    """Words, visible code and figures, each at its speed; the exercises come on top, with the minutes they name."""
    cells = notebooks.read_script(source).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code" and "remove-cell" not in tags(cell))
    figures = len(re.findall(r"^\s*(?:plots|terms|schematics)\.show", code, re.MULTILINE))
    lines = sum(bool(line.strip()) for text in visible_code(source) for line in text.splitlines())
    return words / WORDS + lines / LINES + figures / FIGURES


@each_source
def test_the_minutes_to_read_are_measured(source: Path) -> None:
    (told,) = re.findall(r"\*\*minutes to read\*\*: (\d+)", source.read_text(encoding="utf-8"))
    measured = minutes_to_read(source)
    assert abs(int(told) - measured) <= 0.1 * measured + 1, f"{told} minutes are claimed, {measured:.0f} measured"


def test_the_hours_of_the_series_are_its_pages_together() -> None:
    sources = notebooks.find_sources(ROOT / "notebooks" / "src")
    (told,) = re.findall(r"the whole series takes about (\d+) hours", sources[0].read_text(encoding="utf-8"))
    measured = sum(minutes_to_read(source) for source in sources) / 60
    assert abs(int(told) - measured) <= 0.75, f"{told} hours are claimed, {measured:.1f} measured"


@each_source
def test_sigma_is_the_spectral_norm_and_nothing_else(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert not re.search(r"\\sigma(?:\^2|_i\^2|_B|_\{?bn)", text), "the variance of a batch norm is v"
    assert not re.search(r"\b[Hh]e (?:knows|never|has|is|does|trains|adds|must)\b", text), "not everyone is a he"
