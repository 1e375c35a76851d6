#!/usr/bin/env bash
# Expected: when the kernel dies (out of memory, say), the notebook that papermill leaves tells which cell was running.
# What happens: every cell is marked as completed, those that never ran as well, and the notebook's own record says that
#   there was no exception. A missing execution_count is the only trace of a cell that never ran, and from run to run
#   the cell that was running has one (2, below) or has none. papermill raises DeadKernelError, so whoever runs it
#   knows; whoever reads the notebook later does not.
# Versions: papermill 2.6.0 and 2.7.0.
# Seen on 2026-11-27:
#   papermill 2.7.0
#   raised: DeadKernelError('Kernel died')
#   completed  execution_count 1     print('first')
#   completed  execution_count 2     import os; os._exit(1)  # as if it were killed
#   completed  execution_count None  print('third')
#   completed  execution_count None  print('fourth')
#   exception, says the notebook: None
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with papermill==2.7.0 ipykernel==7.4.0
"$python" - <<'PYTHON'
from importlib.metadata import version

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
sources = ["print('first')", "import os; os._exit(1)  # as if it were killed", "print('third')", "print('fourth')"]
nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources], metadata=kernel), "in.ipynb")

print("papermill", version("papermill"))
try:
    papermill.execute_notebook("in.ipynb", "out.ipynb", progress_bar=False)
    error = None
except DeadKernelError as dead:
    error = dead
print("raised:", repr(error))
left = nbformat.read("out.ipynb", 4)
for cell in left.cells:
    print(f"{cell.metadata.papermill.status:<10} execution_count {cell.execution_count!s:<5} {cell.source}")
print("exception, says the notebook:", left.metadata.papermill.exception)

assert error is not None
assert [cell.metadata.papermill.status for cell in left.cells] == ["completed"] * 4
assert [cell.execution_count for cell in left.cells] in ([1, 2, None, None], [1, None, None, None])
assert not left.metadata.papermill.exception
PYTHON
