"""A model is measured before anything is done: at chance level the work does not begin, and the right order is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from own_answers import right_on, write
from PIL import Image
from torch import Tensor, nn

from nbtools.__main__ import main
from nbtools.data.images import Images
from nbtools.defend import command
from nbtools.defend.card import Job, Request
from nbtools.defend.start import Start, begin
from nbtools.defender import Repair

COUNT, EACH = 11, 6
PRUNE_ONLY = ("-s", "fine_tune", "None")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A network of eleven classes in a file, and `EACH` images a class, uint8 `[11, 6, 3, h, w]`, on all of which it is
    right: its own answers are their labels."""
    model, images = right_on(COUNT, EACH)
    path = tmp_path_factory.mktemp("owner") / "net.pth"
    torch.save(model.state_dict(), path)
    return path, images


def defend(owner: tuple[Path, Tensor], images: Path, out: Path, *more: str) -> Result:
    given = ["--model", owner[0], "--arch", "resnet18", "--images", images, "--out", out, "--device", "cpu"]
    return CliRunner().invoke(main, ["defend", *map(str, given), *PRUNE_ONLY, *more])


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work is a failure."""
    for name in ("detector", "defend"):
        monkeypatch.setattr(command, name, lambda *_: pytest.fail("the work began"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the detector, whose many passes are most of a small run's time."""
    monkeypatch.setattr(command, "detector", lambda *_: {"statistic": None, "reason": "left out"})


NUMBERS = [str(number) for number in range(1, COUNT + 1)]
LETTERS = [chr(97 + number) for number in range(COUNT)]
TURNED = LETTERS[4:] + LETTERS[:4]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("own", "listed", "right", "said"),
    [
        (sorted(NUMBERS), None, 6, 'In the order of the names as text ("1", "10", "11", "2", ...) 66 of 66'),
        (NUMBERS, sorted(NUMBERS), 6, 'In the order of the names as whole numbers ("1", "2", "3", "4", ...) 66 of 66'),
        (TURNED, None, 0, "In another order of the classes, found from the answers to these images, 66 of 66"),
    ],
)
def test_a_wrong_order_stops_before_any_work_and_the_right_one_is_told(
    owner: tuple[Path, Tensor], tmp_path: Path, own: list[str], listed: list[str] | None, right: int, said: str
) -> None:
    folder = write(tmp_path / "images", owner[1], own)
    if listed:
        (folder / "classes.txt").write_text("\n".join(listed))
    (tmp_path / "out").mkdir()
    result = defend(owner, folder, tmp_path / "out" / "a.pth")
    assert result.exit_code == 2 and list((tmp_path / "out").iterdir()) == []
    for part in (f"the model is right on {right} of 66 images", said, str(folder / "classes.txt"), "--anyway"):
        assert part in result.output
    lines = result.output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Error:"))
    assert lines[start + 1 : -1] == own, "ready to be copied"

    (folder / "classes.txt").write_text("\n".join(lines[start + 1 : -1]))
    job = command.prepare(Request(owner[0], "resnet18", folder, tmp_path / "out" / "a.pth", device="cpu"))
    assert (job.start.right, job.start.of, job.start.other, job.start.hopeless) == (66, 66, None, False)


def test_an_order_that_few_classes_survive_stops_even_above_chance(owner: tuple[Path, Tensor], tmp_path: Path) -> None:
    own = [*LETTERS[:3], *LETTERS[4:], LETTERS[3]]
    result = defend(owner, write(tmp_path / "images", owner[1], own), tmp_path / "a.pth")
    assert result.exit_code == 2 and "right on 18 of 66 images (27.3 %)." in result.output
    assert "no better than chance" not in result.output and "66 of 66 would be right" in result.output


@pytest.mark.usefixtures("idle")
def test_where_no_order_helps_everything_else_is_named(owner: tuple[Path, Tensor], tmp_path: Path) -> None:
    noise = torch.randint(256, owner[1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    result = defend(owner, write(tmp_path / "images", noise, LETTERS), tmp_path / "a.pth")
    assert result.exit_code == 2 and "no better than chance among 11 classes (9.1 %)" in result.output
    for part in ("mean (0.4914, 0.4822, 0.4465)", "--std", "16x16 (--size)", "(1, 2, 2, 2, 2) (--strides)", '"a", "b"'):
        assert part in result.output
    assert "would be right" not in result.output


@pytest.mark.usefixtures("brief")
def test_anyway_goes_on_and_the_page_warns(owner: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder = write(tmp_path / "images", owner[1], sorted(NUMBERS))
    result = defend(owner, folder, tmp_path / "a.pth", "--anyway")
    assert result.exit_code == 0, result.output
    card, page = json.loads((tmp_path / "a.json").read_text()), (tmp_path / "a.html").read_text()
    assert "no better than chance" in card["warnings"][0] and "66 of 66 would be right" in card["warnings"][1]
    assert "no better than chance" in page.replace("\u00a0", " ") and "right on 6 of all 66 images" in page
    assert card["start"]["other_order"] == {"how": "the names as text", "classes": sorted(NUMBERS), "right": 66}
    assert (card["start"]["right"], card["start"]["of"]) == (6, 66) and str(tmp_path) not in json.dumps(card)


@pytest.mark.usefixtures("brief")
def test_two_classes_that_changed_places_are_warned_of_and_nothing_stops(
    owner: tuple[Path, Tensor], tmp_path: Path
) -> None:
    own = [*LETTERS[:3], LETTERS[4], LETTERS[3], *LETTERS[5:]]
    result = defend(owner, write(tmp_path / "images", owner[1], own), tmp_path / "a.pth")
    said = f"66 of 66 would be right. In the given order 54 are.*a name a line: {', '.join(own)}"
    assert result.exit_code == 0 and len(re.findall(said, result.output)) == 1
    assert result.output.index("would be right") < result.output.index("Repairing")
    assert len(re.findall(said, "\n".join(json.loads((tmp_path / "a.json").read_text())["warnings"]))) == 1
    assert ", ".join(own) in (tmp_path / "a.html").read_text()


@pytest.mark.usefixtures("brief")
def test_what_was_left_aside_or_guessed_is_said_once_and_before_the_repair(
    owner: tuple[Path, Tensor], tmp_path: Path
) -> None:
    folder = write(tmp_path / "images", owner[1], LETTERS)
    Image.new("RGB", (20, 20)).save(folder / "a" / "large.png")
    (folder / "b" / "notes.md").write_text("")
    torch.save({"model": torch.load(owner[0]), "ema": torch.load(owner[0]), "epoch": 3}, tmp_path / "two.pth")
    result = defend((tmp_path / "two.pth", owner[1]), folder, tmp_path / "a.pth")
    assert result.exit_code == 0, result.output
    early, _, late = result.output.partition("Repairing")
    for part in (
        "had another size",
        "Left aside",
        "the strides were taken",
        "CIFAR-10's was used",
        "under ema",
        "epoch",
    ):
        assert len(re.findall(rf"^(?:Note|Warning): .*{part}", early, re.MULTILINE)) == 1 and part not in late, part
    card = json.loads((tmp_path / "a.json").read_text())
    told = [line.split(": ", 1)[1] for line in result.output.splitlines() if line.startswith(("Note: ", "Warning: "))]
    assert sorted(told) == sorted([*card["notes"], *card["warnings"]]), "each once"
    assert re.search("^Warning: Only .* held back", late, re.MULTILINE), "what the repair showed comes behind it"


def test_every_image_goes_through_the_model_once_before_the_repair(
    owner: tuple[Path, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "images", owner[1], LETTERS)
    seen: list[int] = []
    fit = command.fit

    def counting(*given: Any) -> Any:
        fitted = fit(*given)
        fitted.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return fitted

    def stop(model: nn.Module, clean: Images) -> Repair:
        raise ValueError(f"{sum(seen)} seen")

    monkeypatch.setattr(command, "fit", counting)
    monkeypatch.setattr(command, "detector", lambda *_: {"statistic": None, "reason": "left out"})
    monkeypatch.setattr(command, "make_defence", lambda *_: stop)
    result = defend(owner, folder, tmp_path / "a.pth")
    assert "67 seen" in result.output, "66 images, and one to see whether the model takes them"


def start(right: int, of: int, count: int) -> Start:
    """How a model starts that is right on so many of so many images."""

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            first = torch.arange(len(images)) < (right if len(images) == of - 1 else 0)
            return nn.functional.one_hot(torch.where(first, 0, 1), count).float()

    images = Images(
        torch.zeros(of, 3, 2, 2, dtype=torch.uint8), torch.zeros(of, dtype=torch.int64), tuple("abcdefghij")[:count]
    )
    return begin(Fixed(), images.subset(torch.arange(of - 1)), images.subset(torch.tensor([of - 1])))


def plain_p_value(right: int, of: int, chance: float) -> float:
    from math import comb

    return sum(comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(right, of + 1))


@pytest.mark.parametrize("count", [2, 10])
@pytest.mark.parametrize("of", [10, 60])
def test_chance_level_is_that_of_the_exact_test(count: int, of: int) -> None:
    found = [start(right, of, count) for right in range(of)]
    for right, one in enumerate(found):
        assert one.p_value == pytest.approx(plain_p_value(right, of, 1 / count))
        assert (one.right, one.of, one.at_chance) == (right, of, one.p_value > 0.05)
    assert found[0].at_chance and not found[-1].at_chance


def test_few_images_that_are_all_right_are_not_at_chance_level() -> None:
    images = Images(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a", "b"))

    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    found = begin(First(), images.subset(torch.arange(2)), images.subset(torch.tensor([2])))
    assert found.p_value == pytest.approx(0.125) and not found.hopeless and found.warnings == []


def test_a_job_says_how_it_was_read_without_doubles(owner: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder = write(tmp_path / "images", owner[1], LETTERS)
    said: list[str] = []
    job = command.prepare(Request(owner[0], "resnet18", folder, tmp_path / "a.pth", device="cpu"), said.append)
    assert isinstance(job, Job) and said[1:] == [
        *(f"Note: {note}" for note in job.notes),
        *(f"Warning: {warning}" for warning in job.warnings),
    ]
    assert len(set(said)) == len(said) and said[0].startswith("net.pth: resnet18, width 16, 11 classes. 55 clean")
