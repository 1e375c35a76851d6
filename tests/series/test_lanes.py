"""Jobs run side by side in processes that end when they are told to; what a series will need is trained there first."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nbtools.lab import trained
from nbtools.lab.experiments import start
from nbtools.lab.zoo import zoo
from nbtools.series import ahead
from nbtools.series.ahead import lanes, orders, train
from nbtools.series.lanes import Job, Lanes, Message
from nbtools.settings import PROFILES

ORDER = {"profile": "quick", "width": 16, "epochs": 1, "seed": 3}


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def meet(mine: Path, other: Path) -> None:
    """A job that ends only when another runs at the same time."""
    mine.touch()
    until(other.exists)


def parts_of_a_job() -> Iterator[tuple[str, float]]:
    """A job that says that it is halfway, with a setting of the moment in which it began."""
    yield os.environ["NBTOOLS_CACHE"], 1.5


def fail() -> None:
    """A job that fails."""
    raise ValueError("mu is wrong")


def die() -> None:
    """A job whose process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(told: Path) -> None:
    """A job that never ends by itself, and has something to put away when it is interrupted."""
    told.write_text(str(os.getpid()))
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(0.2)
        told.write_text("put away")
        raise


def all_messages(active: Lanes) -> list[Message]:
    """Everything until no job runs."""
    found = []
    while active.running:
        found += active.messages()
    return found


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    with Lanes(2) as active:
        active.start(Job("one", meet, (one, two)))
        assert active.free
        active.start(Job("two", meet, (two, one)))
        assert not active.free and [job.name for job in active.running] == ["one", "two"]
        assert [m.kind for m in all_messages(active)] == ["done", "done"] and active.free


def test_a_job_says_what_is_ready_and_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    with Lanes(1) as active:
        active.start(Job("parts", parts_of_a_job))
        part, end = all_messages(active)
        assert (part.kind, part.text, part.seconds) == ("part", str(tmp_path), 1.5)
        assert end.kind == "done" and 0 < end.seconds < 60
        active.start(Job("fail", fail))
        (end,) = all_messages(active)
        assert (end.job.name, end.kind, end.text) == ("fail", "failed", "mu is wrong")
        active.start(Job("die", die))
        (end,) = all_messages(active)
        assert (end.kind, end.text) == ("failed", "its process ended with code -9")


def test_an_interrupted_job_puts_its_things_away(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    with Lanes(2) as active:
        for told in (first, second):
            active.start(Job(told.name, sleep, (told,)))
            until(lambda told=told: told.exists() and bool(told.read_text()))
        os.kill(int(first.read_text()), signal.SIGINT)  # what a terminal does, before the runner does it again
        assert {m.job.name: m.kind for m in active.interrupt()} == {"1": "interrupted", "2": "interrupted"}
        assert first.read_text() == second.read_text() == "put away" and not active.running
        active.start(Job("again", sleep, (first,)))
        until(lambda: first.read_text() not in ("", "put away"))
    assert first.read_text() == "put away", "the end of the context interrupts as well"


def test_a_job_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    told, script = tmp_path / "told", tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path\nfrom nbtools.series.lanes import Job, Lanes\nimport test_lanes\n"
        "if __name__ == '__main__':\n    with Lanes(1) as active:\n"
        f"        active.start(Job('sleep', test_lanes.sleep, (Path({str(told)!r}),)))\n"
        "        list(active.messages())\n"
    )
    asking = subprocess.Popen([sys.executable, str(script)])
    until(lambda: told.exists() and bool(told.read_text()))
    asking.kill()
    asking.wait()
    place = Path("/proc") / told.read_text()
    if place.parent.is_dir():
        until(lambda: not place.exists(), 20)


def test_orders_come_in_the_order_of_need_each_once() -> None:
    common = {"profile": "", "poison_rate": 0.05, "target": 2, "width": 0, "epochs": 0, "seed": 1, "mu": 2.0}
    series = [
        {"profile": "", "images": 20},
        common | {"attack": "badnets"},
        common | {"attack": "badnets", "hard_attack": ""},
        {name: value for name, value in (common | {"attack": "badnets"}).items() if name not in ("width", "epochs")},
        common | {"attack": "badnets", "hard_attack": "wanet"},
        common | {"attack": "badnets", "hard_attack": "", "seed": 2, "profile": "laptop"},
    ]
    run = {"profile": "quick", "width": 0, "epochs": 0, "seed": 1}
    other = run | {"seed": 2, "profile": "laptop"}
    poisoned = {"poison_rate": 0.05, "target": 2}
    assert orders(series, "quick") == [
        run | {"attack": "badnets"} | poisoned,
        run | {"attack": "none"},
        run | {"attack": "wanet"} | poisoned,
        other | {"attack": "badnets"} | poisoned,
        other | {"attack": "none"},
        other | {"attack": "blended"} | poisoned,
    ]
    assert orders(series[:1], "quick") == [] and orders([], "quick") == []


def test_a_zoo_is_ordered_after_the_models_of_its_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], zoo=3))
    given = {"profile": "", "attack": "sig", "zoo_attacks": ["badnets", "blended"], "poison_rate": 0.1, "seed": 4}
    given |= {"zoo_rate": 0.2}
    found = [(order["attack"], order.get("member"), order.get("poison_rate")) for order in orders([given], "quick")]
    assert found == [
        ("sig", None, 0.1), ("none", None, None), ("none", 0, None), ("badnets", 0, 0.2), ("none", 1, None),
        ("blended", 1, 0.2), ("none", 2, None), ("badnets", 2, 0.2),
    ]  # fmt: skip
    assert {order["seed"] for order in orders([given], "quick")} == {4}, "a member's own seed is the zoo's affair"
    left_open = {order["attack"] for order in orders([given | {"zoo_attacks": []}], "quick")}
    assert left_open == {"sig", "none", *PROFILES["quick"].zoo_attacks}


def test_a_zoo_trained_ahead_is_the_one_that_a_notebook_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    tiny = replace(PROFILES["quick"], train=64, reserved=40, test=40, zoo=2, zoo_train=48, zoo_epochs=1)
    monkeypatch.setitem(PROFILES, "quick", tiny)
    given = {"zoo_attacks": ["badnets", "blended"], "zoo_rate": 0.25, "poison_rate": 0.05, "target": 1}
    asked = orders([ORDER | given], "quick")
    assert [name for name, _ in train(asked)] == ["clean", "badnets 25 %, to 1", "clean", "blended 25 %, to 1"]
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("it was trained ahead"))
    models = list(zoo(start(quiet=True, device="cpu", **ORDER), ["badnets", "blended"], 0.25, 1))
    assert [model.card["config"]["seed"] for model in models] == [103, 103, 104, 104]


def test_what_is_trained_ahead_is_what_a_notebook_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], train=64, reserved=40, test=40))
    asked = [ORDER | {"attack": "none"}, ORDER | {"attack": "blended", "poison_rate": 0.25, "target": 1}]
    ready = list(train(asked))
    assert [name for name, _ in ready] == ["clean", "blended 25 %, to 1"] and min(seconds for _, seconds in ready) > 0
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("it was trained ahead"))
    run = start(quiet=True, device="cpu", **ORDER)
    assert run.model("blended", 0.25, 1).card["history"] and run.clean_model().card["history"]
    time.sleep(1.01)  # a card's time of birth is in whole seconds
    assert list(train(asked)) == [], "found, and nothing to say"


def test_lanes_leave_every_training_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "default_device", lambda: trained.torch.device("cpu"))
    for cores, found in ((None, 1), (1, 1), (2, 2), (3, 3), (64, 4)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert (lanes("quick"), lanes("laptop")) == (found, 1)
    monkeypatch.setattr(ahead, "default_device", lambda: trained.torch.device("cuda"))
    assert lanes("quick") == 1
