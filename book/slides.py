"""Make slides of executed notebooks: `python book/slides.py FOLDER 00 06`; sections go to the right, parts down."""

import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import nbformat
from nbconvert.exporters import SlidesExporter
from nbformat import NotebookNode
from traitlets.config import Config

BOOK = Path(__file__).resolve().parent
LEFT_OUT = re.compile(r"## (?:\d+\. )?(?:Exercises|Solutions|How to read|The field's words)")
"""Sections that are for a desk: from their heading to the next."""
PARTS = re.compile(r"^(?=## |> \*\*Predict first)", re.MULTILINE)
"""Where a Markdown cell is cut: before a section's heading, and before a question."""
BESIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")
"""A link to a page that does not lie beside the slides."""
BADGES = re.compile(r"^\[!\[Open .*\n?", re.MULTILINE)
"""Links that run the notebook elsewhere."""
SHORT = 45
"""Words: a text with fewer shares its slide with the code or figure that follows; a question never does."""
REVEAL = ("dist/reveal.css", "dist/reveal.js", "dist/theme/white.css", "dist/theme/fonts/source-sans-pro", "LICENSE")


def texts(source: str) -> Iterator[str]:
    """A Markdown cell in slides; a heading without words takes what comes next."""
    heading = ""
    for text in filter(str.strip, PARTS.split(BESIDE.sub(r"\1", BADGES.sub("", source)))):
        question = re.match(r"> \*\*Predict first(?:.*\n?>)*.*\n?", text)  # what follows it is the next slide's
        for piece in (text[: question.end()], text[question.end() :]) if question else (text,):
            if "\n" not in piece.strip() and piece.startswith("## "):
                heading = piece
            elif piece.strip():
                yield heading + piece
                heading = ""
    if heading:
        yield heading


def outputs(cell: NotebookNode) -> Iterator[NotebookNode]:
    """What a cell gave, its code folded: a slide for each figure or table, with the lines printed before it."""
    groups: list[list[NotebookNode]] = []
    for output in cell.outputs:
        full = groups and any("data" in other for other in groups[-1])
        if full or not groups:
            groups.append([])
        groups[-1].append(output)
    for group in groups:
        yield nbformat.v4.new_code_cell("", outputs=group, metadata={"tags": ["hide-input"]})


def parts(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The cells that are shown, each a slide."""
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            yield from (nbformat.v4.new_markdown_cell(text) for text in texts(cell.source))
        elif not tags & {"parameters", "remove-cell", "solution"}:
            folded = "hide-input" in tags or "nbtools.start(" in cell.source
            rich = any("data" in output for output in cell.outputs)
            if not folded:
                yield nbformat.v4.new_code_cell(cell.source, outputs=[] if rich else cell.outputs)
            if folded or rich:
                yield from outputs(cell)


def arranged(notebook: NotebookNode) -> NotebookNode:
    """The same notebook with the metadata of a slide show, made from its headings."""
    cells, left_out, before = [], False, ""
    for cell in parts(notebook):
        text = cell.source if cell.cell_type == "markdown" else ""
        heading = re.match(r"##? ", text)
        if heading:
            left_out = bool(LEFT_OUT.match(text))
        if not left_out:
            joins = 0 < len(before.split()) < SHORT and not re.match(r"#|> \*\*Predict first", before)
            kind = "slide" if heading else "-" if joins and not text else "subslide"
            cell.metadata["slideshow"] = {"slide_type": kind}
            cells.append(cell)
            before = text
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def make(path: Path, folder: Path) -> Path:
    """Write the slides of one notebook into `folder`; nothing runs."""
    config = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ("hide-input",)}})
    look = {"reveal_url_prefix": "reveal", "reveal_theme": "white"}
    exporter = SlidesExporter(config, template_name="slides", extra_template_basedirs=[str(BOOK)], **look)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    page, _ = exporter.from_notebook_node(
        arranged(nbformat.read(path, as_version=4)), {"metadata": {"name": path.stem, "path": str(path.parent)}}
    )
    written = folder / f"{path.stem}.html"
    written.write_text(page, encoding="utf-8")
    return written


def carry(folder: Path) -> None:
    """Put reveal.js and MathJax beside the slides, from the packages that carry them."""
    found = Path(str(distribution("sphinx-revealjs").locate_file("sphinx_revealjs/_static/revealjs")))
    for name in REVEAL:
        (folder / "reveal" / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (found / name).is_dir() else shutil.copy2
        copy(found / name, folder / "reveal" / name)
    mathjax = distribution("django-static-mathjax").locate_file("mathjax/static/mathjax/es5/tex-svg.js")
    shutil.copy2(str(mathjax), folder / "reveal")


def main(folder: Path, numbers: list[str]) -> None:
    """Make the slides of the notebooks with these numbers; what lay in the folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    carry(folder)
    for number in numbers:
        (path,) = (BOOK.parent / "notebooks").glob(f"{number}_*.ipynb")
        print(make(path, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["00", "06"])
