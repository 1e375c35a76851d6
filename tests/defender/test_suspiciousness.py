"""Pruning by the suspiciousness score and its controls: what they prune, their settings, and a chosen threshold."""

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, network, pictures, plain, same_bits

from nbtools.data.images import Images, to_floats
from nbtools.defender import (
    ChosenMu,
    Defence,
    FineTune,
    RandomPruning,
    Repair,
    SpectralNorm,
    Suspiciousness,
)
from nbtools.defender.components import components, spectral_norms
from nbtools.defender.learning import accuracy
from nbtools.defender.pruning import pruned_copy, threshold
from nbtools.defender.score import POWERS, suspiciousness

SHORT = FineTune(steps=4, every=2, folds=2)
ALL = [
    Suspiciousness(mu=1, fine_tune=SHORT),
    ChosenMu(Suspiciousness(fine_tune=SHORT), mus=(2, 1), allowed=0.5),
    SpectralNorm(mu=1, fine_tune=SHORT),
    RandomPruning(Suspiciousness(mu=1, fine_tune=SHORT)),
]
each_of_the_score = pytest.mark.parametrize("defence", ALL, ids=lambda defence: type(defence).__name__)
NOTHING = pictures(4).subset(torch.arange(0))


@each_of_the_score
def test_every_filter_has_a_score_and_every_look_of_the_fine_tuning_a_row(defence: Defence) -> None:
    repair = defence(plain(), pictures(8))
    assert list(repair.scores) == list(repair.mask.pruned) == ["conv1", "conv2"]
    assert [row["step"] for row in repair.history if "step" in row] == [0, 2, 4]


def test_suspiciousness_prunes_what_the_score_says() -> None:
    model, clean = network(), pictures(8)
    defence = Suspiciousness(mu=1, saliency="softened", powers={**POWERS, "saliency": -1}, fine_tune=None)
    repair = defence(model, clean)
    scores = suspiciousness(components(model, clean, "softened"), {**POWERS, "saliency": -1})
    assert same_bits(repair.scores, scores)
    assert same_bits(repair.mask.pruned, threshold(scores, 1).pruned)
    assert same_bits(bits(repair.model), bits(pruned_copy(model, repair.mask)))
    assert repair.history == []
    spared = replace(defence, first=False)(model, clean).mask.pruned
    assert set(spared) == {u.conv for u in components(model, clean).units} - {"conv1"}
    without = replace(defence, shortcuts=False)(model, clean).mask.pruned
    assert set(scores) - set(without) == {f"layer{n}.0.downsample.0" for n in (2, 3, 4)}
    everywhere = replace(defence, scope="global")(model, clean).mask
    assert same_bits(everywhere.pruned, threshold(scores, 1, "global").pruned)


def test_the_controls_prune_what_they_say() -> None:
    model, clean = network(), pictures(8)
    like = Suspiciousness(mu=1, fine_tune=None)
    wanted = like(model, clean).mask
    draws = [RandomPruning(like, seed)(model, clean).mask for seed in (0, 1)]
    assert all(draw.by_layer() == wanted.by_layer() for draw in draws)
    assert not same_bits(draws[0].pruned, draws[1].pruned)
    alone = SpectralNorm(mu=1)(model, NOTHING)
    assert same_bits(alone.mask.pruned, threshold(spectral_norms(model), 1).pruned)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Suspiciousness(mu=-1), "mu must be 0 or more, got -1"),
        (lambda: Suspiciousness(mu=math.nan), "mu must be 0 or more, got nan"),
        (lambda: SpectralNorm(mu=-1), "mu must be 0 or more, got -1"),
        (lambda: Suspiciousness(saliency="logit"), "unknown saliency 'logit'; known: cross_entropy, margin, softened"),
        (lambda: Suspiciousness(scope="block"), "unknown scope 'block'; known: layer, global"),
        (lambda: Suspiciousness(powers={"weight": 1}), "powers take sigma, .* got 'weight': 1"),
        (lambda: Suspiciousness(powers={"sigma": "1"}), "powers take .* to a finite number, got 'sigma': '1'"),  # pyright: ignore[reportArgumentType]
        (lambda: Suspiciousness(alive=1), r"alive must lie in \[0, 1\), got 1"),
        (lambda: Suspiciousness(alive=math.nan), r"alive must lie in \[0, 1\), got nan"),
        (lambda: Suspiciousness(rounds=0), "rounds must be 1 or more, got 0"),
        (lambda: ChosenMu(mus=()), "mus must hold one threshold or more"),
        (lambda: ChosenMu(mus=(2, -1)), "mu must be 0 or more, got -1"),
        (lambda: ChosenMu(allowed=1), r"allowed must lie in \[0, 1\), got 1"),
        (lambda: FineTune(steps=0), "steps, every and batch_size >= 1"),
        (lambda: FineTune(lr=-1e-3), "lr >= 0"),
        (lambda: FineTune(lr=float("nan")), "lr >= 0"),
        (lambda: FineTune(confidence=float("nan")), "confidence >= 0"),
        (lambda: FineTune(folds=1), "folds >= 2"),
        (lambda: FineTune(teacher="attacker"), "teacher is 'before' or 'labels'"),
        (lambda: Images(torch.zeros(1, 3, 8, 8).byte(), torch.tensor([4]), ("a", "b")), "labels run from 4 to 4"),
    ],
)
def test_settings_are_checked_before_any_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_fields_of_a_repair_are_these() -> None:
    first = ["model", "mask", "scores", "history", "seconds", "defence"]
    assert [f.name for f in fields(Repair)] == [*first, "untuned", "tuned_steps", "peak_bytes"]


def test_dead_filters_do_not_make_the_living_ones_stand_out() -> None:
    """Where weight decay has killed most of a layer, the few that live score highest: without them nothing is left."""
    model, clean = plain(), pictures(12)
    dead = [0, 1, 2, 4, 6, 7]
    model.bn1.weight.data[dead] = model.bn1.bias.data[dead] = 0
    bare, alive = Suspiciousness(mu=1, fine_tune=None), Suspiciousness(mu=1, fine_tune=None, alive=0.25)
    assert set(bare.mask(bare.components(model, clean)).pruned["conv1"].nonzero().flatten().tolist()) <= {3, 5}
    parts = alive.components(model, clean)
    mask, scores = alive.mask(parts), alive.scores(parts)
    living = scores["conv1"][[3, 5]]
    wanted = (living > living.mean() + living.std()).tolist()
    assert mask.pruned["conv1"].tolist() == [i in (3, 5) and wanted[(3, 5).index(i)] for i in range(8)]
    assert not any(wanted) and bare.mask(parts).pruned["conv1"].any(), "of two numbers none stands out"
    counted = parts.of("sigma")["conv2"] > 0.25 * parts.of("sigma")["conv2"].mean()
    assert bool(counted.all()), "where all live it changes nothing"
    assert torch.equal(mask.pruned["conv2"], bare.mask(parts).pruned["conv2"])


def test_mu_is_the_last_before_the_clean_images_object() -> None:
    model, clean = plain().train(), pictures(24)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(40):  # so that there is an accuracy to lose
        optimiser.zero_grad()
        F.cross_entropy(model(to_floats(clean.images)), clean.labels).backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    before = accuracy(model, clean)
    like = Suspiciousness(saliency="margin", fine_tune=None)
    mus = tuple(k / 4 for k in range(9))
    kept = {}
    for mu in sorted(mus, reverse=True):
        pruned = replace(like, mu=mu)(model, clean).model
        kept[mu] = float((pruned(to_floats(clean.images)).argmax(1) == clean.labels).float().mean())
    assert before > 0.9 and len(set(kept.values())) > 2, "the images have something to say"
    for allowed in (0.0, 0.1, 0.3, 0.6):
        wanted = None
        for mu, share in kept.items():
            if share < before - max(allowed, 1 / len(clean)) - 1e-6:
                break
            wanted = mu
        repair = ChosenMu(like, mus, allowed)(model, clean)
        assert [row["mu"] for row in repair.history if row["chosen"]] == ([] if wanted is None else [wanted])
        assert [row["mu"] for row in repair.history] == list(kept)
        assert [row["accuracy"] for row in repair.history] == pytest.approx(list(kept.values()))
        twin = replace(like, mu=math.inf if wanted is None else wanted)(model, clean)
        assert all(torch.equal(a, b) for a, b in zip(repair.model.parameters(), twin.model.parameters(), strict=True))
