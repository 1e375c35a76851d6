"""The repository's public address, in all places that name it: `python -m nbtools address [URL]`.

It stands in pyproject.toml. From there it goes into the clone line and the badges of the README, and into each
notebook: two badges below the title, and the cell that fetches and installs nbtools where it is missing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from nbtools.series import notebooks
from nbtools.settings import ROOT

BRANCH = "main"
INSTALL = ("install", "hide-input")
"""The tags of the cell that installs; the book leaves it out."""

_CELL = """# Does nothing where nbtools is installed. Elsewhere, as on Colab, it fetches the series and installs it.
from importlib.util import find_spec

if find_spec("nbtools") is None:
    import os
    import subprocess
    import sys

    address = "{address}"
    checkout = "backdoor-series"
    clone = ["git", "clone", "--quiet", "--depth", "1", address, checkout]
    if not os.path.isdir(checkout) and subprocess.run(clone).returncode:
        sys.exit(f"{{address}} could not be fetched: is the address right, and is there a network?")
    sys.path.insert(0, checkout)
    from nbtools.series.install import install

    install()"""
_BADGE = "[![Open "


@click.command()
@click.argument("url", required=False)
def address(url: str | None) -> None:
    """Write the repository's address into the README and all notebooks, scripts and pages; once more changes nothing.

    URL is https://github.com/OWNER/REPOSITORY; without it the one in pyproject.toml is taken. Outputs of the executed
    notebooks stay as they are.
    """
    try:
        for line in spread(ROOT, url) or ["Nothing had to be changed."]:
            click.echo(line)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None


def checked(url: str) -> str:
    """The address as it is written everywhere, without a slash or .git at its end.

    Raises:
        ValueError: for anything but a repository's page on GitHub, from which Colab and Binder open notebooks.
    """
    tidy = url.strip().rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", tidy):
        raise ValueError(f"the address of a repository is https://github.com/OWNER/REPOSITORY, got {url!r}")
    return tidy


def install_cell(url: str) -> str:
    """The code of the cell that installs nbtools from this address, or from the path of a repository."""
    return _CELL.format(address=url)


def badges(url: str, stem: str, figures: str) -> list[str]:
    """Two badges, a line of Markdown each, that open a notebook on Colab and on Binder.

    Args:
        url: as `checked` returns it.
        stem: of the notebook.
        figures: the folder with their pictures, from where the line stands: nothing is loaded from another place.
    """
    place = url.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/{BRANCH}/notebooks/{stem}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{place}/{BRANCH}?labpath=notebooks/{stem}.ipynb"
    return [f"{_BADGE}in Colab]({figures}/colab.svg)]({colab})", f"{_BADGE}on Binder]({figures}/binder.svg)]({binder})"]


def spread(root: Path, url: str | None = None) -> list[str]:
    """Write the address into all places below `root` that name it.

    Args:
        root: of the checkout.
        url: the new address; None takes that of pyproject.toml.

    Returns:
        A line for each file that was changed, and for each page whose stamp was left since it was not its script.

    Raises:
        ValueError: for a wrong address, or a place that has no line for it; nothing is written then.
    """
    project = root / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    tidy = checked(url or tomllib.loads(text)["project"]["urls"]["repository"])
    wanted = {project: _once(r'(?m)^repository = ".*"$', f'repository = "{tidy}"', text, project)}
    wanted[root / "README.md"] = _readme(root / "README.md", tidy)
    notes = []
    for source in notebooks.find_sources(root / "notebooks" / "src"):
        wanted[source] = in_script(source.read_text(encoding="utf-8"), source.stem, tidy)
        if (page := notebooks.committed_path(source)).is_file():
            wanted[page], same = _in_page(source, page, wanted[source], tidy)
            notes += [] if same else [f"{page.name} is not its script, executed; its stamp is left as it was."]
    changed = [path for path, new in wanted.items() if path.read_text(encoding="utf-8") != new]
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return [*(f"{path.relative_to(root)}" for path in changed), *notes]


def _once(pattern: str, new: str, text: str, path: Path) -> str:
    """The text with the pattern's first place replaced, which has to be there."""
    if not re.search(pattern, text):
        raise ValueError(f"{path.name} has no line for the address ({pattern})")
    return re.sub(pattern, lambda _: new, text, count=1)


def _readme(path: Path, url: str) -> str:
    clone = f"git clone {url} && cd {url.rpartition('/')[2]}"
    text = _once(r"(?m)^git clone .* && cd .*$", clone, path.read_text(encoding="utf-8"), path)
    new = "\n".join(badges(url, "00_start_here", "notebooks/figures"))
    return _once(rf"(?m)(?:^{re.escape(_BADGE)}.*\n?){{2}}", f"{new}\n", text, path)


def with_badges(markdown: str, stem: str, url: str) -> str:
    """A notebook's first cell with the two badges right below its title, in the place of those that are there.

    Raises:
        ValueError: where it does not begin with a title.
    """
    title, *rest = markdown.splitlines()
    if not title.startswith("# "):
        raise ValueError(f"{stem}: its first cell does not begin with a title")
    while rest and (not rest[0] or rest[0].startswith(_BADGE)):
        rest.pop(0)
    return "\n".join([title, "", *badges(url, stem, "figures"), *([""] if rest else []), *rest])


def in_script(text: str, stem: str, url: str) -> str:
    """A percent script with badges and install cell for this address.

    Raises:
        ValueError: where it has no title or no parameters cell.
    """
    first, *cells = [part for part in re.split(r"(?m)^(?=# %%)", text) if part]
    marker, *lines = first.rstrip("\n").splitlines()
    title = with_badges("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines), stem, url)
    first = "\n".join([marker, *(f"# {line}".rstrip() for line in title.splitlines())]) + "\n\n"
    cells = [cell for cell in cells if '"install"' not in cell.splitlines()[0]]
    place = _place([cell.splitlines()[0] for cell in cells], '"parameters"', stem)
    tags = ", ".join(f'"{tag}"' for tag in INSTALL)
    return "".join([first, *cells[:place], f"# %% tags=[{tags}]\n{install_cell(url)}\n\n", *cells[place:]])


def _place(marks: Sequence[str], wanted: str, stem: str) -> int:
    """Where the parameters cell stands."""
    found = next((number for number, mark in enumerate(marks) if wanted in mark), None)
    if found is None:
        raise ValueError(f"{stem} has no parameters cell, before which the install cell stands")
    return found


def _in_page(source: Path, page: Path, script: str, url: str) -> tuple[str, bool]:
    """An executed page with badges and install cell, and whether it was its script before.

    The install cell counts as executed: it prints nothing where nbtools is there. The stamp then has the new script's
    hash; what ran, and when, stays as it is.
    """
    import jupytext
    import nbformat

    notebook: Any = nbformat.read(page, as_version=4)
    old = notebooks.read_script(source)
    new = notebooks.bare(jupytext.reads(script, fmt="py:percent"))
    stamp = notebook.metadata.get("nbtools", {})
    same = notebooks.source_cells(notebook) == notebooks.source_cells(old)
    same = same and stamp.get("sha256") == notebooks.source_hash(old)
    cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    cells[0].source = with_badges(cells[0].source, page.stem, url)
    place = _place([",".join(cell.metadata.get("tags", [])) for cell in cells], "parameters", page.stem)
    added = nbformat.v4.new_code_cell(install_cell(url), id="install", execution_count=0)
    added.metadata = nbformat.from_dict({"tags": list(INSTALL), "jupyter": {"source_hidden": True}})
    notebook.cells = [*cells[:place], added, *cells[place:]]
    number = 0
    for cell in notebook.cells:
        if cell.get("execution_count") is not None:
            number += 1
            notebooks.count(cell, number)
    if same:
        stamp["sha256"] = notebooks.source_hash(new)
        for cell, twin in zip(notebook.cells, new.cells, strict=False):
            cell.id = twin.id  # as a run would leave it
        if notebooks.source_cells(notebook) != notebooks.source_cells(new):
            raise ValueError(f"{page.name} would not be its script any more")
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n", same
