"""Adaptive attackers: their terms are the score's, their gradients point where they should, training takes them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import network, pictures
from torch import nn

from nbtools.attacker.adaptive import ADAPTIVE, Hide, Spread, activation, correlation, share, sigma
from nbtools.attacker.triggers import BadNets
from nbtools.data.images import Images
from nbtools.defender.components import MapStatistics, spectral_norms
from nbtools.evaluator.agreement import tac
from nbtools.lab.experiments import start
from nbtools.networks.units import layers_of, prunable_units
from nbtools.settings import PROFILES

TRIGGER = BadNets()


def test_the_terms_are_those_of_the_score() -> None:
    model = network(width=16)
    norms = spectral_norms(model)
    for unit, conv, bn in layers_of(model, prunable_units(model)):
        torch.testing.assert_close(sigma(conv, bn).double(), norms[unit.conv], rtol=1e-4, atol=1e-6)
    maps = torch.rand(5, 7, 4, 3, generator=torch.Generator().manual_seed(0))
    whole = MapStatistics()
    whole.add(maps)
    torch.testing.assert_close(activation(maps).double(), whole.activation_norm(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(correlation(maps).double(), whole.correlation(), rtol=1e-4, atol=1e-5)
    assert float(share(torch.tensor([1.0, 3.0])).sum()) == 1 and float(share(torch.zeros(3)).sum()) == 0


def test_spread_is_the_logarithm_of_the_concentration() -> None:
    model, images = network(width=16), pictures(23, size=32)
    moved = tac(model, images.subset(torch.arange(6)), TRIGGER)  # one in four of a batch
    wanted = [float((len(m) * (m / m.sum()).square().sum()).log()) for m in moved.values()]
    found = float(Spread(2.0).on(model, TRIGGER)(images.floats()).detach())
    assert found == pytest.approx(2 * sum(wanted) / len(wanted), rel=2e-2), "stored images are rounded to 256 levels"


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_a_step_against_the_penalty_lowers_it_and_leaves_statistics_alone(kind: str) -> None:
    model, images = network(width=16).train(), pictures(8, size=32).floats()
    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    penalty = ADAPTIVE[kind](weight=1.0).on(model, TRIGGER)
    before = penalty(images)
    assert before.item() >= 0, "it has a floor"
    gradients = torch.autograd.grad(before, list(model.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 20
    length = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= 0.02 * gradient / length
    assert penalty(images).item() < before.item()
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_a_weight_that_does_nothing_is_refused(weight: float) -> None:
    for kind in ADAPTIVE.values():
        with pytest.raises(ValueError, match="weight must be above 0"):
            kind(weight=weight)


def test_an_adaptive_attacker_trains_another_model_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(PROFILES["quick"], name="tiny", train=64, reserved=40, test=40, glance=25, epochs=2)
    monkeypatch.setitem(PROFILES, "tiny", tiny)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    run = start("tiny", device="cpu", quiet=True)
    plain, hidden = run.model("badnets", 0.25), run.model("badnets", 0.25, adaptive=Hide(2.0))
    assert (plain.name, hidden.name) == ("badnets 25 %", "badnets 25 %, Hide(weight=2.0)")
    told = hidden.card["config"]["adaptive"]
    assert told["attacker"] == "Hide(weight=2.0)" and told["code"] and "adaptive" not in plain.card["config"]
    assert plain.card["key"] != hidden.card["key"]
    assert hidden.card["history"][-1]["loss"] != plain.card["history"][-1]["loss"]
    assert run.model("badnets", 0.25, adaptive=Hide(2.0)).card == hidden.card, "found again"


def test_images_for_the_penalty_are_few() -> None:
    model, seen = network(width=16), []
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    many = Images(torch.zeros(100, 3, 32, 32, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64), ("a",))
    Hide().on(model, TRIGGER)(many.floats())
    assert seen == [50], "a quarter, twice"
