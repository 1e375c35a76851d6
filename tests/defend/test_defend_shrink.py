"""--shrink: the owner's own class takes the smaller weights and answers as the repaired file does; so does the ONNX."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from foreign import MEAN, STD, Foreign, normalised, squares, trained, write_folder
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import mask_of, network, pictures, plain, settled
from torch import Tensor, nn

from nbtools.__main__ import main
from nbtools.defend import command, cost, shrink, smaller
from nbtools.defend.shrink import fit_to
from nbtools.defender.pruning import pruned_copy, remove
from nbtools.networks.units import prunable_units


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the owner's files: mine.pth and clean images."""
    folder = tmp_path_factory.mktemp("owner")
    torch.save({f"module.{name}": value.half() for name, value in trained().state_dict().items()}, folder / "mine.pth")
    write_folder(folder / "clean", each=8)
    return folder


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the packages are, but for the work that they do; and without the detector's many passes."""
    monkeypatch.setattr(command, "detector", lambda *_: {"statistic": None, "reason": "left out"})
    monkeypatch.setattr(command, "check_shrink", lambda *_: None)
    monkeypatch.setattr(shrink, "as_onnx", lambda *_: b"onnx")
    monkeypatch.setattr(shrink, "_runtime", lambda _: None)


def defend(place: Path, out: Path, *more: str, model: str = "mine.pth", mu: str = "1") -> Result:
    given = ["--model", place / model, "--images", place / "clean", "--out", out, "--arch", "resnet18", "--shrink"]
    given += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--strides", "1,2,2,2,2"]
    given += ["--device", "cpu", "-s", "fine_tune", "None", "-s", "mu", mu, *more]
    return CliRunner().invoke(main, ["defend", *map(str, given)])


def answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(normalised(images))


def owners(path: Path) -> nn.Module:
    """The owner's network with the repaired file's weights."""
    model = Foreign()
    state = torch.load(path, weights_only=True)
    model.load_state_dict({name.removeprefix("module."): value.float() for name, value in state.items()})
    return model.eval()


def card_of(out: Path) -> dict[str, Any]:
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.usefixtures("without_onnx")
def test_the_owners_class_takes_the_smaller_weights_and_answers_the_same(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "repaired.pth"
    result = defend(place, out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "repaired.html", "repaired.json", "repaired.pth", "repaired.small.onnx", "repaired.small.safetensors",
    ]  # fmt: skip
    state = load_file(tmp_path / "repaired.small.safetensors")
    full = torch.load(out, weights_only=True)
    assert state.keys() == full.keys()
    assert all(value.dtype == full[name].dtype for name, value in state.items())
    small, images = Foreign(), squares(20, seed=5)[0]
    fit_to(small, state)  # its names have the prefix of the owner's file
    wanted, found = answers(owners(out), images), answers(small, images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    card = card_of(out)["shrunk"]
    counted = [sum(p.numel() for p in model.parameters()) for model in (Foreign(), small)]
    assert card["parameters"] == counted and counted[1] < counted[0] and card["flops"][1] < card["flops"][0]
    assert small.get_submodule("layer1.0.conv1").out_channels == state["module.layer1.0.conv1.weight"].shape[0]
    with safe_open(tmp_path / "repaired.small.safetensors", "pt") as file:
        channels = json.loads(file.metadata()["channels"])
    cut = {name.removesuffix(".weight") for name in state if state[name].shape != full[name].shape and "weight" in name}
    assert channels.keys() == cut and cut
    for name in cut:
        sizes, shape = channels[name], state[f"{name}.weight"].shape
        assert sizes.get("out_channels", sizes.get("num_features", sizes.get("out_features"))) == shape[0]
        assert sizes.get("in_channels", sizes.get("in_features", shape[-1])) == (
            shape[1] if len(shape) > 1 else shape[0]
        )


@pytest.mark.usefixtures("without_onnx")
def test_card_page_and_console_say_how_much_went_and_what_stayed(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "repaired.pth"
    result = defend(place, out)
    card, page = card_of(out), out.with_suffix(".html").read_text()
    small = card["shrunk"]
    assert 0 < small["removed"] < small["pruned"] == card["pruned"]["count"]
    assert small["pruned"] - small["removed"] == sum(part["filters"] for part in small["left"])
    assert small["batch"] == card["accuracy"]["before"]["of"] and all(value > 0 for value in small["milliseconds"])
    assert small["same_answers"]["ONNX"] is None and small["same_answers"]["safetensors"]["equal"] == small["batch"]
    numbers, *others = smaller.sentences(card)
    assert numbers in result.output
    for line in others:
        assert line in result.output and page.count(line.replace("'", "&#x27;")) == 1
    for name, before, now in smaller._numbers(card):
        assert page.count(name) == 1 and f"<td class='number'>{before}</td><td class='number'>{now}</td>" in page
        assert f"{name}: {before} before, {now} now" in numbers
    assert f"{small['removed']} of {small['pruned']} silent filters were taken out" in page
    assert "reads something else in their channels too" in page and "onnxruntime is not installed" in page
    assert all(file["file"] in page and file["sha256"] in page for file in small["files"])
    assert (tmp_path / "repaired.small.onnx").read_bytes() == b"onnx"


@pytest.mark.usefixtures("without_onnx")
def test_where_nothing_is_silent_it_says_so(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.pth"
    result = defend(place, out, mu="50")
    assert result.exit_code == 0 and "No filter is silent, so nothing can be taken out" in result.output
    state, full = load_file(tmp_path / "same.small.safetensors"), torch.load(out, weights_only=True)
    assert all(torch.equal(value, full[name]) for name, value in state.items())


@pytest.mark.usefixtures("without_onnx")
def test_an_answer_that_differs_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "_runtime", lambda _: lambda batch: torch.ones(len(batch), 4))
    result = defend(place, tmp_path / "o.pth")
    assert result.exit_code == 1 and "ONNX file would answer otherwise" in result.output
    assert "Nothing was written" in result.output and list(tmp_path.iterdir()) == []


def test_without_the_packages_it_is_refused_before_any_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "defend", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(shrink.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    result = defend(place, tmp_path / "o.pth")
    assert result.exit_code == 2 and "for that onnxscript must be installed: pip install '.[onnx]'" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_can_not_be_exported_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    monkeypatch.setattr(shrink.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"torch\.export can't follow the network .*leave --shrink out"):
        shrink.check_shrink(Branching().eval(), pictures(4))


def test_what_is_there_is_not_overwritten_and_the_input_never(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.small.onnx").write_text("mine")
    result = defend(place, tmp_path / "a.pth")
    assert result.exit_code == 2 and "a.small.onnx is already there" in result.output
    given = tmp_path / "b.small.safetensors"
    given.write_bytes((place / "mine.pth").read_bytes())
    result = defend(place, tmp_path / "b.pth", "--force", model=str(given))
    assert result.exit_code == 2 and "never overwritten" in " ".join(result.output.split())
    assert (tmp_path / "a.small.onnx").read_text() == "mine"


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet"])
def test_a_network_of_full_size_becomes_the_smaller_one(name: str) -> None:
    model, images = network(name), pictures(4, size=32).floats()
    mask = mask_of(model, {unit.conv: [0, 2] for unit in prunable_units(model)})
    small = remove(model, mask, images)
    twin = network(name, seed=1)
    fit_to(twin, small.state_dict())
    with torch.no_grad():
        assert twin(images).equal(small(images))
    for part in ("in_channels", "out_channels", "groups", "num_features", "in_features"):
        sizes = [[getattr(m, part) for m in net.modules() if hasattr(m, part)] for net in (twin, small)]
        assert sizes[0] == sizes[1]


def small_and_full() -> tuple[nn.Module, nn.Module]:
    """A smaller network, and one of its class at full size with other weights."""
    model, images = plain(), pictures(2).floats()
    return remove(model, mask_of(model, {"conv1": [3], "conv2": [1, 2]}), images), settled(plain(), seed=3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"net.{name}",
        lambda name: f"module.net._orig_mod.{name}",
        lambda name: name.replace(".", "._orig_mod.", 1),
    ],
)
def test_names_are_read_without_wrappers_and_a_common_prefix(wrap: Callable[[str], str]) -> None:
    small, full = small_and_full()
    file = {wrap(name): value for name, value in small.state_dict().items() if "num_batches" not in name}
    fit_to(full, file)
    wrapped = nn.DataParallel(settled(plain(), seed=4))
    fit_to(wrapped, file)
    with torch.no_grad():
        images = pictures(2).floats()
        assert full(images).equal(small(images)) and wrapped.module.eval()(images).equal(small(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.pop("bn1.bias"), "1 of the network's are not in the file (bn1.bias). Give the weights"),
        (lambda file: file.update({"more.weight": torch.ones(2)}), "1 are none of the network's (more.weight)"),
        (
            lambda file: file.update({"conv1.weight": torch.ones(99, 3, 3, 3)}),
            "conv1.weight is [99, 3, 3, 3] in the file",
        ),
        (lambda file: file.update({"conv1.weight": torch.ones(2, 3, 5, 5)}), "smaller in channels alone"),
        (lambda file: file.update({"module.bn1.bias": torch.ones(2)}), "same name without wrappers"),
        (lambda file: file.clear(), "the file's 0 tensors are not those of this network"),
    ],
)
def test_the_weights_of_another_network_are_refused_and_nothing_changes(
    change: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    small, full = small_and_full()
    file, before = dict(small.state_dict()), {name: value.clone() for name, value in full.state_dict().items()}
    change(file)
    with pytest.raises(ValueError, match=re.escape(said)):
        fit_to(full, file)
    after = full.state_dict()
    assert (
        all(value.equal(after[name]) for name, value in before.items())
        and vars(full)["_modules"]["conv1"].out_channels == 8
    )


def spoken(ratio: list[float], milliseconds: list[float]) -> str:
    return smaller._speed(
        {"shrunk": {"time_ratio": ratio, "milliseconds": milliseconds, "batch": 32}, "hardware": "a laptop"}
    )


def test_a_network_is_called_faster_only_where_the_quartiles_tell() -> None:
    assert spoken([0.97, 1.02, 1.05], [12.345, 12.6]).startswith(
        "Not measurably faster: 32 images on a laptop take 1.02"
    )
    assert spoken([0.9, 0.95, 1.0], [2.345, 2.2]).startswith("Not measurably faster")
    assert spoken([1.1, 1.2, 1.3], [2.0, 2.4]).startswith("Slower")
    faster = spoken([0.58, 0.6, 0.63], [12.345, 7.381])
    assert faster.startswith("Faster") and "half of them lie from 0.58 to 0.63" in faster
    assert faster.endswith("about 7.4 ms in place of 12.")


def test_each_pair_of_runs_is_compared_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.seconds)
            clock[0] += self.seconds * (1 + len(order) // 2)  # the machine gets slower all the time
            return x

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    found = cost.timed(Slow(2), Slow(1), torch.ones(1))
    assert order[:4] == [1, 2, 2, 1] and found["time_ratio"][0] <= found["time_ratio"][1] <= found["time_ratio"][2]
    assert 0.4 < found["time_ratio"][1] < 0.6 and len(order) == 2 * (cost.REPEATS + 2)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((11_173_962, 3_212_004), ("11.17 million", "3.21 million")),
        ((11_173_962, 3_204), ("11,173.96 thousand", "3.20 thousand")),
        ((12_345, 10_001), ("12.3 thousand", "10.0 thousand")),
        ((1_100, 968), ("1,100", "968")),
        ((1_113_456_640, 555_422_720), ("1,113 million", "555 million")),
    ],
)
def test_counts_are_told_in_the_unit_of_the_smaller(counts: tuple[int, int], said: tuple[str, str]) -> None:
    assert smaller._counted(*counts) == said


def test_equal_logits_are_called_equal() -> None:
    said = smaller._same({"images": 4, "safetensors": {"equal": 4, "difference": 0.0}, "ONNX": None})
    assert "all logits are exactly equal" in said and "0e" not in said


def test_operations_are_those_of_the_convolutions_and_the_linear_layer() -> None:
    model = settled(plain())
    wanted = 2 * (8 * 3 * 9 * 8 * 8 + 8 * 8 * 9 * 4 * 4 + 8 * 4)
    assert cost.flops(model, pictures(1).floats()) == wanted


def test_a_filter_is_silent_where_its_batch_norm_gives_zero() -> None:
    model = plain()
    pruned = pruned_copy(model, mask_of(model, {"conv1": [3], "conv2": [1, 2]})).eval()
    with torch.no_grad():
        pruned.get_parameter("bn1.weight")[5] = 0  # its shift is left: a constant
    found = shrink.cut(pruned, pictures(4))
    assert (found.pruned, found.removed) == (3, 3)


HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.skipif(not HAS_ONNX, reason="pip install '.[onnx]'")
def test_the_onnx_file_answers_as_the_repaired_model_for_any_number_of_images(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-not-found]

    model, images = plain(), pictures(5)
    pruned = pruned_copy(model, mask_of(model, {"conv1": [3], "conv2": [1, 2]})).eval()
    small = shrink.cut(pruned, images).model
    session = onnxruntime.InferenceSession(shrink.as_onnx(small, images), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 16, 16])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 4])]
    for count in (1, 2, 5):
        batch = images.floats()[:count]
        (found,) = session.run(["logits"], {"images": batch.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), pruned(batch), rtol=0, atol=1e-5)
