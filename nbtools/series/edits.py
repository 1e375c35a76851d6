"""A committed notebook that was edited by hand: its edits are never lost by a run that writes it again."""

import json
import os
from pathlib import Path

from nbtools.series.notebooks import bare, committed_path, read_script, read_source, source_cells, source_hash


def check_edits(source: Path, folder: Path) -> Path | None:
    """Make sure that writing a source's executed pair loses no edit of it.

    source: as `choose` returns it. folder: that of the percent scripts.
    Returns the script that has to take the edits of a notebook that was named by its file; None where there are none.
    Raises ValueError where the pair holds an edit that its script does not, and was not named by its file, or where
    both were edited since the last run.
    """
    pair = committed_path(source)
    script = source if source.suffix == ".py" else folder / f"{source.stem}.py"
    if not pair.is_file() or not script.is_file() or committed_path(script).resolve() != pair.resolve():
        return None  # nothing there yet, or a notebook without a script
    now, wanted, ran = read_source(pair), read_script(script), _stamped_hash(pair)
    if source_hash(now) in (ran, source_hash(wanted)):
        return None
    if source != script and source_hash(wanted) == ran:
        return script
    if source == script:
        also = (
            f" To keep them, name the file: python -m nbtools run {os.path.relpath(pair)} --write takes them into "
            f"{script.name}. To drop them: git checkout {os.path.relpath(pair)}."
        )
    elif ran:
        also = f" {script.name} was changed as well since then: bring the two together by hand."
    else:
        also = " It has no stamp, so that nothing tells which of the two is newer: bring them together by hand."
    raise ValueError(f"{pair.name} holds edits that {script.name} does not have, and --write would lose them.{also}")


def take_edits(notebook: Path, script: Path) -> None:
    """Write a notebook's cells, those of its author, as the percent script that it is then made from.

    Raises ValueError, and writes nothing, where the script would not read back as the same cells.
    """
    import jupytext

    found = read_source(notebook)
    if any(cell.get("attachments") for cell in found.cells):
        raise ValueError(
            f"{notebook.name} holds a pasted picture, which a script can't: save it as a file, link to it."
        )
    found.metadata.jupytext = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}
    text = jupytext.writes(found, fmt="py:percent")
    if source_cells(bare(jupytext.reads(text, fmt="py:percent"))) != source_cells(found):
        raise ValueError(f"{notebook.name} can't be written as a percent script; change {script.name} by hand.")
    partial = script.with_name(f".{script.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(script)


def _stamped_hash(path: Path) -> str:
    """Return the hash of the cells with which a committed notebook was last executed, "" where it has no stamp."""
    stamp = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("nbtools", {})
    return str(stamp.get("sha256", ""))
