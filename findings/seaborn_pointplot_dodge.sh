#!/usr/bin/env bash
# Expected: pointplot(..., hue=..., dodge=True) draws whatever the number of hue levels, so that one function draws a
#   table with one model and a table with several.
# What happens: with a single hue level it raises ZeroDivisionError, since the dodge is divided by the levels less one.
#   stripplot, barplot and violinplot take the same table and dodge=True.
# Versions: seaborn 0.13.0 and 0.13.2; 0.12.2 draws it.
# Seen on 2026-11-27:
#   seaborn 0.13.2 matplotlib 3.11.2
#   2 hue levels pointplot  dodge=True  drawn
#   2 hue levels pointplot  dodge=0.15  drawn
#   2 hue levels pointplot  dodge=False drawn
#   2 hue levels stripplot  dodge=True  drawn
#   2 hue levels barplot    dodge=True  drawn
#   2 hue levels violinplot dodge=True  drawn
#   1 hue level  pointplot  dodge=True  ZeroDivisionError('float division by zero')
#   1 hue level  pointplot  dodge=0.15  ZeroDivisionError('float division by zero')
#   1 hue level  pointplot  dodge=False drawn
#   1 hue level  stripplot  dodge=True  drawn
#   1 hue level  barplot    dodge=True  drawn
#   1 hue level  violinplot dodge=True  drawn
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with seaborn==0.13.2 matplotlib==3.11.2 pandas==3.1.1 numpy==2.4.6
MPLBACKEND=agg "$python" - <<'PYTHON'
import matplotlib
import pandas as pd
import seaborn as sns

print("seaborn", sns.__version__, "matplotlib", matplotlib.__version__)
table = pd.DataFrame({"stage": ["before", "after"] * 4, "asr": range(8), "model": ["a"] * 4 + ["b"] * 4})


def drawn(plot, rows, dodge):
    try:
        plot(rows, x="stage", y="asr", hue="model", dodge=dodge)
        return "drawn"
    except ZeroDivisionError as error:
        return repr(error)


found = {}
PLOTS = [(sns.pointplot, True), (sns.pointplot, 0.15), (sns.pointplot, False)]
PLOTS += [(plot, True) for plot in (sns.stripplot, sns.barplot, sns.violinplot)]
for models in ("ab", "a"):
    rows = table[table.model.isin(list(models))]
    for plot, dodge in PLOTS:
        found[models, plot.__name__, dodge] = end = drawn(plot, rows, dodge)
        print(f"{len(models)} hue level{'s' if len(models) > 1 else ' '} {plot.__name__:<10} dodge={dodge!s:<5} {end}")

failed = [key for key, end in found.items() if end != "drawn"]
assert failed == [("a", "pointplot", True), ("a", "pointplot", 0.15)]
PYTHON
