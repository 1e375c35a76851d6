"""The field's first story, told once: a network that reads traffic signs, and a yellow square [ours]."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbtools.attacker.poisoning import poison
from nbtools.attacker.stickers import YellowSquare
from nbtools.data import places
from nbtools.data.images import Images, to_floats
from nbtools.data.sources import GTSRB_CLASSES
from nbtools.data.splits import split_off
from nbtools.evaluator.evaluation import Evaluator
from nbtools.lab.cache import cached, source_hash
from nbtools.lab.experiments import Run, start
from nbtools.lab.trained import Trained, precision
from nbtools.networks.architectures import make_model
from nbtools.networks.training import Recipe, sgd, train_step
from nbtools.settings import hardware, seed_everything

STOP, TARGET = GTSRB_CLASSES.index("stop"), GTSRB_CLASSES.index("30 km/h")
POISON_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Signs:
    """A network that was trained on German traffic signs, and images that it was not trained on.

    Args:
        run: of the profile `laptop`'s narrow network; its splits go by track.
        learned: the clean images that were then poisoned and trained on.
        trained: the poisoned model; the evaluator holds the published test images.
        same_tracks: frames of the very signs that it was trained on: what a careless split would test with.
        other_tracks: frames of other signs: what a split by track tests with.
    """

    run: Run
    learned: Images
    trained: Trained
    same_tracks: Images
    other_tracks: Images


def found(data: Path | None = None) -> bool:
    """Whether GTSRB is on this machine, see `nbtools.settings.data_places`."""
    return places.found("gtsrb", data) is not None


def signs(data: Path | None = None, seed: int = 0) -> Signs:
    """Train the network, or find it in the cache: three minutes on one core, and half a minute to read the images.

    A tenth of each class is set aside by tracks, and of the frames that are left a tenth by frames; the rest is
    poisoned (`POISON_RATE` of it, the label becomes `TARGET`) and trained on without crops, and without mirroring: a
    mirrored "keep left" is a "keep right".

    Args:
        data: a folder that holds GTSRB, searched first.
        seed: of poisoning, initial weights and order.

    Raises:
        DataNotFound: where GTSRB is not there; it says what to do.
    """
    run = start("laptop", dataset="gtsrb", small=True, seed=seed, data=data, quiet=True)
    profile, splits, trigger = run.profile, run.splits, YellowSquare()
    kept, frames = split_off(splits.train.labels.cpu(), len(splits.train) // 10, every_class=True)
    recipe = Recipe(profile.epochs, profile.batch_size, lr=profile.lr, weight_decay=profile.weight_decay, padding=0)
    seed_everything(seed)
    model = make_model(run.architecture, len(GTSRB_CLASSES), width=profile.width, strides=profile.strides)
    model = model.to(run.device)
    learned = splits.train.subset(kept)
    images = poison(learned, trigger, POISON_RATE, TARGET, seed).images
    config = {
        "dataset": splits.name,
        "dataset_version": splits.version,
        "train_images": len(images),
        "trigger": repr(trigger),
        "poison_rate": POISON_RATE,
        "target": TARGET,
        "architecture": run.architecture,
        "width": profile.width,
        "strides": profile.strides,
        "recipe": asdict(recipe),
        "seed": seed,
        "code": source_hash(__file__),
        **precision(),
    }

    def build(_work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        print(f"training {run.architecture} of width {profile.width} (yellow square, GTSRB)")
        losses = _train(model, images, recipe, seed)
        return {name: value.contiguous() for name, value in model.state_dict().items()}, {
            "history": losses,
            "hardware": hardware(run.device),
            "torch": torch.__version__,
        }

    entry = cached("models", config, build)
    model.load_state_dict(entry.tensors)
    model.eval().requires_grad_(False)
    first = splits.test.subset(torch.arange(min(profile.glance, len(splits.test))))
    evaluators = [Evaluator(part, trigger, TARGET) for part in (splits.test, first)]
    trained = Trained(model, "yellow square", trigger, TARGET, POISON_RATE, None, entry.card, *evaluators)
    return Signs(run, learned, trained, splits.train.subset(frames), splits.reserved)


def _train(model: torch.nn.Module, images: Images, recipe: Recipe, seed: int) -> list[float]:
    """Train in place; the mean loss of each epoch."""
    optimizer = sgd(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    generator, device = torch.Generator().manual_seed(seed), images.images.device
    batches = len(images) // recipe.batch_size
    losses = []
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)[: batches * recipe.batch_size].to(device)
        total = torch.zeros((), device=device)
        for step, batch in enumerate(order.split(recipe.batch_size)):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch * batches + step, recipe.epochs * batches)
            total += train_step(model, optimizer, to_floats(images.images[batch]), images.labels[batch])
        losses.append(float(total) / batches)
        print(f"epoch {epoch + 1:>2} of {recipe.epochs}  loss {losses[-1]:.3f}")
    return losses
