"""Build the book: `python book/build.py FOLDER` puts the site in FOLDER/html."""

import re
import shutil
import sys
import textwrap
from pathlib import Path

from sphinx.cmd.build import build_main

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
# Sphinx reads pages from one folder only, and these lie in several.
PAGES = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "data/*.md", "data/grids/README.md")
PAGES += ("notebooks/*.ipynb", "notebooks/figures/*", "book/teaching.md")


def front_page() -> str:
    """The book's first page, with the explorable where its mark stands: four elements, whose files lie in _static."""
    page = (BOOK / "explorable" / "explorable.html").read_text(encoding="utf-8")
    elements = page.split("<!-- begin -->")[1].split("<!-- end -->")[0]
    moved = re.sub(r'(src|href)="', r'\1="_static/', textwrap.dedent(elements.strip("\n")))
    text = (BOOK / "index.md").read_text(encoding="utf-8")
    return text.replace("<!-- explorable -->", f"```{{raw}} html\n{moved}```")


def build(folder: Path) -> int:
    """Copy the pages, in their folders, into `folder`/source and build them; return Sphinx's exit code."""
    source, html = folder / "source", folder / "html"
    for stale in (source, html):
        shutil.rmtree(stale, ignore_errors=True)
    found = {path.relative_to(ROOT): path for pattern in PAGES for path in ROOT.glob(pattern)}
    for place, path in found.items():
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, source / place)
    (source / "index.md").write_text(front_page(), encoding="utf-8")
    # A page that was read before would not warn again.
    options = ["--quiet", "--fresh-env", "--fail-on-warning", "--keep-going", "--conf-dir", str(BOOK)]
    return build_main([*options, "--doctree-dir", str(folder / "doctrees"), str(source), str(html)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
