"""The defences: frozen dataclasses that are called with a model and clean images and return a `Repair`.

Nothing in this folder, nor anything that it imports, can reach a trigger or a test set; a test proves it.
"""

from nbtools.defences.repair import Defence, FineTune, Repair
from nbtools.defences.suspiciousness import RandomPruning, SpectralNorm, Suspiciousness

__all__ = ["Defence", "FineTune", "RandomPruning", "Repair", "SpectralNorm", "Suspiciousness"]
