"""The notebooks as files: percent scripts in notebooks/src, executed pairs in notebooks, and that both are equal."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbtools.settings import ROOT
from nbtools.wording import known

# Cells that a run adds: they stand in an executed notebook only, never in the percent script.
ADDED_TAGS = frozenset({"injected-parameters", "stamp"})


def source_folder() -> Path:
    """Return the folder of the percent scripts: NBTOOLS_NOTEBOOKS, else notebooks/src here or beside the package."""
    if given := os.environ.get("NBTOOLS_NOTEBOOKS"):
        return Path(given)
    beside_package = ROOT / "notebooks" / "src"
    return beside_package if beside_package.is_dir() else Path.cwd() / "notebooks" / "src"


def find_sources(folder: Path) -> list[Path]:
    """Return the series in `folder` in order: every file NN_name.py."""
    return sorted(path for path in folder.glob("*.py") if re.match(r"\d\d_", path.name))


def choose(names: Iterable[str], folder: Path) -> list[Path]:
    """Return the percent scripts that `names` name, in the order given, each once; all of `folder` when none is named.

    names: each a stem ("02_spectral_norm"), a number ("02" or "2") or the path of a percent script or a notebook; one
    whose cells are its script's stands for the script.
    Raises ValueError for a name that names nothing, and for an empty folder.
    """
    sources = find_sources(folder)
    names = list(names)
    if not names and not sources:
        raise ValueError(f"There are no notebooks in {folder}: percent scripts there are named NN_name.py.")
    chosen = [_choose_one(name, sources) for name in names] or sources
    return list(dict.fromkeys(chosen))


def _choose_one(name: str, sources: list[Path]) -> Path:
    """Return the script that one name means."""
    by_stem = {path.stem: path for path in sources}
    if name in by_stem:
        return by_stem[name]
    if name.isdecimal():
        for path in sources:
            if int(path.stem[:2]) == int(name):
                return path
    path = Path(name)
    if path.suffix == ".ipynb" and path.stem in by_stem:
        script = by_stem[path.stem]
        # A notebook that was edited runs as it lies; so does a copy of it elsewhere.
        same = not path.is_file() or source_cells(read_source(path)) == source_cells(read_script(script))
        return script if same else path.resolve()
    if path.suffix in (".py", ".ipynb") and path.is_file():
        return path.resolve()
    raise ValueError(known("notebook", name, by_stem))


def committed_path(source: Path) -> Path:
    """Return the path of a script's executed pair: one folder above src, otherwise beside the script."""
    folder = source.parent.parent if source.parent.name == "src" else source.parent
    return folder / f"{source.stem}.ipynb"


def read_script(source: Path) -> Any:
    """Return a percent script as a notebook without outputs, its cell ids derived from the text: reruns keep them."""
    import jupytext

    return bare(jupytext.read(source, fmt="py:percent"))


def bare(notebook: Any) -> Any:
    """Return a notebook with nothing but its cells' types, texts and tags, in place."""
    notebook.metadata.clear()
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata.clear()
        if tags:
            cell.metadata.tags = list(tags)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.id = f"{index:03d}-{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}"
    return notebook


def read_source(path: Path) -> Any:
    """Return a percent script, or the author's cells of a notebook, as a notebook without outputs.

    Raises ValueError for a notebook that can't be read.
    """
    import nbformat

    if path.suffix != ".ipynb":
        return read_script(path)
    try:
        found = nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise ValueError(f"{path} can't be read as a notebook: {error}") from None
    cells = [cell for cell in found.cells if not _added(cell.metadata.get("tags", []), cell.source)]
    return bare(nbformat.v4.new_notebook(cells=cells))


def source_cells(notebook: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (cell type, text, tags) of every cell that the author wrote, without those that a run added."""
    cells = [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))) for cell in notebook.cells]
    return [cell for cell in cells if not _added(cell[2], cell[1])]


def _added(tags: Iterable[str], text: str) -> bool:
    """Return whether a run added this cell; a stamp into which somebody wrote is that person's."""
    written_into = "stamp" in tags and (not text.startswith("*Run with profile ") or "\n" in text.strip())
    return bool(ADDED_TAGS & set(tags)) and not written_into


def source_hash(notebook: Any) -> str:
    """Return the sha256 of the author's cells: type, text and tags."""
    return hashlib.sha256(json.dumps(source_cells(notebook)).encode()).hexdigest()


def count(cell: Any, number: int) -> None:
    """Give an executed code cell and its outputs their number, in place."""
    cell.execution_count = number
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = number


def check_committed(stem: str, folder: Path | None = None) -> list[str]:
    """Return what is wrong with a committed notebook, one sentence each; an empty list when it is the script, executed.

    stem: the notebook's name; folder: that of the percent scripts, by default `source_folder()`.
    """
    import nbformat

    source = (folder or source_folder()) / f"{stem}.py"
    executed = committed_path(source)
    if not executed.is_file():
        return [f"{executed.name} is missing: python -m nbtools run {stem} --write makes it."]
    script, notebook = read_script(source), nbformat.read(executed, as_version=4)
    wanted, found = source_cells(script), source_cells(notebook)
    problems = []
    if len(wanted) != len(found):
        problems.append(f"{stem}: the script has {len(wanted)} cells, the notebook {len(found)}.")
    for index, (left, right) in enumerate(zip(wanted, found, strict=False)):
        if left != right:
            first = (left[1] or right[1]).splitlines()[:1]
            problems.append(f"{stem}: cell {index} differs between script and notebook ({''.join(first)!r}).")
            break
    if notebook.metadata.get("nbtools", {}).get("sha256") != source_hash(script):
        problems.append(f"{stem}: the stamp's hash is not that of the script: run it again with --write.")
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if any(cell.execution_count is None for cell in code):
        problems.append(f"{stem}: a code cell was not executed.")
    return problems
