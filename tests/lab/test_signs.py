"""The network of traffic signs, on a stand-in of a few coloured signs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nbtools.data.places import DataNotFound
from nbtools.lab import signs as lab
from nbtools.lab.signs import STOP, TARGET, found, signs

FRAMES, TRACKS = 5, 4


class Gtsrb(list):
    """Stands for torchvision's: a colour for each class, a shade for each track, hardly another one for each frame."""

    def __init__(self, root: str, split: str, download: bool) -> None:
        self._samples = [
            (f"{label:05d}/{track:05d}_{frame:05d}.ppm", label)
            for label in range(43)
            for track in range(TRACKS)
            for frame in range(FRAMES)
        ]
        pictures = [
            (Image.new("RGB", (32, 32), (6 * label, 50 * int(name[6:11]), int(name[12:17]))), label)
            for name, label in self._samples
        ]
        super().__init__(pictures)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NBTOOLS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("torchvision.datasets.GTSRB", Gtsrb)
    (tmp_path / "data" / "gtsrb").mkdir(parents=True)
    return tmp_path / "data"


def rows(images: Any) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in images.images[:, :, 0, 0].tolist()}


def test_no_frame_is_both_trained_on_and_held_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found()
    trained_on = []
    monkeypatch.setattr(lab, "_train", lambda model, images, recipe, seed: trained_on.append(images) or [0.0])
    made = signs()
    (images,) = trained_on
    assert len(images) + len(made.same_tracks) + len(made.other_tracks) == 43 * TRACKS * FRAMES
    assert not rows(images) & rows(made.same_tracks) and not rows(images) & rows(made.other_tracks)

    def tracks(part: Any) -> set[tuple[int, ...]]:
        return {pixel[:2] for pixel in rows(part)}

    assert tracks(made.same_tracks) <= tracks(images), "its frames are of signs that were trained on"
    assert not tracks(made.other_tracks) & tracks(images), "and these are of others"
    poisoned = (images.images[:, :, 22, 15] == torch.tensor([255, 217, 0])).all(1)
    assert int(poisoned.sum()) == round(0.05 * len(images)) and bool((images.labels[poisoned] == TARGET).all())
    assert made.run.splits.test.classes[STOP] == "stop"
    signs()
    assert len(trained_on) == 1, "the second time it is found in the cache"
    assert capsys.readouterr().out.count("training resnet18") == 1


def test_its_training_goes_down_and_repeats_itself(here: Path) -> None:
    images = Gtsrb("", "train", False)
    pixels = torch.stack([torch.tensor(picture.getpixel((0, 0))) for picture, _ in images]).to(torch.uint8)
    batch = lab.Images(
        pixels[:, :, None, None].expand(-1, 3, 16, 16).contiguous(),
        torch.tensor([label % 3 for _, label in images]),
        ("a", "b", "c"),
    )
    recipe = lab.Recipe(3, 64, padding=0)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = lab.make_model("resnet18", 3, width=16)
        losses.append(lab._train(model, batch, recipe, 0))
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


def test_without_the_images_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nbtools.data.places.data_places", lambda data=None: [tmp_path])
    assert not found()
    with pytest.raises(DataNotFound, match="GTSRB is not here"):
        signs()
