"""Models that come with the checkout: found by what shaped them, checked, and never in the way of a training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import same_bits

from nbtools.lab import shipped
from nbtools.lab import trained as trained_module
from nbtools.lab.experiments import start
from nbtools.settings import PROFILES

CONFIG = {"attack": "badnets", "strides": (1, 2, 2, 2, 2), "recipe": {"lr": 0.2}}
CARD = {"config": CONFIG, "history": [], "seconds": 1.0, "hardware": "a CPU", "bf16": False, "torch": "2.0"}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(4, 3, generator=generator), "steps": torch.tensor(70_000)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return tmp_path


def test_a_shipped_model_is_found_by_its_configuration_alone(folder: Path) -> None:
    path = shipped.write("one", tensors(), CARD, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["one.json", "one.safetensors"] and path.name == "one.json"
    found = shipped.find({**CONFIG, "strides": [1, 2, 2, 2, 2]})
    assert found is not None
    assert same_bits(found[0], {"weight": tensors()["weight"].half().float(), "steps": torch.tensor(70_000)})
    assert found[1] == {**{k: v for k, v in CARD.items() if k != "config"}, "shipped": "one"}
    assert shipped.find({**CONFIG, "attack": "blended"}) is None


def damaged(path: Path) -> None:
    data = bytearray(path.with_suffix(".safetensors").read_bytes())
    data[-1] ^= 1
    path.with_suffix(".safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damaged, "its checksum is another"),
        (lambda path: path.with_suffix(".safetensors").unlink(), "No such file"),
        (lambda path: path.write_text("{"), "Expecting property name"),
        (lambda path: path.write_text("{}"), "'config'"),
    ],
    ids=["a flipped bit", "no weights", "half a card", "an empty card"],
)
def test_a_damaged_one_is_passed_over_with_a_warning(folder: Path, harm: Any, reason: str) -> None:
    harm(shipped.write("one", tensors(), CARD, folder))
    with pytest.warns(UserWarning, match=f"the shipped model one can't be used .*{reason}.*trained anew"):
        assert shipped.find(CONFIG) is None


def test_what_half_precision_cannot_hold_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="half precision can't hold weight"):
        shipped.write("one", {"weight": torch.tensor([1e6])}, CARD, folder)
    assert not list(folder.iterdir())


def test_a_shipped_model_spares_its_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(PROFILES["quick"], name="tiny", train=64, reserved=40, test=40, glance=25, width=16, epochs=1)
    monkeypatch.setitem(PROFILES, "tiny", tiny)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "first"))
    made = start("tiny", device="cpu", quiet=True).model("badnets", 0.25)
    shipped.write("tiny", made.model.state_dict(), made.card, folder)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "second"))
    calls = []
    monkeypatch.setattr(trained_module, "train", lambda *given: calls.append(given))
    again = start("tiny", device="cpu", quiet=True).model("badnets", 0.25)
    assert again.card["shipped"] == "tiny" and again.card["history"] == made.card["history"] and not calls
    for name, value in made.model.state_dict().items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(again.model.state_dict()[name], rounded)


@pytest.mark.parametrize("card", sorted(shipped.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_model_of_this_checkout_is_sound(card: Path) -> None:
    assert shipped.find(json.loads(card.read_text())["config"]) is not None
