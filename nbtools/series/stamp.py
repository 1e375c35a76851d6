"""What an executed notebook says about its run, and what is taken out of it before it is committed."""

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbtools.series.notebooks import count
from nbtools.settings import ROOT, versions

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def make_stamp(profile: str, parameters: Mapping[str, Any], sha256: str, seconds: float) -> dict[str, Any]:
    """Return the stamp: scale, parameters, hash of the source cells, seconds, hardware, versions and date (UTC)."""
    from nbtools.settings import hardware

    return {
        "profile": profile,
        "parameters": dict(parameters),
        "sha256": sha256,
        "seconds": round(seconds, 1),
        "hardware": hardware(),
        "versions": versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def stamp_line(stamp: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return the stamp as one line of Markdown, with the parameters that differed from the notebook's own."""
    given = "".join(f", `{name} = {value!r}`" for name, value in values.items() if name != "profile")
    return (
        f"*Run with profile {stamp['profile']}{given} on {stamp['hardware']}, in {stamp['seconds']:.0f} s; "
        f"Python {stamp['versions']['python']}, torch {stamp['versions']['torch']}; {stamp['date']}. Your own run does "
        "not change this line; if it stopped early, the reason stands in red further up.*"
    )


def finish(notebook: Any, stamp: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Take papermill's and the kernel's traces out of an executed notebook, in place, and put the stamp in.

    values: the parameters that differed from the notebook's own.
    """
    import nbformat

    spec = notebook.metadata.get("kernelspec", {})
    notebook.metadata.clear()
    notebook.metadata.kernelspec = spec
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.nbtools = dict(stamp)
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata.clear()
        if tags:
            cell.metadata.tags = tags
        if {"hide-input", "remove-cell"} & set(tags):  # JupyterLab folds by this, the book by the tags
            cell.metadata.jupyter = {"source_hidden": True} | ({"outputs_hidden": True} if "solution" in tags else {})
        if "injected-parameters" in tags:
            cell.id = f"{number:03d}-injected"
    last = nbformat.v4.new_markdown_cell(stamp_line(stamp, values), id="stamp", metadata={"tags": ["stamp"]})
    notebook.cells.append(last)


def hidden_places(out: Path) -> dict[str, str]:
    """Return what must not stand in a committed notebook, longest first, and what to write instead.

    out: the run's folder.
    """
    places = {
        str(ROOT): ".",
        sys.prefix: "<environment>",
        tempfile.gettempdir(): "<temporary folder>",
        str(Path.home()): "~",
        str(out): "<run folder>",
    }
    for name in ("NBTOOLS_DATA", "NBTOOLS_MODELS", "NBTOOLS_CACHE"):
        if value := os.environ.get(name):
            places[str(Path(value).expanduser().resolve())] = f"<{name}>"
    return {place: places[place] for place in sorted(places, key=len, reverse=True) if len(place) > 1}


def scrub(notebook: Any, places: Mapping[str, str]) -> None:
    """Make an executed notebook fit to be committed, in place.

    Its outputs name no folder of this machine and hold no widget, and its figures are small. The cell with the run's
    parameters goes: it would pin the profile for whoever opens the notebook and runs all cells; the stamp tells the
    values, and cells are counted without it.

    places: what must not stand there and what to write instead, longest first.
    """
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    number = 0
    for cell in notebook.cells:  # as Run All will count them
        if cell.get("execution_count"):
            number += 1
            count(cell, number)
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if WIDGET_VIEW not in output.get("data", {})]
        if cell.cell_type == "code":
            cell.outputs = outputs
        for output in outputs:
            if "text" in output:
                output.text = _scrubbed(output.text, places)
            for kind, text in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(text, str):
                    output.data[kind] = _scrubbed(text, places)
                if kind == "image/png":
                    output.data[kind] = smaller(text)


def smaller(png: str) -> str:
    """Return a figure, PNG in base64, with a palette of 256 colours where that makes it smaller: mostly to a third.

    The palette covers all colours, rare ones as well: one that follows the frequent ones (median cut) may draw the mark
    in a legend in another line's colour.
    """
    from PIL import Image

    raw, buffer = base64.b64decode(png), io.BytesIO()
    with Image.open(io.BytesIO(raw)) as image:
        picture = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() if buffer.tell() < len(raw) else png


def _scrubbed(text: str, places: Mapping[str, str]) -> str:
    """Return `text` with every machine path replaced; the kernel's name for a cell's file becomes <cell>."""
    text = re.sub(r"\S*ipykernel_\d+[\\/]\d+\.py", "<cell>", text)
    for place, instead in places.items():
        text = re.sub(rf"(?<![\w.~-]){re.escape(place)}(?![\w-])", instead, text)
    return text
