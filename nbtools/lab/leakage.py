"""What a threshold chosen by the test set is worth: one set of masks, three ways to choose [ours]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nbtools.defender.anp import ANP
from nbtools.defender.learning import accuracy
from nbtools.defender.rnp import RNP
from nbtools.defender.soft_masks import shut
from nbtools.lab.cache import cached, source_hash
from nbtools.lab.experiments import Run, defence_code
from nbtools.lab.trained import Trained, precision
from nbtools.networks.units import prunable_units

TOLERANCE = 0.1
"""Share of its clean test accuracy that the oracle lets the model lose; BackdoorBench's for ANP [code]."""

WAYS = {"oracle": "test ASR (oracle)", "by_test": "test accuracy", "by_validation": "held-back clean images"}
"""Column of `threshold_choices` to what chooses."""


def threshold_choices(
    run: Run, trained: Trained, defence: ANP | RNP, samples_per_class: int = 10, draw: int = 0
) -> pd.DataFrame:
    """The defence's masks, learned once; every threshold's numbers, and which of them each of three ways takes.

    - `oracle`: the lowest test ASR among the thresholds at which clean test accuracy keeps at least 1 - `TOLERANCE` of
      what it was, as BackdoorBench chooses for ANP [code]. It needs the trigger: no defender has this choice.
    - `by_test`: the defence's own rule, with clean test accuracy in the place of held-back accuracy. It needs no
      trigger, but as many labelled images as the evaluator has, and tunes on what is then reported.
    - `by_validation`: the defence's own choice, by its held-back clean images alone, of which one may always go wrong.

    The test set is the evaluator's glance (`Profile.glance`). The rows are found again once they were measured.

    Args:
        run: whose defender's images are drawn.
        trained: the model.
        defence: with thresholds: ANP, RNP or MNP.
        samples_per_class, draw: see `nbtools.data.images.draw_clean`.

    Returns:
        One row a threshold, ascending; the first, -inf, prunes nothing. threshold, pruned, held_back, acc, asr, ra (in
        percent), and a bool for each of `WAYS`, true in one row.

    Raises:
        DivergedError: as the defence.
    """
    shaped = {
        "what": "every threshold",
        "weights": trained.card["sha256"],
        "trigger": repr(trained.trigger),
        "target": trained.target,
        "settings": repr(defence),
        "samples_per_class": samples_per_class,
        "draw": draw,
        "test_images": len(trained.glance.test),
        "reserved": len(run.splits.reserved),
        "code": defence_code(defence) + source_hash(__file__),
        **precision(),
    }

    def build(_work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"rows": _measure(run, trained, defence, samples_per_class, draw)}

    rows: Any = pd.DataFrame(cached("rows", shaped, build).card["rows"])
    rows.insert(0, "threshold", [-math.inf, *sorted(defence.thresholds)])
    by_test = 1 + defence.validation.choose((rows.acc[1:] / 100).tolist(), rows.acc[0] / 100)
    rows["oracle"] = rows.index == rows.asr[rows.acc >= (1 - TOLERANCE) * rows.acc[0]].idxmin()
    rows["by_test"] = rows.index == by_test
    return rows[["threshold", "pruned", "held_back", "acc", "asr", "ra", *WAYS]]


def _measure(run: Run, trained: Trained, defence: ANP | RNP, samples_per_class: int, draw: int) -> list[dict[str, Any]]:
    """A row for no pruning and one for each threshold, ascending."""
    repair = run.repair(trained, defence, samples_per_class, draw=draw)
    units = prunable_units(trained.model)
    masks = 1 - torch.cat([repair.scores[unit.conv] for unit in units])
    _, held = defence.validation.split(run.draw(samples_per_class, draw=draw))
    swept = [row for row in repair.history if "held_back" in row]
    chosen = any(row["chosen"] for row in swept)
    before = {"threshold": -math.inf, "held_back": accuracy(trained.model, held), "chosen": not chosen}
    seen: dict[int, dict[str, float]] = {}
    rows = []
    for row in [before, *swept]:
        pruned = masks <= row["threshold"]
        count = int(pruned.sum())
        if count not in seen:
            seen[count] = trained.glance(shut(trained.model, units, pruned)).row()
        chosen_here = {"held_back": 100 * row["held_back"], "by_validation": row["chosen"]}
        rows.append({"pruned": count, **seen[count], **chosen_here})
    return rows
