"""Grids: every combination is a point, once; whatever is wrong is said before anything runs, all of it at once."""

import itertools
import pickle
from pathlib import Path
from typing import cast

import pytest

from nbtools.attacker.adaptive import Hide, Spread
from nbtools.defender import FineTuning, SpectralNorm, Suspiciousness
from nbtools.defender.choices import make_defence
from nbtools.lab.grids import read, spread
from nbtools.lab.points import Model, Point, Setup, digest
from nbtools.lab.store import Grid
from nbtools.series import pages

FOLDER = Path(__file__).parents[2] / "notebooks" / "src"


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def points(folder: Path, text: str) -> list[Point]:
    found = read(written(folder, text), "quick").points
    assert all(isinstance(point, Point) for point in found)
    return cast(list[Point], found)


def test_every_combination_is_a_point(tmp_path: Path) -> None:
    text = """
attack: [badnets, blended]
poison_rate: [0.05, 0.1]
defence: [clp, {suspiciousness: {mu: [2, 3]}}]
samples_per_class: [1, 10]
seed: 0..1
draw: [0, 2]
"""
    defences = (SpectralNorm(), Suspiciousness(mu=2.0), Suspiciousness(mu=3.0))
    axes = ((0, 1), ("badnets", "blended"), (0.05, 0.1), defences, (1, 10), (0, 2))
    wanted = list(itertools.product(*axes))
    found = points(tmp_path, text)
    told = [
        (p.model.setup.seed, p.model.attack, p.model.poison_rate, p.defence, p.samples_per_class, p.draw) for p in found
    ]
    assert sorted(map(repr, told)) == sorted(map(repr, wanted)) and len(wanted) == 96
    assert {p.n_total for p in found} == {0} and {p.model.setup.profile for p in found} == {"quick"}


def test_images_of_each_class_and_images_in_all_are_united(tmp_path: Path) -> None:
    head = "attack: badnets\npoison_rate: 0.1\ndefence: clp\n"
    amounts = {
        "": [(10, 0)],
        "samples_per_class: [1, 2]": [(1, 0), (2, 0)],
        "n_total: 10": [(0, 10)],
        "samples_per_class: [1, 2]\nn_total: [5, 10]": [(1, 0), (2, 0), (0, 5), (0, 10)],
    }
    for text, wanted in amounts.items():
        assert [(p.samples_per_class, p.n_total) for p in points(tmp_path, head + text)] == wanted


def test_a_clean_model_has_no_rate_and_is_one_model(tmp_path: Path) -> None:
    found = points(tmp_path, "attack: [none, badnets]\npoison_rate: [0.01, 0.1]\ndefence: clp\n")
    assert [(p.model.attack, p.model.poison_rate) for p in found] == [("none", 0), ("badnets", 0.01), ("badnets", 0.1)]
    assert points(tmp_path, "attack: none\ndefence: clp\n")[0].model == Model(Setup("quick"), "none")


def test_parts_are_united_and_a_point_is_there_once(tmp_path: Path) -> None:
    text = """
- {attack: badnets, poison_rate: 0.1, defence: clp}
- {attack: [badnets, sig], poison_rate: 0.1, defence: clp}
"""
    assert [p.model.attack for p in points(tmp_path, text)] == ["badnets", "sig"]


def test_settings_of_a_trigger_and_of_a_defence_are_axes_too(tmp_path: Path) -> None:
    text = """
attack: {blended: {alpha: [0.1, 0.2]}}
poison_rate: 0.1
defence:
- suspiciousness: {fine_tune: null, powers: {sigma: 1}}
- {fine_tuning: {"tune.epochs": [1, 2]}}
"""
    found = points(tmp_path, text)
    assert [p.model.options for p in found[::3]] == [(("alpha", 0.1),), (("alpha", 0.2),)]
    first, second, third = (p.defence for p in found[:3])
    assert first == Suspiciousness(powers={"sigma": 1}, fine_tune=None) and isinstance(second, FineTuning)
    assert [d.tune.epochs for d in (second, third) if isinstance(d, FineTuning)] == [1, 2]


def test_a_number_is_one_however_it_is_written(tmp_path: Path) -> None:
    """YAML takes 5e-2 for a text; on the command line it is a number, and so it is here."""
    text = """
attack: {{blended: {{alpha: {0}}}}}
adaptive: {{hide: {{weight: {0}}}}}
poison_rate: {0}
defence: {{suspiciousness: {{alive: {0}, fine_tune.lr: {0}}}}}
"""
    one, other = (points(tmp_path, text.format(number)) for number in ("0.05", "5e-2"))
    assert one == other and one[0].id == other[0].id
    assert make_defence("suspiciousness", [("alive", "5e-2"), ("fine_tune.lr", "5e-2")]) == one[0].defence
    rate = pages.read(written(tmp_path, "poison_rate: 5e-2\n"), "06", FOLDER, "quick")
    assert rate.points[0].columns()["poison_rate"] == 0.05


def test_an_adaptive_attacker_is_an_axis_of_the_models(tmp_path: Path) -> None:
    text = """
attack: [none, badnets]
poison_rate: 0.1
target: [0, -1]
adaptive: [none, hide, {spread: {weight: [1, 2.0]}}]
defence: clp
"""
    found = points(tmp_path, text)
    attackers = [None, Hide(), Spread(1), Spread(2.0)]
    assert [p.model.adaptive for p in found if p.model.attack == "none"] == [None, None]
    assert [(p.model.target, p.model.adaptive) for p in found if p.model.attack != "none"] == [
        (target, one) for target in (0, -1) for one in attackers
    ]
    assert repr(Spread(2)) == repr(Spread(2.0))
    assert found[-1].model.name == "badnets 10 %, all to all, Spread(weight=2.0)"
    assert found[-1].columns()["adaptive"] == "Spread(weight=2.0)" and found[0].columns()["adaptive"] == ""


def test_a_glance_is_an_axis_and_another_point(tmp_path: Path) -> None:
    text = "attack: badnets\npoison_rate: 0.1\ndefence: clp\nglance: [false, true]\n"
    found = points(tmp_path, text)
    assert [p.glance for p in found] == [False, True] and len({p.id for p in found}) == 2
    with pytest.raises(ValueError, match="glance: 1 is not bool"):
        points(tmp_path, text.replace("[false, true]", "1"))


def test_a_point_is_known_by_all_that_it_asks_and_travels(tmp_path: Path) -> None:
    one = points(tmp_path, "attack: badnets\npoison_rate: 0.1\ndefence: clp\ndraw: 0..3\nseed: [0, 1]\n")
    assert len({p.id for p in one}) == 8 and len({p.model.id for p in one}) == 2
    again = pickle.loads(pickle.dumps(one[0]))
    assert again == one[0] and again.id == one[0].id
    asked = one[0].columns()
    assert asked["id"] == one[0].id and asked["settings"] == repr(SpectralNorm()) and asked["seed"] == 0


@pytest.mark.parametrize(
    ("value", "wanted"), [(3, [3]), ([1, "2..4"], [1, 2, 3, 4]), ("0..0", [0]), ("a..b", ["a..b"]), ([], [])]
)
def test_a_range_is_a_list(value: object, wanted: list[object]) -> None:
    assert spread(value) == wanted


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = """
attack: [badnets, badnet, {blended: {alpha: []}}]
poison_rate: [0.1, half]
defences: clp
defence: [{suspiciousness: {mu: []}}, 3]
samples_per_class: []
draw: [0, 0]
small: 1
"""
    with pytest.raises(ValueError, match=r"grid\.yaml") as caught:
        read(written(tmp_path, text))
    told = str(caught.value)
    for part in (
        "unknown 'defences'; known: profile, dataset",
        "attack: There is no attack 'badnet'. Did you mean badnets",
        "attack: blended's list of alpha is empty",
        "poison_rate: 'half' is not float",
        "defence: suspiciousness's list of mu is empty",
        "defence: 3 is neither a name nor a mapping",
        "samples_per_class: the list is empty",
        "draw: a value is there twice",
        "small: 1 is not bool",
    ):
        assert part in told, told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("attack: badnets\ndefence: clp\n", "poison_rate is missing"),
        ("poison_rate: 0.1\ndefence: clp\n", "attack is missing"),
        ("attack: none\n", "defence is missing"),
        ("attack: badnets\npoison_rate: 1.5\ndefence: clp\n", "poison_rate=.1.5. is out of range"),
        ("attack: none\ndefence: {clp: {v: 3}}\n", "clp has no setting 'v'; it has mu = 3.0"),
        ("attack: none\ndefence: {clp: {mu: high}}\n", "clp's mu takes float"),
        (
            "attack: {badnets: {colour: 1}}\npoison_rate: 0.1\ndefence: clp\n",
            "badnets has no setting 'colour'; it has size = 3",
        ),
        ("attack: none\ndefence: clp\nadaptive: sneak\n", "There is no adaptive 'sneak'.*Known: none, hide, spread"),
        ("attack: none\ndefence: clp\nadaptive: {hide: {weight: 0}}\n", "weight must be above 0"),
        ("attack: none\ndefence: clp\nprofile: huge\n", "There is no profile 'huge'. Known: quick"),
        ("attack: none\ndefence: clp\nwidth: 3\n", "width=.3. is out of range"),
        ("attack: none\ndefence: clp\nsamples_per_class: 5000\n", "samples_per_class=.5000. is out of range"),
        ("attack: none\nattack: badnets\n", "'attack' is given twice"),
        ("attack: [none\n", "can't be read as YAML"),
        ("", "holds no grid"),
        ("- 3\n", "holds no grid"),
        ("attack: none\ndefence: clp\nseed: true\n", "seed: True is not int"),
        ("attack: none\ndefence: clp\nseed: 0..99999999999\n", "the range 0..99999999999 has too many values"),
        (
            "attack: none\ndefence: clp\nseed: 0..999\ndraw: 0..999\n",
            "1,000,000 points are asked for; a grid has at most",
        ),
        ("attack: none\ndefence: clp\nseed: 9223372036854775808\n", "9223372036854775808 is not int, it is too large"),
        ("attack: none\ndefence: {clp: {mu: 9223372036854775808}}\n", "a whole number has at most 63 bits"),
        ("attack: none\ndefence: clp\nn_total: 0\n", "no clean images are asked for"),
        ("attack: [[badnets, blended]]\ndefence: clp\n", "is neither a name nor a mapping"),
        ("attack: none\ndefence: clp\nadaptive: {}\n", "is neither a name nor a mapping"),
        ("attack: {blended: {1: 2}}\npoison_rate: 0.1\ndefence: clp\n", "blended are no mapping from names"),
        ("attack: none\ndefence: clp\nadaptive: {none: {weight: 3}}\n", "adaptive: none takes no settings"),
        ("attack: none\ndefence: clp\ndataset: gtsrb\ntarget: 43\n", "a class number, 0 to 42, or -1"),
        ("attack: none\ndefence: clp\ndataset: cifar100\nsamples_per_class: 11\n", "at most 10, .* of 100 classes"),
        ("attack: none\ndefence: clp\ndataset: 'folder:x'\ntarget: -2\n", "a class number, 0 and up"),
    ],
)
def test_bad_grids_are_refused_with_what_is_allowed(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(written(tmp_path, text), "quick")


def test_a_target_may_be_any_class_of_its_data_set(tmp_path: Path) -> None:
    text = "attack: badnets\npoison_rate: 0.1\ndefence: clp\nprofile: laptop\n"
    for dataset, target in (("cifar100", 99), ("gtsrb", 42), ("svhn", 9), ("'folder:x'", 200)):
        assert [p.model.target for p in points(tmp_path, f"{text}dataset: {dataset}\ntarget: {target}\n")] == [target]


def test_models_that_differ_have_names_that_differ(tmp_path: Path) -> None:
    text = """
attack: [badnets, {badnets: {size: 2}}]
poison_rate: 0.1
target: [0, 3, -1]
adaptive: [none, hide]
defence: clp
"""
    names = {p.model: p.model.name for p in points(tmp_path, text)}
    assert len(set(names.values())) == len(names) == 12
    told = {"badnets 10 %", "badnets 10 %, size=2, all to all", "badnets 10 %, to 3, Hide(weight=1.0)"}
    assert told <= set(names.values())


def test_a_grid_of_a_notebook_is_held_against_its_parameters(tmp_path: Path) -> None:
    path = written(tmp_path, "poison_rate: [0.1, 1]\nseed: 0..1\n")
    found: Grid = pages.read(path, "06", FOLDER, "quick")
    assert [point.name for point in found.points] == [
        f"06_suspiciousness, poison_rate={rate}, seed={seed}" for rate in (0.1, 1.0) for seed in (0, 1)
    ]
    assert len({point.id for point in found.points}) == 4 and {point.model for point in found.points} == {None}
    assert found.points[0].columns()["poison_rate"] == 0.1
    (open_profile,) = pages.read(written(tmp_path, "profile: ''\n"), "06", FOLDER, "quick").points
    assert (open_profile.dataset, open_profile.columns()["profile"]) == ("shapes", "quick")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mu: 2\n", "There is no parameter 'mu'. Did you mean mus.*Known: profile, attack"),
        ("seed: []\n", "seed: the list is empty"),
        ("seed: high\n", "The parameter seed takes int, and 'high' is str"),
        ("seed: -1\n", "seed=-1 is out of range"),
        ("profile: huge\n", "huge"),
        ("1: 2\n", "There is no parameter '1'"),
        ("seed: 0..999\ntarget: [0, 1]\npoison_rate: [0.1, 0.2]\ndraws: 1..50\n", "200,000 points are asked for"),
        ("mus: [[2, 2]]\n", r"mus=\[2.0, 2.0\] has a value twice"),
    ],
)
def test_bad_grids_of_a_notebook_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pages.read(written(tmp_path, text), "06", FOLDER, "quick")


def test_the_digest_is_short_and_its_own(tmp_path: Path) -> None:
    assert len(digest("a")) == 16 and digest("a") != digest("b")
