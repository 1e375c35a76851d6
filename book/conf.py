"""Sphinx's configuration of the book: MyST-NB reads the executed notebooks, sphinx-book-theme draws the pages."""

import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK))  # for the extension `pages`

package = tomllib.loads((BOOK.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
repository = package["urls"]["repository"]
repository = "" if "/OWNER/" in repository else repository  # not known yet

project = "Backdoors in neural networks"
release = package["version"]
extensions = ["myst_nb", "pages"]
exclude_patterns = ["LICENSE", "CITATION.cff"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
mathjax_path = "tex-svg.js"  # one file without fonts, which needs nothing else at run time
mathjax3_config = {"options": {"enableMenu": False}}
mathjax = distribution("django-static-mathjax").locate_file(f"mathjax/static/mathjax/es5/{mathjax_path}")

html_theme = "sphinx_book_theme"
html_title = project
html_use_index = False
html_static_path = ["static", "explorable", str(mathjax)]
html_css_files = ["book.css"]
html_context = {"default_mode": "auto"}
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "footer_content_items": [],
    "navbar_persistent": [],  # else a second search field above the page
    "repository_url": repository,
    "use_repository_button": bool(repository),
    "use_issues_button": bool(repository),
}
