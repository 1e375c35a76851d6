"""Trained models as files: found by what shaped them, checked, and never in the way of a training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import same_bits

from nbtools.lab import ready
from nbtools.lab import trained as trained_module
from nbtools.lab.experiments import start
from nbtools.settings import PROFILES

CONFIG = {"attack": "badnets", "strides": (1, 2, 2, 2, 2), "recipe": {"lr": 0.2}}
CARD = {"config": CONFIG, "history": [], "seconds": 1.0, "hardware": "a CPU", "bf16": False, "torch": "2.0"}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, generator=generator)
    weight[2] = 0
    return {"weight": weight, "bias": torch.randn(4, generator=generator), "steps": torch.tensor(70_000)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that NBTOOLS_MODELS names."""
    monkeypatch.setenv("NBTOOLS_MODELS", str(tmp_path))
    return tmp_path


def test_a_model_is_found_by_its_configuration_alone(folder: Path) -> None:
    ready.write(folder / "one.safetensors", tensors(), CARD)
    assert [p.name for p in folder.iterdir()] == ["one.safetensors"]
    found = ready.find({**CONFIG, "strides": [1, 2, 2, 2, 2]}, tensors())
    assert found is not None
    assert found[1] == {**{k: v for k, v in CARD.items() if k != "config"}, "file": "one.safetensors"}
    assert ready.find({**CONFIG, "attack": "blended"}, tensors()) is None


def test_rounding_to_int8(folder: Path) -> None:
    """At most half a level for each index of the first axis; what has one dimension stays to the bit."""
    given = tensors()
    ready.write(folder / "one.safetensors", given, CARD)
    read = ready.read(folder / "one.safetensors", given)
    level = given["weight"].abs().amax((1, 2)) / 127
    assert bool(((read["weight"] - given["weight"]).abs() <= level[:, None, None] * 0.501).all())
    assert torch.equal(read["weight"][2], torch.zeros(3, 2))
    assert same_bits({n: read[n] for n in ("bias", "steps")}, {n: given[n] for n in ("bias", "steps")})
    ready.write(folder / "two.safetensors", read, CARD)
    again = ready.read(folder / "two.safetensors", given)
    torch.testing.assert_close(again["weight"], read["weight"], rtol=1e-6, atol=0)


def test_half_precision_and_a_card_without_a_checksum_are_read(folder: Path) -> None:
    """As others may have written them."""
    import json

    halves = {n: v.half() if v.is_floating_point() else v for n, v in tensors().items()}
    save_file(halves, folder / "one.safetensors", {"card": json.dumps(CARD)})
    found = ready.find(CONFIG, tensors())
    assert found is not None
    assert same_bits(found[0], {n: v.float() if v.is_floating_point() else v for n, v in halves.items()})


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewritten(path: Path, change: Any) -> None:
    given = tensors()
    change(given)
    ready.write(path, given, CARD)


def without(name: str) -> Any:
    return lambda path: ready.save(path, {"weight#int8": torch.zeros(4, 3, 2, dtype=torch.int8)}, {**CARD, name: {}})


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flipped, "its checksum is another"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "damaged, or no safetensors"),
        (lambda path: path.write_text("{"), "damaged, or no safetensors"),
        (lambda path: save_file(tensors(), path), "no card of this series"),
        (lambda path: save_file(tensors(), path, {"card": "[1]"}), "no card of this series"),
        (lambda path: save_file(tensors(), path, {"card": '{"config": {}}'}), "its card lacks one of config, history"),
        (without("more"), "weight has no scale for each index"),
        (lambda path: rewritten(path, lambda t: t.pop("bias")), "not those of the network that its card names .bias"),
        (lambda path: rewritten(path, lambda t: t.update(odd=torch.ones(2))), "not those of the network .*odd"),
        (lambda path: rewritten(path, lambda t: t.update(bias=torch.ones(5))), r"bias is float32 \[5\], .* \[4\]"),
        (lambda path: rewritten(path, lambda t: t.update(steps=torch.tensor(1.0))), "steps is float32"),
        (
            lambda path: ready.save(path, {**tensors(), "bias": torch.full((4,), torch.nan)}, CARD),
            "bias holds values that are not finite",
        ),
    ],
)
def test_one_that_cannot_be_used_is_named_and_passed_over(folder: Path, harm: Any, reason: str) -> None:
    ready.write(folder / "a.safetensors", tensors(), CARD)
    harm(folder / "a.safetensors")
    with pytest.warns(UserWarning, match=f"the model .*a.safetensors can't be used: .*{reason}"):
        assert ready.find(CONFIG, tensors()) is None
    ready.write(folder / "b.safetensors", tensors(), CARD)
    with pytest.warns(UserWarning, match=reason):
        found = ready.find(CONFIG, tensors())
    assert found is not None and found[1]["file"] == "b.safetensors"


def test_what_is_not_finite_is_not_written(folder: Path) -> None:
    with pytest.raises(ValueError, match="weight holds values that are not finite"):
        ready.write(folder / "one.safetensors", {"weight": torch.tensor([torch.inf])}, CARD)
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_MODELS", str(folder / "nowhere"))
    with pytest.raises(NotADirectoryError, match=r"NBTOOLS_MODELS is .*nowhere, and there is no such folder"):
        ready.find(CONFIG, tensors())


def test_a_model_that_is_there_spares_its_training(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(PROFILES["quick"], name="tiny", train=64, reserved=40, test=40, glance=25, width=16, epochs=1)
    monkeypatch.setitem(PROFILES, "tiny", tiny)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path_factory.mktemp("first")))
    made = start("tiny", device="cpu", quiet=True).model("badnets", 0.25)
    path = folder / "tiny.safetensors"
    ready.write(path, made.model.state_dict(), made.card)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path_factory.mktemp("second")))
    calls = []
    monkeypatch.setattr(trained_module, "train", lambda *given: calls.append(given))
    again = start("tiny", device="cpu", quiet=True).model("badnets", 0.25)
    assert again.card["file"] == "tiny.safetensors" and again.card["history"] == made.card["history"] and not calls
    assert same_bits(again.model.state_dict(), ready.read(path, made.model.state_dict()))


@pytest.mark.parametrize("path", sorted(ready.SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_every_model_of_this_checkout_is_sound(path: Path) -> None:
    """It holds a whole network: the one that its card names."""
    from nbtools.networks.architectures import make_model

    config = ready._card(path)["config"]
    shape = {name: config[name] for name in ("width", "strides") if name in config}
    like = make_model(config["architecture"], **shape).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NBTOOLS_MODELS", raising=False)
        found = ready.find(config, like)
    assert found is not None and found[1]["file"] == path.name
