"""Where the published data sets lie, and what to type where one is missing. No torch here: a run asks this first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nbtools.settings import CIFAR10, data_places
from nbtools.wording import Plain

PUBLISHED: dict[str, tuple[str, str]] = {
    "cifar10": ("CIFAR-10", CIFAR10),
    "cifar100": ("CIFAR-100", "cifar-100-python"),
    "svhn": ("SVHN", "train_32x32.mat"),
    "gtsrb": ("GTSRB", "gtsrb"),
}
"""A data set's name to its title, as people write it, and to the file or folder that it is found by."""


class DataNotFound(Plain, FileNotFoundError):
    """A data set is not on this machine; the message says what to type. A notebook shows it without a traceback."""


def found(name: str, data: Path | None = None) -> Path | None:
    """The first of `nbtools.settings.data_places` that holds a published data set, else None."""
    return next((place for place in data_places(data) if (place / PUBLISHED[name][1]).exists()), None)


def require(names: Iterable[str], data: Path | None = None) -> None:
    """Refuse where a published data set is not here; any other name is none of this module's business.

    Raises:
        DataNotFound: it says what to type.
    """
    for name in names:
        if name in PUBLISHED and found(name, data) is None:
            raise not_found(name, data)


def not_found(name: str, data: Path | None = None) -> DataNotFound:
    """The error for a published data set that is not here."""
    title, marker = PUBLISHED[name]
    looked = ", ".join(str(place) for place in data_places(data))
    download = f"from nbtools.data import datasets; datasets.load('{name}', download=True)"
    return DataNotFound(
        f"{title} is not here.",
        'To go on without it: profile = "quick" in the parameters cell, or --profile quick on the command line.',
        f'To download it: python -c "{download}".',
        f"Where it lies elsewhere: set NBTOOLS_DATA to the folder that holds {marker}, or give that folder with "
        "--data.",
        f"Looked in: {looked}.",
    )
