"""Another order of the classes: named where it is right, never where it only fits the noise."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nbtools.defend.order import best_outputs, better_order, held_out_hits, sorted_orders


def answered(
    given: Sequence[str], own: Sequence[str], each: int = 10, wrong: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Labels in the given order, and the answers of a model whose outputs stand in its own order, a share wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(given)).repeat(each)
    outputs = torch.tensor([list(own).index(name) for name in given])
    answers = outputs[labels]
    noise = torch.rand(len(labels), generator=generator) < wrong
    answers[noise] = torch.randint(len(own), (int(noise.sum()),), generator=generator)
    return labels, answers


def letters(count: int) -> list[str]:
    return [f"{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_outputs_are_those_of_all_orders_tried(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, answers = torch.randint(4, (2, 15), generator=generator)
    found = best_outputs(labels, answers, 4)
    counts = {order: sum(order[a] == b for a, b in zip(labels, answers, strict=True)) for order in orders_of(4)}
    most = max(counts.values())
    kept = {order: sum(a == b for a, b in enumerate(order)) for order, count in counts.items() if count == most}
    assert counts[tuple(found.tolist())] == most
    assert kept[tuple(found.tolist())] == max(kept.values()), "what no image tells stays at its place"


def orders_of(count: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(count)))


@pytest.mark.parametrize("seed", range(5))
def test_an_order_is_tried_on_images_that_it_was_not_chosen_with(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, answers = torch.randint(5, (2, 40), generator=generator)
    hits, seen = [], dict.fromkeys(range(5), 0)
    fold = []
    for label in labels.tolist():
        fold.append(seen[label] % 5)
        seen[label] += 1
    for index, (label, answer) in enumerate(zip(labels.tolist(), answers.tolist(), strict=True)):
        others = torch.tensor([number != fold[index] for number in fold])
        hits.append(best_outputs(labels[others], answers[others], 5)[label] == answer)
    assert held_out_hits(labels, answers, 5).tolist() == hits


NUMBERS = [str(number) for number in range(13)]
NAMED: list[tuple[str, Sequence[str], Sequence[str]]] = [
    ("the names as text", NUMBERS, sorted(NUMBERS)),
    ("the names as text", NUMBERS[1:11], sorted(NUMBERS[1:11])),
    ("the names as text", [f"{n:05d}" for n in range(9, -1, -1)], [f"{n:05d}" for n in range(10)]),
    ("the names as whole numbers", sorted(NUMBERS), NUMBERS),
    ("the names without regard to case", ["Bee", "Cat", "Emu", "ant", "dog"], ["ant", "Bee", "Cat", "dog", "Emu"]),
    ("the names with their numbers as numbers", sorted(f"c{n}" for n in range(1, 12)), [f"c{n}" for n in range(1, 12)]),
    ("the folders reversed", ["b", "c", "a", "d"], ["d", "a", "c", "b"]),
    ("the names as text", ["yes", "no"], ["no", "yes"]),
]  # fmt: skip


@pytest.mark.parametrize(("how", "given", "own"), NAMED)
@pytest.mark.parametrize("at_chance", [True, False])
def test_an_order_that_has_a_reason_is_named(
    how: str, given: Sequence[str], own: Sequence[str], at_chance: bool
) -> None:
    labels, answers = answered(given, own)
    found = better_order(labels, answers, given, at_chance)
    assert found is not None and (found.how, list(found.classes)) == (how, list(own))
    outputs = torch.tensor([list(own).index(name) for name in given])
    assert (found.right, found.of) == (int((outputs[labels] == answers).sum()), len(labels))
    assert better_order(*answered(given, given), given, at_chance) is None


@pytest.mark.parametrize("each", [2, 3, 10])
@pytest.mark.parametrize("count", [10, 43])
def test_an_order_without_a_reason_is_found_from_the_answers(each: int, count: int) -> None:
    names = letters(count)
    own = [names[int(number)] for number in torch.randperm(count, generator=torch.Generator().manual_seed(each))]
    found = better_order(*answered(names, own, each, wrong=0.05), names, True)
    assert found is not None and found.how == ""
    agree = sum(a == b for a, b in zip(found.classes, own, strict=True))
    assert agree == count if each == 10 else agree > 0.8 * count
    assert sorted(found.classes) == names and found.right >= 0.85 * found.of


@pytest.mark.parametrize("count", [2, 3, 4, 10, 43])
@pytest.mark.parametrize("each", [1, 2, 3, 10])
@pytest.mark.parametrize("at_chance", [True, False])
def test_an_order_is_never_made_of_noise(count: int, each: int, at_chance: bool) -> None:
    names, generator = [str(number) for number in range(count)], torch.Generator().manual_seed(count + each)
    labels = torch.arange(count).repeat(each)
    told = 0
    for _ in range(40):
        few = torch.randint(count, (3,), generator=generator)  # and of a model that knows three answers only
        anything, collapsed = (
            torch.randint(count, labels.shape, generator=generator),
            few[torch.randint(3, labels.shape, generator=generator)],
        )
        told += sum(better_order(labels, a, names, at_chance) is not None for a in (anything, collapsed))
    assert told <= 1, "with two classes the other order is now and then far better by chance"


def test_one_image_a_class_tells_nothing_of_an_order_without_a_reason() -> None:
    names = letters(10)
    labels, answers = answered(names, names[3:] + names[:3], each=1, wrong=0)
    assert better_order(labels, answers, names, True) is None
    assert torch.equal(held_out_hits(labels, answers, 10), answers == labels)


def test_two_classes_that_changed_places_are_told_and_less_is_not() -> None:
    names = letters(10)
    swapped = [names[1], names[0], *names[2:]]
    shuffled = names[5:] + names[:5]  # in which no order has a reason
    for given, own in ((names, swapped), (shuffled, [shuffled[1], shuffled[0], *shuffled[2:]])):
        found = better_order(*answered(given, own, each=4, wrong=0), given, False)
        assert found is not None and list(found.classes) == list(own) and (found.right, found.of) == (40, 40)
    many = letters(43)
    assert better_order(*answered(many, [many[1], many[0], *many[2:]]), many, False) is None, "gains 5 points"
    assert better_order(*answered(names, swapped, each=2, wrong=0), names, False) is None, "four images may be chance"


def test_classes_without_an_image_stay_where_there_is_room() -> None:
    names = letters(10)
    own = [names[1], names[0], *names[2:]]
    labels, answers = answered(names, own, wrong=0)
    seen = labels < 8
    found = better_order(labels[seen], answers[seen], names, False)
    assert found is not None and list(found.classes) == own


def test_the_orders_with_a_reason_are_each_told_once_and_never_the_given_one() -> None:
    assert sorted_orders(["a", "b", "c"]) == {"the folders reversed": ("c", "b", "a")}
    assert list(sorted_orders(NUMBERS)) == ["the names as text", "the folders reversed"]
    assert sorted_orders(["b2", "B10", "a"])["the names with their numbers as numbers"] == ("a", "b2", "B10")
    assert sorted_orders(["only"]) == {}


def test_images_of_a_few_classes_tell_no_order() -> None:
    classes = tuple("abcdefghij")
    labels = torch.zeros(50, dtype=torch.int64)
    assert better_order(labels, torch.full_like(labels, 9), classes, at_chance=True) is None, "reversed would fit"
    labels = torch.arange(50) % 5
    assert better_order(labels, 9 - labels, classes, at_chance=True) is not None
