"""The training loop: augmentation by a plain loop, the schedule, and runs that end in the same bits after a kill."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, pictures, same_bits
from torch import Generator, Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nbtools.data.images import Images
from nbtools.evaluator.evaluation import accuracy
from nbtools.networks import training
from nbtools.networks.architectures import ResNet18
from nbtools.networks.training import DivergedError, Recipe, Row, augment, train

Whole = tuple[nn.Module, list[Row]]

RECIPE = Recipe(epochs=3, batch_size=16, padding=1)
IMAGES = pictures(48, size=8)  # three batches an epoch
HERE = Path(__file__).parent
CHILD = """
import os, signal, sys
sys.path.append("..")
from pathlib import Path
from nbtools.networks import training
from test_training import IMAGES, RECIPE, fresh

checkpoint, moment = Path(sys.argv[1]), sys.argv[2]
model, save, calls = fresh(), training.save_file, []

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def fifth_step(*_):
    calls.append(1)
    if len(calls) == 5:
        die()

def cut_short(tensors, path, metadata):
    save(tensors, path, metadata)
    if checkpoint.exists():
        os.truncate(path, path.stat().st_size // 2)
        die()

if moment == "in an epoch":
    model.register_forward_hook(fifth_step)
else:
    training.save_file = cut_short
training.train(model, IMAGES, RECIPE, checkpoint=checkpoint)
"""


def fresh() -> ResNet18:
    torch.manual_seed(0)
    return ResNet18(num_classes=4, width=16)


def same(one: nn.Module, other: nn.Module) -> bool:
    return same_bits(bits(one), bits(other))


def losses(rows: list[Row]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def whole() -> Whole:
    """A run that nothing interrupted."""
    model = fresh()
    return model, train(model, IMAGES, RECIPE, log=None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_pad_crop_flip_of_each_image(dtype: torch.dtype) -> None:
    images = torch.randint(1, 256, (400, 3, 5, 6), generator=Generator().manual_seed(0)).to(dtype)
    out = augment(images, Generator().manual_seed(1), padding=1)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    seen = set()
    for image, augmented in zip(images, out, strict=True):
        padded, found = F.pad(image, [1, 1, 1, 1]), []
        for row in range(3):
            for column in range(3):
                crop = padded[:, row : row + 5, column : column + 6]
                found += [(row, column, flip) for flip in (0, 1) if augmented.equal([crop, crop.flip(2)][flip])]
        assert len(found) == 1, "what came out is no crop of this image"
        seen.update(found)
    assert len(seen) == 18, "every shift occurs, flipped and not"


def test_augmentation_follows_its_generator_alone() -> None:
    images = torch.rand(20, 3, 8, 8)
    one, again, other = (augment(images, Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.equal(again) and not one.equal(other)
    assert augment(images, Generator(), padding=0).sort(-1).values.equal(images.sort(-1).values), "flips alone"


def test_the_learning_rate_rises_then_falls_linearly_to_zero() -> None:
    by_hand = [0.2, 0.4, 0.4 * 5 / 6, 0.4 * 4 / 6, 0.4 * 3 / 6, 0.4 * 2 / 6, 0.4 / 6, 0.0]
    assert [Recipe(1, lr=0.4).lr_at(step, 8) for step in range(8)] == pytest.approx(by_hand)
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        train(fresh(), IMAGES, RECIPE, log=None)
    finally:
        hook.remove()
    assert used == [RECIPE.lr_at(step, 9) for step in range(9)]


def plain_training(model: nn.Module, images: Images, recipe: Recipe, seed: int) -> None:
    """What `train` does, a batch at a time: its crops are drawn when it comes, image by image."""
    size, padding = recipe.batch_size, recipe.padding
    weights, batches = list(model.parameters()), len(images) // size
    sgd = torch.optim.SGD(weights, 1, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, foreach=False)
    model.train()
    for epoch in range(recipe.epochs):
        generator = Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        for number in range(batches):
            batch, crops = order[number * size : (number + 1) * size], list[Tensor]()
            shifts = torch.randint(0, 2 * padding + 1, (2, size), generator=generator)
            flips = torch.rand(size, generator=generator) < 0.5
            for index, down, right, flip in zip(batch, *shifts.tolist(), flips.tolist(), strict=True):
                whole = F.pad(images.images[index], [padding] * 4)
                crop = whole[:, down : down + images.size[0], right : right + images.size[1]]
                crops.append(crop.flip(2) if flip else crop)
            inputs = torch.stack(crops).to(torch.float32, memory_format=torch.channels_last) / 255
            sgd.param_groups[0]["lr"] = recipe.lr_at(epoch * batches + number, recipe.epochs * batches)
            sgd.zero_grad()
            F.cross_entropy(model(inputs), images.labels[batch]).backward()
            sgd.step()


@pytest.mark.parametrize("piece", [1, 2 * 16 * 192, training.PIECE])
def test_training_equals_a_plain_loop_bit_for_bit(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PIECE", piece)  # a batch at a time, two of the three batches, or all
    one, other, recipe, images = fresh(), fresh(), replace(RECIPE, epochs=2), pictures(53, size=8)
    train(one, images, recipe, seed=3, log=None)
    plain_training(other, images, recipe, seed=3)
    assert same(one, other)


class Recorder(nn.Module):
    """Takes down which images it is shown: image i is i everywhere, so its centre survives any crop."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.seen = nn.Parameter(torch.zeros(4)), list[list[int]]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((images[:, 0, 4, 4] * 255).round().int().tolist())
        return self.bias.expand(len(images), 4)


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    values = torch.arange(50, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    model = Recorder()
    train(model, Images(values, torch.arange(50) % 4, IMAGES.classes), RECIPE, log=None)
    assert [len(batch) for batch in model.seen] == [16] * 9, "the last, smaller batch of an epoch is left out"
    epochs = [[i for batch in model.seen[first : first + 3] for i in batch] for first in (0, 3, 6)]
    assert all(len(set(epoch)) == 48 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3


def test_it_learns_and_logs_one_aligned_row_an_epoch() -> None:
    model, lines = fresh(), list[str]()
    rows = train(
        model, IMAGES, replace(RECIPE, epochs=8, lr=0.02), accuracy=lambda m: accuracy(m, IMAGES), log=lines.append
    )
    assert rows[-1]["accuracy"] > 0.8 and rows[-1]["loss"] < rows[0]["loss"]
    assert [row["epoch"] for row in rows] == list(range(1, 9)) and min(row["seconds"] for row in rows) > 0
    assert len(lines) == 9 and len({len(line) for line in lines}) == 1
    assert not model.training


def test_same_seed_same_bits(whole: Whole) -> None:
    again, other = fresh(), fresh()
    torch.manual_seed(99)  # the global generator has no say
    assert losses(train(again, IMAGES, RECIPE, log=None)) == losses(whole[1]) and same(again, whole[0])
    assert losses(train(other, IMAGES, RECIPE, seed=1, log=None)) != losses(whole[1]) and not same(other, whole[0])


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a signal of POSIX")
@pytest.mark.parametrize("moment", ["in an epoch", "in a write"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(moment: str, whole: Whole, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CHILD, str(checkpoint), moment]
    child = subprocess.run(command, cwd=HERE, env=os.environ | threads, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    resumed, lines = ResNet18(num_classes=4, width=16), list[str]()
    rows = train(resumed, IMAGES, RECIPE, checkpoint=checkpoint, log=lines.append)
    assert len(lines) == 1 + 2, "only two epochs were left"
    assert losses(rows) == losses(whole[1]) and same(resumed, whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"], "nothing half-written is left"


@pytest.mark.parametrize(("recipe", "seed"), [(replace(RECIPE, lr=0.2), 0), (RECIPE, 1)])
def test_another_trainings_checkpoint_is_refused(recipe: Recipe, seed: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(fresh(), IMAGES, replace(RECIPE), checkpoint=checkpoint, log=None)
    before, model = checkpoint.read_bytes(), fresh()
    with pytest.raises(ValueError, match=r"belongs to another training .* give another file"):
        train(model, IMAGES, recipe, seed, checkpoint, log=None)
    assert same(model, fresh()) and checkpoint.read_bytes() == before


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(fresh(), IMAGES, RECIPE, checkpoint=checkpoint, log=None)
    before = checkpoint.read_bytes()
    for wrong in (ResNet18(num_classes=4, width=32), ResNet18(num_classes=5, width=16), nn.Linear(2, 2)):
        state = {name: value.clone() for name, value in wrong.state_dict().items()}
        with pytest.raises(ValueError, match=r"is of another model \(\S+ differs\); give another file"):
            train(wrong, IMAGES, RECIPE, checkpoint=checkpoint, log=None)
        assert same_bits(state, wrong.state_dict()) and checkpoint.read_bytes() == before


def test_a_finished_run_is_read_and_not_trained_again(whole: Whole, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(fresh(), IMAGES, RECIPE, checkpoint=checkpoint, log=None)
    again, lines = ResNet18(num_classes=4, width=16), list[str]()
    rows = train(again, IMAGES, RECIPE, checkpoint=checkpoint, log=lines.append)
    assert len(lines) == 1 and rows[2]["seconds"] == first[2]["seconds"] and same(again, whole[0])


@pytest.mark.parametrize("damage", ["cut short", "emptied", "another kind of file"])
def test_a_damaged_checkpoint_is_set_aside(damage: str, whole: Whole, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(fresh(), IMAGES, replace(RECIPE, epochs=1), checkpoint=checkpoint, log=None)
    sound = checkpoint.read_bytes()
    checkpoint.write_bytes({"cut short": sound[:-100], "emptied": b""}.get(damage, b"PK\x03\x04" * 100))
    model = fresh()
    with pytest.warns(UserWarning, match=r"can't be read .* now checkpoint.damaged, training starts"):
        rows = train(model, IMAGES, RECIPE, checkpoint=checkpoint, log=None)
    assert losses(rows) == losses(whole[1]) and same(model, whole[0])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "checkpoint.damaged"}


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) in epoch 1; a lower learning rate than 1e\+30\?"):
        train(model, IMAGES, replace(RECIPE, lr=1e30), checkpoint=tmp_path / "c.safetensors", log=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least two images, got {count}"):
        train(fresh(), IMAGES.subset(torch.arange(count)), RECIPE, log=None)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")}, {"warm_up": 0.0}, {"padding": -1}]
)
def test_a_recipe_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"epochs >= 1, batch_size >= 2, lr > 0, .* are needed, got Recipe"):
        Recipe(**{"epochs": 1, **bad})
