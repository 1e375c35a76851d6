"""What a repair changed, and nothing else: rounding to the computation's precision is no repair."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from foreign import MEAN, STD, STRIDES, Foreign
from own_answers import fed, right_on, write
from tiny import mask_of, settled
from torch import Tensor, nn

from nbtools.__main__ import main
from nbtools.defend import command
from nbtools.defend.checkpoint import Checkpoint, bits, read
from nbtools.defend.command import changed
from nbtools.defend.fitting import Fitted, fit
from nbtools.defender.pruning import pruned_copy

State = dict[str, Tensor]
PLAIN: dict[str, Any] = {"mean": MEAN, "std": STD}
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def state_in(dtype: torch.dtype, seed: int = 0) -> State:
    """A network's weights in another precision; in float64 with digits that float32 does not hold, and -0 and tiny."""
    torch.manual_seed(seed)
    state = {n: v.to(dtype) for n, v in settled(Foreign()).state_dict().items() if v.is_floating_point()}
    if dtype == torch.float64:
        state = {name: value * (1 + 1e-12) for name, value in state.items()}
        state["bn1.bias"][:3] = torch.tensor([-0.0, 1e-60, -1e-60])
    counts = {name: value + 7 for name, value in Foreign().state_dict().items() if not value.is_floating_point()}
    return {**state, **counts}


def of(state: State) -> tuple[Fitted, Checkpoint]:
    return fit(state, "resnet18", STRIDES, **PLAIN), Checkpoint("torch", state, (), (), "", 0)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_that_was_not_repaired_is_not_changed(dtype: torch.dtype) -> None:
    fitted, checkpoint = of(state_in(dtype))
    assert changed(fitted, checkpoint, fitted.model) == {}
    assert changed(fitted, checkpoint, copy.deepcopy(fitted.model)) == {}


@pytest.mark.parametrize("dtype", TYPES)
def test_of_a_pruned_batch_norm_the_other_filters_keep_the_files_bits(dtype: torch.dtype) -> None:
    state = state_in(dtype)
    fitted, checkpoint = of(state)
    pruned = {"conv1": [2, 5], "layer3.0.downsample.0": [0]}
    repaired = pruned_copy(fitted.model, mask_of(fitted.model, pruned))
    found = changed(fitted, checkpoint, repaired)
    wanted = {f"{bn}.{part}" for bn in ("bn1", "layer3.0.shortcut.1") for part in ("weight", "bias")}
    if dtype == torch.float64:
        assert bits(state["bn1.bias"])[2] != 0, "a beta that is 0 in float32 and was not changed by being set to 0"
    assert found.keys() == wanted
    for name, value in found.items():
        filters = [2, 5] if name.startswith("bn1") else [0]
        kept = torch.ones(len(value), dtype=torch.bool)
        kept[filters] = False
        assert value.dtype == dtype and torch.equal(bits(value)[kept], bits(state[name])[kept])
        assert not value[5 if name.startswith("bn1") else 0].float().any()


@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_tuned_is_rounded_to_the_files_precision(dtype: torch.dtype) -> None:
    state = state_in(dtype)
    fitted, checkpoint = of(state)
    repaired = copy.deepcopy(fitted.model)
    with torch.no_grad():
        repaired.get_parameter("conv1.weight").mul_(1.5)
        repaired.get_parameter("layer1.0.conv1.weight").mul_(1 + 2e-7)  # float16 can't hold that
        repaired.get_parameter("fc.bias")[1] += 0.5
    found = changed(fitted, checkpoint, repaired)
    small = {"layer1.0.conv1.weight"} if dtype in (torch.float64, torch.float32) else set()
    assert found.keys() == {"conv1.weight", "linear.bias", *small}
    assert torch.equal(found["conv1.weight"].float(), repaired.get_parameter("conv1.weight").to(dtype).float())
    assert torch.equal(bits(found["linear.bias"])[[0, 2, 3]], bits(state["linear.bias"])[[0, 2, 3]])
    assert found["linear.bias"][1] == repaired.get_parameter("fc.bias")[1].to(dtype)


def test_layout_and_kind_of_the_files_tensors_stay() -> None:
    state: State = state_in(torch.float64)
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    state["bn1.weight"] = nn.Parameter(state["bn1.weight"])
    state["bn1.bias"] = nn.Parameter(state["bn1.bias"], requires_grad=False)
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"].transpose(2, 3)
    fitted, checkpoint = of(state)
    repaired = pruned_copy(fitted.model, mask_of(fitted.model, {"conv1": [3]}))
    with torch.no_grad():
        for name in ("conv1.weight", "layer2.0.conv1.weight"):
            repaired.get_parameter(name)[0] = 0.25
    found = changed(fitted, checkpoint, repaired)
    assert found.keys() == {"conv1.weight", "layer2.0.conv1.weight", "bn1.weight", "bn1.bias"}
    for name, value in found.items():
        assert value.stride() == state[name].stride() and type(value) is type(state[name])
        assert value.requires_grad == state[name].requires_grad
        if value.ndim == 4:
            assert torch.equal(bits(value)[1:], bits(state[name])[1:]) and bool((value[0] == 0.25).all())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16])
def test_counters_of_batches_are_changed_only_where_batches_were_counted(dtype: torch.dtype) -> None:
    state = {n: v.to(dtype) if n.endswith("num_batches_tracked") else v for n, v in state_in(torch.float64).items()}
    fitted, checkpoint = of(state)
    repaired = copy.deepcopy(fitted.model)
    repaired.get_buffer("bn1.num_batches_tracked").add_(1)
    found = changed(fitted, checkpoint, repaired)
    assert found.keys() == {"bn1.num_batches_tracked"}
    assert found["bn1.num_batches_tracked"].dtype == dtype and int(found["bn1.num_batches_tracked"]) == 8


def test_nan_is_compared_by_its_bits() -> None:
    state = state_in(torch.float64)
    fitted, checkpoint = of(state)
    with torch.no_grad():
        fitted.model.get_parameter("fc.bias")[0] = torch.nan
    repaired = copy.deepcopy(fitted.model)
    assert changed(fitted, checkpoint, repaired) == {}
    with torch.no_grad():
        repaired.get_parameter("fc.bias")[1] = torch.nan
    found = changed(fitted, checkpoint, repaired)["linear.bias"]
    assert found.isnan().tolist() == [False, True, False, False], "the file's own first value stays"


def save_torch(state: State, path: Path) -> None:
    torch.save({"net": {f"module.{name}": value for name, value in state.items()}, "epoch": 1}, path)


@pytest.mark.parametrize(
    ("ending", "save", "load"),
    [
        (".pth", save_torch, lambda path: torch.load(path, weights_only=True)["net"]),
        (".safetensors", safetensors.torch.save_file, safetensors.torch.load_file),
    ],
)
def test_the_card_the_file_and_what_was_measured_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    save: Callable[[State, Path], None],
    load: Callable[[Path], State],
) -> None:
    monkeypatch.setattr(command, "detector", lambda *_: {"statistic": None, "reason": "left out"})
    model, images = right_on(4, 10)
    state = {n: v.double() * (1 + 1e-12) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    given, made = tmp_path / f"net{ending}", tmp_path / f"out{ending}"
    save(state, given)
    options = {
        "--model": given,
        "--arch": "resnet18",
        "--images": write(tmp_path / "clean", images, "abcd"),
        "--out": made,
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    result = CliRunner().invoke(
        main, ["defend", *pairs, "-s", "mu", "1.5", "-s", "fine_tune", "None", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    before, after, card = load(given), load(made), json.loads((tmp_path / "out.json").read_text())
    differ = sorted(name for name in before if not torch.equal(bits(before[name]), bits(after[name])))
    assert card["output"]["changed_tensors"] == differ and card["pruned"]["count"] > 0
    convs = [name for name, layer in card["pruned"]["layers"].items() if layer["pruned"]]
    assert 0 < len(differ) <= 2 * len(convs), "gamma and beta of the layers that lost filters, and nothing else"
    assert f"{len(differ)} tensors changed" in (tmp_path / "out.html").read_text()

    net = Foreign().eval()
    net.load_state_dict({name.removeprefix("module."): value for name, value in after.items()})
    loaded = fit(read(made).state, "resnet18").model
    with torch.no_grad():
        torch.testing.assert_close(loaded(images[0] / 255), net(fed(images[0])), rtol=1e-4, atol=1e-4)


def test_what_is_evaluated_is_what_is_saved() -> None:
    state = state_in(torch.bfloat16)
    fitted, checkpoint = of(state)
    repaired = copy.deepcopy(fitted.model)
    with torch.no_grad():
        for parameter in repaired.parameters():
            parameter.mul_(1.013)
    changes = changed(fitted, checkpoint, repaired)
    evaluated = command._as_saved(fitted, repaired, checkpoint.state, changes).state_dict()
    for ours, name in fitted.names.items():
        assert torch.equal(evaluated[ours], changes.get(name, state[name]).to(evaluated[ours].dtype)), name
