"""The data sets, each in three parts: for training, for the defender, for the evaluator."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch

from nbtools import shapes
from nbtools.cache import cached, source_hash
from nbtools.images import Images
from nbtools.shapes import CLASSES, make_shapes

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLIT_SEED = 20231117
"""The fixed permutation that sets the defender's images apart; no option changes it."""


@dataclass(frozen=True, eq=False)
class Splits:
    """One data set in three disjoint parts.

    Args:
        name: its name in `DATASETS`.
        train: what the (attacked) model is trained on.
        reserved: what the defender may draw from; the model never trains on it.
        test: what the evaluator alone sees.
        version: of the code that made the images; "" where they were published.
    """

    name: str
    train: Images
    reserved: Images
    test: Images
    version: str = ""

    def to(self, device: torch.device | str) -> Splits:
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), reserved=self.reserved.to(device), test=self.test.to(device))


def split_off(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stratified split by a fixed permutation.

    Args:
        labels: int64 `[n]`.
        count: how many indices the second part gets; each class gives its share.

    Returns:
        Two sorted, disjoint index tensors that together hold `0 .. n - 1`.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    grouped = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[grouped]]
    apart = rank < sizes[labels[grouped]] * count // len(labels)
    return grouped[~apart].sort().values, grouped[apart].sort().values


def load_shapes(
    data: Path | None = None, *, train: int, reserved: int, test: int, seed: int = 0, download: bool = False
) -> Splits:
    """The data set that code makes: no download, any size (`data` and `download` change nothing).

    Large ones are kept in the cache: a series of notebooks makes them once.

    Raises:
        ValueError: where a part would have no image.
    """
    if min(train, reserved, test) < 1:
        raise ValueError(f"each part needs at least one image, got train={train}, reserved={reserved}, test={test}")
    # What was made, or trained, by other code is not found again.
    count, version = train + reserved + test, source_hash(shapes.__file__)[:12]

    def build(_work: Path | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        images, labels = make_shapes(count, seed)
        return {"images": images, "labels": labels}, {}

    config = {"dataset": "shapes", "images": count, "seed": seed, "version": version}
    made = cached("images", config, build).tensors if count >= 10_000 else build()[0]
    everything = Images(made["images"], made["labels"], CLASSES)
    parts = torch.arange(len(everything)).split([train, reserved, test])
    return Splits("shapes", *(everything.subset(part) for part in parts), version=version)


def cifar10_places(data: Path | None = None) -> list[Path]:
    """The folders that are searched for CIFAR-10, in order: `data`, `NBTOOLS_DATA`, `data/` of the checkout."""
    places = [Path(data)] if data else []
    if os.environ.get("NBTOOLS_DATA"):
        places.append(Path(os.environ["NBTOOLS_DATA"]))
    places.append(Path(__file__).resolve().parent.parent / "data")
    return places


def cifar10_found(data: Path | None = None) -> Path | None:
    """The first folder of `cifar10_places` that holds `cifar-10-batches-py`, else None."""
    return next((p for p in cifar10_places(data) if (p / "cifar-10-batches-py").is_dir()), None)


def load_cifar10(
    data: Path | None = None,
    *,
    train: int = 45_000,
    reserved: int = 5_000,
    test: int = 10_000,
    seed: int = 0,
    download: bool = False,
) -> Splits:
    """Real CIFAR-10 through torchvision, checksums verified; 45,000 / 5,000 / 10,000 images.

    Args:
        data: a folder that holds `cifar-10-batches-py`, searched before the usual places.
        train: images to train on, at most 45,000; fewer takes the first of the fixed permutation's part.
        reserved: images for the defender, at most 5,000, never among those trained on.
        test: test images, at most 10,000.
        seed: not used: the splits are fixed.
        download: fetch the archive into the first place where it can't be found.

    Raises:
        FileNotFoundError: where the files are not there; it names the three ways to get them.
        ConnectionError: where the download fails.
        ValueError: where a file is damaged, or more images are asked for than there are.
    """
    from torchvision.datasets import CIFAR10

    if train > 45_000 or reserved > 5_000 or test > 10_000 or min(train, reserved, test) < 1:
        raise ValueError(
            f"CIFAR-10 has at most 45000 training, 5000 reserved and 10000 test images, and each part needs one; "
            f"asked for {train}, {reserved}, {test}"
        )
    root = cifar10_found(data)
    if root is None and not download:
        looked = ", ".join(str(p) for p in cifar10_places(data))
        raise FileNotFoundError(
            f"CIFAR-10 was not found (no folder cifar-10-batches-py in: {looked}). Three ways to get it: "
            "set NBTOOLS_DATA to the folder that holds cifar-10-batches-py; or give that folder with --data; "
            "or let torchvision download it: nbtools.datasets.load('cifar10', download=True)."
        )
    root = root or cifar10_places(data)[0]
    try:
        parts = [CIFAR10(str(root), train=which, download=download) for which in (True, False)]
    except URLError as error:
        raise ConnectionError(
            f"CIFAR-10 could not be downloaded into {root} ({error.reason}). Without a connection: get "
            "cifar-10-batches-py elsewhere, and set NBTOOLS_DATA to the folder that holds it, or give that folder "
            "with --data."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"CIFAR-10 in {root} is not complete: a file is missing, truncated or changed (its checksum differs). "
            f"Delete {root / 'cifar-10-batches-py'} and get it again."
        ) from error
    labels = torch.tensor(parts[0].targets)
    kept, apart = split_off(labels, 5_000)
    pixels = torch.from_numpy(np.ascontiguousarray(parts[0].data.transpose(0, 3, 1, 2)))
    everything = Images(pixels, labels, CIFAR10_CLASSES)
    test_pixels = torch.from_numpy(np.ascontiguousarray(parts[1].data.transpose(0, 3, 1, 2)))
    return Splits(
        "cifar10",
        everything.subset(kept[:train]),
        everything.subset(apart[:reserved]),
        Images(test_pixels[:test], torch.tensor(parts[1].targets)[:test], CIFAR10_CLASSES),
    )


DATASETS: dict[str, Callable[..., Splits]] = {"shapes": load_shapes, "cifar10": load_cifar10}


def load(name: str, data: Path | None = None, device: torch.device | str = "cpu", **options: int | bool) -> Splits:
    """A data set by name, on `device`.

    Args:
        name: one of `DATASETS`.
        data: a folder to search first.
        device: where the uint8 tensors shall lie.
        options: `train`, `reserved`, `test` (numbers of images), `seed`, `download`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name](data, **options).to(device)
