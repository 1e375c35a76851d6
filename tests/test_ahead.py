"""What a series will need is ordered in the order of need, and trained by another process that ends with the run."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbtools import trained
from nbtools.ahead import orders, training_ahead
from nbtools.experiments import start
from nbtools.settings import PROFILES

ORDER = {"profile": "quick", "width": 16, "epochs": 1, "seed": 3}
CHILD = """
import runpy, sys
from dataclasses import replace
from nbtools import settings
settings.PROFILES["quick"] = replace(settings.PROFILES["quick"], train=64, reserved=40, test=40)
sys.argv = ["ahead", sys.argv[1]]
runpy.run_module("nbtools.ahead", run_name="__main__", alter_sys=True)
"""


def test_orders_come_in_the_order_of_need_each_once_and_without_the_first() -> None:
    common = {"profile": "", "poison_rate": 0.05, "target": 2, "width": 0, "epochs": 0, "seed": 1, "mu": 2.0}
    series = [
        {"profile": "", "images": 20},
        common | {"attack": "badnets"},
        common | {"attack": "badnets", "hard_attack": "blended"},
        common | {"attack": "badnets", "seed": 2, "profile": "laptop"},
    ]
    run = {"profile": "quick", "width": 0, "epochs": 0, "seed": 1}
    other = run | {"seed": 2, "profile": "laptop"}
    poisoned = {"poison_rate": 0.05, "target": 2}
    assert orders(series, "quick") == [
        run | {"attack": "none"},
        run | {"attack": "blended"} | poisoned,
        other | {"attack": "badnets"} | poisoned,
        other | {"attack": "none"},
    ]
    assert orders(series[:1], "quick") == [] and orders([], "quick") == []


def test_what_is_trained_ahead_is_what_a_notebook_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    popen, asked = subprocess.Popen, [ORDER | {"attack": "none"}]
    asked.append(ORDER | {"attack": "blended", "poison_rate": 0.25, "target": 1})
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def in_a_child(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "nbtools.ahead"]
        return popen([sys.executable, "-c", CHILD, command[3]], **options)

    monkeypatch.setattr(subprocess, "Popen", in_a_child)
    with training_ahead(asked):
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "models").glob("*/card.json"))) < 2:
            assert time.monotonic() < deadline, "no model came"
            time.sleep(0.1)
    monkeypatch.undo()
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("it was trained ahead"))
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], train=64, reserved=40, test=40))
    run = start(quiet=True, device="cpu", **ORDER)
    assert run.model("blended", 0.25, 1).card["history"] and run.clean_model().card["history"]


def test_nothing_is_trained_ahead_where_no_core_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with training_ahead([ORDER | {"attack": "none"}]):
        pass
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    with training_ahead([]), training_ahead([{"profile": "laptop", "attack": "none"}]):
        pass


def test_a_training_ahead_ends_with_the_process_that_asked() -> None:
    command = [sys.executable, "-m", "nbtools.ahead", json.dumps([{"profile": "quick", "attack": "none"}])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert child.stdin is not None and child.poll() is None
    child.stdin.close()
    assert child.wait(60) == 1
