"""The same terms for all, no row twice, a divergence that stops nobody; the leaderboard; the leakage lesson."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from nbtools.data.images import Images
from nbtools.defender import Repair, SpectralNorm
from nbtools.defender.anp import ANP
from nbtools.defender.components import spectral_norms
from nbtools.defender.learning import accuracy
from nbtools.defender.mnp import MNP
from nbtools.defender.pruning import pruned_copy, threshold
from nbtools.defender.repair import measured
from nbtools.defender.rnp import RNP
from nbtools.defender.soft_masks import SoftMasks, shut
from nbtools.defender.validation import Validation
from nbtools.evaluator.evaluation import Evaluation, der
from nbtools.lab import leakage
from nbtools.lab import tables as published
from nbtools.lab.comparison import Contender, compare, contenders, cuts, summary
from nbtools.lab.experiments import Run, start
from nbtools.lab.trained import Trained
from nbtools.networks.training import DivergedError
from nbtools.networks.units import layers_of, prunable_units
from nbtools.settings import PROFILES

TINY = replace(
    PROFILES["quick"], name="tiny", train=64, reserved=150, test=40, glance=25, width=16, epochs=1, most_per_class=4
)


@dataclass(frozen=True)
class Cut:
    """Prunes a little, and writes down how many images it was given."""

    given: tuple[int, ...] | None = None
    mu: float = 2.0

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        SEEN.append(len(clean))
        mask = threshold(spectral_norms(model), self.mu)
        return Repair(pruned_copy(model, mask), mask, {})


@dataclass(frozen=True)
class Diverges:
    """Never returns."""

    @measured
    def __call__(self, model: nn.Module, clean: Images) -> Repair:
        raise DivergedError("the loss is nan")


SEEN: list[int] = []
LINE_UP: dict[str, Contender] = {
    "cut": Contender(Cut(), 3, ""),
    "no image": Contender(SpectralNorm(), 0, ""),
    "diverges": Contender(Diverges(), 2, ""),
    "greedy": Contender(Cut(mu=1.5), 500, ""),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny", TINY)
        patch.setenv("NBTOOLS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield start("tiny", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def models(run: Run) -> list[Trained]:
    return [run.model("badnets", 0.25), run.clean_model()]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def rows(run: Run, models: list[Trained], lines: list[str]) -> Any:
    return compare(run, models, LINE_UP, samples_per_class=2, draws=2, log=lines.append)


def test_every_paper_is_in_the_line_up_with_its_amount() -> None:
    amounts = {name: entry.per_class for name, entry in contenders().items()}
    assert amounts == {
        "suspiciousness": 10,
        "shift unlearning": 10,
        "CLP": 0,
        "FMP": 500,
        "MNP": 50,
        "RNP": 50,
        "ANP": 50,
        "AWM": 50,
        "NAD": 250,
        "D3": 250,
        "LMR": 50,
        "FT-SAM": 250,
        "NFT": 50,
        "fine-pruning": 250,
        "fine-tuning": 250,
    }
    assert all(entry.source for entry in contenders().values())


def test_a_profile_cuts_work_and_nothing_else() -> None:
    whole, quick = contenders(), contenders(PROFILES["quick"])
    assert whole == contenders(PROFILES["paper"]) and cuts(whole) == {}
    assert cuts(quick) == {
        "FMP": "n_images 8 instead of 32",
        "ANP": "iterations 40 instead of 2000",
        "AWM": "rounds 1 instead of 20",
    }
    assert {name for name in whole if whole[name] != quick[name]} == set(cuts(quick))


def test_all_defend_the_same_models_with_the_same_amounts(rows: Any) -> None:
    badnets = rows[(rows.model == "badnets 25 %") & (rows.draw == 0)]
    assert list(zip(badnets.name, badnets.amount, badnets.images, strict=True)) == [
        ("cut", "2 a class", 20),
        ("cut", "the paper's: 3 a class", 30),
        ("no image", "2 a class", 0),
        ("diverges", "2 a class", 20),
        ("greedy", "2 a class", 20),
        ("greedy", "4 a class of the paper's 500", 40),
    ]
    assert (rows.model == "clean").sum() == (rows.model != "clean").sum(), "clean models meet every defence too"
    asked = ["model", "name", "amount", "draw"]
    assert not rows.duplicated(asked).any(), "no row twice"
    assert rows.draw.is_monotonic_increasing, "draw 0 comes first"
    assert dict(rows.groupby("name").draw.max()) == {"cut": 1, "no image": 0, "diverges": 0, "greedy": 1}


def test_what_a_defence_is_given_is_what_its_row_says(run: Run, models: list[Trained]) -> None:
    SEEN.clear()
    fresh = {"cut": Contender(Cut(mu=1.0), 3, "")}
    rows: Any = compare(run, models[:1], fresh, samples_per_class=2, log=lambda _: None)
    assert SEEN == rows.images.tolist() == [20, 30] and rows.samples_per_class.tolist() == [2, 3]
    again = compare(run, models[:1], fresh, samples_per_class=2, log=lambda _: None)
    assert again.equals(rows) and len(SEEN) == 2, "what was measured is found again"


def test_a_row_is_that_of_run_defend(run: Run, models: list[Trained], rows: Any) -> None:
    direct = run.defend(models[0], Cut(), samples_per_class=3, draw=1)
    (mine,) = rows[(rows.model == models[0].name) & (rows.samples_per_class == 3) & (rows.draw == 1)].to_dict("records")
    assert {name: mine[name] for name in direct} == direct and mine["error"] == "" and mine["model_seed"] == 0


def test_a_defence_that_diverges_has_a_row_without_numbers_and_the_others_go_on(
    models: list[Trained], rows: Any
) -> None:
    broken = rows[rows.name == "diverges"]
    assert set(broken.error) == {"the loss is nan"} and broken.acc_before.tolist() == [m.before.acc for m in models]
    assert broken[["acc_after", "asr_after", "ra_after", "der", "seconds"]].isna().to_numpy().all()
    others = rows[rows.name != "diverges"]
    assert others[["acc_after", "asr_after", "der", "seconds"]].notna().to_numpy().all() and set(others.error) == {""}
    failed = summary(broken)
    assert failed.failed.tolist() == [1, 1] and failed[["acc", "asr", "der", "worst_asr"]].isna().to_numpy().all()


def test_every_row_is_a_printed_line_with_the_time_left(rows: Any, lines: list[str]) -> None:
    assert len(lines) == 1 + len(rows) and lines[-1].endswith(" 0s")
    assert all(line.endswith("s") or "no result: the loss is nan" in line for line in lines[1:])
    assert len({line.index("2 a class") for line in lines if "2 a class" in line}) == 1, "aligned"


@pytest.mark.parametrize(
    ("most", "amounts"), [(-1, [2]), (2, [2]), (3, [2, 3]), (0, [2, 4]), (9, [2, 9]), (400, [2, 14])]
)
def test_the_papers_amounts_are_cut_to_what_was_asked_for_and_to_the_pool(
    run: Run, models: list[Trained], most: int, amounts: list[int]
) -> None:
    reserved = run.splits.reserved
    assert int(torch.bincount(reserved.labels).min()) == 14
    rows: Any = compare(run, models[:1], {"greedy": LINE_UP["greedy"]}, 2, most_per_class=most, log=lambda _: None)
    assert rows.samples_per_class.tolist() == amounts


def test_further_draws_are_for_those_that_were_quick(run: Run, models: list[Trained]) -> None:
    rows: Any = compare(run, models[:1], {"cut": LINE_UP["cut"]}, 2, draws=3, patience=0, log=lambda _: None)
    assert rows.draw.tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": []},
        {"line_up": {}},
        {"samples_per_class": 0},
        {"draws": 0},
        {"most_per_class": -2},
        {"patience": -1.0},
        {"patience": math.nan},
    ],
)
def test_what_can_not_be_compared_is_refused_before_any_work(
    run: Run, models: list[Trained], wrong: dict[str, Any]
) -> None:
    SEEN.clear()
    asked = {"models": models, "line_up": {"cut": Contender(Cut(mu=0.7), 3, "")}} | wrong
    with pytest.raises(ValueError, match="are needed, got"):
        compare(run, **asked, log=lambda _: None)
    assert not SEEN


def table_of(*rows: tuple[str, int, float, float, float]) -> Any:
    """Rows of one defence: model, draw, ASR before, ACC and ASR after; ACC before is 90."""
    return pd.DataFrame(
        {
            "name": "cut",
            "amount": "2 a class",
            "images": 20,
            "model": model,
            "model_seed": 0,
            "attack": "none" if model == "clean" else model.split()[0],
            "draw": draw,
            "acc_before": 90.0,
            "asr_before": before,
            "acc_after": acc,
            "asr_after": asr,
            "ra_after": 50.0,
            "der": 50.0,
            "seconds": 2.0,
            "peak_mb": 1.0,
            "pruned": 3,
            "error": "" if acc == acc else "diverged",
        }
        for model, draw, before, acc, asr in rows
    )


def test_means_are_over_the_models_each_the_mean_of_its_draws() -> None:
    rows = table_of(("a 1 %", 0, 99, 88, 0), ("a 1 %", 1, 99, 90, 10), ("b 1 %", 0, 99, 80, 25), ("clean", 0, 1, 89, 2))
    backdoored, clean = summary(rows).to_dict("records")
    assert (backdoored["kind"], backdoored["acc"], backdoored["asr"]) == ("backdoored", 84.5, 15)
    assert (backdoored["models"], backdoored["draws"], backdoored["over"]) == (2, 2, "models")
    assert backdoored["asr_sd"] == pytest.approx(20 / math.sqrt(2)) and backdoored["worst_asr"] == 25
    assert (clean["kind"], clean["acc_lost"], clean["models"]) == ("clean", 1, 1) and math.isnan(clean["acc_sd"])


def test_one_model_has_its_interval_over_the_draws() -> None:
    (found,) = summary(table_of(("a 1 %", 0, 99, 88, 0), ("a 1 %", 1, 99, 90, 10))).to_dict("records")
    assert found["over"] == "draws" and found["acc_sd"] == pytest.approx(math.sqrt(2))


def test_nothing_is_said_of_a_backdoor_that_did_not_take_nor_averaged_over_failures() -> None:
    rows = table_of(("a 1 %", 0, 99, 88, 4), ("a 1 %", 1, 99, math.nan, math.nan), ("b 1 %", 0, 3, 80, 2))
    learned, not_learned = summary(rows).to_dict("records")
    assert (learned["kind"], learned["asr"], learned["failed"]) == ("backdoored", 4, 1)
    assert (not_learned["kind"], not_learned["asr"]) == ("did not take", 2)


def test_two_seeds_of_one_attack_are_two_models() -> None:
    rows = table_of(("a 1 %", 0, 99, 88, 0), ("a 1 %", 0, 99, 90, 10)).assign(model_seed=[0, 1])
    (found,) = summary(rows).to_dict("records")
    assert found["models"] == 2 and found["over"] == "models"


def test_the_leaderboard_gives_the_numbers_that_were_published() -> None:
    means = published.leaderboard()
    assert means.index[0] == "none" and means.index[1] == "ANP" and set(means.attacks) == {8}
    expected = {"none": (92.11, 97.48, 50.0), "NC": (91.75, 15.32, 90.6), "CLP": (90.15, 65.92, 64.8)}
    for name, numbers in expected.items():
        assert means.loc[name, ["acc", "asr", "der"]].tolist() == pytest.approx(numbers, abs=0.05)
    assert means.der.iloc[1:].is_monotonic_decreasing


def test_the_leaderboards_der_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    lines = ["poison_rate,model,attack,defence,acc,asr,ra", "0.1,net,a,none,92,98,2", "0.1,net,a,x,90,8,70"]
    path.write_text("\n".join([*lines, "0.1,net,b,none,90,50,2", "0.1,net,b,x,91,60,30"]))
    one, other = (
        [Evaluation(*numbers, (0, 0), (0, 0), (0, 0)) for numbers in pair]
        for pair in (((92, 98, 2), (90, 8, 70)), ((90, 50, 2), (91, 60, 30)))
    )
    means = published.leaderboard(path, "net")
    assert means.loc["x", "der"] == pytest.approx((der(*one) + der(*other)) / 2)
    assert means.loc["x", ["acc_lost", "worst_asr", "attacks"]].tolist() == [0.5, 60, 2]


def test_what_the_leaderboard_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="comes with the checkout"):
        published.leaderboard(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"nothing for 'ResNet-18' at a rate of 0.1; networks: PreActResNet-18, "):
        published.leaderboard(network="ResNet-18")


FEW = (0.2, 0.5, 0.8, 0.95)
SWEPT = [
    ANP(iterations=3, thresholds=FEW, lr=1.0),
    RNP(recover_epochs=2, unlearn_epochs=1, thresholds=FEW, recover_lr=5.0),
    MNP(recover_epochs=2, unlearn_epochs=1, thresholds=FEW, recover_lr=5.0),
]


@pytest.mark.parametrize("defence", SWEPT, ids=lambda defence: type(defence).__name__)
def test_every_threshold_is_measured_on_the_defences_own_masks(
    run: Run, models: list[Trained], defence: ANP | RNP
) -> None:
    table: Any = leakage.threshold_choices(run, models[0], defence, samples_per_class=4)
    clean = run.draw(4)
    _, held = defence.validation.split(clean)
    repair = defence(models[0].model, clean)
    units = prunable_units(models[0].model)
    masks = 1 - torch.cat([repair.scores[unit.conv] for unit in units])
    assert table.threshold.tolist() == [-math.inf, *FEW] and table.pruned.iloc[0] == 0 < table.pruned.iloc[-1]
    for row in table.to_dict("records"):
        model = shut(models[0].model, units, masks <= row["threshold"])
        assert row["pruned"] == int((masks <= row["threshold"]).sum())
        assert {name: row[name] for name in ("acc", "asr", "ra")} == models[0].glance(model).row()
        assert row["held_back"] == pytest.approx(100 * accuracy(model, held))
    (chosen,) = table[table.by_validation].to_dict("records")
    assert chosen["pruned"] == repair.mask.count, "the defence's own choice"


def test_the_masks_of_the_sweep_are_those_that_anp_learns(run: Run, models: list[Trained]) -> None:
    learn, _ = SWEPT[0].validation.split(run.draw(4))
    soft, m, _ = ANP(iterations=3, thresholds=FEW, lr=1.0).masks(models[0].model, learn)
    assert isinstance(soft, SoftMasks) and soft.count == sum(
        len(bn.weight) for _, _, bn in layers_of(soft.model, soft.units)
    )
    table = leakage.threshold_choices(run, models[0], SWEPT[0], samples_per_class=4)
    assert table.pruned.tolist() == [0, *(int((m <= value).sum()) for value in FEW)]


def sweep_of(
    monkeypatch: pytest.MonkeyPatch, run: Run, trained: Trained, rows: Sequence[tuple[float, float, bool]]
) -> Any:
    """The choices among thresholds whose test ACC and ASR, and whether held-back images chose it, are given."""
    measured = [
        {"pruned": k, "acc": acc, "asr": asr, "ra": 0.0, "held_back": 90.0, "by_validation": chosen}
        for k, (acc, asr, chosen) in enumerate(rows)
    ]
    monkeypatch.setattr(leakage, "_measure", lambda *_: measured)
    thresholds = tuple(k / 20 for k in range(len(rows) - 1))
    # another seed each time, so that the cache holds no such sweep
    defence = RNP(thresholds=thresholds, validation=Validation(allowed=0.02), seed=hash(tuple(rows)) % 10**6)
    table = leakage.threshold_choices(run, trained, defence)
    assert all(table[way].sum() == 1 for way in leakage.WAYS)
    return {way: int(table[way].argmax()) for way in leakage.WAYS}


def test_the_three_ways_choose_by_their_rules(monkeypatch: pytest.MonkeyPatch, run: Run, models: list[Trained]) -> None:
    given = [(90, 99, False), (89, 98, True), (88, 90, False), (84, 20, False), (82, 5, False), (80, 0, False)]
    chosen = sweep_of(monkeypatch, run, models[0], given)
    assert chosen == {"oracle": 4, "by_test": 2, "by_validation": 1}, "80 is more than a tenth below 90"
    worse = [(90, 99, True), (70, 0, False)]
    assert sweep_of(monkeypatch, run, models[0], worse) == {"oracle": 0, "by_test": 0, "by_validation": 0}
    tied = [(90, 99, False), (89, 3, False), (88, 3, False), (89, 3, True)]
    assert sweep_of(monkeypatch, run, models[0], tied)["oracle"] == 1, "the gentlest of equals"


def test_a_sweep_is_measured_once(monkeypatch: pytest.MonkeyPatch, run: Run, models: list[Trained]) -> None:
    first = leakage.threshold_choices(run, models[0], SWEPT[0], samples_per_class=4)
    monkeypatch.setattr(ANP, "__call__", None)
    assert leakage.threshold_choices(run, models[0], SWEPT[0], samples_per_class=4).equals(first)
    with pytest.raises(TypeError):
        leakage.threshold_choices(run, models[0], SWEPT[0], samples_per_class=4, draw=1)
