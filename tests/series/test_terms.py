"""The walk of notebooks 03 to 05, against plain loops over images, filters and models."""

import math
from types import SimpleNamespace
from typing import Any

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from tiny import Plain, bits, network, pictures, plain, same_bits
from torch import Tensor

from nbtools.attacker.triggers import BadNets
from nbtools.data.images import Images, draw_clean, to_bytes
from nbtools.defender.components import Components, components
from nbtools.defender.pruning import Mask, pruned_copy, threshold
from nbtools.defender.score import suspiciousness
from nbtools.evaluator.agreement import agreement
from nbtools.evaluator.evaluation import Evaluator
from nbtools.lab.trained import Trained
from nbtools.networks.units import prunable_units
from nbtools.series import terms

TARGET = 1
TEST, CLEAN = pictures(24, seed=1), pictures(12, seed=2)
LAYERS = ["conv1", "conv2"]


def trained(attack: str, seed: int, target: int = TARGET) -> Trained:
    """A tiny network as the lab hands it over."""
    trigger = BadNets(3)
    evaluators = [Evaluator(TEST, trigger, target), Evaluator(TEST.subset(torch.arange(12)), trigger, target)]
    rate = 0.0 if attack == "none" else 0.05
    return Trained(plain(seed).requires_grad_(False), attack, trigger, target, rate, None, {}, *evaluators)


POISONED, TWIN = trained("badnets", 0), trained("none", 1)
BOTH = (POISONED, TWIN)


@pytest.fixture(scope="module")
def parts() -> Components:
    return components(POISONED.model, CLEAN)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a notebook would display, in order: tables as they are, figures as their alt text."""
    seen: list[Any] = []

    def display(what: Any, **_: Any) -> None:
        seen.append(what["text/plain"] if isinstance(what, dict) else what)

    monkeypatch.setattr(IPython.display, "display", display)
    return seen


def maps_by_hand(model: Plain, images: Tensor) -> dict[str, Tensor]:
    """Both layers' maps behind batch norm and ReLU."""
    first = model.bn1(model.conv1(model.normalise(images))).relu()
    return {"conv1": first, "conv2": model.bn2(model.conv2(first)).relu()}


def test_ground_truth_is_the_mean_change_on_drawn_images_of_the_other_classes() -> None:
    others, truth = terms.ground_truth(BOTH, TEST, seed=3, samples_per_class=4)
    drawn = draw_clean(TEST, 4, seed=3)
    expected = [number for number in range(len(drawn)) if int(drawn.labels[number]) != TARGET]
    assert len(others) == 12 and others.images.equal(drawn.images[expected])
    assert list(truth) == [POISONED.name, TWIN.name] == ["badnets 5 %, to 1", "clean"]
    for model in BOTH:
        total = {name: torch.zeros(8, dtype=torch.float64) for name in LAYERS}
        for image in others.floats():
            triggered = to_bytes(model.trigger(image[None])).float() / 255
            before, after = (maps_by_hand(model.model, x) for x in (image[None], triggered))  # type: ignore[arg-type]
            for name in LAYERS:
                for number in range(8):
                    total[name][number] += float((after[name][0, number] - before[name][0, number]).norm())
        for name in LAYERS:
            torch.testing.assert_close(truth[model.name][name], total[name] / len(others), rtol=1e-4, atol=1e-6)


def test_ground_truth_wants_one_target_class() -> None:
    with pytest.raises(ValueError, match="one target"):
        terms.ground_truth((POISONED, trained("none", 1, target=2)), TEST, seed=0, samples_per_class=4)


def test_deep_layers_are_the_main_road_of_stages_3_and_4() -> None:
    main_road = ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    expected = [f"layer{stage}.{conv}" for stage in (3, 4) for conv in main_road]
    assert terms.deep_layers(prunable_units(network())) == expected


def test_low_is_suspicious_is_the_score_of_one_term_alone(parts: Components) -> None:
    for term in ("saliency", "activation", "correlation"):
        found = terms.low_is_suspicious(parts.of(term))
        for name, score in suspiciousness(parts, {term: -1}).items():
            values = parts.of(term)[name].tolist()
            by_hand = [1 / (value / (sum(values) / len(values)) + 0.01) for value in values]
            assert found[name].tolist() == pytest.approx(by_hand)
            torch.testing.assert_close(found[name], score)


def test_a_filter_or_a_layer_that_is_dead_has_the_highest_score_and_no_other() -> None:
    found = terms.low_is_suspicious({"some": torch.tensor([0.0, 1, 2]), "all": torch.zeros(3)})
    assert found["some"].tolist() == pytest.approx([100, 1 / 1.01, 1 / 2.01])
    assert found["all"].tolist() == pytest.approx([100] * 3)


def test_mean_agreement_averages_over_the_given_layers_alone() -> None:
    def row(spearman: float, precision: float) -> dict[str, float]:
        return {"spearman": spearman, "precision": precision, "chance": 0.25}

    tables = {
        "one": {"a": row(1, 0.5), "b": row(0.5, 0.1), "c": row(-1, 0)},
        "other": {"a": row(0, 1), "b": row(-0.5, 0.5), "c": row(1, 1)},
    }
    found = terms.mean_agreement(tables, ["a", "b"])
    assert list(found.index) == ["one", "other"] and list(found.columns) == ["spearman", "precision", "chance"]
    assert found.to_numpy().tolist() == [pytest.approx([0.75, 0.3, 0.25]), pytest.approx([-0.25, 0.75, 0.25])]
    with pytest.raises(KeyError):
        terms.mean_agreement(tables, ["a", "d"])


def test_behind_norm_multiplies_or_divides_by_the_root_of_the_term(parts: Components) -> None:
    for term in ("saliency", "activation", "correlation"):
        found = terms.behind_norm(parts, term, "low", "high")
        assert list(found) == ["norm alone", "low", "high"]
        for name in LAYERS:
            sigma, z = (part[name] / part[name].mean() for part in (parts.sigma, parts.of(term)))
            for number in range(8):
                norm, root = float(sigma[number]), math.sqrt(float(z[number]) + 0.01)
                scores = [float(score[name][number]) for score in found.values()]
                assert scores == pytest.approx([norm, norm / root, norm * root])
    with pytest.raises(ValueError, match="loudness"):
        terms.behind_norm(parts, "loudness", "low", "high")


def test_prune_by_each_has_a_row_for_each_rule_and_leaves_the_model_alone(parts: Components) -> None:
    before = bits(POISONED.model)
    scores = terms.behind_norm(parts, "activation", "low", "high")
    found = terms.prune_by_each(POISONED, scores, mu=0.5)
    assert same_bits(before, bits(POISONED.model))
    assert found.index.name == "rule" and list(found.index) == list(scores)
    assert list(found.columns) == ["pruned", "acc", "asr", "ra"]
    for name, score in scores.items():
        assert dict(found.loc[name]) == pytest.approx({k: POISONED.pruned(score, 0.5)[k] for k in found.columns})
        by_hand = [int(np.sum(s > np.mean(s) + 0.5 * np.std(s, ddof=1))) for s in (v.numpy() for v in score.values())]
        assert found.pruned[name] == sum(by_hand) > 0


def test_prune_in_parts_divides_a_mask_by_tac_and_leaves_the_model_alone(parts: Components) -> None:
    before = bits(POISONED.model)
    mask = threshold(parts.sigma, 0.5)
    truth = {name: torch.arange(8.0).roll(place) for place, name in enumerate(LAYERS)}
    found = terms.prune_in_parts(POISONED, mask, truth)
    assert same_bits(before, bits(POISONED.model))
    assert list(found.columns) == ["pruned", "acc", "asr", "ra"]
    loud = {name: gone & (truth[name] >= 6) for name, gone in mask.pruned.items()}  # two of eight: a quarter
    rest = {name: gone & (truth[name] < 6) for name, gone in mask.pruned.items()}
    for who, pruned in zip(
        ("all", "those that the trigger moves", "the others"), (mask.pruned, loud, rest), strict=True
    ):
        by_hand = POISONED.glance(pruned_copy(POISONED.model, Mask(pruned))).row()
        assert dict(found.loc[who]) == pytest.approx({"pruned": Mask(pruned).count, **by_hand})
    assert found.pruned["all"] == found.pruned.iloc[1:].sum()


@pytest.mark.parametrize(
    ("asr", "told"),
    [
        ((90, 95, 95), "below the threshold"),
        ((2, 90, 90), "neither part"),
        ((2, 2, 90), "those that the trigger moves do the work"),
        ((2, 90, 2), "not the filters with the highest TAC"),
        ((2, 2, 2), "each part is enough"),
    ],
)
def test_who_does_the_work_follows_from_the_numbers(asr: tuple[int, int, int], told: str) -> None:
    table = pd.DataFrame({"pruned": [8, 3, 5], "asr": asr})
    found = terms.who_does_the_work(table, before=97)
    assert told in found and "moves 3, which is 38 %" in found and found.endswith(".")


def test_redrawn_compares_every_pair_of_draws_of_each_amount() -> None:
    pool = pictures(60, seed=5)
    run: Any = SimpleNamespace(draw=lambda number, draw: draw_clean(pool, number, seed=draw))
    asked: list[int] = []

    def measure(images: Images) -> dict[str, Tensor]:
        asked.append(len(images))
        return {"rows": images.floats().mean((0, 1, 3)), "columns": images.floats().mean((0, 1, 2))}

    found = terms.redrawn(run, measure, (1, 5), draws=3)
    assert asked == [4] * 3 + [20] * 3
    assert list(found) == ["1 a class", "5 a class"]
    for amount, lines in zip((1, 5), found.values(), strict=True):
        measured = [measure(draw_clean(pool, amount, seed=draw)) for draw in range(3)]
        for name, value in lines.items():
            a, b, c = (m[name].numpy() for m in measured)
            pairs: list[Any] = [spearmanr(a, b), spearmanr(a, c), spearmanr(b, c)]
            assert value == pytest.approx(sum(pair.statistic for pair in pairs) / 3)
    with pytest.raises(ValueError, match="at least two, got 1"):
        terms.redrawn(run, measure, (1,), draws=1)


def test_figures_and_tables_are_shown_in_words_too(
    parts: Components, shown: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth = terms.ground_truth(BOTH, TEST, seed=0, samples_per_class=4)
    scores = terms.low_is_suspicious(parts.activation)
    terms.show_against_tac(scores, truth[POISONED.name], LAYERS, "norm", "A finding")
    terms.show_agreement({"low norm": agreement(scores, truth[POISONED.name])}, "A finding")
    monkeypatch.setattr(Trained, "_measured", lambda self, evaluate: evaluate(self.model))  # no cache on disk
    sweep = pd.DataFrame(model.pruned(scores, mu) for model in BOTH for mu in (0.5, 1.0))
    terms.show_sweep(sweep, BOTH, "A finding")
    lines = {"1 a class": {"conv1": 0.25, "conv2": 0.75}, "10 a class": {"conv1": 1.0, "conv2": 0.9}}
    terms.show_redrawn(lines, "A finding", "Two lines.", legend="clean images")
    against, agreeing, table, swept, redrawn = shown
    assert "inverse of the norm" in against and "top ten" in agreeing and "against mu" in swept
    assert redrawn == "Two lines."
    assert list(table.index) == [0.5, 1.0] and table.shape == (2, 6)
    for row in sweep.to_dict("records"):
        for column in ("acc", "asr", "pruned"):
            assert table.loc[row["mu"], (column, row["model"])] == pytest.approx(row[column], abs=0.05)
    assert capsys.readouterr().out == "mean over the layers:  1 a class 0.50  10 a class 0.95\n"
    assert plt.get_fignums() == []


def test_a_strip_draws_every_filter_at_its_value_and_rings_the_three_that_the_trigger_moves_most() -> None:
    values = {"conv1": torch.tensor([5.0, 1, 4, 2, 3]), "conv2": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    truth = {"conv1": torch.tensor([1.0, 9, 8, 7, 2]), "conv2": torch.tensor([4.0, 3, 2, 1])}
    _, axis = plt.subplots()
    terms.strip_with_rings(axis, values, truth, "red", shift=0.1, spread=0.2, label="poisoned")
    places = [np.asarray(dots.get_offsets()) for dots in axis.collections]
    for column, (name, value) in enumerate(values.items()):
        dots, rings = places[2 * column : 2 * column + 2]
        assert dots[:, 1].tolist() == pytest.approx(value.tolist())
        assert np.abs(dots[:, 0] - column - 0.1).max() <= 0.1
        top = sorted(range(len(value)), key=lambda number: -float(truth[name][number]))[:3]
        assert rings.tolist() == dots[top].tolist()
    assert [text.get_text() for text in axis.get_xticklabels()] == ["conv1", "conv2"]
    assert axis.get_legend_handles_labels()[1] == ["poisoned"]
    plt.close("all")
