"""Numbers and lines on the page: a threshold is drawn only where it is the one that pruned."""

import re
from dataclasses import asdict
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from scipy.stats import binomtest, multinomial
from tiny import network, pictures, plain

from nbtools.defend import figures
from nbtools.defend.figures import score_figure
from nbtools.defend.report import _change, _detector, verdict
from nbtools.defender import RNP, Suspiciousness
from nbtools.defender.detection import judge
from nbtools.defender.pruning import threshold


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure, as they are made."""
    found: list[Axes] = []

    class Seen(Figure):
        def add_subplot(self, *given: Any, **more: Any) -> Any:
            found.append(super().add_subplot(*given, **more))
            return found[-1]

    monkeypatch.setattr(figures, "Figure", Seen)
    return found


def heights(axis: Axes) -> list[float]:
    """Of every filter that is drawn."""
    return sorted(
        float(height) for points in axis.collections for height in torch.as_tensor(points.get_offsets())[:, 1]
    )


SCORES = {name: torch.randn(40, generator=torch.Generator().manual_seed(n)) ** 4 for n, name in enumerate("abc")}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("spared", ["", "b"])
def test_the_line_parts_what_was_pruned_from_what_was_kept(drawn: list[Axes], scope: str, spared: str) -> None:
    mask = threshold({name: score for name, score in SCORES.items() if name != spared}, 2, scope)
    assert mask.count and score_figure(SCORES, mask, {"a": "first"}, 2, scope)
    (axis,) = drawn
    assert [line.get_ydata() for line in axis.lines] == [[2, 2]] and "deviations" in axis.get_ylabel()
    crosses = [
        points for points in axis.collections if isinstance(points, PathCollection) and points.get_sizes()[0] > 20
    ]
    assert crosses and all(
        float(height) > 2 for points in crosses for height in torch.as_tensor(points.get_offsets())[:, 1]
    )
    assert [label.get_text() for label in axis.get_xticklabels()] == ["first", "b", "c"]
    pool = torch.cat([score for name, score in SCORES.items() if name != spared])
    units = [(score - (m := score if scope == "layer" else pool).mean()) / m.std() for score in SCORES.values()]
    assert heights(axis) == pytest.approx(sorted(torch.cat(units).tolist()), abs=1e-5)


def test_no_line_is_drawn_where_another_threshold_pruned(drawn: list[Axes]) -> None:
    alive = {name: score > score.median() for name, score in SCORES.items()}
    for mask in (threshold(SCORES, 2, rounds=4), threshold(SCORES, 2, counted=alive)):
        assert mask.count > threshold(SCORES, 2).count or mask.by_layer() != threshold(SCORES, 2).by_layer()
        score_figure(SCORES, mask, {}, 2, "layer")
        assert list(drawn[-1].lines) == [] and drawn[-1].get_ylabel() == "score"
        assert heights(drawn[-1]) == pytest.approx(sorted(torch.cat(list(SCORES.values())).tolist()), abs=1e-5)


def test_the_line_of_a_real_repair_is_drawn(drawn: list[Axes]) -> None:
    for first in (True, False):
        repair = Suspiciousness(mu=1.5, first=first, fine_tune=None)(network(), pictures())
        assert repair.mask.count and score_figure(repair.scores, repair.mask, {}, 1.5, "layer")
        assert len(drawn[-1].lines) == 1


def card(pruned: int, changed: int, steps: int) -> dict[str, Any]:
    share = {"percent": 90.0, "of": 20, "interval": [70.0, 97.0]}
    return {
        "defence": {"name": "clp", "tuned_steps": steps},
        "pruned": {"count": pruned, "filters": 40, "layers": {"a": {"pruned": list(range(pruned)), "filters": 40}}},
        "output": {"changed_tensors": ["a"] * changed},
        "images": {"for_the_defence": [8, 8]},
        "start": {"right": 36, "of": 40, "at_chance": False},
        "accuracy": {"before": share, "after": share, "lost": 0, "gained": 0, "p_value": 1.0, "points": 0.0},
    }


@pytest.mark.parametrize(
    ("pruned", "changed", "steps", "said"),
    [
        (40, 2, 0, "pruned 40 of 40 filters (100 %)"),
        (1, 2, 0, "pruned 1 of 40 filters (2.5 %)"),
        (0, 0, 0, "found nothing to prune with 16 clean images: the repaired file holds the same weights"),
        (0, 0, 5, "tuned for 5 steps, by less than the file's precision can hold"),
        (0, 3, 5, "tuned 3 tensors for 5 steps and pruned no filter"),
    ],
)
def test_the_verdict_says_what_was_done(pruned: int, changed: int, steps: int, said: str) -> None:
    assert said in verdict(card(pruned, changed, steps))[-1]


def measured(before: int, after: int, lost: int, gained: int, p_value: float) -> dict[str, Any]:
    shares = [{"percent": 5.0 * right, "of": 20, "interval": [0.0, 99.0]} for right in (before, after)]
    more = {"lost": lost, "gained": gained, "p_value": p_value, "points": 5.0 * (gained - lost)}
    return {"before": shares[0], "after": shares[1], **more}


@pytest.mark.parametrize(
    ("accuracy", "known"),
    [
        (measured(18, 18, 0, 0, 1.0), "Clean accuracy is what it was, answer for answer: on 20 held-back images"),
        (measured(18, 18, 2, 2, 1.0), "Clean accuracy is what it was, as many answers gained as lost (2): "),
        (measured(18, 16, 3, 1, 0.6), "Clean accuracy fell by 10.0 points, and these images are too few to tell"),
        (measured(18, 13, 5, 0, 0.0625), "Clean accuracy fell by 25.0 points, and these images are too few to tell"),
        (measured(13, 18, 0, 5, 0.0625), "Clean accuracy rose by 25.0 points, and these images are too few to tell"),
        (measured(18, 10, 8, 0, 0.008), "Clean accuracy fell by 40.0 points, more than chance explains: "),
        (measured(10, 18, 0, 8, 0.008), "Clean accuracy rose by 40.0 points, more than chance explains: "),
    ],
)
def test_what_is_known_of_accuracy_comes_before_its_numbers(accuracy: dict[str, Any], known: str) -> None:
    assert verdict({**card(1, 2, 0), "accuracy": accuracy})[0].startswith(known)


@pytest.mark.parametrize("of", [20, 5000])
def test_the_interval_of_a_change_holds_zero_where_the_sign_test_finds_none(of: int) -> None:
    for lost, gained in ((5, 0), (0, 5), (7, 1), (8, 2), (9, 3), (7, 7)):
        assert binomtest(lost, lost + gained).pvalue >= 0.05
        low, high = _change({"before": {"of": of}, "lost": lost, "gained": gained})
        assert low <= 0 <= high and low <= 100 * (gained - lost) / of <= high


def test_the_interval_of_a_change_holds_the_true_one_in_95_of_100_measurements() -> None:
    """All outcomes of 8 images, each as likely as the multinomial says."""
    outcomes = [(lost, gained) for lost in range(9) for gained in range(9 - lost)]
    spans = [_change({"before": {"of": 8}, "lost": lost, "gained": gained}) for lost, gained in outcomes]
    for down, up in ((0.3, 0.02), (0.1, 0.1), (0.02, 0.3), (0.5, 0.0)):
        chance = multinomial(8, [down, up, 1 - down - up]).pmf([(a, b, 8 - a - b) for a, b in outcomes])
        inside = [low <= 100 * (up - down) <= high for low, high in spans]
        assert chance.sum() == pytest.approx(1) and chance[inside].sum() >= 0.95


def test_a_start_at_chance_is_said_before_all_else() -> None:
    lines = verdict({**card(1, 2, 0), "start": {"right": 3, "of": 40, "at_chance": True}})
    assert "right on 3 of 40 images" in lines[0] and "no other number on this page means anything" in lines[0]
    assert len(lines) == 3


def judged(statistic: float, references: list[float]) -> dict[str, Any]:
    return asdict(judge(statistic, references))


FOUND = {"statistic": 0.7, "standard_error": 0.05, "images": 200, "layers": {"a": 0.3}}
TWENTY = [0.01 * number for number in range(20)]


@pytest.mark.parametrize(
    ("found", "known"),
    [
        ({"statistic": None, "reason": "no layer has one"}, "Not known."),
        (FOUND, "Not known."),
        ({**FOUND, "verdict": judged(0.7, [0.1, 0.2, 0.3])}, "Not known. 3 clean reference models are too few"),
        ({**FOUND, "verdict": judged(0.1, TWENTY)}, "Nothing shows it."),
        ({**FOUND, "verdict": judged(0.7, TWENTY)}, "It does: its number lies higher"),
    ],
)
def test_the_detector_says_what_is_known_before_any_number(found: dict[str, Any], known: str) -> None:
    page = _detector({"detector": found, "pruned": {"layers": {"a": {"shown_as": "a"}}}})
    text = re.sub(r"<[^>]+>", "", page.replace("<h2>Does the model look backdoored?</h2>", ""))
    assert text.startswith(known)
    shown = page.partition("<details>")[0]
    assert "0.70" not in shown and "class='number'" not in page
    if found["statistic"] is not None:
        assert "0.70 ± 0.10" in page and "0.41 to 0.84: chance, 0.5, lies in it" in shown


def test_a_suspected_class_is_named() -> None:
    from nbtools.defend.card import suspected

    judged = {"stage": "judge", "suspect": 1, "place": "layer1", "chance": 0.01}
    asked = [{"stage": "ask", "place": "image", "suspect": 0, "outlier": 3.0, "chance": 0.3}, judged]
    classes = ("plane", "car")
    assert suspected([], classes) == suspected(asked, classes) == suspected([{"epoch": 1}], classes) == []
    (sure,) = suspected([*asked, {"stage": "unlearn", "suspect": 1, "step": 1}], classes)
    assert sure == (
        "The class car stood out: one shift of the maps at layer1 sends other images to it too easily. Were no class "
        "easier than others by nature, this would happen by chance in 1.0 % of clean models. Shifts towards it were "
        "unlearned."
    )
    others = RNP(unlearn_epochs=1, recover_epochs=1)(plain(), pictures(16)).history
    assert any(row["stage"] == "unlearn" for row in others), "RNP unlearns, and suspects no class"
    assert suspected(others, classes) == []
    judged |= {"place": "image", "chance": 1e-7}
    (sure,) = suspected([*asked, {"stage": "unlearn", "suspect": 1, "step": 1}], classes)
    assert "one shift of the image sends" in sure and "under 0.1 %" in sure
