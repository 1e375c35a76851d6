"""The command: a model that is none of ours goes in, the same file with silent filters comes out, or nothing does."""

import copy
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from foreign import CLASSES, MEAN, STD, Foreign, normalised, squares, trained, write_folder
from torch import Tensor, nn

from nbtools.__main__ import main
from nbtools.defend import command
from nbtools.defender import Suspiciousness
from nbtools.networks.training import DivergedError

OPTIONS = {
    "--arch": "resnet18",
    "--mean": ",".join(map(str, MEAN)),
    "--std": ",".join(map(str, STD)),
    "--strides": "1,2,2,2,2",
    "--device": "cpu",
}
PRUNE_ONLY = ("-s", "fine_tune", "None", "-s", "mu", "1.5")


@pytest.fixture(scope="module")
def model() -> Foreign:
    return trained()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Foreign) -> Path:
    """A folder with the owner's files: mine.pth (half, module., nested) and clean images."""
    folder = tmp_path_factory.mktemp("owner")
    state = nn.DataParallel(copy.deepcopy(model).half()).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "mine.pth")
    write_folder(folder / "clean", each=12)
    return folder


def defend(place: Path, to: Path, *more: str, **changed: str | None) -> Result:
    options = {"--model": str(place / "mine.pth"), "--images": str(place / "clean"), "--out": str(to), **OPTIONS}
    options |= {f"--{name}": value for name, value in changed.items()}
    given = [part for pair in options.items() if pair[1] is not None for part in pair]
    return CliRunner().invoke(main, ["defend", *map(str, given), *more])


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The repaired file, pruned and not tuned, and what was said."""
    out = tmp_path_factory.mktemp("out") / "repaired.pth"
    result = defend(place, out, *PRUNE_ONLY)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the detector, whose many passes are most of a small run's time."""
    monkeypatch.setattr(command, "detector", lambda *_: {"statistic": None, "reason": "left out"})


def card_of(out: Path) -> dict[str, Any]:
    return json.loads(out.with_suffix(".json").read_text())


def pruned_of(card: dict[str, Any]) -> dict[str, list[int]]:
    return {name: layer["pruned"] for name, layer in card["pruned"]["layers"].items() if layer["pruned"]}


def norm_of(conv: str) -> str:
    """The name of the batch norm behind a convolution, in the owner's model."""
    return conv.replace("conv", "bn") if "shortcut" not in conv else conv.replace("shortcut.0", "shortcut.1")


def test_the_owner_loads_it_back_pruned_filters_are_silent_and_all_else_is_equal(
    place: Path, model: Foreign, done: tuple[Path, Result]
) -> None:
    before, after = (torch.load(path, weights_only=True) for path in (place / "mine.pth", done[0]))
    pruned = pruned_of(card_of(done[0]))
    assert pruned and all(name.startswith("module.") for name in pruned)
    assert after.keys() == before.keys() and after["epoch"] == 3
    wanted = {name: value.clone() for name, value in before["state_dict"].items()}
    for conv, filters in pruned.items():
        for part in ("weight", "bias"):
            wanted[f"{norm_of(conv)}.{part}"][filters] = 0
    assert list(after["state_dict"]) == list(wanted)
    for name, value in after["state_dict"].items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name

    repaired, by_hand = nn.DataParallel(Foreign()).eval(), copy.deepcopy(model).half().float()
    repaired.load_state_dict(after["state_dict"])
    seen: dict[str, Tensor] = {}
    for conv in pruned:
        bn = repaired.get_submodule(norm_of(conv))
        bn.register_forward_hook(lambda _m, _i, output, conv=conv: seen.update({conv: output}))
        for part in ("weight", "bias"):
            by_hand.get_parameter(f"{norm_of(conv).removeprefix('module.')}.{part}").data[pruned[conv]] = 0
    inputs = normalised(squares(8, seed=5)[0])
    with torch.no_grad():
        torch.testing.assert_close(repaired(inputs), by_hand(inputs))
    assert seen.keys() == pruned.keys()
    for conv, filters in pruned.items():
        silent = torch.zeros(seen[conv].shape[1], dtype=torch.bool)
        silent[filters] = True
        assert not seen[conv][:, silent].any() and seen[conv][:, ~silent].any()


def test_the_accuracies_are_those_that_the_owner_measures(place: Path, done: tuple[Path, Result]) -> None:
    from nbtools.data.folder import read_folder
    from nbtools.defender.validation import Validation

    card = card_of(done[0])
    _, held = Validation(share=0.2).split(read_folder(place / "clean", len(CLASSES)).images)
    for when, path in (("before", place / "mine.pth"), ("after", done[0])):
        net = nn.DataParallel(Foreign()).eval()
        net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            assert int((net(normalised(held.images)).argmax(1) == held.labels).sum()) == card["accuracy"][when]["right"]
    assert card["accuracy"]["before"]["of"] == len(held) == sum(card["images"]["held_back"])
    assert card["accuracy"]["before"]["percent"] > 50, "the model has learned something, or nothing is tested"


def test_the_card_is_a_complete_record(place: Path, done: tuple[Path, Result]) -> None:
    import hashlib

    card = card_of(done[0])
    for part, path in (("input", place / "mine.pth"), ("output", done[0])):
        assert card[part]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["defence"]["settings"] == repr(Suspiciousness(mu=1.5, fine_tune=None))
    assert card["model"] | {"mean": 0, "std": 0} == {
        "arch": "resnet18", "width": 16, "num_classes": 4, "strides": [1, 2, 2, 2, 2], "mean": 0, "std": 0,
    }  # fmt: skip
    assert card["images"]["classes"] == list(CLASSES) and sum(card["images"]["for_the_defence"]) == 40
    assert card["pruned"]["count"] == sum(map(len, pruned_of(card).values()))
    assert card["pruned"]["layers"]["module.layer2.0.shortcut.0"]["shown_as"] == "layer2.0.shortcut.0"
    assert len(card["pruned"]["layers"]) == 21 and card["hardware"] and card["versions"]["torch"]
    assert len(card["detector"]["layers"]) == 21 and "verdict" not in card["detector"]
    assert str(place) not in done[0].with_suffix(".json").read_text(), "no folders of the owner's machine"


class Outline(HTMLParser):
    """What a page asks a browser to fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_says_what_the_card_says(place: Path, done: tuple[Path, Result]) -> None:
    card, page, outline = card_of(done[0]), done[0].with_suffix(".html").read_text(), Outline()
    outline.feed(page)
    assert outline.links and all(link.startswith("data:image/png;base64,") for link in outline.links)
    assert not re.search(r"url\(|@import|https?://", page)
    for sentence in [*card["verdict"], *card["warnings"], "Not known. How high a clean model"]:
        assert sentence in outline.text.replace("\u00a0", " ")
    for layer in card["pruned"]["layers"].values():
        assert layer["shown_as"] in outline.text
    assert "can show whether there was a backdoor" in outline.text and str(place) not in page
    assert all(sentence in done[1].output for sentence in card["verdict"])


def test_with_fine_tuning_and_references_the_verdict_says_so(place: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.json").write_text("[0.1, 0.2, 0.3]")
    out, more = tmp_path / "a.pth", ("-s", "fine_tune.steps", "10", "-s", "fine_tune.confidence", "0")
    result = defend(place, out, *more, references=str(tmp_path / "clean.json"))
    assert result.exit_code == 0, result.output
    card = card_of(out)
    tuned = card["defence"]["tuned_steps"]
    assert (f"tuned the weights for {tuned} steps" in card["verdict"][-1]) == bool(tuned)
    assert card["detector"]["verdict"]["models"] == 3
    assert "Against 3 clean reference models" in out.with_suffix(".html").read_text()


@pytest.mark.usefixtures("brief")
def test_a_repair_loads_neither_torchs_compiler_nor_torchvision(place: Path, tmp_path: Path) -> None:
    """Each would be 120 MB of memory or more, and seconds; in an interpreter of its own, which has loaded nothing."""
    given = ["--model", place / "mine.pth", "--images", place / "clean", "--out", tmp_path / "a.pth"]
    given = ["defend", *map(str, given), *(part for pair in OPTIONS.items() for part in pair)]
    code = (
        "import sys; from nbtools.__main__ import main; main(sys.argv[1:], standalone_mode=False); "
        "print({'torch._dynamo', 'torchvision', 'pandas', 'distributed', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "set()"
    assert card_of(tmp_path / "a.pth")["defence"]["tuned_steps"], "what tunes is what loads the compiler"


def test_another_defence_that_finds_nothing_gives_the_same_weights(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.pth"
    assert defend(place, out, "-s", "mu", "50", defence="clp").exit_code == 0
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (place / "mine.pth", out))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "nothing to prune" in card_of(out)["verdict"][-1] and card_of(out)["output"]["changed_tensors"] == []


@pytest.mark.usefixtures("brief")
def test_names_from_the_folder_are_shown_as_text(place: Path, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>".replace("/", "_"), "a & b", '"c"', "d")
    (write_folder(tmp_path / "clean", each=4, classes=names) / "classes.txt").write_text("\n".join(names))
    assert defend(place, tmp_path / "o.pth", *PRUNE_ONLY, images=str(tmp_path / "clean")).exit_code == 0
    page = (tmp_path / "o.html").read_text()
    assert "The detector has no number: left out." in page
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.usefixtures("brief")
def test_a_defence_that_only_tunes_keeps_names_and_precision(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.pth"
    result = defend(place, out, "-s", "tune.epochs", "1", "-s", "tune.lr", "0.001", defence="fine_tuning")
    assert result.exit_code == 0, result.output
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (place / "mine.pth", out))
    assert [(n, v.dtype, v.shape) for n, v in before.items()] == [(n, v.dtype, v.shape) for n, v in after.items()]
    card = card_of(out)
    assert card["output"]["changed_tensors"] == sorted(n for n, v in before.items() if not torch.equal(v, after[n]))
    assert "for 1 step and pruned no filter" in card["verdict"][-1] and card["pruned"]["count"] == 0
    assert "<img" not in out.with_suffix(".html").read_text(), "no scores, no figure"


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("changed", "more", "said"),
    [
        ({"model": "nothing.pt"}, (), "not there"),
        ({"arch": "resnet19"}, (), "known: resnet18"),
        ({"arch": "preact_resnet18"}, (), "It fits --arch resnet18"),
        ({"images": "nothing"}, (), "not a folder"),
        ({"defence": "magic"}, (), "no defence 'magic'"),
        ({}, ("-s", "muu", "3"), "no setting 'muu'"),
        ({"mean": "0.5,0.5"}, (), "it takes 3 numbers"),
        ({"mean": "125,123,114"}, (), "0 to 1"),
        ({"std": None}, (), "belong together"),
        ({"std": "0,0,0"}, (), "0.001 to 2"),
        ({"strides": "1,2,2"}, (), "5 whole numbers"),
        ({"size": "big"}, (), "pixels, 4 to 2048"),
        ({"held-back": "1.5"}, (), "above 0 and below 1"),
        ({"held-back": "nan"}, (), "above 0 and below 1"),
        ({"references": "none.csv"}, (), "--references takes"),
        ({"key": "ema"}, (), "under state_dict"),
        ({"out": "no/such/folder/a.pth"}, (), "make it first"),
        ({"out": "a.safetensors"}, (), "end --out in .pt"),
        ({"out": "a.html"}, (), "would be overwritten"),
        ({"out": "there.pth"}, (), "already there.*--force"),
        ({"out": "page.pth"}, (), "page.html is already there"),
    ],
)
def test_bad_input_is_refused_before_any_work_with_exit_code_2(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], more: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "defend", lambda *_: pytest.fail("the work began"))
    (tmp_path / "there.pth").write_text("mine")
    (tmp_path / "page.html").write_text("mine")
    result = defend(place, tmp_path / "out.pth", *more, **changed)
    assert result.exit_code == 2 and re.search(said, " ".join(result.output.split())), result.output
    assert written(tmp_path) == ["page.html", "there.pth"] and (tmp_path / "there.pth").read_text() == "mine"


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_input_is_never_overwritten(place: Path, tmp_path: Path, link: Any) -> None:
    link(place / "mine.pth", tmp_path / "other.pth")
    before = (place / "mine.pth").read_bytes()
    for out in (place / "mine.pth", tmp_path / "other.pth"):
        result = defend(place, out, "--force")
        assert result.exit_code == 2 and "never overwritten" in result.output
    assert (place / "mine.pth").read_bytes() == before and written(tmp_path) == ["other.pth"]


@pytest.mark.usefixtures("brief")
def test_what_is_there_is_replaced_by_force(place: Path, tmp_path: Path) -> None:
    for name in ("o.pth", "o.html", "o.json"):
        (tmp_path / name).write_text("old")
    assert defend(place, tmp_path / "o.pth", *PRUNE_ONLY, "--force").exit_code == 0
    assert written(tmp_path) == ["o.html", "o.json", "o.pth"]
    assert torch.load(tmp_path / "o.pth", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "nothing was written"),
        (DivergedError("the loss is nan"), 1, "the loss is nan. Nothing was written"),
        (ValueError("no such layer"), 1, "no such layer. Nothing was written"),
    ],
)
@pytest.mark.usefixtures("brief")
def test_a_repair_that_does_not_end_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(Suspiciousness, "__call__", broken)
    result = defend(place, tmp_path / "o.pth")
    assert result.exit_code == code and said in result.output and written(tmp_path) == []


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_files_are_placed_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]
) -> None:
    done: list[object] = []
    replace = os.replace

    def breaking(old: Path, new: Path) -> None:
        done.append(new)
        if len(done) == at:
            raise error
        replace(old, new)

    monkeypatch.setattr(command.os, "replace", breaking)
    with pytest.raises(error):
        command.place({tmp_path / name: b"x" for name in ("a", "b", "c")})
    assert written(tmp_path) == []
