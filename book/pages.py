"""What the book needs beyond Sphinx and MyST-NB: folded solutions and alt texts."""

import base64
import hashlib
import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def fold_solutions(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fold a solution together with its outputs: `hide-input` alone would leave the answers in sight.

    The cell that installs nbtools is left out.
    """
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if "solution" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"] += ["hide-cell"]
            cell["metadata"]["mystnb"] = {"code_prompt_show": "Show the solutions", "code_prompt_hide": "Hide them"}
        if "install" in cell["metadata"].get("tags", []):  # nobody runs a page of the book
            cell["metadata"]["tags"] += ["remove-cell"]
    source[0] = json.dumps(notebook)


def add_alt_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure the alt text of its output's metadata, which MyST-NB leaves there; a missing one is a warning.

    MyST-NB names a figure's file by the sha256 of its content.
    """
    path = Path(app.env.doc2path(app.env.docname))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.suffix == ".ipynb" else []
    alts: dict[str, str] = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            alts[hashlib.sha256(base64.b64decode(output["data"]["image/png"])).hexdigest()] = alt
    for image in doctree.findall(nodes.image):
        image["alt"] = alts.get(Path(image["uri"]).stem, image.get("alt", ""))
        if not image["alt"]:
            logger.warning("an image has no alt text", location=image)


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook all of it into Sphinx."""
    app.connect("source-read", fold_solutions)
    app.connect("doctree-read", add_alt_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
