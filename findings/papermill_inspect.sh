#!/usr/bin/env bash
# Expected: papermill sees every assignment of the parameters cell, and its warning about an unknown parameter tells a
#   mistyped name from a right one.
# What happens: a parameter whose comment, or text value, holds an equals sign is overlooked, and so is one that is
#   annotated `int | None`. Both are set all the same, but with the very warning that a mistyped name gets. The mistyped
#   one changes nothing, and the run ends as if all were well.
# Versions: papermill 2.6.0 and 2.7.0.
# Seen on 2026-11-27:
#   papermill 2.7.0
#   parameters that it sees: ['lr', 'seed']
#   given: {'mu': 3.0, 'width': 32, 'sead': 1}
#   Passed unknown parameter: mu
#   Passed unknown parameter: width
#   Passed unknown parameter: sead
#   lr, mu, width, seed in the run: 0.1 3.0 32 0
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with papermill==2.7.0 ipykernel==7.4.0
"$python" - <<'PYTHON'
import logging
from importlib.metadata import version

import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_notebook

PARAMETERS = """lr = 0.1  # step size
mu = 2.0  # mu = 1 prunes more
width: int | None = 64
seed = 0"""
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
nbformat.write(new_notebook(cells=[first, new_code_cell("print(lr, mu, width, seed)")], metadata=kernel), "in.ipynb")
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("papermill").addHandler(handler)

print("papermill", version("papermill"))
seen = list(papermill.inspect_notebook("in.ipynb"))
print("parameters that it sees:", seen)
said.clear()
given = {"mu": 3.0, "width": 32, "sead": 1}
ran = papermill.execute_notebook("in.ipynb", "out.ipynb", given, progress_bar=False)
warned = [text for text in said if "unknown" in text]
printed = ran.cells[-1].outputs[0].text.strip()
print("given:", given)
print(*warned, sep="\n")
print("lr, mu, width, seed in the run:", printed)

assert seen == ["lr", "seed"]
assert [text.split()[-1] for text in warned] == ["mu", "width", "sead"]
assert printed == "0.1 3.0 32 0"
PYTHON
