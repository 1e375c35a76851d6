"""The defender's wing. The paper's method, in its order: `components`, `score`, `pruning`, `repair`.

Then one file a defence: frozen dataclasses that are called with a model and clean images and return a `Repair`.
Nothing in this folder, nor anything that it imports, can reach a trigger or a test set; a test proves it.
"""

from nbtools.defender.anp import ANP
from nbtools.defender.awm import AWM
from nbtools.defender.d3 import D3
from nbtools.defender.fine_pruning import FinePruning
from nbtools.defender.fine_tuning import FineTuning
from nbtools.defender.fmp import FMP
from nbtools.defender.ft_sam import FTSAM
from nbtools.defender.last_stage import LastStage
from nbtools.defender.learning import Epochs
from nbtools.defender.lmr import LMR
from nbtools.defender.mnp import MNP
from nbtools.defender.nad import NAD
from nbtools.defender.nft import NFT
from nbtools.defender.renormalise import Renormalise
from nbtools.defender.repair import Defence, FineTune, Repair
from nbtools.defender.rnp import RNP
from nbtools.defender.shift_unlearning import ShiftUnlearning
from nbtools.defender.suspiciousness import ChosenMu, RandomPruning, SpectralNorm, Suspiciousness
from nbtools.defender.validation import Validation

__all__ = [
    "ANP",
    "AWM",
    "D3",
    "FMP",
    "FTSAM",
    "LMR",
    "MNP",
    "NAD",
    "NFT",
    "RNP",
    "ChosenMu",
    "Defence",
    "Epochs",
    "FinePruning",
    "FineTune",
    "FineTuning",
    "LastStage",
    "RandomPruning",
    "Renormalise",
    "Repair",
    "ShiftUnlearning",
    "SpectralNorm",
    "Suspiciousness",
    "Validation",
]
