"""Installing into a kernel without nbtools: what pip is asked for, what is kept, and what a reader is told."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from nbtools.series import install as installing
from nbtools.series.install import FRONT, InstallError, install, requirements, satisfied
from nbtools.settings import ROOT


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Pip's commands, which do nothing; of the file with constraints its lines stand in the command."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> SimpleNamespace:
        kept = [Path(word).read_text() for word in command if word.endswith("kept.txt")]
        commands.append([*command, *kept])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return commands


def test_what_is_asked_of_pip(pip: list[list[str]], tmp_path: Path) -> None:
    said: list[str] = []
    install(ROOT, said.append)
    needs, itself = pip
    assert needs[:4] == [sys.executable, "-m", "pip", "install"] == itself[:4]
    asked = {Requirement(word).name for word in needs[8:-1]}
    assert {"torch", "pandas", "seaborn", "torch-pruning"} <= asked and not asked & FRONT
    assert needs[-1] == f"torch=={version('torch')}\ntorchvision=={version('torchvision')}\n", "they stay as they are"
    assert itself[-3:] == ["--no-deps", "--editable", str(ROOT)] and sys.path[0] == str(ROOT)
    assert len(said) == 2


def test_only_what_will_do_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {name: Requirement(text) for name, text in (("torch", "torch>=2"), ("torchvision", "torchvision>=99"))}
    needed["no-such-package"] = Requirement("no-such-package")
    assert satisfied(needed) == {"torch": version("torch")}
    assert {*requirements(ROOT)} | FRONT >= FRONT and not FRONT & {*requirements(ROOT)}


def test_a_failure_of_pip_is_told_in_its_own_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "".join(f"line {number}\n\n" for number in range(9))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    with pytest.raises(InstallError, match=r"It says: line 6 line 7 line 8$"):
        install(ROOT, lambda _: None)


def test_a_package_that_is_in_use_and_was_replaced_asks_for_a_new_kernel(
    pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    assert pandas
    monkeypatch.setattr(installing, "_version", lambda name: f"{len(pip)}" if name == "pandas" else "1")
    with pytest.raises(InstallError, match=r"still holds an older pandas\. Restart it") as told:
        install(ROOT, lambda _: None)
    assert told.value._render_traceback_()[1].startswith("- Restart it")
