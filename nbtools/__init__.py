"""Backdoors in neural networks, and pruning them away: the small package behind the notebooks."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nbtools")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "start"]


def __getattr__(name: str) -> object:
    if name == "start":  # imported when asked for: `python -m nbtools --help` needs no torch
        from nbtools.lab.experiments import start

        return start
    raise AttributeError(f"module 'nbtools' has no attribute {name!r}")
