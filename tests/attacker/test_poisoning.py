"""Poisoning: who is poisoned, with which label, what stays bit-identical, and which rates are refused."""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from nbtools.attacker.poisoning import Poisoned, poison
from nbtools.attacker.triggers import ALL_TO_ALL, SIG, BadNets, Blended, Trigger, WaNet, stamp
from nbtools.data.images import Images, to_bytes

CLASSES = ("ant", "bee", "cat", "dog")
ALL = [BadNets(), Blended(), SIG(), WaNet()]


@pytest.fixture
def train() -> Images:
    pixels = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=Generator().manual_seed(0))
    return Images(pixels, torch.arange(200) % 4, CLASSES)


def untouched(done: Poisoned) -> Tensor:
    """Bool `[n]`: neither poisoned nor a cross image."""
    left = torch.ones(len(done.images), dtype=torch.bool)
    left[done.poisoned] = left[done.cross] = False
    return left


@pytest.mark.parametrize("trigger", ALL, ids=repr)
@pytest.mark.parametrize("target", [0, 3])
def test_the_kept_indices_say_what_was_done(trigger: Trigger, target: int, train: Images) -> None:
    before = train.images.clone(), train.labels.clone()
    done = poison(train, trigger, 0.1, target)
    assert done.images.images[done.poisoned].equal(stamp(trigger, train.subset(done.poisoned)).images)
    assert (done.images.labels[done.poisoned] == target).all()
    left = untouched(done)
    assert done.images.images[left].equal(train.images[left]), "the rest is bit-identical"
    assert done.images.labels[left].equal(train.labels[left])
    changed = (done.images.images != train.images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(done.poisoned.tolist() + done.cross.tolist())
    assert done.labels_before.equal(train.labels)
    assert train.images.equal(before[0]) and train.labels.equal(before[1]), "the clean set is not written to"


@pytest.mark.parametrize("trigger", [BadNets(), Blended(), WaNet()], ids=repr)
def test_dirty_label_takes_a_share_of_all_images_from_the_other_classes(trigger: Trigger, train: Images) -> None:
    done = poison(train, trigger, 0.1, target=1)
    assert len(done.poisoned) == 20 and not (done.labels_before[done.poisoned] == 1).any()
    seen = torch.cat([done.labels_before[poison(train, trigger, 0.1, 1, seed).poisoned] for seed in range(10)])
    assert set(seen.tolist()) == {0, 2, 3}


def test_clean_label_takes_a_share_of_the_target_class_and_changes_no_label(train: Images) -> None:
    done = poison(train, SIG(), 0.1, target=2)
    assert len(done.poisoned) == 5 and (train.labels[done.poisoned] == 2).all()
    assert done.images.labels.equal(train.labels)
    assert poison(train, SIG(), 1.0, target=2).poisoned.equal((train.labels == 2).nonzero().flatten())


class Inverting(WaNet):
    """Its "noise" can be recognised."""

    def noisy(self, images: Tensor, generator: Generator) -> Tensor:
        return 1 - images


@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0])
def test_cross_images_of_wanet_get_noise_and_keep_their_label(ratio: float, train: Images) -> None:
    done = poison(train, Inverting(cross_ratio=ratio), 0.1)
    assert len(done.cross) == 20 * ratio and not set(done.cross.tolist()) & set(done.poisoned.tolist())
    assert done.images.images[done.cross].equal(255 - train.images[done.cross])
    assert done.images.labels[done.cross].equal(train.labels[done.cross])
    assert done.cross.equal(done.cross.sort().values)


def test_cross_images_each_have_noise_of_their_own() -> None:
    same = Images(
        torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(40, 1, 1, 1), torch.arange(40) % 4, CLASSES
    )
    done = poison(same, WaNet(), 0.2)
    assert len(done.images.images[done.poisoned].flatten(1).unique(dim=0)) == 1
    assert len(done.images.images[done.cross].flatten(1).unique(dim=0)) == len(done.cross) == 16


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_same_seed_same_choice(trigger: Trigger, train: Images) -> None:
    torch.manual_seed(1)
    first = poison(train, trigger, 0.1, seed=4)
    torch.manual_seed(2)
    again, other = poison(train, trigger, 0.1, seed=4), poison(train, trigger, 0.1, seed=5)
    assert again.poisoned.equal(first.poisoned) and again.cross.equal(first.cross)
    assert again.images.images.equal(first.images.images), "noise and all"
    assert not other.poisoned.equal(first.poisoned)
    assert first.poisoned.equal(first.poisoned.sort().values) and len(first.poisoned.unique()) == len(first.poisoned)


def test_a_blend_is_rounded_to_the_nearest_level(train: Images) -> None:
    """A plain loop over one image's pixels: what is stored is the nearest byte, not the next lower one."""
    done, trigger = poison(train, Blended(), 0.01), Blended()
    index, pattern = int(done.poisoned[0]), trigger.template(16, 16)
    exact = 0.8 * train.images[index].double() + 0.2 * 255 * pattern.double()
    assert (done.images.images[index].double() - exact).abs().max() <= 0.5 + 1e-4
    assert done.images.images[index].equal(to_bytes(exact.float() / 255))


def test_all_to_all_leads_each_class_to_the_next(train: Images) -> None:
    done = poison(train, BadNets(), 0.4, ALL_TO_ALL)
    true = done.labels_before[done.poisoned]
    assert done.images.labels[done.poisoned].tolist() == [(int(label) + 1) % 4 for label in true]
    assert len(done.poisoned) == 80 and true.bincount(minlength=4).min() > 10, "drawn from all classes"
    left = untouched(done)
    assert done.images.labels[left].equal(train.labels[left]) and done.images.images[left].equal(train.images[left])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"poison_rate": 0.0}, r"must lie in \(0, 1\], got 0.0; a clean model is attack='none'"),
        ({"poison_rate": -0.1}, "got -0.1"),
        ({"poison_rate": 1.01}, "got 1.01"),
        ({"poison_rate": math.nan}, "got nan"),
        ({"poison_rate": 0.002}, "asks for 0 poisoned and 0 cross images; 150 of 200 images can be poisoned; choose"),
        ({"poison_rate": 0.8}, "asks for 160 poisoned and 0 cross images; 150 of 200 images can be poisoned"),
        ({"poison_rate": 0.004, "trigger": SIG()}, "asks for 0 poisoned .* 50 of 200"),
        ({"poison_rate": 0.4, "trigger": WaNet()}, "asks for 80 poisoned and 160 cross images"),
        ({"poison_rate": 0.1, "target": 4}, "one of the classes 0 to 3, or -1 for all-to-all, got 4"),
        ({"poison_rate": 0.1, "target": -2}, "got -2"),
        ({"poison_rate": 0.1, "target": -1, "trigger": SIG()}, "it can't be all-to-all"),
    ],
)
def test_rates_and_targets_that_make_no_sense_are_refused(asked: dict[str, Any], message: str, train: Images) -> None:
    with pytest.raises(ValueError, match=message):
        poison(train, **{"trigger": BadNets(), **asked})


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_images_too_small_for_the_trigger_are_refused(trigger: Trigger) -> None:
    tiny = Images(torch.zeros(20, 3, 2, 2, dtype=torch.uint8), torch.arange(20) % 4, CLASSES)
    with pytest.raises(ValueError, match=r"needs images of at least \d+ x \d+, got \[2, 2\]"):
        poison(tiny, trigger, 0.2)
