#!/usr/bin/env bash
# Expected: \tilde{s}_i is the letter s with a tilde, and i is its index, at the lower right, as LaTeX sets it.
# What happens: docutils' own converter to MathML takes the index as the lower limit of the accent, <munderover>, so the
#   i stands centred below the s; braces around letter and accent, {\tilde s}_i, change nothing. Without an accent, s_i
#   is <msub>.
# Versions: docutils 0.22.4 (0.18.1, 0.20.1 and 0.21.2 do the same).
# Seen on 2026-11-28:
#   docutils 0.22.4: s_i                  <msub><mi>s</mi><mi>i</mi></msub>
#   docutils 0.22.4: \tilde{s}_i          <munderover><mi>s</mi><mi>i</mi><mo stretchy="false">~</mo></munderover>
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with docutils==0.22.4
"$python" - <<'PYTHON'
from importlib.metadata import version
from xml.etree import ElementTree

from docutils.utils.math.latex2mathml import tex2mathml

MATHML = "{http://www.w3.org/1998/Math/MathML}"


def first(tex):
    """The outermost element of a formula, and its children."""
    element = ElementTree.fromstring(tex2mathml(tex, as_block=False))[0]
    shown = "".join(part.strip() for part in ElementTree.tostring(element, encoding="unicode").split("\n"))
    shown = shown.replace("ns0:", "").replace(f' xmlns:ns0="{MATHML[1:-1]}"', "")
    print(f"docutils {version('docutils')}: {tex:<20} {shown}")
    return element.tag.removeprefix(MATHML), [child.tag.removeprefix(MATHML) for child in element]


assert first("s_i") == ("msub", ["mi", "mi"])
assert first(r"\tilde{s}_i") == ("munderover", ["mi", "mi", "mo"])
assert all(first(tex)[0] == "munderover" for tex in (r"\tilde s_i", r"\hat{A}_i", r"{\tilde s}_i"))
PYTHON
