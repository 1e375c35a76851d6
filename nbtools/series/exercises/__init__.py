"""What is expected of the exercises, one module a notebook, one function an exercise: no notebook gives it away.

Each function takes the reader's answer and what the run computed before, works the answer out, and lets
`nbtools.series.checks` say one line.
"""
