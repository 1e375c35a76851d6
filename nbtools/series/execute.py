"""One notebook, executed by papermill in a fresh kernel of this very interpreter, stamped."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbtools.series import notebooks, stamp
from nbtools.settings import ROOT
from nbtools.wording import last_line


class NotebookFailed(Exception):
    """A notebook stopped; the text names the cell and the last line of its error."""


@contextmanager
def this_kernel(out: Path) -> Iterator[None]:
    """While the context lasts, Jupyter's "python3" is this very interpreter, whose notebooks save their rows in `out`.

    An installed kernel of that name may belong to another Python; a specification in a folder of its own, first on
    JUPYTER_PATH, cannot.
    """
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory(prefix="nbtools-kernel-") as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        # The kernel's own log tells of sockets, at every interrupt; what goes wrong in a cell comes through its output.
        described = get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]) | {"display_name": "Python 3"}
        # The kernel imports the same nbtools as this process, installed or not.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        spec.write_text(json.dumps(described | {"env": {"PYTHONPATH": path, "NBTOOLS_OUT": str(out)}}))
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, before] if before else [folder])
        try:
            yield
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def run_one(
    source: Path, profile: str, values: Mapping[str, Any], merged: Mapping[str, Any], out: Path, write: bool
) -> None:
    """Run one notebook, inside `this_kernel`; leaves <stem>.ipynb in `out`, or <stem>.failed.ipynb.

    source: a percent script, or a notebook. values: the parameters that differ from its defaults. merged: all of them,
    for the stamp. out: the run's folder, absolute. write: also write the executed pair that is committed.
    Raises NotebookFailed with the cell and the last line of its error. An interrupt leaves <stem>.partial.ipynb.
    """
    import papermill

    _pass_literals()
    stem, started = source.stem, time.monotonic()
    partial, failed = out / f"{stem}.partial.ipynb", out / f"{stem}.failed.ipynb"
    failed.unlink(missing_ok=True)
    script = notebooks.read_source(source)
    committed = notebooks.committed_path(source)
    began = _cells_there(committed)
    try:
        executed = papermill.execute_notebook(
            script,
            str(partial).replace("{", "{{").replace("}", "}}"),  # papermill takes a path for a format string
            dict(values),
            kernel_name="python3",
            progress_bar=False,
            cwd=committed.parent,
        )
        facts = stamp.make_stamp(profile, merged, notebooks.source_hash(script), time.monotonic() - started)
        stamp.finish(executed, facts, values)
        _replace(out / f"{stem}.ipynb", _json(executed))
        partial.unlink()
        if write:
            if _cells_there(committed) not in (began, notebooks.source_hash(script)):
                raise NotebookFailed(f"it ran, but {committed.name} was edited meanwhile and is left as it is")
            stamp.scrub(executed, stamp.hidden_places(out))
            _replace(committed, _json(executed))
    except NotebookFailed:
        raise
    except Exception as error:  # whatever stops a notebook ends as one line; the failed notebook holds the rest
        where = _where(error, partial)
        if partial.exists():
            partial.replace(failed)
        raise NotebookFailed(f"{where}: {last_line(error)}") from None


def _pass_literals() -> None:
    """Have papermill write every value as the literal that it is: its own way makes a text of a tuple."""
    from papermill.translators import PythonTranslator, papermill_translators

    class Literals(PythonTranslator):
        @classmethod
        def translate(cls, val: Any) -> str:
            return repr(val)

    papermill_translators.register("python", Literals)


def _cells_there(notebook: Path) -> str:
    """Return the hash of a notebook's cells, those of its author, "" where there is none."""
    return notebooks.source_hash(notebooks.read_source(notebook)) if notebook.is_file() else ""


def _where(error: Exception, partial: Path) -> str:
    """Return "in cell n", n as in the notebook's In [n], or that the error came from outside the cells."""
    if number := getattr(error, "exec_count", None):
        return f"in cell {number}"
    try:
        cells = json.loads(partial.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return "outside its cells"
    states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells if cell["cell_type"] == "code"]
    ran = len(states) - states.count("pending")
    # papermill calls every waiting cell completed when a kernel dies, so a full count says nothing.
    return f"in cell {ran}" if 0 < ran < len(states) else "outside its cells"


def _json(notebook: Any) -> str:
    """Return a notebook as the text of its file."""
    import nbformat

    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file under a temporary name and move it into place, so that nothing half-written bears the final name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
