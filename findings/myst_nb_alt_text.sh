#!/usr/bin/env bash
# Expected: a figure with an alternative text in its output's metadata, {"image/png": {"alt": ...}}, as IPython's
#   display(..., metadata=...) leaves it, has this text on the page that MyST-NB makes with Sphinx.
# What happens: the text is dropped, and the page says the image's file name instead, alt="_images/HASH.png". A width
#   from the same place of the metadata does arrive.
# Versions: myst-nb 1.4.0 with Sphinx 9.0.4; 1.0.0 with 7.4.7 drops the width as well.
# Seen on 2026-11-28:
#   myst-nb 1.4.0: <img alt="_images/HASH.png" src="_images/HASH.png" width="12" />
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with myst-nb==1.4.0 sphinx==9.0.4 nbformat==5.11.1
"$python" - <<'PYTHON'
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from nbformat import v4, write

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
metadata = {"image/png": {"alt": "A black pixel.", "width": 12}}
image = v4.new_output("display_data", data={"image/png": PIXEL}, metadata=metadata)
cells = [v4.new_markdown_cell("# A page"), v4.new_code_cell("show()", outputs=[image], execution_count=1)]
Path("pages").mkdir()
write(v4.new_notebook(cells=cells), "pages/page.ipynb")
Path("pages/conf.py").write_text('extensions = ["myst_nb"]\nnb_execution_mode = "off"\nroot_doc = "page"\n')
subprocess.run([sys.executable, "-m", "sphinx", "-q", "pages", "site"], check=True)

page = Path("site/page.html").read_text()
(found,) = re.findall(r'<img [^>]*src="_images[^>]*>', page)
print(f"myst-nb {version('myst-nb')}: {re.sub('[0-9a-f]{64}', 'HASH', found)}")
assert re.search(r'alt="_images/[0-9a-f]{64}\.png"', found) and "A black pixel." not in page
assert 'width="12"' in found
PYTHON
