"""What a notebook will ask for is told from its parameters, and what is trained ahead is what it then finds."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from nbtools.lab import ready, trained
from nbtools.lab.experiments import start
from nbtools.lab.orders import orders, train
from nbtools.lab.zoo import zoo
from nbtools.series import run as running
from nbtools.series.run import lanes
from nbtools.settings import PROFILES

ORDER = {"profile": "quick", "width": 16, "epochs": 1, "seed": 3}


def test_orders_come_in_the_order_of_need() -> None:
    common = {"profile": "", "poison_rate": 0.05, "target": 2, "width": 0, "epochs": 0, "seed": 1, "mu": 2.0}
    run = {"profile": "quick", "width": 0, "epochs": 0, "seed": 1}
    poisoned = {"poison_rate": 0.05, "target": 2}
    two = [run | {"attack": "badnets"} | poisoned, run | {"attack": "none"}]
    assert orders({"profile": "", "images": 20}, "quick") == []
    assert orders(common | {"attack": "badnets"}, "quick") == two
    assert orders(common | {"attack": "badnets", "hard_attack": ""}, "quick") == two
    short = {name: value for name, value in (common | {"attack": "badnets"}).items() if name not in ("width", "epochs")}
    assert orders(short, "quick") == two
    three = [*two, run | {"attack": "wanet"} | poisoned]
    assert orders(common | {"attack": "badnets", "hard_attack": "wanet"}, "quick") == three
    other = run | {"seed": 2, "profile": "laptop"}
    assert orders(common | {"attack": "badnets", "hard_attack": "", "seed": 2, "profile": "laptop"}, "quick") == [
        other | {"attack": "badnets"} | poisoned,
        other | {"attack": "none"},
        other | {"attack": "blended"} | poisoned,
    ]


def test_a_zoo_is_ordered_after_the_models_of_its_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], zoo=3))
    given = {"profile": "", "attack": "sig", "zoo_attacks": ["badnets", "blended"], "poison_rate": 0.1, "seed": 4}
    given |= {"zoo_rate": 0.2}
    found = [(order["attack"], order.get("member"), order.get("poison_rate")) for order in orders(given, "quick")]
    assert found == [
        ("sig", None, 0.1), ("none", None, None), ("none", 0, None), ("badnets", 0, 0.2), ("none", 1, None),
        ("blended", 1, 0.2), ("none", 2, None), ("badnets", 2, 0.2),
    ]  # fmt: skip
    assert {order["seed"] for order in orders(given, "quick")} == {4}, "a member's own seed is the zoo's affair"
    left_open = {order["attack"] for order in orders(given | {"zoo_attacks": []}, "quick")}
    assert left_open == {"sig", "none", *PROFILES["quick"].zoo_attacks}


def test_a_zoo_trained_ahead_is_the_one_that_a_notebook_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    tiny = replace(PROFILES["quick"], train=64, reserved=40, test=40, zoo=2, zoo_train=48, zoo_epochs=1)
    monkeypatch.setitem(PROFILES, "quick", tiny)
    given = {"zoo_attacks": ["badnets", "blended"], "zoo_rate": 0.25, "poison_rate": 0.05, "target": 1}
    asked = orders(ORDER | given, "quick")
    ready = [name for order in asked for name, _ in [train(order) or ("", 0)]]
    assert ready == ["clean", "badnets 25 %, to 1", "clean", "blended 25 %, to 1"]
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("it was trained ahead"))
    models = list(zoo(start(quiet=True, device="cpu", **ORDER), ["badnets", "blended"], 0.25, 1))
    assert [model.card["config"]["seed"] for model in models] == [103, 103, 104, 104]


def test_what_is_trained_ahead_is_what_a_notebook_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], train=64, reserved=40, test=40))
    asked = [ORDER | {"attack": "none"}, ORDER | {"attack": "blended", "poison_rate": 0.25, "target": 1}]
    trainings = [train(order) or ("", 0.0) for order in asked]
    assert [name for name, _ in trainings] == ["clean", "blended 25 %, to 1"]
    assert min(seconds for _, seconds in trainings) > 0
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("it was trained ahead"))
    run = start(quiet=True, device="cpu", **ORDER)
    assert run.model("blended", 0.25, 1).card["history"] and run.clean_model().card["history"]
    time.sleep(1.01)  # a card's time of birth is in whole seconds
    assert [train(order) for order in asked] == [None, None], "found, and nothing to say"
    for number, model in enumerate((run.clean_model(), run.model("blended", 0.25, 1))):
        ready.write(tmp_path / "ready" / f"{number}.safetensors", model.model.state_dict(), model.card)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("NBTOOLS_MODELS", str(tmp_path / "ready"))
    assert [train(order) for order in asked] == [None, None], "it lay ready: nothing was trained"


def test_lanes_leave_every_training_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "default_device", lambda: trained.torch.device("cpu"))
    for cores, found in ((None, 1), (1, 1), (2, 2), (3, 3), (64, 4)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert (lanes("quick"), lanes("laptop")) == (found, 1)
    monkeypatch.setattr(running, "default_device", lambda: trained.torch.device("cuda"))
    assert lanes("quick") == 1
