"""The owner's images and settings: every class in the model's order, every odd file said, no field guessed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import CLASSES, squares, write_folder
from PIL import Image
from tiny import pictures, plain
from torch import Tensor

from nbtools import defender as defences
from nbtools.data.folder import class_names, read_folder
from nbtools.data.images import Images
from nbtools.defend.findings import HALVES, compared, detector, read_references, warnings_of
from nbtools.defender import FineTune, LastStage, Renormalise, SpectralNorm, Suspiciousness
from nbtools.defender.choices import DEFENCES, make_defence
from nbtools.defender.detection import detector_statistic
from nbtools.defender.magnitude import magnitude_saliency
from nbtools.defender.pruning import Mask


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def test_images_come_by_class_with_their_pixels(tmp_path: Path) -> None:
    write_folder(tmp_path, each=3, classes=("d", "b", "c", "a"))
    images = read_folder(tmp_path, 4).images
    pixels, _ = squares(3, seed=1)
    assert images.classes == ("a", "b", "c", "d") and images.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert torch.equal(images.images, torch.cat([pixels[3::4], pixels[1::4], pixels[2::4], pixels[0::4]]))


def test_numbers_are_ordered_as_numbers_and_a_list_goes_before_all(tmp_path: Path) -> None:
    make(tmp_path, *map(str, range(11)), ".ipynb_checkpoints", "__MACOSX")
    assert class_names(tmp_path, 11) == tuple(map(str, range(11)))
    (tmp_path / "classes.txt").write_text("\n".join(map(str, reversed(range(12)))) + "\n\n")
    assert class_names(tmp_path, 12) == tuple(map(str, reversed(range(12))))


@pytest.mark.parametrize(
    ("folders", "listed", "classes", "said"),
    [
        (["a", "b"], None, 3, "3 classes apart, and .* holds 2: a, b"),
        ([], None, 3, "none"),
        (["a", "b"], "a\nb\nc", 2, "names 3: a, b, c"),
        (["a", "z"], "a\nb", 2, "does not name: z"),
        ([], "a\nb", 2, "none of the folders"),
        (["a"], "a\na", 2, "twice"),
    ],
)
def test_another_number_of_classes_is_refused_with_both(
    tmp_path: Path, folders: list[str], listed: str | None, classes: int, said: str
) -> None:
    make(tmp_path, *folders)
    if listed is not None:
        (tmp_path / "classes.txt").write_text(listed)
    with pytest.raises(ValueError, match=said):
        class_names(tmp_path, classes)


def one(folder: Path, name: str, image: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    make(folder, "a", "b")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "b" / "black.png")
    image.save(folder / "a" / name)
    return read_folder(folder, 2, size).images.images[0]


RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def test_grey_images_are_repeated_and_alpha_is_dropped(tmp_path: Path) -> None:
    grey = torch.from_numpy(RAMP).expand(3, 4, 6)
    assert torch.equal(one(tmp_path / "1", "x.png", Image.fromarray(RAMP)), grey)
    assert torch.equal(one(tmp_path / "2", "x.PNG", Image.fromarray(RAMP).convert("P")), grey)
    alpha = np.dstack([RAMP, RAMP, RAMP, 255 - RAMP])
    assert torch.equal(one(tmp_path / "3", "x.png", Image.fromarray(alpha)), grey)
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert torch.equal(one(tmp_path / "4", "x.png", deep), grey)


def test_other_sizes_are_resized_and_said(tmp_path: Path) -> None:
    assert one(tmp_path, "x.png", Image.fromarray(RAMP), (8, 10)).shape == (3, 8, 10)
    said = "2 of 2 images had another size and were resized to 10x8 (from 6x4)."
    assert read_folder(tmp_path, 2, (8, 10)).notes == (said,)
    Image.fromarray(RAMP.repeat(2, 0)).save(tmp_path / "b" / "tall.png")
    folder = read_folder(tmp_path, 2)
    assert folder.images.size == (4, 6) and "1 of 3" in folder.notes[0]


def test_photographs_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 sizes, 6x4 to 700x600, .* say with --size"):
        one(tmp_path, "x.png", Image.new("RGB", (700, 600)))
    Image.new("RGB", (700, 600)).save(tmp_path / "b" / "black.png")
    with pytest.raises(ValueError, match="are 700x600; say with --size"):
        read_folder(tmp_path, 2)
    assert read_folder(tmp_path, 2, (32, 32)).images.size == (32, 32)


def test_damaged_images_are_named_and_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, each=4)
    whole = (tmp_path / "red" / "003.png").read_bytes()
    (tmp_path / "green" / "cut.png").write_bytes(whole[:-60])
    (tmp_path / "grey" / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"2 of 18 images can't be read: green/cut.png .*grey/text.jpg"):
        read_folder(tmp_path, 4, (16, 16))
    (tmp_path / "blue" / "000.png").write_text("first")
    with pytest.raises(ValueError, match=r"3 of 18 images can't be read: blue/000.png \(no image, or damaged\)"):
        read_folder(tmp_path, 4)


def test_empty_classes_copies_and_strange_files_are_said(tmp_path: Path) -> None:
    write_folder(tmp_path, each=3)
    make(tmp_path, "unseen")
    (tmp_path / "red" / "notes.md").write_text("")
    (tmp_path / "red" / ".hidden.png").write_text("")
    (tmp_path / "red" / "copy.png").write_bytes((tmp_path / "red" / "003.png").read_bytes())
    folder = read_folder(tmp_path, 5)
    assert len(folder.images) == 13
    assert folder.notes == ("Left aside in the class folders: 1 .md file, 1 hidden file.",)
    assert "no image of unseen" in folder.warnings[0] and "1 copies of others" in folder.warnings[1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        read_folder(make(tmp_path, "a", "b"), 2)
    with pytest.raises(ValueError, match="not a folder"):
        read_folder(tmp_path / "nothing", 2)


def test_settings_become_the_fields_types() -> None:
    assert make_defence("suspiciousness", []) == Suspiciousness()
    given = [
        ("mu", "3"),
        ("fine_tune", "FineTune"),
        ("fine_tune.steps", "20"),
        ("fine_tune.lr", "1"),
        ("scope", "global"),
        ("shortcuts", "False"),
    ]
    wanted = Suspiciousness(mu=3.0, scope="global", shortcuts=False, fine_tune=FineTune(steps=20, lr=1.0))
    assert repr(make_defence("suspiciousness", given)) == repr(wanted)
    assert make_defence("suspiciousness", [("fine_tune", "None")]) == Suspiciousness(fine_tune=None)
    assert make_defence("suspiciousness", [("fine_tune", "FineTune")]) == Suspiciousness(fine_tune=FineTune())
    assert make_defence("suspiciousness", [("fine_tune.seed", "1")]) == Suspiciousness(fine_tune=LastStage(seed=1))
    assert make_defence("suspiciousness", [("fine_tune.limit", "3")]) == Suspiciousness(fine_tune=Renormalise(3))
    assert make_defence("suspiciousness", [("powers", "{'sigma': 1}")]) == Suspiciousness(powers={"sigma": 1.0})
    assert make_defence("clp", [("fine_tune.steps", "9")]) == SpectralNorm(fine_tune=FineTune(steps=9))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("magic", [], "Known: suspiciousness, clp"),
        ("suspiciousness", [("muu", "3")], r"no setting 'muu'; it has mu = 2.0, saliency = 'cross_entropy'"),
        ("suspiciousness", [("mu", "high")], "mu takes float, got 'high'; by default it is 2.0"),
        ("suspiciousness", [("mu", "True")], "mu takes float"),
        ("suspiciousness", [("mu", "-1")], "mu must be 0 or more"),
        ("suspiciousness", [("mu", "1"), ("mu", "2")], "given twice"),
        ("suspiciousness", [("mu.x", "1")], "no setting 'mu.x'"),
        (
            "suspiciousness",
            [("fine_tune", "20")],
            "takes FineTune or LastStage or None or Renormalise, or settings",
        ),
        ("suspiciousness", [("fine_tune.pace", "20")], "no setting 'fine_tune.pace'; it has fine_tune.share = 0.25"),
        ("suspiciousness", [("fine_tune.steps", "0")], "steps, batch_size and most >= 1"),
        ("suspiciousness", [("fine_tune", "None"), ("fine_tune.steps", "2")], "exclude each other"),
        ("suspiciousness", [("powers", "{'sigma': 'x'}")], "powers takes dict"),
        ("suspiciousness", [("scope", "nowhere")], "unknown scope"),
        ("suspiciousness", [("fine_tune", "FineTune"), ("fine_tune.limit", "2")], "no setting 'fine_tune.limit'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_there_is(
    name: str, settings: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make_defence(name, settings)


def test_every_defence_that_there_is_can_be_made_by_name() -> None:
    assert all(kind.__name__ in defences.__all__ for kind in DEFENCES.values())
    assert [type(make_defence(name, [])) for name in DEFENCES] == list(DEFENCES.values())


def test_comparison_counts_the_answers_that_changed() -> None:
    before, after = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 0, 0, 0, 0, 1]).bool()
    table = compared(before, after)
    assert (table["lost"], table["gained"], table["points"]) == (5, 1, -50.0)
    assert table["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)  # at most one of six by a fair coin, two-sided
    assert compared(before, before)["p_value"] == 1 and table["before"]["percent"] == 75
    z, p, n = 1.959964, 0.75, 8
    centre, half = (p + z**2 / 2 / n), z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    wanted = [100 * (centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert table["before"]["interval"] == pytest.approx(wanted, abs=1e-3)


def test_warnings_are_given_where_there_is_reason() -> None:
    few = Images(torch.zeros(24, 3, 4, 4, dtype=torch.uint8), torch.arange(24) % 4, CLASSES)
    many = few.subset(torch.arange(240) % 24)
    fine = torch.arange(240) % 20 > 0
    one_class = fine & (many.labels != 2)
    masks = {"conv": torch.tensor([True, True, True, False]), "other": torch.zeros(96, dtype=torch.bool)}
    none = Mask({name: torch.zeros_like(mask) for name, mask in masks.items()})

    def said(learn: Images, held: Images, before: Tensor, after: Tensor, mask: Mask) -> str:
        return "\n".join(warnings_of(learn, held, before, after, mask, {"conv": "the conv", "other": "x"}))

    assert said(many, many, fine, fine, none) == ""
    assert "Only 24 images were held back" in said(many, few, fine[:24], fine[:24], none)
    assert "4 of 4 classes gave the defence fewer than 10" in said(few, many, fine, fine, none)
    assert "no better than chance" in said(many, many, many.labels == 0, many.labels == 0, none)
    assert "3 of the 4 filters of the conv" in said(many, many, fine, fine, Mask(masks))
    assert "10 % of all" not in said(many, many, fine, fine, Mask(masks))
    assert "75 % of all filters" in said(many, many, fine, fine, Mask({"conv": masks["conv"]}))
    fallen = said(many, many, fine, one_class, none)
    assert "Clean accuracy fell by" in fallen and "Class grey fell from 60 to 0 of 60" in fallen


def test_the_detector_has_a_spread_and_a_verdict_only_with_references() -> None:
    model, clean = plain(), pictures(16)
    alone = detector(model, clean, None)
    assert "verdict" not in alone and 0 <= alone["statistic"] <= 2 and alone["standard_error"] > 0
    assert detector(model, clean, None) == alone, "the same images, the same halves"
    judged = detector(model, clean, [alone["statistic"] - 0.1] * 9)["verdict"]
    assert judged["p_value"] == pytest.approx(0.1) and judged["quantile"] == 1


def test_the_detector_passes_each_image_once_and_its_numbers_are_those_of_each_half_alone() -> None:
    model, clean = plain(), pictures(16)
    seen: list[int] = []
    model.conv1.register_forward_hook(lambda _conv, inputs, _output: seen.append(len(inputs[0])))
    found = detector(model, clean, None)
    assert sum(seen) == 16 + 1, "and one image for the size of the maps"
    generator = torch.Generator().manual_seed(0)
    chosen = clean.subset(torch.randperm(16, generator=generator))
    whole = detector_statistic(model, chosen)
    halves = [half for _ in range(HALVES // 2) for half in torch.randperm(16, generator=generator).chunk(2)]
    spread = torch.tensor([detector_statistic(model, chosen.subset(half)) - whole for half in halves])
    assert found["statistic"] == pytest.approx(whole) and found["images"] == 16
    assert found["standard_error"] == pytest.approx(float(spread.square().mean().sqrt()))
    assert found["layers"] == pytest.approx(magnitude_saliency(model, chosen, fold_bn=True))


def test_references_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[0.5, 1]")
    (tmp_path / "b.csv").write_text("model,statistic\nx,0.25\ny,0.75\n")
    assert read_references(tmp_path / "a.json") == [0.5, 1.0] and read_references(tmp_path / "b.csv") == [0.25, 0.75]
    for name, text in {"c.json": "[]", "d.json": "[true]", "e.json": "[NaN]", "f.csv": "m\n1\n", "g.json": "{"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="--references takes"):
            read_references(tmp_path / name)
    with pytest.raises(ValueError, match="--references takes"):
        read_references(tmp_path / "none.json")
