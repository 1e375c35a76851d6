"""What a layer is called: as its file calls it, without what wrappers put before it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from nbtools.defend import options
from nbtools.defend.architecture import kind_of
from nbtools.defend.checkpoint import read
from nbtools.defend.fitting import fit
from nbtools.defend.kinds import KINDS
from nbtools.defend.names import unwrapped
from nbtools.defender.choices import DEFENCES
from nbtools.networks.architectures import ResNet18
from nbtools.networks.units import prunable_units

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

WRAPPED = ("", "module.", "model.0.", "_orig_mod.", "module._orig_mod.backbone.", "1.")


def public(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors as they are called where no normalisation is inside."""
    state = model.state_dict()
    return {name.removeprefix("network."): value for name, value in state.items() if not name.startswith("normalise.")}


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("arch", KINDS)
def test_a_layer_is_called_as_the_file_calls_it_without_its_wrappers(arch: str, prefix: str) -> None:
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn.weight": (512,)}
    with torch.device("meta"):
        state = public(KINDS[arch].build(shapes, (1, 1, 2, 2, 2), 10))
    others = {name.replace("downsample", "shortcut"): value for name, value in state.items()}
    for plain in (state, others) if "resnet" in arch else (state,):
        fitted = fit({prefix + name: value for name, value in plain.items()}, arch)
        units = prunable_units(fitted.model)
        convs = [*(unit.conv for unit in units), *units.without_bn]
        assert len(convs) == sum(value.ndim == 4 for value in plain.values())
        for conv in convs:
            assert f"{fitted.short_name(conv)}.weight" in plain
            assert fitted.own_name(conv) == prefix + fitted.short_name(conv)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("module.features.10.weight", "features.10.weight"),
        ("module._orig_mod.conv1.weight", "conv1.weight"),
        ("layer1._orig_mod.0.conv1.weight", "layer1.0.conv1.weight"),
        ("layer1.0._checkpoint_wrapped_module.conv1.module.weight", "layer1.0.conv1.weight"),
        ("mymodule.conv1.weight", "mymodule.conv1.weight"),
        ("", ""),
    ],
)
def test_wrappers_are_left_out_wherever_they_stand(key: str, name: str) -> None:
    assert unwrapped(key) == name and unwrapped(name) == name


STATE = public(ResNet18(10, 16))
OTHER = {name: value + 1 for name, value in STATE.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def replaced(pattern: str, instead: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(pattern, instead, name): value for name, value in state.items()}


HEAD_OUTSIDE = {("" if name.startswith("fc") else "trunk.") + name: value for name, value in STATE.items()}
ONE_VALUE = {"n_averaged": torch.tensor(3), "step": torch.tensor(1)}
FOUND: list[tuple[dict[str, Tensor], str]] = [
    (under("resnet.", STATE), ""),
    (under("a.b_c.0.", STATE), ""),
    (under("model.module.", STATE), ""),
    (under("module.1.", STATE) | {"module.0.mean": torch.zeros(3), "module.0.std": torch.ones(3)}, ""),
    (replaced(r"^layer1\.", "layer1._orig_mod.", STATE), ""),
    (replaced(r"^(layer[124])\.", r"\1._orig_mod.", STATE), ""),
    (replaced(r"^layer2\.1\.", "layer2.1.module.", under("_orig_mod.", STATE)), ""),
    (replaced(r"^fc\.", "head.fc.", HEAD_OUTSIDE), ""),
    (HEAD_OUTSIDE | {"criterion.weight": torch.ones(10)}, ""),
    (STATE | {"criterion.weight": torch.ones(10), "train_acc.tp": torch.zeros(10)}, ""),
    (under("model.", STATE) | {"criterion.weight": torch.ones(10)}, ""),
    (under("model.", STATE) | {"class_weights": torch.ones(10), "loss.net.conv1.weight": torch.ones(4, 3, 3, 3)}, ""),
    (
        STATE | {"ce.weight": torch.ones(10), "label_smoother.eps": torch.tensor(0.1), "val_auc.preds": torch.ones(5)},
        "",
    ),
    (under("module.", STATE) | ONE_VALUE, ""),
    (STATE | under("ema_model.", OTHER), ""),
    (under("ema.", OTHER) | under("model.", STATE), ""),
    (under("student.", OTHER) | under("teacher.", STATE), "teacher"),
    (under("model.", OTHER) | under("model_ema.module.", STATE), "model_ema.module"),
]


@pytest.mark.parametrize(("state", "key"), FOUND)
def test_the_network_is_found_under_whatever_name_its_owner_keeps_it(state: dict[str, Tensor], key: str) -> None:
    fitted = fit(state, "resnet18", key=key)
    loaded = fitted.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in STATE.items())
    assert all(torch.equal(state[fitted.names[name]], value) for name, value in STATE.items())
    assert fitted.short_name("layer1.0.conv1") == "layer1.0.conv1"


ELSEWHERE = ["torchvision/mobilenet_v2", "torchvision/densenet121", "torchvision/vgg16_bn", "resnet20", "wideresnet"]
ELSEWHERE += ["torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0", "foreign:Foreign"]


@pytest.mark.parametrize("arch", ELSEWHERE)
def test_other_networks_are_found_alike(arch: str) -> None:
    kind = kind_of(arch)
    with torch.device("meta"):
        shapes = {"conv1.weight": (16, 3, 3, 3), "classifier.weight": (10, 512)}
        state = public(kind.build(shapes, (1, 1, 2, 2, 2), 10))
    heads = tuple(head.removeprefix("network.") for head in kind.heads)
    for wrapped in (under("net.cnn.", state), under("x.", state) | {"loss.weight": torch.ones(3)}):
        fitted = fit(wrapped, arch)
        assert set(fitted.shown.values()) == set(state)
    outside = {name if name.startswith(heads) else f"trunk.{name}": value for name, value in state.items()}
    assert len(fit(outside, arch).names) == len(state)


def test_what_lies_beside_the_network_is_said() -> None:
    measured = fit(under("model.", STATE) | {"criterion.weight": torch.ones(10)}, "resnet18", **PLAIN)
    assert measured.notes[:2] == (
        "Names were read without 'model.' before them.",
        "Left as they are, beside the network: criterion.weight.",
    )
    assert measured.warnings == ()
    more = fit(under("model.", STATE) | {"neck.weight": torch.ones(3, 3)}, "resnet18", **PLAIN)
    assert "1 tensors beside the network were left as they are (neck.weight)" in more.warnings[0]
    copies = fit(STATE | under("ema_model.", OTHER), "resnet18", **PLAIN)
    assert copies.warnings == ("The weights under ema_model were left as they are: still to be suspected.",)
    compiled = fit(replaced(r"^layer1\.", "layer1._orig_mod.", STATE), "resnet18", **PLAIN)
    assert compiled.notes[0] == "Names were read without '_orig_mod.' in them."


PARTED: dict[str, Callable[[nn.Module], object]] = {
    "a mask": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "weight norm": lambda conv: nn.utils.weight_norm(conv),
    "parametrised": lambda conv: nn.utils.parametrizations.weight_norm(conv),
    "spectral norm": lambda conv: nn.utils.spectral_norm(conv),
}


@pytest.mark.parametrize("part", PARTED)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layer", ["conv1", "layer1.0.conv1", "fc"])
def test_weights_in_parts_are_told_as_that(part: str, layer: str) -> None:
    model = ResNet18(10, 16)
    PARTED[part](model.get_submodule(layer))
    with pytest.raises(ValueError, match=rf"weights in parts \({layer}\..*Make each one tensor before you save it"):
        fit(model.state_dict(), "resnet18")


@pytest.mark.parametrize(
    ("state", "key", "said"),
    [
        (under("student.", OTHER) | under("teacher.", STATE), "", "2 networks, under .*student.* name one with --key"),
        (under("student.", OTHER) | under("teacher.", STATE), "pupil", "no network .* under --key 'pupil', but under"),
        (STATE | {"neck.weight": torch.ones(3)}, "", r"1 unexpected \(neck.weight\)"),
        (HEAD_OUTSIDE | {"neck.weight": torch.ones(3)}, "", r"1 unexpected \(neck.weight\)"),
        ({name: value for name, value in under("a.", STATE).items() if "fc" not in name}, "", "no classifier"),
        (STATE | {"module.bn1.bias": STATE["bn1.bias"]}, "", "the same layer once their prefixes are gone"),
    ],
)
def test_what_can_not_be_told_apart_is_refused(state: dict[str, Tensor], key: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(state, "resnet18", key=key)


def test_a_network_among_several_in_a_file_is_named_by_the_key(tmp_path: Path) -> None:
    both = under("student.", OTHER) | under("teacher.", STATE)
    for nested, key in (({"state_dict": both, "epoch": 3}, "state_dict.teacher"), (both, "teacher")):
        torch.save(nested, tmp_path / "a.pt")
        checkpoint = read(tmp_path / "a.pt", key)
        assert checkpoint.inside == "teacher"
        model = fit(checkpoint.state, "resnet18", key=checkpoint.inside).model
        assert torch.equal(model.state_dict()["fc.bias"], STATE["fc.bias"])
        with pytest.raises(ValueError, match="no weights under --key 'pupil'"):
            read(tmp_path / "a.pt", "pupil")


def test_the_defences_that_are_refused_without_torch_are_all_that_there_are() -> None:
    assert tuple(DEFENCES) == options.DEFENCES


def test_a_key_that_is_no_name_is_left_aside() -> None:
    state: dict[Any, Any] = {**STATE, 5: torch.ones(1)}
    assert len(fit(state, "resnet18", **PLAIN).names) == len(STATE)


@pytest.mark.parametrize("name", ["pixel_mean", "module.image_mean", "normalizer.mean", "_mean"])
@pytest.mark.parametrize("scale", [1, 255])
def test_a_files_own_normalisation_is_read_in_its_own_unit(name: str, scale: int) -> None:
    values = {name: torch.tensor([0.4, 0.5, 0.6]) * scale, name.replace("mean", "std"): torch.full((3,), 0.2) * scale}
    fitted = fit(STATE | values, "resnet18")
    assert fitted.mean == pytest.approx((0.4, 0.5, 0.6)) and fitted.std == pytest.approx((0.2, 0.2, 0.2))
    assert any("file's own" in note and ("0 to 255" in note) == (scale == 255) for note in fitted.notes)
    with pytest.raises(ValueError, match=r"own normalisation divides by \(0.0, 0.0, 0.0\); give --mean and --std"):
        fit(STATE | {**values, name.replace("mean", "std"): torch.zeros(3)}, "resnet18")
