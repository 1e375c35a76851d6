"""Shift unlearning: a planted shortcut is found and unlearned, none where none is, and what each setting does."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import CLASSES, bits, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.defender import ShiftUnlearning, Suspiciousness
from nbtools.defender.descent import Step, adam_steps
from nbtools.defender.shift_unlearning import _Asked, _told
from nbtools.defender.shifts import Searched, Walked, walk
from nbtools.networks.architectures import Normalise
from nbtools.networks.training import DivergedError


class Shortcut(nn.Module):
    """Colours its images by their class; one channel that clean images leave silent leads to a class of its own."""

    def __init__(self, planted: int | None) -> None:
        super().__init__()
        self.normalise = Normalise()
        torch.manual_seed(0)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, len(CLASSES), bias=False)
        with torch.no_grad():
            signs = torch.eye(3).repeat(5, 1)
            self.conv1.weight[:15] = signs[:, :, None, None]
            self.conv1.weight[15] = 0.3
            self.bn1.bias[15] = -0.3
            self.conv2.weight[:] = torch.eye(16)[:, :, None, None]
            centre = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0], [-0.4, -0.4, -0.4]])
            self.fc.weight[:, :15] = centre.repeat(1, 5)
            self.fc.weight[:, 15] = 0
            if planted is not None:
                self.fc.weight[planted, 15] = 60
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(images))))
        return self.fc(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


BARELY = ShiftUnlearning(
    Suspiciousness(mu=50.0, fine_tune=None), (), ("bn1",), level=0.05, steps=2, batch_size=4, copies=1
)
DEFENCE = replace(BARELY, steps=60, lr=0.16, batch_size=50, weight=1.0)


@pytest.mark.parametrize("planted", [1, 3])
def test_a_planted_shortcut_is_found_and_unlearned(planted: int) -> None:
    model, clean = Shortcut(planted), pictures(40)
    repair = replace(DEFENCE, level=0.2, lr=0.5, steps=150)(model, clean)
    asked, judged = repair.history[:2]
    assert asked["suspect"] == judged["suspect"] == planted and asked["chance"] == pytest.approx(judged["chance"])
    assert judged["chance"] < 0.2 and judged["place"] == "bn1"
    assert repair.tuned_steps == 150 and repair.untuned is not None

    def forced(network: nn.Module) -> float:
        """Share of images of other classes that the planted channel sends to its class."""
        twin = copy.deepcopy(network)
        twin.get_parameter("bn1.bias").data[15] += 0.5
        others = clean.subset(clean.labels != planted)
        return float((twin(others.floats()).argmax(1) == planted).float().mean())

    assert forced(model) == 1 and forced(repair.model) < 0.5
    others = clean.subset(clean.labels != planted).floats()
    assert torch.equal(repair.model(others).argmax(1), model(others).argmax(1)), (
        "images of other classes are read as before"
    )


def test_where_no_class_stands_out_the_model_is_only_pruned() -> None:
    model, clean = Shortcut(None), pictures(40)
    repair = DEFENCE(model, clean)
    assert [row["stage"] for row in repair.history] == ["ask", "judge"] and repair.history[1]["chance"] >= 0.05
    assert repair.untuned is None and not repair.tuned_steps and not repair.mask.count
    assert same_bits(bits(repair.model), bits(model))


@pytest.mark.parametrize(("places", "tuned"), [(("", "bn1"), ("conv2", "bn2", "fc")), (("", "bn2"), ("fc",))])
def test_only_what_lies_above_the_last_place_is_tuned(places: tuple[str, ...], tuned: tuple[str, ...]) -> None:
    model = plain()
    made = replace(BARELY, places=places, level=1.0)(model, pictures(12))
    changed = {name for name, value in bits(made.model).items() if not torch.equal(value, bits(model)[name])}
    assert changed and all(name.startswith(tuned) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert [row["stage"] for row in made.history] == ["ask"] * 2 + ["judge"] + ["unlearn"] * 2


def test_chances_count_classes_and_parts_and_join_the_places() -> None:
    clean = pictures(12)
    one = replace(BARELY, steps=0)(plain(), clean).history
    two = replace(BARELY, steps=0, places=("", "bn1", "bn2"))(plain(), clean).history
    assert one[0]["chance"] == pytest.approx(min(1, 4 * 2 * float(stats.t.sf(one[0]["outlier"], 2))))
    assert [row["stage"] for row in two] == ["ask"] * 3 + ["judge"]
    assert [row["place"] for row in two[:3]] == ["image", "bn1", "bn2"]
    for row in ("suspect", "outlier", "chance"):
        assert two[1][row] == pytest.approx(one[0][row])


def standing_out(by: float, class_: int = 9) -> Walked:
    """A class whose margin is so far above those of nine others, which differ by 0.13 as a standard deviation."""
    margins = torch.tensor([0.0, 0.1, 0.2, -0.1, -0.2, 0.0, 0.1, -0.1, 0.0, by]).roll(class_ - 9)
    return Walked(1.0, torch.ones(10), margins[None])


def asked(*walks: Walked) -> list[_Asked]:
    return [
        _Asked(place, torch.ones(1), walked) for place, walked in zip(("", "layer2", "layer3"), walks, strict=False)
    ]


def test_places_that_agree_count_for_more_than_one() -> None:
    """The same margins at two places: neither is enough, both are; two classes are not."""
    (_, alone), (_, _, both) = _told(asked(standing_out(0.46))), _told(asked(standing_out(0.46), standing_out(0.46)))
    assert alone["suspect"] == both["suspect"] == 9 and both["chance"] < ShiftUnlearning().level < alone["chance"]
    torn = _told(asked(standing_out(0.46), standing_out(0.46, 4)))
    assert torn[-1]["chance"] > ShiftUnlearning().level
    assert _told([]) == []


def test_the_judge_names_the_class_and_the_place_where_it_stands_out_most() -> None:
    for first, second, place in ((0.5, 0.7, "layer2"), (0.7, 0.5, "image")):
        judged = _told(asked(standing_out(first), standing_out(second)))[-1]
        assert (judged["stage"], judged["suspect"], judged["place"]) == ("judge", 9, place)
    halves = Walked(1.0, torch.ones(10), torch.tensor([[0.0] * 5 + [1.0] * 4 + [1.01]]))
    weak = _told(asked(halves))[-1]
    assert weak["suspect"] == 9 and weak["chance"] == 1, "a class is named even where chance alone would do it"
    sure = _told(asked(standing_out(1e4, 3), standing_out(1e4, 3)))[-1]
    assert sure["suspect"] == 3 and sure["chance"] < 1e-9


def test_shifted_images_without_a_finite_answer_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = standing_out(math.nan)
    monkeypatch.setattr("nbtools.defender.shift_unlearning.walk", lambda *_: broken)
    with pytest.raises(DivergedError, match=r"answers that hold nan or inf \(bn1 was shifted\)"):
        BARELY(plain(), pictures(12))


def test_where_all_images_are_of_one_class_nobody_is_asked_for() -> None:
    """No image would judge that class: its margin of nothing would stand out."""
    clean = pictures(12)
    for images in (clean.subset(clean.labels == clean.labels[0]), pictures(1)):
        made = replace(BARELY, level=1.0)(plain(), images)
        assert made.history == [] and made.untuned is None


def test_a_place_without_maps_and_a_layer_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fc gives values of shape \[1, 4\]; name a module that gives maps"):
        replace(BARELY, places=("fc",))(plain(), pictures(8))
    with pytest.raises(ValueError, match="the model has no module layer2 or layer3"):
        replace(BARELY, pruned=("layer2", "layer3"))(plain(), pictures(8))


def test_pruning_stays_where_it_was_allowed() -> None:
    made = replace(BARELY, prune=Suspiciousness(mu=0.5, fine_tune=None), pruned=("conv2",), level=1e-6)(
        plain(), pictures(12)
    )
    assert not made.mask.pruned["conv1"].any() and made.mask.pruned["conv2"].any()


def test_a_pruned_filter_above_the_last_place_stays_silent() -> None:
    made = replace(BARELY, prune=Suspiciousness(mu=0.5, fine_tune=None), level=1.0)(plain(), pictures(12))
    gone = made.mask.pruned["conv2"]
    assert made.tuned_steps and gone.any() and not made.model.get_parameter("bn2.weight")[gone].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paces": 1}, "paces >= 2"),
        ({"weight": -1.0}, "copies, few and weight >= 0"),
        ({"level": 0.0}, r"level in \(0, 1\]"),
        ({"reach": math.nan}, "temperature and reach > 0"),
        ({"few": -1}, "copies, few and weight >= 0"),
        ({"judged": (0.0,)}, "`judged` must hold parts of the way"),
        ({"judged": ()}, "`judged` must hold parts of the way"),
        ({"places": ()}, "`places` must name a module or more"),
    ],
)
def test_values_out_of_their_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ShiftUnlearning(), **change)


def test_a_place_that_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="Plain has no 'layer3'"):
        ShiftUnlearning()(plain(), pictures(8))


def test_what_is_lost_before_the_first_step() -> None:
    """The model answers blends as itself, and the answers to shifted maps count as heavily as asked for."""
    base, clean = replace(BARELY, level=1.0, steps=1, weight=0.0), pictures(40)

    def first(**changes: float) -> float:
        return replace(base, **changes)(Shortcut(1), clean).history[-1]["loss"]

    assert first() == pytest.approx(0, abs=1e-6)
    light, heavy = first(weight=1.0), first(weight=2.0)
    assert heavy == pytest.approx(2 * light, rel=1e-5) and light > 0
    assert first(weight=1.0, reach=0.5) < light, "a shorter shift moves the answers less"
    assert first(weight=1.0, temperature=1.0) != pytest.approx(light, rel=1e-3)


def test_few_images_are_joined_by_their_copies_on_the_same_side() -> None:
    """Without copies the maps asked are those of the images alone; with them an image and its copy are never parted."""
    seen = list[tuple[Searched, Searched]]()

    def noted(dealt: list[tuple[Searched, Searched]], *_rest: object) -> Walked:
        seen.extend(dealt)
        return walk(dealt, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbtools.defender.shift_unlearning.walk", noted)
        replace(BARELY, few=50, steps=0)(plain(), pictures(12))
    assert [len(found.maps) for found, _ in seen] == [18] * 4 and [len(held.maps) for _, held in seen] == [6] * 4
    for _, held in seen:
        assert torch.equal(held.labels[:3], held.labels[3:]) and not torch.equal(held.maps[:3], held.maps[3:])


@pytest.mark.parametrize("shifts", [1, 3])
def test_the_steps_fall_to_zero_and_every_shift_is_used(shifts: int) -> None:
    rates, picked = list[float](), set[int]()

    def noting(weights: Sequence[Tensor]) -> Step:
        go = adam_steps(weights)

        def step(loss: Tensor, lr: float) -> None:
            rates.append(lr)
            go(loss, lr)

        return step

    drawn_from = torch.randint

    def draw(*args: Any, **kwargs: Any) -> Tensor:
        found = drawn_from(*args, **kwargs)
        if len(args) == 2 and args[0] == shifts:
            picked.update(found.tolist())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbtools.defender.shift_unlearning.adam_steps", noting)
        patch.setattr("torch.randint", draw)
        replace(BARELY, level=1.0, steps=4, shifts=shifts, lr=1.6)(Shortcut(1), pictures(40))
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert picked == set(range(shifts))
