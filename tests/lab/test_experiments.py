"""Trained once and found after that; rows measured once; whatever shapes a result is in its key."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import bits, mask_of, same_bits

from nbtools.attacker.triggers import BadNets, Blended
from nbtools.defender import RandomPruning, Suspiciousness
from nbtools.defender.components import spectral_norms
from nbtools.defender.pruning import pruned_copy, threshold
from nbtools.evaluator.evaluation import Evaluator, accuracy
from nbtools.lab import cache, experiments
from nbtools.lab import trained as trained_module
from nbtools.lab.experiments import Run, start
from nbtools.lab.trained import Trained
from nbtools.networks.units import prunable_units
from nbtools.settings import PROFILES, STRIDES

TINY = replace(PROFILES["quick"], name="tiny", train=64, reserved=40, test=40, glance=25, width=16, epochs=1)


class Stop(Exception):
    """Raised by what must not run."""


def refuse(*_arguments: object, **_options: object) -> None:
    raise Stop


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, and the profile "tiny"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny", TINY)
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("NBTOOLS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run(stored: Path) -> Run:
    return start("tiny", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def trained(run: Run) -> Trained:
    return run.model("badnets", 0.25)


def test_start_says_what_was_chosen(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("tiny", width=24, epochs=3, device="cpu")
    assert (run.profile.width, run.profile.epochs, run.seed) == (24, 3, 0)
    assert [len(part) for part in (run.splits.train, run.splits.reserved, run.splits.test)] == [64, 40, 40]
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == [
        "profile",
        "device",
        "data",
        "model",
        "versions",
        "note",
    ]
    assert "shapes: 64 to train on, 40 for the defender, 40 for the evaluator" in printed
    assert "resnet18, width 24, strides 1 2 2 2 2, 3 epochs" in printed


def test_start_takes_the_narrow_network_where_the_profile_has_one(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = replace(TINY, width=20, strides=STRIDES, small=True)
    monkeypatch.setitem(PROFILES, "tiny", wide)
    assert start("tiny", device="cpu").profile == wide
    assert "resnet18, width 20, 1 epochs" in capsys.readouterr().out
    assert start("tiny", device="cpu", small=True).profile == wide.narrowed() != wide
    assert "resnet18, width 16, strides 1 2 2 2 2, 1 epochs" in capsys.readouterr().out


def test_a_model_is_trained_once_and_found_after_that(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_module, "train", refuse)
    for again in (run.model("badnets", 0.25), start("tiny", device="cpu", quiet=True).model("badnets", 0.25)):
        assert same_bits(bits(again.model), bits(trained.model)) and again.card == trained.card
    with pytest.raises(Stop):
        run.model("badnets", 0.5)
    assert not trained.model.training and not any(p.requires_grad for p in trained.model.parameters())
    assert trained.name == "badnets 25 %" and trained.before.acc == trained.evaluate(trained.model).acc
    assert len(trained.card["history"]) == 1 and trained.card["seconds"] > 0 and trained.card["hardware"]


def test_a_clean_model_is_measured_with_the_trigger_that_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = run.clean_model("blended", target=3, alpha=0.3)
    assert (clean.attack, clean.name, clean.poison_rate) == ("none", "clean", 0)
    assert clean.evaluate.trigger == clean.trigger == Blended(alpha=0.3) and clean.evaluate.target == 3
    assert clean.before.acc == pytest.approx(100 * accuracy(clean.model, run.splits.test))
    monkeypatch.setattr(trained_module, "train", refuse)
    other = run.clean_model()
    assert other.trigger == BadNets() and same_bits(bits(other.model), bits(clean.model)), "one model for all triggers"


def key_of(run: Run, ask: Callable[[Run], object]) -> str:
    """The cache key under which a run looks for what is asked, without building it."""
    keys: list[str] = []

    def record(kind: str, config: dict[str, Any], _build: object) -> None:
        keys.append(f"{kind} {cache.key(config)}")
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "cached", record)
        patch.setattr(trained_module, "cached", record)
        with pytest.raises(Stop):
            ask(run)
    return keys[0]


def badnets(run: Run) -> Trained:
    return run.model("badnets", 0.25)


def test_what_shapes_a_model_is_in_its_key(run: Run) -> None:
    def changed(**profile: Any) -> Run:
        return replace(run, profile=replace(TINY, **profile))

    fewer = replace(run.splits, train=run.splits.train.subset(torch.arange(32)))
    cifar, other_code = replace(run.splits, name="cifar10"), replace(run.splits, version="other")
    keys = [
        *(key_of(run, lambda run, rate=rate: run.model("badnets", rate)) for rate in (0.25, 0.5)),
        key_of(run, lambda run: run.model("badnets", 0.25, target=1)),
        key_of(run, lambda run: run.model("badnets", 0.25, size=2)),
        key_of(run, lambda run: run.model("blended", 0.25)),
        key_of(run, lambda run: run.clean_model()),
        *(key_of(replace(run, splits=splits), badnets) for splits in (fewer, cifar, other_code)),
        *(key_of(other, badnets) for other in (replace(run, seed=1), replace(run, architecture="preact_resnet18"))),
        *(key_of(changed(**{name: 32}), badnets) for name in ("width", "epochs", "batch_size", "padding")),
        *(key_of(changed(weight_decay=decay), badnets) for decay in (3e-3, 1e-4)),
        key_of(changed(lr=0.05), badnets),
        key_of(changed(strides=(1, 1, 2, 2, 2)), badnets),
    ]
    keys.remove(key_of(changed(batch_size=32), badnets))  # TINY's own, once under its other name
    assert len(keys) == len(set(keys))


def test_what_does_not_shape_a_model_is_not_in_its_key(run: Run) -> None:
    renamed = replace(run, profile=replace(TINY, name="other", about="", draws=9, reserved=1, test=1))
    assert key_of(renamed, badnets) == key_of(run, badnets)


def test_a_defence_is_measured_once(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    defence = Suspiciousness(mu=1, fine_tune=None)
    first = run.defend(trained, defence, samples_per_class=2)
    assert first["settings"] == repr(defence) and first["defence"] == "Suspiciousness"
    assert first["filters"] == sum(unit.filters for unit in prunable_units(trained.model))
    columns = [f"{name}_{when}" for when in ("before", "pruned", "after") for name in ("acc", "asr", "ra")]
    assert all(0 <= first[column] <= 100 for column in [*columns, "der"])
    monkeypatch.setattr(Suspiciousness, "__call__", refuse)
    assert run.defend(trained, Suspiciousness(mu=1, fine_tune=None), samples_per_class=2) == first
    with pytest.raises(Stop):
        run.defend(trained, defence, samples_per_class=2, draw=1)


def test_a_repair_and_its_row_call_the_defence_once(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = Suspiciousness(mu=0.5, fine_tune=None)
    repair = run.repair(trained, defence, n_total=7)
    mine = defence(trained.model, run.draw(n_total=7))
    assert all(torch.equal(repair.mask.pruned[name], pruned) for name, pruned in mine.mask.pruned.items())
    monkeypatch.setattr(Suspiciousness, "__call__", refuse)
    row = run.defend(trained, defence, n_total=7)
    assert row["pruned"] == repair.mask.count and row["acc_after"] == trained.evaluate(repair.model).acc
    for other in (replace(run, seed=5), run):
        with pytest.raises(Stop):
            other.repair(trained, defence, n_total=7 if other is not run else 8)


def test_what_shapes_a_row_is_in_its_key(run: Run, trained: Trained) -> None:
    defence = Suspiciousness(fine_tune=None)
    clean = replace(trained, card={**trained.card, "sha256": "another"})
    few = replace(trained, evaluate=Evaluator(trained.evaluate.test.subset(torch.arange(30)), trained.trigger))
    asked: list[Callable[[Run], object]] = [
        lambda run: run.defend(trained, defence),
        lambda run: run.defend(clean, defence),
        lambda run: run.defend(trained, replace(defence, mu=1)),
        lambda run: run.defend(trained, RandomPruning(defence)),
        lambda run: run.defend(trained, defence, samples_per_class=3),
        lambda run: run.defend(trained, defence, n_total=10),
        lambda run: run.defend(trained, defence, draw=1),
        lambda run: run.defend(replace(trained, trigger=BadNets(2)), defence),
        lambda run: run.defend(few, defence, glance=True),
    ]
    keys = [key_of(run, ask) for ask in asked]
    assert len(set(keys)) == len(keys)


def test_rows_are_tidy_and_carry_the_configuration(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_OUT", str(tmp_path / "new" / "folder"))
    path = run.save_rows([{"mu": 2.0, "asr": 1.5}, {"mu": 3.0, "asr": 2.5}], "sweep")
    assert path == tmp_path / "new" / "folder" / "sweep.csv" and list(path.parent.iterdir()) == [path]
    table = pd.read_csv(path)
    assert list(table.columns) == ["mu", "asr", *run.stamp()] and table["mu"].tolist() == [2, 3]
    assert set(table["profile"]) == {"tiny"} and set(table["width"]) == {16} and set(table["train_images"]) == {64}
    run.save_rows([{"epochs": 7, "asr": 1.5}], "sweep")
    assert pd.read_csv(path)["epochs"].tolist() == [7], "what a row says itself stands"


def test_a_row_that_is_found_again_says_where_it_was_measured(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = Suspiciousness(fine_tune=None)
    row = run.defend(trained, defence, n_total=7)
    assert row["hardware"] == run.stamp()["hardware"] and row["date"] == run.stamp()["date"]
    monkeypatch.setattr(experiments, "hardware", lambda *_: "another machine")
    assert run.stamp()["hardware"] == "another machine" and run.defend(trained, defence, n_total=7) == row


def test_a_row_of_another_precision_is_measured_anew(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = Suspiciousness(fine_tune=None)
    run.defend(trained, defence, n_total=8)
    monkeypatch.setattr(trained_module, "has_bf16", lambda _device: True)
    monkeypatch.setattr(experiments, "hardware", lambda *_: "this one, bf16")
    assert run.defend(trained, defence, n_total=8)["hardware"] == "this one, bf16"


def test_a_write_that_breaks_off_leaves_the_earlier_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTOOLS_OUT", str(tmp_path))
    path = run.save_rows([{"mu": 2.0}], "sweep")
    before = path.read_bytes()

    def break_off(_table: pd.DataFrame, file: Path, **_options: object) -> None:
        Path(file).write_text("half a li")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", break_off)
    for name in ("sweep", "other"):
        with pytest.raises(OSError, match="no space left"):
            run.save_rows([{"mu": 3.0}], name)
    assert path.read_bytes() == before and not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda _: start("huge"), "unknown profile 'huge'; known: quick, laptop, paper"),
        (lambda run: run.model("badnet", 0.1), "There is no attack 'badnet'. Did you mean badnets or wanet"),
        (lambda run: run.clean_model("none"), "There is no attack 'none'. Known: badnets"),
        (lambda run: run.model("badnets", 0.1, target=10), "classes 0 to 9, or -1 for all-to-all, got 10"),
        (
            lambda run: run.model("badnets", 0.1, foo=3),
            "badnets has no setting 'foo'; it has size = 3, pattern",
        ),
        (lambda run: run.save_rows([], "../rows"), "a file's name without a folder"),
        (lambda run: run.model("badnets", 0.0), r"poison_rate must lie in \(0, 1\], got 0.0"),
        (lambda run: badnets(replace(run, architecture="vgg")), "unknown architecture 'vgg'; known: resnet18"),
        (lambda run: run.draw(samples_per_class=5), "class .* has . clean images in the pool, 5 were asked for"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(run: Run, ask: Callable[[Run], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(run)


def test_what_is_refused_leaves_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    narrow = replace(run, profile=replace(TINY, width=8))
    for wrong in (narrow, replace(run, architecture="vgg")):
        with pytest.raises(ValueError, match=r"width|architecture"):
            badnets(wrong)
    with pytest.raises(ValueError, match="poison_rate"):
        run.model("badnets", 0.0)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_a_point_of_a_sweep_is_pruned_by_the_threshold_and_measured_at_a_glance(
    trained: Trained,
) -> None:
    scores = spectral_norms(trained.model)
    row = trained.pruned(scores, 1.0)
    mask = threshold(scores, 1.0)
    few = Evaluator(trained.evaluate.test.subset(torch.arange(25)), trained.trigger, trained.target)
    assert (row["model"], row["mu"], row["pruned"]) == (trained.name, 1.0, mask.count) and mask.count > 0
    assert {name: row[name] for name in ("acc", "asr", "ra")} == few(pruned_copy(trained.model, mask)).row()
    assert trained.before_at_a_glance == few(trained.model) and len(trained.glance.test) == 25


def test_the_model_as_trained_is_measured_once_for_each_trigger(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = trained.before
    assert measured == trained.evaluate(trained.model) != trained.before_at_a_glance
    monkeypatch.setattr(Evaluator, "__call__", refuse)
    again = run.model("badnets", 0.25)
    assert again.before == measured and isinstance(again.before.acc_interval, tuple)
    pruned = pruned_copy(again.model, mask_of(again.model, {"conv1": [0]}))
    for other in ({"trigger": BadNets(size=2)}, {"target": 1}, {"model": pruned}):
        with pytest.raises(Stop):
            _ = replace(again, **other).before


def test_the_attackers_images_are_poisoned_as_asked(run: Run) -> None:
    poisoned = run.poisoned("badnets", 0.25, target=2)
    assert len(poisoned.poisoned) == 16 and set(poisoned.images.labels[poisoned.poisoned].tolist()) == {2}


def test_a_row_is_known_by_the_code_of_its_own_defence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for name in ("one_defence", "the_same_edited"):
        source = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Own:\n    mu: float = 2\n"
        (tmp_path / f"{name}.py").write_text(f"{source}# {name}\n")
        codes.append(experiments.defence_code(importlib.import_module(name).Own()))
    assert len({*codes, experiments.defence_code(Suspiciousness())}) == 3
    nested = RandomPruning(importlib.import_module("one_defence").Own())
    assert experiments.defence_code(nested) not in {*codes, experiments.defence_code(RandomPruning(Suspiciousness()))}
