"""Checkpoints as owners have them: read or refused with the reason, fitted by names and shapes, written back alike."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from foreign import STRIDES, Foreign
from tiny import network, settled
from torch import Tensor, nn

from nbtools.defend.checkpoint import read
from nbtools.defend.fitting import Fitted, fit
from nbtools.defend.kinds import KINDS
from nbtools.networks.architectures import MEAN, PreActResNet18

State = dict[str, Tensor]
INPUTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Foreign:
    torch.manual_seed(0)
    net = Foreign()
    settled(net)
    return net


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@torch.no_grad()
def answers(fitted: Fitted) -> Tensor:
    return fitted.model(INPUTS)


PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"module._orig_mod.backbone.{name}": value for name, value in state.items()},
        lambda state: {f"{'' if name.startswith('linear') else 'backbone.'}{name}": v for name, v in state.items()},
        lambda state: {f"1.{name}": value for name, value in state.items()},
        lambda state: {name.replace("shortcut", "downsample").replace("linear", "fc"): v for name, v in state.items()},
        lambda state: {**state, "total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
        lambda state: {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")},
        lambda state: {**state, "note": "trained on Monday"},
    ],
    ids=["plain", "module", "three prefixes", "head outside", "sequential", "torchvision", "counters", "old", "text"],
)
def test_names_of_other_code_are_understood(model: Foreign, wrap: Callable[[State], State]) -> None:
    fitted = fit(wrap(model.state_dict()), "resnet18", STRIDES, **PLAIN)
    assert (fitted.width, fitted.num_classes) == (16, 4)
    torch.testing.assert_close(answers(fitted), model(INPUTS).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(model: Foreign, dtype: torch.dtype) -> None:
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    fitted = fit(state, "resnet18", STRIDES, **PLAIN)
    assert {p.dtype for p in fitted.model.parameters()} == {torch.float32}
    assert all(torch.equal(p.to(dtype), state[fitted.names[n]]) for n, p in fitted.model.named_parameters())
    assert any(str(dtype).removeprefix("torch.") in note for note in fitted.notes)


@pytest.mark.parametrize(("width", "classes"), [(16, 2), (24, 7)])
def test_width_and_classes_are_read_from_the_shapes(width: int, classes: int) -> None:
    fitted = fit(Foreign(width, classes).state_dict(), "resnet18", STRIDES)
    assert (fitted.width, fitted.num_classes, answers(fitted).shape[1]) == (width, classes, classes)


def test_the_fitted_model_shares_no_memory_with_the_file(model: Foreign) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit(state, "resnet18", STRIDES)
    with torch.no_grad():
        for parameter in fitted.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_fitting_leaves_the_global_random_state_alone(model: Foreign) -> None:
    torch.manual_seed(7)
    fit(model.state_dict(), "resnet18", STRIDES)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_models_of_the_package_come_with_their_own_normalisation(name: str) -> None:
    ours = network(name)
    ours.get_submodule("normalise").register_buffer("mean", torch.full((1, 3, 1, 1), 0.3))
    fitted = fit(ours.state_dict(), name)
    assert fitted.mean == pytest.approx((0.3,) * 3) and fitted.warnings == ()
    torch.testing.assert_close(answers(fitted), ours(INPUTS).detach())
    given = fit(ours.state_dict(), name, **PLAIN)
    assert given.mean == (0, 0, 0) and "of its own" in given.warnings[0]


def test_strides_that_the_first_shortcut_gives_away_are_taken(model: Foreign) -> None:
    fitted = fit(model.state_dict(), "resnet18", **PLAIN)
    assert fitted.strides == STRIDES and any("first stage" in note for note in fitted.notes)
    assert fit(Foreign(strides=(1, 1, 2, 2, 2)).state_dict(), "resnet18").strides == (1, 1, 2, 2, 2)


def test_without_any_normalisation_cifar10s_is_used_and_said(model: Foreign) -> None:
    fitted = fit(model.state_dict(), "resnet18", STRIDES)
    assert fitted.mean == pytest.approx(MEAN) and "CIFAR-10" in fitted.warnings[0]


class PlainEnd(PreActResNet18):
    """The widespread form of the pre-activation network: nothing between the last sum and the pooling."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


def test_a_pre_activation_network_without_a_last_batch_norm_is_understood() -> None:
    torch.manual_seed(0)
    net = settled(PlainEnd(5, 16))
    state = {
        name.replace("shortcut.", "shortcut.0.").replace("fc.", "linear."): value
        for name, value in net.state_dict().items()
        if not name.startswith(("bn.", "normalise."))
    }
    fitted = fit(state, "preact_resnet18", **PLAIN)
    torch.testing.assert_close(answers(fitted), net(INPUTS).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "mobilenet_v3_large", "efficientnet_b3"])
def test_torchvisions_networks_are_understood(name: str) -> None:
    torch.manual_seed(0)
    net = settled(getattr(torchvision.models, name)(weights=None, num_classes=6))
    fitted = fit(net.state_dict(), f"torchvision/{name}", **PLAIN)
    assert fitted.num_classes == 6 and fitted.strides is None
    torch.testing.assert_close(answers(fitted), net(INPUTS).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "densenet161", "mobilenet_v3_large", "efficientnet_b3"])
def test_every_tensor_of_torchvisions_networks_has_its_place(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None, num_classes=6).state_dict()
    fitted = fit(state, f"torchvision/{name}", **PLAIN)
    assert {theirs: ours for ours, theirs in fitted.names.items()} == {name: f"network.{name}" for name in state}


def test_a_torchvision_resnet_with_the_stem_of_small_images_is_understood() -> None:
    net = torchvision.models.resnet18(weights=None, num_classes=6)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore[assignment]
    settled(net)
    fitted = fit(net.state_dict(), "torchvision/resnet18", **PLAIN)
    assert any("3x3 stem" in note for note in fitted.notes)
    torch.testing.assert_close(answers(fitted), net(INPUTS).detach(), rtol=1e-4, atol=1e-4)


def test_strides_that_were_guessed_are_said() -> None:
    state = Foreign(strides=(1, 1, 2, 2, 2)).state_dict()
    assert any("No shape tells the strides; they were taken to be (1, 1, 2" in n for n in fit(state, "resnet18").notes)
    assert not any("strides" in note for note in fit(state, "resnet18", (1, 1, 2, 2, 2)).notes)


def shapes_of(name: str) -> State:
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None, num_classes=6).state_dict()


def without(state: State, part: str) -> State:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda s: without(s, "layer3.1"), ["10 missing (layer3.1.conv1.weight", "..."]),
        (lambda s: {**s, "extra.weight": torch.ones(2)}, ["1 unexpected (extra.weight)"]),
        (lambda s: {**s, "bn1.bias": torch.ones(2)}, ["bn1.bias [2], not [16]"]),
        (lambda s: without(s, "linear"), ["no classifier (fc)"]),
        (lambda s: without(s, "conv1"), ["no conv1.weight"]),
        (lambda s: {**s, "module.bn1.bias": s["bn1.bias"]}, ["two models"]),
        (lambda s: {**s, "conv1.weight": torch.ones(16, 1, 3, 3)}, ["1 channels"]),
        (lambda s: {**s, "fc.weight": s["linear.weight"]}, ["both be fc.weight"]),
        (lambda s: {**s, "bn1.bias": torch.ones(16, dtype=torch.int8)}, ["bn1.bias", "quantised"]),
        (lambda s: Foreign(8).state_dict(), ["width must be at least 16"]),
        (lambda s: shapes_of("resnet18"), ["7x7 stem", "--arch torchvision/resnet18"]),
        (lambda s: shapes_of("resnet50"), ["layer1.0.conv3.weight", "--arch torchvision/resnet50"]),
        (lambda s: network("preact_resnet18").state_dict(), ["--arch preact_resnet18"]),
    ],
)
def test_what_does_not_fit_is_answered_with_the_keys(
    model: Foreign, state: Callable[[State], State], said: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"not fit|channels|same layer|quantised|width") as error:
        fit(state(dict(model.state_dict())), "resnet18", STRIDES)
    assert [part for part in said if part not in str(error.value)] == []


def test_unknown_architectures_and_strides_that_have_no_place_are_refused() -> None:
    with pytest.raises(ValueError, match="known: resnet18, preact_resnet18, torchvision/resnet18"):
        fit({}, "resnet19")
    with pytest.raises(ValueError, match="has its own"):
        fit({}, "torchvision/resnet18", STRIDES)
    assert all(kind.stem and kind.heads for kind in KINDS.values())


NESTED: list[tuple[Callable[[State], Any], tuple[str, ...]]] = [
    (lambda s: s, ()),
    (lambda s: {"state_dict": s, "epoch": 3}, ("state_dict",)),
    (lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"momentum_buffer": s["conv1.weight"]}}}},
     ("model_state_dict",)),
    (lambda s: {"net": s, "acc": 0.9}, ("net",)),
    (lambda s: {"ema": s, "model": s}, ("model",)),
    (lambda s: {"checkpoint": {"ema": s}}, ("checkpoint", "ema")),
]  # fmt: skip


@pytest.mark.parametrize(("nest", "place"), NESTED)
def test_nested_state_dicts_are_found_and_written_back_at_their_place(
    tmp_path: Path, model: Foreign, nest: Callable[[State], Any], place: tuple[str, ...]
) -> None:
    state = OrderedDict((f"module.{name}", value.half()) for name, value in model.state_dict().items())
    inner = (
        nest(state) if not place or place[0] != "model_state_dict" else nest({**state, "conv1.weight": torch.ones(2)})
    )
    checkpoint = read(saved(tmp_path / "a.pth", inner))
    assert checkpoint.place == place and checkpoint.kind == "torch"
    (tmp_path / "b.pth").write_bytes(checkpoint.serialised({"module.bn1.bias": torch.full((16,), 0.25)}))
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    old, new = inner, again
    for name in place:
        assert old.keys() == new.keys()
        assert all(type(value) is type(new[key]) for key, value in old.items())
        old, new = old[name], new[name]
    assert list(old) == list(new) and all(new[k].dtype == v.dtype for k, v in old.items())
    assert torch.equal(new["module.bn1.bias"], torch.full((16,), 0.25).half())
    assert all(torch.equal(new[key], value) for key, value in old.items() if key != "module.bn1.bias")


def test_of_several_sets_of_weights_one_can_be_named(tmp_path: Path, model: Foreign) -> None:
    path = saved(tmp_path / "a.pt", {"model": model.state_dict(), "ema": model.state_dict()})
    assert read(path).others == ("ema",)
    assert read(path, "ema").place == ("ema",) and read(path, "ema").others == ("model",)
    with pytest.raises(ValueError, match="under model, ema"):
        read(path, "teacher")


def test_safetensors_keep_their_metadata_names_and_types(tmp_path: Path, model: Foreign) -> None:
    state = {f"module.{n}": v.bfloat16() if v.ndim == 4 else v for n, v in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", {"format": "pt", "by": "me"})
    checkpoint = read(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(checkpoint.serialised({"module.bn1.bias": torch.ones(16)}))
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}
    again = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert again.keys() == state.keys() and all(again[name].dtype == value.dtype for name, value in state.items())
    assert torch.equal(again["module.bn1.bias"], torch.ones(16))


class Bomb:
    """What must never be run."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def numpy_file(path: Path) -> Path:
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p, m: p, "not there"),
        (lambda p, m: p.parent, "a folder"),
        (lambda p, m: written(p, b""), "empty"),
        (lambda p, m: written(p, b"hello, this is no model"), "no torch file|no safetensors file"),
        (lambda p, m: written(p, bytes(range(256)) * 20), "torch file"),
        (lambda p, m: saved(p, m), "Python object .*Foreign.*not loaded"),
        (lambda p, m: saved(p, {"state_dict": m.state_dict(), "bomb": Bomb()}), "Python object .*not loaded"),
        (lambda p, m: written(p, pickle.dumps(Bomb())), "was not loaded|no torch file"),
        (lambda p, m: cut(saved(p, m.state_dict())), "damaged, cut off"),
        (lambda p, m: numpy_file(p), "NumPy array"),
        (lambda p, m: saved(p, torch.ones(3)), "a Tensor"),
        (lambda p, m: saved(p, {"epoch": 3, "lr": 0.1}), "a dict with epoch, lr"),
        (lambda p, m: saved(p, {}), "nothing in it"),
        (lambda p, m: written(p, safetensors.torch.save(m.state_dict())[:-9]), "cut off"),
        (lambda p, m: written(p, (8).to_bytes(8, "little") + b"{notjson"), "safetensors"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_with_the_reason_and_nothing_in_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Foreign, make: Callable[[Path, Foreign], Path], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "file", model)
    with pytest.raises(ValueError, match=said):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_the_weights_of_a_sound_safetensors_header_are_those_of_the_file(tmp_path: Path, model: Foreign) -> None:
    data = safetensors.torch.save(dict(model.state_dict()))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    checkpoint = read(written(tmp_path / "a", data))
    assert checkpoint.state.keys() == header.keys() and checkpoint.size == len(data)
