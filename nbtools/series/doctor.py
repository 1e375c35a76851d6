"""python -m nbtools doctor: what this machine has, as one table."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from nbtools import settings
from nbtools.data import sources
from nbtools.lab import cache
from nbtools.wording import readable

LEAST_FREE = 2**30  # bytes: below one GiB a cache of models fills the disk within a notebook or two


@dataclass(frozen=True)
class Row:
    """One line of the table: what, what was found, and whether it is as it must be."""

    name: str
    found: str
    fine: bool = True


def examine() -> list[Row]:
    """Return every line of the table, in order."""
    return [_python(), *_packages(), *_device(), *_data(), *_cache(), _notebooks()]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, with a mark and a last line for what must be mended."""
    width = max(len(row.name) for row in rows)
    lines = [f"{row.name:<{width}}  {row.found}{'' if row.fine else '   <- to mend'}" for row in rows]
    wrong = [row.name for row in rows if not row.fine]
    return "\n".join([*lines, "", f"To mend: {', '.join(wrong)}." if wrong else "Everything that is needed is here."])


def _python() -> Row:
    """Return the interpreter's version and place."""
    fine = sys.version_info >= (3, 11)
    return Row("Python", f"{platform.python_version()} at {sys.executable}{'' if fine else '; 3.11 is needed'}", fine)


def _packages() -> list[Row]:
    """Return nbtools and each package that it requires, with the installed version held against the required one.

    Of what only an extra requires ("book", "dev", "timm"), nothing is told but a version that does not fit.
    """
    try:
        needed = [Requirement(text) for text in requires("nbtools") or []]
    except PackageNotFoundError:
        return [Row("nbtools", "not installed in this Python: pip install -e . in the project's folder", False)]
    rows = [Row("nbtools", version("nbtools"))]
    for requirement in needed:
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if optional:
                continue
            rows.append(Row(requirement.name, f"missing; {requirement.specifier or 'any version'} is needed", False))
            continue
        fine = requirement.specifier.contains(found, prereleases=True)
        if optional and fine:
            continue
        rows.append(Row(requirement.name, found if fine else f"{found}; {requirement.specifier} is needed", fine))
    return rows


def _device() -> list[Row]:
    """Return the processor, the device that notebooks will compute on, whether it has bf16, and the default profile."""
    device = settings.default_device()
    try:
        bf16 = _bf16(device)
    except ValueError as error:
        return [Row("bf16", str(error), False)]
    gpu = settings.hardware(device) if device.type == "cuda" else "none, the notebooks run on the processor"
    profile = settings.default_profile()
    return [
        Row("Processor", settings.hardware(torch.device("cpu"))),
        Row("GPU", gpu),
        Row("bf16", bf16),
        Row("Default profile", f"{profile}: {settings.PROFILES[profile].about}"),
    ]


def _bf16(device: torch.device) -> str:
    """Return whether bf16 is used, could be, or was asked for in vain."""
    if settings.has_bf16(device):
        return "used"
    asked = os.environ.get("NBTOOLS_BF16") == "1"
    if device.type == "cpu" and settings.cpu_computes_bf16():
        return "not used, all is float32; with NBTOOLS_BF16=1 this processor would use it"
    return "not used, all is float32" + ("; this processor has no instructions for it" if asked else "")


def _data() -> list[Row]:
    """Return which data sets are there, and the folders that were looked into."""
    source = sources.SOURCES["cifar10"]
    found = source.found()
    rows = [Row("Data: shapes", "made by code, nothing to find"), Row("Data: cifar10", str(found or "not found"))]
    rows += [Row("", f"looked in {place}") for place in settings.data_places()]
    if found is None:
        rows.append(Row("", "profile quick does not need it; data/README.md says how to get it"))
    return rows


def _cache() -> list[Row]:
    """Return the cache's folder and size, and the free disk there."""
    place = cache.folder()
    existing = next(path for path in [place, *place.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    return [
        Row("Cache", f"{place}, {readable(cache.size())}"),
        Row("Free disk there", readable(free), free >= LEAST_FREE),
    ]


def _notebooks() -> Row:
    """Return the folder of the notebooks and how many there are."""
    from nbtools.series.notebooks import find_sources, source_folder

    place: Path = source_folder()
    count = len(find_sources(place))
    return Row("Notebooks", f"{count} in {place}", count > 0)
