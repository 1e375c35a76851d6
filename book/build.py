"""Build the book: `python book/build.py FOLDER` puts the site in FOLDER/html."""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
# Sphinx reads pages from one folder only, and these lie in several.
PAGES = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "data/README.md", "notebooks/*.ipynb")
PAGES += ("notebooks/figures/*",)


def build(folder: Path) -> int:
    """Copy the pages, in their folders, into `folder`/source and build them; return Sphinx's exit code."""
    source, html = folder / "source", folder / "html"
    for stale in (source, html):
        shutil.rmtree(stale, ignore_errors=True)
    found = {path.relative_to(ROOT): path for pattern in PAGES for path in ROOT.glob(pattern)}
    for place, path in {Path("index.md"): BOOK / "index.md", **found}.items():
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, source / place)
    # A page that was read before would not warn again.
    options = ["--quiet", "--fresh-env", "--fail-on-warning", "--keep-going", "--conf-dir", str(BOOK)]
    return build_main([*options, "--doctree-dir", str(folder / "doctrees"), str(source), str(html)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
