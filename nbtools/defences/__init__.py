"""The defences: frozen dataclasses that are called with a model and clean images and return a `Repair`.

Nothing in this folder, nor anything that it imports, can reach a trigger or a test set; a test proves it.
"""

from nbtools.defences.anp import ANP
from nbtools.defences.awm import AWM
from nbtools.defences.fine_pruning import FinePruning
from nbtools.defences.fine_tuning import FineTuning
from nbtools.defences.fmp import FMP
from nbtools.defences.learning import Epochs, Validation
from nbtools.defences.mnp import MNP
from nbtools.defences.nad import NAD
from nbtools.defences.repair import Defence, FineTune, Repair
from nbtools.defences.rnp import RNP
from nbtools.defences.suspiciousness import ChosenMu, RandomPruning, SpectralNorm, Suspiciousness

__all__ = [
    "ANP",
    "AWM",
    "FMP",
    "MNP",
    "NAD",
    "RNP",
    "ChosenMu",
    "Defence",
    "Epochs",
    "FinePruning",
    "FineTune",
    "FineTuning",
    "RandomPruning",
    "Repair",
    "SpectralNorm",
    "Suspiciousness",
    "Validation",
]
