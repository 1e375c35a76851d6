"""Profiles, device, seeding, and where things lie. A profile sets the scale of a run, never what is studied.

torch is imported where it is needed: a call that is refused should not wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the package: of a checkout, where there is one."""

CIFAR10 = "cifar-10-batches-py"
"""The folder that CIFAR-10 is found by."""

STRIDES = (1, 1, 2, 2, 2)
"""Of the stem and the four stages of a CIFAR ResNet."""

MIN_WIDTH = 16
"""Channels that a network of the series must have in its first stage."""

STAMPED_PACKAGES = ("torch", "torchvision", "nbtools")
"""Their versions stand on a result."""


@dataclass(frozen=True)
class Profile:
    """How large a run is.

    Args:
        name: its name in `PROFILES`.
        dataset: a name in `nbtools.data.datasets.DATASETS`.
        train: images to train on; reserved: for the defender; test: for the evaluator.
        width: channels of the ResNet's first stage (64 is the standard network).
        epochs: training epochs.
        batch_size: images a step.
        draws: how often a measurement that depends on the draw of clean images is repeated.
        about: one line for people.
        lr: the training's highest learning rate.
        weight_decay: of the training.
        padding: pixels by which the training's random crop may shift an image.
        strides: of the stem and the four stages; see `nbtools.networks.architectures.ResNet18`.
        threads: of the CPU; 0 is as many as torch chooses. Sums in another order make another model, so one thread
            gives the same model on any number of cores.
        glance: test images for each of the many points of a sweep, and of what is quoted from one; else it is all.
        hard_attack: the second attack of the notebooks that show two; "" leaves it, and its training, out.
        attacks: those of the comparison of defences.
        small: whether notebooks that need many models take narrow ones (`narrowed`).
        zoo: clean models, and as many poisoned ones, that the detector is tried on.
        zoo_train: images that each of these is trained on.
        zoo_epochs: their epochs; 0 is `epochs`.
        zoo_lr: their highest learning rate; 0 is `lr`.
        zoo_attacks: those of the poisoned ones, in turn.
        anp_iterations: of the defence ANP, which has 2,000 in its paper's code.
        awm_rounds: of AWM, which has 20.
        fmp_images: that FMP scores with, 32 in its paper's code.
        most_per_class: the papers' own amounts of clean images are cut to so many a class.
    """

    name: str
    dataset: str
    train: int
    reserved: int
    test: int
    width: int
    epochs: int
    batch_size: int
    draws: int
    about: str
    lr: float = 0.1
    weight_decay: float = 5e-4
    padding: int = 4
    strides: tuple[int, ...] = STRIDES
    threads: int = 0
    glance: int = 2_000
    hard_attack: str = "blended"
    attacks: tuple[str, ...] = ("badnets", "blended", "sig", "wanet")
    small: bool = False
    zoo: int = 10
    zoo_train: int = 45_000
    zoo_epochs: int = 0
    zoo_lr: float = 0
    zoo_attacks: tuple[str, ...] = ("badnets", "blended")
    anp_iterations: int = 2_000
    awm_rounds: int = 20
    fmp_images: int = 32
    most_per_class: int = 500

    def narrowed(self) -> Profile:
        """The same with a network that many can be trained of, where `small` asks for that.

        Width 16, and stage 1 halves the image as well. The training crops no image: crops often cut a patch in the
        corner away, and so narrow a network then does not learn it (the zoo's, CIFAR-10, BadNets at 10 %: ASR 6 after
        ten epochs with crops, 96 after four without).
        """
        return replace(self, width=16, strides=(1, 2, 2, 2, 2), padding=0) if self.small else self


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        # Small batches (many steps), a high learning rate and more weight decay gather the backdoor in few filters;
        # with less it is learnt as well, but pruning by the score misses it. Crops often cut the patch away, and with
        # some seeds it is then not learnt at all. Stage 1 halves the image as well, for a quarter of the work.
        Profile(
            name="quick",
            dataset="shapes",
            train=12_000,
            reserved=1_000,
            test=1_000,
            width=16,
            epochs=5,
            batch_size=32,
            draws=1,
            about="images made by code, a narrow network",
            lr=0.2,
            weight_decay=1e-3,
            padding=0,
            strides=(1, 2, 2, 2, 2),
            threads=1,
            glance=500,
            hard_attack="",
            attacks=("badnets",),
            zoo=2,
            # In so few steps this network learns the shapes and a trigger that covers the image, not one in a corner;
            # with the others' learning rate some seeds have learned nothing by then.
            zoo_train=8_000,
            zoo_epochs=3,
            zoo_lr=0.05,
            zoo_attacks=("blended",),
            anp_iterations=40,
            awm_rounds=1,
            fmp_images=8,
            most_per_class=10,
        ),
        # Ten epochs are few: at a rate of 0.1 and a decay of 5e-4 the backdoor stays spread over many filters.
        Profile(
            name="laptop",
            dataset="cifar10",
            train=45_000,
            reserved=5_000,
            test=10_000,
            width=32,
            epochs=10,
            batch_size=128,
            draws=3,
            about="real images without a GPU",
            lr=0.2,
            weight_decay=1e-3,
            small=True,
            zoo_epochs=4,
            anp_iterations=500,
        ),
        Profile(
            "paper",
            "cifar10",
            45_000,
            5_000,
            10_000,
            64,
            30,
            512,
            3,
            "full width, the numbers to quote; training wants a GPU",
            lr=0.4,
        ),
    )
}


def get_profile(name: str) -> Profile:
    """A profile by name; an unknown one raises a ValueError that lists those there are."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def data_places(data: Path | None = None) -> list[Path]:
    """The folders in which data sets are searched, in order: `data`, `NBTOOLS_DATA`, `data/` of the checkout."""
    given = os.environ.get("NBTOOLS_DATA")
    return [*([Path(data)] if data else []), *([Path(given)] if given else []), ROOT / "data"]


def default_profile(data: Path | None = None) -> str:
    """`paper` where there are a GPU and CIFAR-10, else `quick`, which needs neither.

    Args:
        data: a folder that is searched first.
    """
    import torch

    there = torch.cuda.is_available() and any((place / CIFAR10).exists() for place in data_places(data))
    return "paper" if there else "quick"


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether training and evaluation use bf16 there: on Ampere and later GPUs; on a CPU where it is asked for.

    Some CPUs compute bf16 as well, others only emulate it. From one seed they would train other models, in profile
    quick such different ones that what a notebook shows on one kind is not there on the other. So a CPU computes in
    float32, unless `NBTOOLS_BF16` is 1 and it has instructions for bf16, which make wide networks twice as fast.

    Raises:
        ValueError: on a CPU, for another value of `NBTOOLS_BF16` than 0 and 1.
    """
    import torch

    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if (asked := os.environ.get("NBTOOLS_BF16", "")) not in ("", "0", "1"):
        raise ValueError(f"NBTOOLS_BF16 is 1 (bf16 on a CPU that computes it) or 0 (float32), got {asked!r}")
    return asked == "1" and cpu_computes_bf16()


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16, as Linux tells it; elsewhere nobody knows, and it is False."""
    try:
        with open("/proc/cpuinfo") as lines:
            words = (line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features")))
            return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(next(words, [])))
    except OSError:
        return False


def hardware(device: torch.device | None = None) -> str:
    """The processor's name, as a stamp on a result carries it."""
    import torch

    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads{', bf16' if has_bf16(device) else ''}"


def hardware_and_precision(device: torch.device) -> str:
    """The processor's name and what it computes in, such as "NVIDIA H100 PCIe, bf16"."""
    return f"{hardware(device).removesuffix(', bf16')}, {'bf16' if has_bf16(device) else 'float32'}"


def seed_everything(seed: int) -> None:
    """Seed torch's global generators (initial weights); everything else draws from generators of its own."""
    import torch

    torch.manual_seed(seed)


def keep_memory() -> None:
    """Ask glibc to keep freed memory instead of handing it back to the system.

    A training step on a CPU frees and asks for the same large blocks hundreds of times; page faults on them cost
    about a quarter of the time. Does nothing where the C library is another one.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
            mallopt(option, value)


def package_version(name: str) -> str:
    """A package's installed version, or "missing"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def versions() -> dict[str, str]:
    """Of Python and of `STAMPED_PACKAGES`, as a stamp on a result carries them."""
    return {"python": platform.python_version()} | {name: package_version(name) for name in STAMPED_PACKAGES}
