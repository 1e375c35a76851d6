"""Tables that come with the checkout: the BackdoorBench leaderboard for CIFAR-10, and our own committed results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbtools.settings import ROOT

FILE = ROOT / "data" / "published" / "backdoorbench_cifar10.csv"


RESULTS = ROOT / "data" / "results"


def results(name: str) -> pd.DataFrame:
    """One of our own committed tables, see data/lab_notes.md.

    Raises:
        FileNotFoundError: for a name that is not there; it lists those that are.
    """
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in RESULTS.glob("*.csv")))
        raise FileNotFoundError(f"there is no {path}; data/results has {there or 'no table'}")
    return pd.read_csv(path)


def leaderboard(path: Path = FILE, network: str = "PreActResNet-18", poison_rate: float = 0.1) -> pd.DataFrame:
    """The BackdoorBench leaderboard for CIFAR-10 (June 2025), means over its attacks, in percent.

    Another recipe, another network, other attacks, and ANP's threshold chosen by test ASR: to stand beside our numbers,
    not to be ranked with them.

    Args:
        path: the table; by default that of the checkout.
        network: one of the table's models.
        poison_rate: one of the table's, a share.

    Returns:
        By defence, "none" first, then from the best DER to the worst: acc, asr, ra, der (each attack's against its own
        "none"), acc_lost (points), worst_asr, attacks (how many it has numbers for).

    Raises:
        FileNotFoundError: where the table is not there.
        ValueError: for a network or rate that it does not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; the table comes with the checkout, in data/published")
    table: Any = pd.read_csv(path)
    chosen = table[(table["model"] == network) & np.isclose(table["poison_rate"], poison_rate)]
    if chosen.empty:
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(table["poison_rate"])))
        networks = ", ".join(sorted(set(table["model"])))
        raise ValueError(f"nothing for {network!r} at a rate of {poison_rate}; networks: {networks}; rates: {rates}")
    before = chosen[chosen["defence"] == "none"].set_index("attack")[["acc", "asr"]]
    lost, fallen = (chosen["attack"].map(before[part]) - chosen[part] for part in ("acc", "asr"))
    chosen = chosen.assign(acc_lost=lost, der=50 * (fallen.clip(lower=0) / 100 - lost.clip(lower=0) / 100 + 1))
    groups = chosen.groupby("defence")
    means = groups[["acc", "asr", "ra", "der", "acc_lost"]].mean()
    means = means.assign(worst_asr=groups["asr"].max(), attacks=groups.size())
    order = means["der"].drop("none").sort_values(ascending=False).index
    return means.loc[["none", *order]]
