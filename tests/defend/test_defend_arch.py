"""`--arch`: a network of a library, or of the owner's own code, answers as it did where it came from."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from foreign import MEAN, STD, Foreign, normalised, squares
from PIL import Image
from torch import Tensor, nn
from torchvision import models as zoo

from nbtools.__main__ import main
from nbtools.defend import options
from nbtools.defend.architecture import OWN, kind_of
from nbtools.defend.fitting import fit
from nbtools.defend.kinds import KINDS
from nbtools.networks.cifar import CifarResNet, WideResNet
from nbtools.networks.units import prunable_units

State = dict[str, Tensor]


def lively(model: nn.Module) -> nn.Module:
    """With weights, and statistics of batch norms, that no layer passes on unchanged."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("arch", "build"),
    [
        ("foreign:Foreign", Foreign),
        ("torchvision/shufflenet_v2_x0_5", lambda: zoo.shufflenet_v2_x0_5(num_classes=6)),
    ],
)
def test_a_network_from_elsewhere_answers_as_it_did(arch: str, build: Callable[[], nn.Module]) -> None:
    model, images = lively(build()), squares(2, 32)[0]
    random = torch.get_rng_state()
    fitted = fit({f"module.{name}": value for name, value in model.state_dict().items()}, arch, None, MEAN, STD)
    assert torch.get_rng_state().equal(random), "building draws from nobody's random numbers"
    with torch.no_grad():
        torch.testing.assert_close(fitted.model(images / 255), model(normalised(images)))
    units = prunable_units(fitted.model)
    names = [unit.conv for unit in prunable_units(model)]
    assert [fitted.short_name(unit.conv) for unit in units] == names and fitted.num_classes in (4, 6)
    assert [fitted.own_name(unit.conv) for unit in units] == [f"module.{name}" for name in names]


class Prepared(nn.Module):
    """A network that normalises its images itself, by buffers that its file holds or not."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int = 10, kept: bool = True) -> None:
        super().__init__()
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=kept)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv((images - self.mean) / self.std)).relu().mean((2, 3)))


def unkept(num_classes: int = 10) -> nn.Module:
    return Prepared(num_classes, kept=False)


@pytest.mark.parametrize("before", ["", "module.", "net."])
@pytest.mark.parametrize("build", [Prepared, unkept])
def test_a_network_that_normalises_its_images_itself_gets_them_as_they_are(
    build: Callable[[int], nn.Module], before: str
) -> None:
    model, images = lively(build(4)), squares(2, 32)[0] / 255
    state = {before + name: value for name, value in model.state_dict().items()}
    arch = f"test_defend_arch:{build.__name__}"
    fitted = fit(state, arch)
    told = fit(state, arch, None, MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(fitted.model(images), model(images))
        torch.testing.assert_close(told.model(images), model(normalised(255 * images)))
    assert (fitted.warnings, fitted.notes[-1:]) == ((), ("The network normalises its images itself.",))
    assert "itself, and --mean and --std were used before that" in told.warnings[0]


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.two.weight = self.one.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.stem(images)).relu()
        x = self.norms[2](self.two(self.norms[1](self.one(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def test_one_weight_with_two_names_stays_one() -> None:
    model = Tied()
    lively(model)
    fitted = fit(model.state_dict(), "test_defend_arch:Tied", None, MEAN, STD)
    found = fitted.model.get_submodule("network")
    assert found.get_parameter("one.weight") is found.get_parameter("two.weight")
    with torch.no_grad():
        images = squares(2, 32)[0]
        torch.testing.assert_close(fitted.model(images / 255), model(normalised(images)))
    differ = {**model.state_dict(), "two.weight": model.two.weight + 1}
    with pytest.raises(ValueError, match=r"one.weight and two.weight are one weight .* the file holds two that differ"):
        fit(differ, "test_defend_arch:Tied", None, MEAN, STD)


class Measured(nn.Module):
    """Layers whose names are those of measures and losses."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.f1, self.acc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.smoothing, self.entropy = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.precision = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.entropy(self.smoothing(self.acc(self.f1(images)).relu())).relu()
        return self.precision(x.mean((2, 3)))


@pytest.mark.parametrize("before", ["", "net.", "module."])
def test_a_networks_own_layers_may_be_called_as_measures_are(before: str) -> None:
    model = Measured()
    state = {before + name: value for name, value in model.state_dict().items()}
    aside = {"criterion.weight": torch.ones(3)} if before == "net." else {}
    fitted = fit({**state, **aside}, "test_defend_arch:Measured", None, MEAN, STD)
    assert set(fitted.names.values()) == set(state) and len(prunable_units(fitted.model)) == 2


def leaving(num_classes: int) -> nn.Module:
    raise SystemExit(3)


def test_a_builder_that_ends_the_program_is_told() -> None:
    with pytest.raises(ValueError, match="--arch test_defend_arch:leaving: no network was built: 3"):
        kind_of("test_defend_arch:leaving")


def test_a_network_of_timm_answers_as_it_did() -> None:
    timm = pytest.importorskip("timm")
    model, images = lively(timm.create_model("mobilenetv3_small_050", num_classes=5)), squares(2, 64)[0]
    fitted = fit(model.state_dict(), "timm/mobilenetv3_small_050", None, MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(fitted.model(images / 255), model(normalised(images)))
    assert len(prunable_units(fitted.model)) == len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])


def bn(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, gamma, beta = (
        state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2)


def resnet_written_out(state: State, x: Tensor) -> Tensor:
    """From the names and shapes of a file alone."""
    x = bn(state, "bn1", conv(state, "conv1", x)).relu()
    for stage in (1, 2, 3):
        blocks = {name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}
        for block in sorted(blocks, key=int):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == "0" else 1
            y = bn(state, f"{at}.bn1", conv(state, f"{at}.conv1", x, stride)).relu()
            y = bn(state, f"{at}.bn2", conv(state, f"{at}.conv2", y))
            if f"{at}.shortcut.0.weight" in state:
                x = bn(state, f"{at}.shortcut.1", conv(state, f"{at}.shortcut.0", x, stride))
            elif stride > 1:
                x = x[:, :, ::2, ::2]
                zeros = torch.zeros_like(x[:, : x.shape[1] // 2])
                x = torch.cat([zeros, x, zeros], 1)
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def wide_written_out(state: State, x: Tensor) -> Tensor:
    x = conv(state, "conv1", x)
    for group in (1, 2, 3):
        blocks = {name.split(".")[2] for name in state if name.startswith(f"block{group}.")}
        for block in sorted(blocks, key=int):
            at, stride = f"block{group}.layer.{block}", 2 if group > 1 and block == "0" else 1
            ready = bn(state, f"{at}.bn1", x).relu()
            y = conv(state, f"{at}.conv2", bn(state, f"{at}.bn2", conv(state, f"{at}.conv1", ready, stride)).relu())
            has = f"{at}.convShortcut.weight" in state
            x = y + (conv(state, f"{at}.convShortcut", ready, stride) if has else x)
    return bn(state, "bn1", x).relu().mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def public_names(model: nn.Module) -> State:
    """As the public code of ResNet-20 calls them."""
    state = {n: v for n, v in lively(model).state_dict().items() if not n.startswith("normalise.")}
    return {n.replace(".downsample.", ".shortcut.").replace("fc.", "linear."): v for n, v in state.items()}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("depth", [20, 32])
def test_a_resnet_for_small_images(depth: int, projected: bool) -> None:
    state, images = public_names(CifarResNet(7, depth, 16, projected)), squares(1, 16)[0]
    fitted = fit(state, f"resnet{depth}", None, MEAN, STD)
    assert sum(value.ndim in (2, 4) for value in state.values()) == depth + 2 * projected
    with torch.no_grad():
        wanted = resnet_written_out(state, normalised(images))
        torch.testing.assert_close(fitted.model(images / 255), wanted, rtol=1e-4, atol=1e-4)
    assert (fitted.num_classes, len(prunable_units(fitted.model))) == (7, depth - 1 + 2 * projected)
    with pytest.raises(ValueError, match=rf"does not fit resnet56: .* missing .* It fits --arch resnet{depth}$"):
        fit(state, "resnet56")


@pytest.mark.parametrize(("blocks", "widths"), [(2, (16, 16, 32, 64)), (1, (16, 32, 64, 128))])
def test_a_wide_resnet(blocks: int, widths: tuple[int, int, int, int]) -> None:
    state = {n: v for n, v in lively(WideResNet(5, blocks, widths)).state_dict().items() if "normalise" not in n}
    images, fitted = squares(1, 16)[0], fit(state, "wideresnet", None, MEAN, STD)
    with torch.no_grad():
        wanted = wide_written_out(state, normalised(images))
        torch.testing.assert_close(fitted.model(images / 255), wanted, rtol=1e-4, atol=1e-4)
    names = [unit.conv for unit in prunable_units(fitted.model)]
    stem = ["conv1"] if widths[1] > widths[0] else []  # then the shortcut starts behind the first batch norm
    assert names == stem + [f"block{g}.layer.{b}.conv1" for g in (1, 2, 3) for b in range(blocks)]


def no_network() -> int:
    return 3


def broken(num_classes: int) -> nn.Module:
    raise RuntimeError(f"no weights for {num_classes} classes\nat all")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "resnet19",
            r"unknown architecture 'resnet19'; known: resnet18, .* wideresnet, torchvision/NAME, timm/NAME, P",
        ),
        (
            "torchvision/shufflenet",
            r"torchvision has no network for classes of images named shufflenet; near it are shuf",
        ),
        ("torchvision/fcn_resnet50", r"torchvision has no network for classes of images named fcn_resnet50"),
        ("nowhere_at_all:net", r"--arch nowhere_at_all:net: No module named 'nowhere_at_all'"),
        ("foreign:Nothing", r"--arch foreign:Nothing: foreign has no function or class Nothing"),
        ("test_defend_arch:no_network", r"no network was built: it gives a int, and not a torch.nn.Module"),
        ("test_defend_arch:broken", r"no network was built: no weights for 7 classes$"),
        ("torch.nn:Flatten", r"--arch torch.nn:Flatten: its network has no convolution"),
    ],
)
def test_what_is_no_architecture_is_refused(arch: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(ValueError, match=message):
        kind_of(arch)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"--arch timm/resnet10t: this needs timm, which is not installed; `pip inst"):
        kind_of("timm/resnet10t")


def test_the_architectures_that_are_refused_without_torch_are_all_that_there_are() -> None:
    assert (*KINDS, *OWN) == options.ARCHS
    for arch in ("torchvision/resnet101", "timm/tf_efficientnet_b0.ns_jft_in1k", "my.nets:make_it"):
        options.check_words("clp", arch)
    for arch in ("torchvision/", "other/resnet18", "my nets:make", "nets:", "a/b:c"):
        with pytest.raises(Exception, match=r"unknown architecture .* PACKAGE.MODULE:FUNCTION"):
            options.check_words("clp", arch)


def thousand(num_classes: int = 1000) -> nn.Module:
    """A small network for large images."""
    first = nn.Sequential(nn.Conv2d(3, 8, 7, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))
    second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    model = nn.Sequential()
    parts = {"first": first, "second": second, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    for name, part in {**parts, "last": nn.Linear(16, num_classes)}.items():
        model.add_module(name, part)
    return model


def test_a_thousand_classes_with_ten_large_images_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for number in range(1000):
        (tmp_path / "images" / f"n{number:04}").mkdir(parents=True)
    for number in range(0, 1000, 100):
        pixels = np.random.default_rng(number).integers(0, 255, (224, 224, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"n{number:04}" / "one.png")
    torch.save(lively(thousand()).state_dict(), tmp_path / "net.pt")
    given = {"model": "net.pt", "images": "images", "out": "repaired.pt"}
    asked = [part for name, value in given.items() for part in (f"--{name}", str(tmp_path / value))]
    asked += ["--arch", "test_defend_arch:thousand", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--anyway"]
    result = CliRunner().invoke(main, ["defend", *asked, "--device", "cpu", "-s", "mu", "1.5"])
    assert result.exit_code == 0, result.output
    assert "1000 classes" in result.output and "There is no image of" in result.output
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("net.pt", "repaired.pt"))
    assert before.keys() == after.keys() and not before["second.1.weight"].equal(after["second.1.weight"])


class OneSize(nn.Module):
    """Takes 40 x 36 pixels alone, which no graph can tell."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) != (36, 40):
            raise ValueError(f"got {tuple(images.shape[2:])}")
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def test_a_network_that_takes_one_size_alone_is_repaired_at_that_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(OneSize())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    pixels = torch.randint(0, 256, (8, 36, 40, 3), dtype=torch.uint8)
    with torch.no_grad():
        said = model(pixels.permute(0, 3, 1, 2) / 255).argmax(1).tolist()
    for name in "ab":
        (tmp_path / "clean" / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, said, strict=True)):
        Image.fromarray(image.numpy()).save(tmp_path / "clean" / "ab"[label] / f"{number}.png")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    asked = ["defend", "--model", str(tmp_path / "model.pt"), "--arch", "test_defend_arch:OneSize", "--images"]
    asked += [str(tmp_path / "clean"), "--out", str(tmp_path / "out.pt"), "--anyway", "-s", "mu", "1"]
    done = CliRunner().invoke(main, [*asked, "--mean", "0,0,0", "--std", "1,1,1"])
    assert done.exit_code == 0 and (tmp_path / "out.pt").is_file(), done.output
