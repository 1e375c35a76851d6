#!/usr/bin/env bash
# Expected: an image with an alternative text in its output's metadata, as IPython's display(..., metadata=...) leaves
#   it, has this text in the HTML page, for those who can't see the image.
# What happens: nbconvert's default template, "lab", writes "No description has been provided for this image". The
#   template "classic" writes the text.
# Versions: nbconvert 7.12.0, 7.14.0, 7.16.0, 7.16.6 and 7.17.2.
# Seen on 2026-11-27:
#   nbconvert 7.17.2
#   default: alt='No description has been provided for this image'
#   lab: alt='No description has been provided for this image'
#   classic: alt='A black pixel.'
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with nbconvert==7.17.2 ipython==9.18.1
"$python" - <<'PYTHON'
import re
from importlib.metadata import version

from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
image = new_output("display_data", data={"image/png": PIXEL}, metadata={"image/png": {"alt": "A black pixel."}})
notebook = new_notebook(cells=[new_code_cell("show()", outputs=[image], execution_count=1)])

print("nbconvert", version("nbconvert"))
found = {}
for template in (None, "lab", "classic"):
    exporter = HTMLExporter(template_name=template) if template else HTMLExporter()
    page, _ = exporter.from_notebook_node(notebook)
    (found[template],) = re.findall(r'<img[^>]*alt="([^"]*)"', page)
    print(f"{template or 'default'}: alt={found[template]!r}")

assert found[None] == found["lab"] == "No description has been provided for this image"
assert found["classic"] == "A black pixel."
PYTHON
