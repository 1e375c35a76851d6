"""Fine-pruning: the ranking and every accuracy against a plain loop over copies; the model is copied, not aliased."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import bits, mask_of, network, pictures, plain, same_bits, taught
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender.fine_pruning import FinePruning, last, mean_activation, pruned_accuracies
from nbtools.defender.learning import Epochs
from nbtools.defender.pruning import pruned_copy
from nbtools.defender.validation import Validation
from nbtools.networks.units import Unit, Units, prunable_units

TUNE = Epochs(epochs=2, batch_size=8)
SHORT = FinePruning(Validation(share=0.3, allowed=0.1), TUNE, step=8)
LAST = {"resnet18": "layer4.1.conv2", "preact_resnet18": "layer4.1.conv1", "plain": "conv2"}
"""The last convolution with a batch norm of its own; in a pre-activation network the very last one has none."""
each_network = pytest.mark.parametrize("name", list(LAST))


def made(name: str) -> nn.Module:
    return plain() if name == "plain" else network(name)


@torch.no_grad()
def right(model: nn.Module, images: Images) -> float:
    """Accuracy, one image after the other."""
    answers = [int(model(image[None]).argmax()) for image in images.floats()]
    return sum(a == b for a, b in zip(answers, images.labels.tolist(), strict=True)) / len(answers)


@torch.no_grad()
def plain_activation(model: nn.Module, bn: str, images: Images) -> list[float]:
    """Mean over images and positions behind ReLU, one channel after the other."""
    seen: list[Tensor] = []
    # a copy: a ReLU behind may work in place
    handle = model.get_submodule(bn).register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    for image in images.floats():
        model(image[None])
    handle.remove()
    return [sum(float(maps[0, i].clamp(min=0).mean()) for maps in seen) / len(seen) for i in range(seen[0].shape[1])]


@each_network
def test_the_last_convolution_is_the_last_with_a_batch_norm_of_its_own(name: str) -> None:
    unit = last(prunable_units(made(name)))
    assert unit.conv == LAST[name] and not unit.shortcut


def test_a_shortcut_is_passed_over_where_there_is_another() -> None:
    main, around = Unit("a", "b", 4, (3, 3)), Unit("c", "d", 4, (1, 1), shortcut=True)
    assert last(Units((main, around), ())) is main and last(Units((around,), ())) is around


@each_network
def test_channels_are_ranked_by_their_mean_clean_activation(name: str) -> None:
    model, images = made(name), pictures(9)
    unit = last(prunable_units(model))
    expected = torch.tensor(plain_activation(model, unit.bn, images)).double()
    for size in (4, 500):
        torch.testing.assert_close(mean_activation(model, unit, images, size), expected, rtol=1e-4, atol=1e-6)


@each_network
@pytest.mark.parametrize("size", [5, 500])
def test_every_accuracy_is_that_of_a_pruned_copy(name: str, size: int) -> None:
    model, images = made(name), pictures(10, size=8)
    unit, was = last(prunable_units(model)), bits(model)
    order = torch.randperm(unit.filters, generator=torch.Generator().manual_seed(1))
    counts = list(range(0, unit.filters + 1, unit.filters // 4))
    got = pruned_accuracies(model, unit, order, counts, images, size)
    expected = [right(pruned_copy(model, mask_of(model, {unit.conv: order[:k].tolist()})), images) for k in counts]
    assert got == expected and same_bits(bits(model), was), "the model is put back"


class InPlace(nn.Module):
    """What stands before the last convolution is added to in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        x.add_(self.bn(self.conv2(x)))
        return self.fc(self.pool(self.relu(x)).flatten(1))


def test_layers_that_work_in_place_do_not_spoil_the_next_accuracy() -> None:
    torch.manual_seed(1)
    model, images = InPlace().eval(), pictures(40)
    unit = last(prunable_units(model))
    with torch.no_grad():
        model.bn.weight.mul_(torch.tensor([5.0, -9.0, 9.0, -5.0]))
        # centred, so that the answers differ from image to image
        model.fc.bias.sub_(model(images.floats()).mean(0))
    order, counts = torch.arange(4), [0, 1, 2, 3, 4]
    expected = [right(pruned_copy(model, mask_of(model, {"conv2": range(k)})), images) for k in counts]
    assert pruned_accuracies(model, unit, order, counts, images) == expected and len(set(expected)) > 1


@pytest.mark.parametrize("allowed", [0.0, 0.1, 0.3, 0.9])
def test_as_many_are_pruned_as_held_back_accuracy_bears(allowed: float) -> None:
    model, clean = taught(), pictures(40, size=12, seed=5)
    rule = Validation(share=0.4, allowed=allowed)
    repair = FinePruning(rule, None)(model, clean)
    learned, held = rule.split(clean)
    activation = torch.tensor(plain_activation(model, "bn2", learned))
    order = activation.argsort().tolist()
    accuracies = [right(pruned_copy(model, mask_of(model, {"conv2": order[:k]})), held) for k in range(8)]
    count = 0
    while count < 7 and accuracies[count + 1] >= accuracies[0] - allowed - 1e-9:
        count += 1
    assert repair.mask.pruned["conv2"].nonzero().flatten().tolist() == sorted(order[:count])
    assert not repair.mask.pruned["conv1"].any()
    torch.testing.assert_close(repair.scores["conv2"].float(), activation, rtol=1e-4, atol=1e-6)
    assert [(row["pruned"], row["accuracy"]) for row in repair.history] == list(enumerate(accuracies))
    assert [row["pruned"] for row in repair.history if row["chosen"]] == [count]
    assert same_bits(bits(repair.model), bits(pruned_copy(model, repair.mask)))
    assert repair.untuned is None and repair.tuned_steps == 0
    assert (allowed < 0.9) or count > 0, "so much is allowed that something is pruned"


def test_the_dormant_channels_go_and_one_always_stays() -> None:
    model = plain()
    with torch.no_grad():
        model.bn2.bias[[1, 4]] = -50
        model.fc.weight.zero_()  # the answer is the same whatever is pruned
    repair = FinePruning(fine_tune=None)(model, pictures(20))
    assert repair.mask.count == 7 and bool(repair.mask.pruned["conv2"][[1, 4]].all())
    kept = int((~repair.mask.pruned["conv2"]).nonzero())
    assert kept == int(repair.scores["conv2"].argmax())
    coarse = FinePruning(fine_tune=None, step=3)(model, pictures(20))
    assert [row["pruned"] for row in coarse.history] == [0, 3, 6] and coarse.mask.count == 6
    assert FinePruning(fine_tune=None, step=99)(model, pictures(20)).mask.count == 0


def test_it_prunes_by_clean_images_that_are_not_held_back() -> None:
    model, clean = taught(), pictures(40, seed=5)
    learned, held = Validation().split(clean)
    scores = FinePruning(fine_tune=None)(model, clean).scores["conv2"]
    unit = last(prunable_units(model))
    assert scores.equal(mean_activation(model, unit, learned)) and not scores.equal(mean_activation(model, unit, held))


@each_network
def test_the_mask_holds_through_the_fine_tuning(name: str) -> None:
    model, clean = made(name), pictures(16, size=8)
    with torch.no_grad():
        for p in model.get_submodule("fc").parameters():
            p.zero_()
    repair = SHORT(model, clean) if name != "plain" else replace(SHORT, step=2)(model, clean)
    unit = last(prunable_units(model))
    gone = repair.mask.pruned[unit.conv]
    assert repair.mask.count == int(gone.sum()) > 0 and repair.untuned is not None
    assert same_bits(bits(repair.untuned), bits(pruned_copy(model, repair.mask)))
    tuned = copy.deepcopy(repair.untuned)
    rows = TUNE(tuned, clean, mask=repair.mask)
    assert same_bits(bits(repair.model), bits(tuned)) and repair.tuned_steps == rows[-1]["steps"] == 4
    assert [row for row in repair.history if row["phase"] == "tune"] == [{"phase": "tune", **row} for row in rows]
    for state in (repair.model.state_dict(), repair.untuned.state_dict()):
        assert not state[f"{unit.bn}.weight"][gone].any() and not state[f"{unit.bn}.bias"][gone].any()
    assert not bits(repair.model)["fc.weight"].equal(bits(repair.untuned)["fc.weight"])


@pytest.mark.parametrize("step", [0, -1, math.nan])
def test_a_step_out_of_range_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step must be 1 or more channels, got"):
        FinePruning(step=step)  # pyright: ignore[reportArgumentType]
