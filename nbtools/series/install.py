"""The second half of a notebook's install cell: what a kernel without nbtools needs, where the checkout was fetched to.

It runs before any other package is there, so it imports nothing but Python's own modules until it is called.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from nbtools.settings import ROOT
from nbtools.wording import Plain

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FRONT = frozenset({"ipykernel", "ipywidgets", "jupyterlab", "jupytext", "papermill"})
"""Whoever shows the notebook has brought these, in versions that it relies on."""

KEPT = ("torch", "torchvision")
"""Where they are there and will do, they stay as they are: another one is a download of gigabytes."""


class InstallError(Plain, RuntimeError):
    """The package could not be installed into this kernel, or the kernel has to start anew; a reader is told how."""


def install(root: Path = ROOT, say: Callable[[str], None] = print) -> None:
    """Install what the notebooks import, and the checkout itself, into this kernel's Python.

    Args:
        root: the checkout.
        say: takes one line.

    Raises:
        InstallError: where pip fails, or a package was replaced that this kernel uses already.
    """
    say("nbtools is not installed here. Installing it with what it needs, once; this takes some minutes.")
    needed = requirements(root)
    used = {name: there for name in needed if name in sys.modules and (there := _version(name))}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{name}=={there}\n" for name, there in satisfied(needed).items() if name in KEPT))
        _pip("--constraint", str(kept), *map(str, needed.values()))
    _pip("--no-deps", "--editable", str(root))
    sys.path.insert(0, str(root))  # a running kernel does not see a new editable package by itself
    importlib.invalidate_caches()
    if replaced := [name for name, there in used.items() if _version(name) != there]:
        raise InstallError(
            f"Installed. This kernel still holds an older {' and '.join(replaced)}.",
            "Restart it (menu Kernel or Runtime, Restart), then run all cells.",
        )
    say("Installed.")


def requirements(root: Path) -> dict[str, Requirement]:
    """What the checkout's pyproject.toml requires, by name, without what brings a notebook on the screen."""
    import tomllib

    from packaging.requirements import Requirement

    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return {each.name: each for each in map(Requirement, listed) if each.name not in FRONT}


def satisfied(needed: Mapping[str, Requirement]) -> dict[str, str]:
    """The installed versions, by name, of what is there and will do."""
    there = {name: _version(name) for name in needed}
    return {name: found for name, found in there.items() if found and needed[name].specifier.contains(found)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _pip(*words: str) -> None:
    """Call pip for this Python; what it says last is told where it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()][-3:]
        raise InstallError("pip could not install what nbtools needs. It says:", *said)
