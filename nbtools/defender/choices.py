"""Which defence, with which settings: names and values as a person gives them, to a defence that can be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbtools.defender.anp import ANP
from nbtools.defender.awm import AWM
from nbtools.defender.d3 import D3
from nbtools.defender.fine_pruning import FinePruning
from nbtools.defender.fine_tuning import FineTuning
from nbtools.defender.fmp import FMP
from nbtools.defender.ft_sam import FTSAM
from nbtools.defender.lmr import LMR
from nbtools.defender.mnp import MNP
from nbtools.defender.nad import NAD
from nbtools.defender.nft import NFT
from nbtools.defender.repair import Defence
from nbtools.defender.rnp import RNP
from nbtools.defender.shift_unlearning import ShiftUnlearning
from nbtools.defender.suspiciousness import ChosenMu, SpectralNorm, Suspiciousness
from nbtools.values import build
from nbtools.wording import known

DEFENCES: dict[str, type] = {
    "suspiciousness": Suspiciousness,
    "clp": SpectralNorm,
    "chosen_mu": ChosenMu,
    "shift_unlearning": ShiftUnlearning,
    "fmp": FMP,
    "mnp": MNP,
    "nad": NAD,
    "anp": ANP,
    "rnp": RNP,
    "awm": AWM,
    "d3": D3,
    "lmr": LMR,
    "ft_sam": FTSAM,
    "nft": NFT,
    "fine_pruning": FinePruning,
    "fine_tuning": FineTuning,
}


def make_defence(name: str, settings: Sequence[tuple[str, Any]]) -> Defence:
    """The defence of this name with these settings.

    Args:
        name: a name in `DEFENCES`.
        settings: pairs of a field and its value, see `nbtools.values.fit`; "fine_tune.lr" is a field of a field.

    Raises:
        ValueError: for an unknown name or field, a field given twice, a wrong type, or a value that the defence
            refuses; the message lists what there is.
    """
    if name not in DEFENCES:
        raise ValueError(known("defence", name, DEFENCES))
    given: dict[str, Any] = {}
    for field, value in settings:
        if field in given:
            raise ValueError(f"-s {field} is given twice")
        given[field] = value
    return build(DEFENCES[name], given, name)
