#!/usr/bin/env bash
# Expected: `pip install nbconvert==7.16.4` gives an nbconvert that can export a notebook.
# What happens: pip takes the newest mistune, since nbconvert 7.16.4 allows all below 4. With mistune from 3.1.0 on, a
#   notebook with any Markdown cell fails at the export to HTML, that is, after it has run, which may have taken hours.
# Versions: nbconvert 7.16.0 to 7.16.4 with mistune 3.1.0 to 3.4.0; nbconvert 7.16.5 mended it.
# Seen on 2026-11-27:
#   nbconvert 7.16.4, mistune 3.0.2: exports
#   nbconvert 7.16.4, mistune 3.4.0: AttributeError: 'MathBlockParser' object has no attribute 'parse_axt_heading'
#   nbconvert 7.16.5, mistune 3.4.0: exports
set -euo pipefail
source "$(dirname "$0")/common.bash"
for versions in "7.16.4 3.0.2" "7.16.4 3.4.0" "7.16.5 3.4.0"; do
    read -r nbconvert mistune <<<"$versions"
    python_with nbconvert=="$nbconvert" mistune=="$mistune" ipython==9.18.1
    "$python" - <<'PYTHON'
from importlib.metadata import version

from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

try:
    page, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[new_markdown_cell("Hello.")]))
    found = "exports" if "Hello." in page else "exports something else"
except AttributeError as error:
    found = f"AttributeError: {error}"
pair = version("nbconvert"), version("mistune")
print(f"nbconvert {pair[0]}, mistune {pair[1]}: {found}")

assert found.startswith("AttributeError") == (pair == ("7.16.4", "3.4.0"))
PYTHON
done
