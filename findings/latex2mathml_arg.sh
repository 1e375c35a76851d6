#!/usr/bin/env bash
# Expected: \arg, an operator of plain LaTeX, becomes the upright word "arg" in MathML, as \max and \det do.
# What happens: the command is copied as it stands, backslash included: <mi>\arg</mi>. So \arg\max, the common way to write
#   a prediction, shows "\argmax". No error and no warning. \argmax and \operatorname{arg} are right.
# Versions: latex2mathml 3.0.0 to 3.81.1 (3.0.0, 3.60.0, 3.77.0 and 3.81.1 were tried).
# Seen on 2026-11-28:
#   latex2mathml 3.81.1: \arg\max_c p_c   <math ...><mrow><mi>\arg</mi><msub><mo>max</mo><mi>c</mi></msub>...
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with latex2mathml==3.81.1
"$python" - <<'PYTHON'
from importlib.metadata import version

from latex2mathml.converter import convert

for tex in (r"\arg\max_c p_c", r"\max_c p_c", r"\operatorname{arg}\max_c p_c"):
    print(f"latex2mathml {version('latex2mathml')}: {tex}   {convert(tex)}")
assert r"<mi>\arg</mi>" in convert(r"\arg\max_c p_c")
assert all("\\" not in convert(tex) for tex in (r"\max_c p_c", r"\det A", r"\gcd(a, b)", r"\operatorname{arg} z"))
PYTHON
