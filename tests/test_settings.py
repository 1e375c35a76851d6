"""Profiles, devices and parameters: scale is in one place, and what is out of range is refused with what is allowed."""

import builtins
import ctypes
import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from nbtools import settings
from nbtools.attacker.triggers import TRIGGERS
from nbtools.data.datasets import DATASETS
from nbtools.data.shapes import CLASSES as SHAPES_CLASSES
from nbtools.data.shapes import MAX_SEED
from nbtools.data.sources import CIFAR10_CLASSES
from nbtools.lab.parameters import CLASSES, RANGES, check_parameters, target_range
from nbtools.lab.zoo import FIRST
from nbtools.networks.architectures import MIN_WIDTH, make_model
from nbtools.networks.training import Recipe
from nbtools.settings import (
    PROFILES,
    default_device,
    default_profile,
    get_profile,
    hardware,
    hardware_and_precision,
    has_bf16,
    keep_memory,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_complete(name: str) -> None:
    profile = get_profile(name)
    assert profile.name == name and profile.dataset in DATASETS and profile.about
    assert min(profile.train, profile.reserved, profile.test, profile.draws) > 0
    Recipe(profile.epochs, profile.batch_size, weight_decay=profile.weight_decay, padding=profile.padding)
    assert profile.width >= 16, "narrower strided 1x1 convolutions overrun memory in oneDNN on CPUs with AVX-512"
    make_model("resnet18", width=profile.width, strides=profile.strides)
    with pytest.raises(FrozenInstanceError):
        profile.width = 1  # type: ignore[misc]


def test_the_three_profiles_are_those_of_the_series() -> None:
    assert list(PROFILES) == ["quick", "laptop", "paper"]
    assert [p.dataset for p in PROFILES.values()] == ["shapes", "cifar10", "cifar10"]
    assert [p.width for p in PROFILES.values()] == sorted(p.width for p in PROFILES.values())


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: quick, laptop, paper"):
        get_profile("huge")


def test_a_narrowed_network_is_narrow_halves_early_and_is_shown_whole_images() -> None:
    laptop, quick = get_profile("laptop"), get_profile("quick")
    assert quick.narrowed() == quick, "a profile that does not ask for it keeps its network"
    profile = laptop.narrowed()
    assert (profile.width, profile.strides, profile.padding) == (MIN_WIDTH, (1, 2, 2, 2, 2), 0)
    assert replace(profile, width=32, strides=laptop.strides, padding=4) == laptop, "nothing else may differ"


@pytest.mark.parametrize(("there", "profile", "device"), [(True, "paper", "cuda"), (False, "quick", "cpu")])
def test_a_gpu_and_the_data_decide_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool, profile: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.delenv("NBTOOLS_DATA", raising=False)
    assert default_profile() == "quick", "what is not there can't be the default"
    (tmp_path / "data" / settings.CIFAR10).mkdir(parents=True)
    assert default_profile() == profile and default_device() == torch.device(device)
    monkeypatch.setenv("NBTOOLS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(settings, "ROOT", tmp_path / "elsewhere")
    assert default_profile() == profile


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_on_a_gpu_starts_with_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert has_bf16(GPU) is expected


def in_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Let /proc/cpuinfo say this; None: there is no such file."""
    real = builtins.open

    def fake(file: Any, *arguments: Any, **options: Any) -> Any:
        if file != "/proc/cpuinfo":
            return real(file, *arguments, **options)
        if text is None:
            raise FileNotFoundError(file)
        return StringIO(text)

    monkeypatch.setattr(builtins, "open", fake)


@pytest.mark.parametrize("asked", [None, "", "0", "1"])
@pytest.mark.parametrize(
    "able",
    [
        "flags\t: fpu avx2 avx512_bf16\n",
        "flags\t: fpu amx_bf16\n",
        "Features\t: fp asimd bf16\n",
        "flags\t: avx2\n",
        None,
    ],
)
def test_a_cpu_computes_in_float32_unless_asked_and_able(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, able: str | None
) -> None:
    monkeypatch.delenv("NBTOOLS_BF16", raising=False)
    if asked is not None:
        monkeypatch.setenv("NBTOOLS_BF16", asked)
    in_cpuinfo(monkeypatch, able)
    wanted = asked == "1" and able is not None and "bf16" in able
    assert has_bf16(CPU) is wanted and has_bf16(torch.device("meta")) is False
    assert hardware(CPU).endswith("threads, bf16" if wanted else "threads"), "a stamp says so"
    assert hardware_and_precision(CPU).endswith("threads, bf16" if wanted else "threads, float32")


def test_bf16_is_asked_for_by_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_BF16", "yes")
    with pytest.raises(ValueError, match="NBTOOLS_BF16 is 1"):
        has_bf16(CPU)


@pytest.mark.parametrize("cpuinfo", ["processor : 0\nmodel name\t: A Fine Processor\n", "", None])
def test_the_hardware_has_a_name_everywhere(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None) -> None:
    in_cpuinfo(monkeypatch, cpuinfo)
    name, threads = hardware(CPU).rsplit(", ", 1)
    assert name == "A Fine Processor" if cpuinfo else name
    assert threads == f"{torch.get_num_threads()} threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "A Fine Accelerator")
    assert hardware(GPU) == "A Fine Accelerator"


def test_a_seed_sets_the_initial_weights() -> None:
    drawn = []
    for seed in (3, 3, 4):
        settings.seed_everything(seed)
        drawn.append(torch.rand(5))
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])


@pytest.mark.parametrize("problem", [AttributeError, OSError, TypeError])
def test_keeping_memory_is_a_wish_not_a_need(monkeypatch: pytest.MonkeyPatch, problem: type[Exception]) -> None:
    keep_memory()

    def elsewhere(_name: str | None) -> None:
        raise problem("another C library")

    monkeypatch.setattr(ctypes, "CDLL", elsewhere)
    keep_memory()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"profile": "", "attack": "sig", "poison_rate": 1, "target": 0, "mu": 0, "n_total": 0, "draws": 0},
        {"profile": "laptop", "mus": [0.0, 2.5, 4.0], "counts": (1, 10), "zoo_attacks": ["sig", "sig"], "slider": True},
        {"something_else": -1},
    ],
)
def test_good_parameters_pass(parameters: Mapping[str, Any]) -> None:
    check_parameters(parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("poison_rate", 0), ("poison_rate", 1.5), ("poison_rate", math.nan), ("target", -2), ("mu", -0.5),
        ("mu", math.nan), ("mu", 1e308), ("samples_per_class", 0), ("n_total", -1), ("seed", -1),
        ("epochs", -1), ("draws", -3), ("draw", -1), ("target", 10), ("mus", []), ("mus", [2.0, -1.0]), ("low_rate", 2),
        ("zoo_rate", 0), ("paper_per_class", 0), ("alpha", 0), ("epsilon", 1.5), ("divisors", [64, 1]),
        ("divisors", []), ("mu", math.inf), ("mus", [2.0, math.inf]), ("most", 0), ("most", 2**63),
        ("n_images", 2**63), ("seed", 2**63), ("whole_draws", -1), ("many", -1), ("allowed", 1),
        ("weight", 0), ("trainings", [0]), ("counts", [0, 5]), ("counts", []), ("paper_per_class", 10**30),
        ("most_per_class", 10**400), ("patience", 1e308), ("trainings", [5, -1]),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="is out of range") as refusal:
        check_parameters({name: value})
    assert (
        str(refusal.value)
        == f"{name}={value!r} is out of range: {RANGES[name].said if name in RANGES else target_range(CLASSES).said}"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples_per_class": 101, "profile": "quick"}, "samples_per_class=101 is out of range: at most 100, since"),
        ({"counts": [1, 501], "profile": "laptop"}, "is out of range: at most 500, since the defender of"),
        ({"n_total": 1001, "profile": "quick"}, "draws from 1,000 images of 10 classes"),
    ],
)
def test_more_clean_images_than_there_are_are_refused(given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_parameters(given)
    check_parameters({"samples_per_class": 100, "n_total": 1000, "profile": "quick"})
    check_parameters({"samples_per_class": [1, 10], "seed": 0, "profile": "laptop"}, axes=True)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_data_set_has_as_many_classes_as_the_limits_say(profile: str) -> None:
    classes = {"shapes": SHAPES_CLASSES, "cifar10": CIFAR10_CLASSES}[PROFILES[profile].dataset]
    assert len(classes) == CLASSES


def test_each_of_a_list_of_attacks_is_checked() -> None:
    check_parameters({"attacks": []})
    check_parameters({"attacks": list(TRIGGERS)})
    with pytest.raises(ValueError, match=r"There is no attack 'trojan'. Known: badnets, blended, sig, wanet"):
        check_parameters({"attacks": ["badnets", "trojan"]})
    assert all({*profile.attacks, *profile.zoo_attacks} <= set(TRIGGERS) for profile in PROFILES.values())
    assert all(profile.zoo_attacks for profile in PROFILES.values())


@pytest.mark.parametrize(("name", "known"), [("profile", PROFILES), ("attack", TRIGGERS), ("hard_attack", TRIGGERS)])
@pytest.mark.parametrize("value", ["badnet", "none"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, known: Mapping[str, object], value: str) -> None:
    with pytest.raises(ValueError, match=f"There is no {name} '{value}'.*Known: {', '.join(known)}"):
        check_parameters({name: value})


def test_a_second_attack_may_be_left_to_the_profile() -> None:
    check_parameters({"hard_attack": "", "profile": "quick"})
    assert PROFILES["quick"].hard_attack == "" and PROFILES["laptop"].hard_attack in TRIGGERS
    with pytest.raises(ValueError, match="There is no attack ''"):
        check_parameters({"attack": ""})


@pytest.mark.parametrize(
    "given",
    [
        {"counts": [1, 5_000]},
        {"many": 100_000},
        {"draws": 10**20},
        {"width": 10**20},
        {"epochs": 10**20},
        {"counts": []},
    ],
)
def test_what_no_machine_could_do_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))}=.* is out of range"):
        check_parameters({"profile": "quick"} | given)


def test_what_is_made_of_the_largest_seed_is_a_seed() -> None:
    most = RANGES["seed"].most
    assert most + FIRST + RANGES["draws"].most <= MAX_SEED, "a member of the zoo, trained on images made by code"
    seeded = torch.Generator().manual_seed(int(most * 100_003 + RANGES["epochs"].most))  # as an epoch's
    assert torch.rand(1, generator=seeded).isfinite() and RANGES["draw"].most <= most
