"""What `doctor` tells."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from nbtools import settings
from nbtools.__main__ import main
from nbtools.series import doctor


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "not" / "yet"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    names = {line[: result.output.index(sys.version.split()[0])].strip() for line in result.output.splitlines()}
    assert {
        "Python",
        "nbtools",
        "torch",
        "papermill",
        "GPU",
        "bf16",
        "Data: cifar10",
        "Cache",
        "Free disk there",
    } <= names
    assert str(tmp_path / "not" / "yet") in result.output


@pytest.mark.parametrize(
    ("asked", "able", "said", "mended"),
    [
        ("0", True, "with NBTOOLS_BF16=1 this processor would use it", False),
        ("1", True, "used", False),
        ("1", False, "this processor has no instructions for it", False),
        ("yes", True, "NBTOOLS_BF16 is 1", True),
    ],
)
def test_doctor_tells_of_bf16(monkeypatch: pytest.MonkeyPatch, asked: str, able: bool, said: str, mended: bool) -> None:
    monkeypatch.setenv("NBTOOLS_BF16", asked)
    monkeypatch.setattr(settings, "cpu_computes_bf16", lambda: able)
    monkeypatch.setattr(settings, "default_device", lambda: torch.device("cpu"))
    result = CliRunner().invoke(main, ["doctor"])
    line = next(line for line in result.output.splitlines() if line.startswith("bf16"))
    assert said in line and ("<- to mend" in line) is mended


def test_doctor_tells_a_version_below_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"nbtools": "0.1.0", "torch": "2.10.0+cpu", "numpy": "2.0.0", "nbconvert": "7.16.4", "pytest": "9.0"}

    def found(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    needed = ["torch>=2.11,!=2.13.0", "numpy>=2.0", "pandas>=3.1"]
    needed += ['nbconvert>=7.16.5; extra == "book"', 'pytest>=8.3; extra == "dev"', 'timm>=1.0; extra == "timm"']
    monkeypatch.setattr(doctor, "requires", lambda _name: needed)
    monkeypatch.setattr(doctor, "version", found)
    rows = {row.name: row for row in doctor.examine()}
    assert not {"pytest", "timm"} & set(rows) and rows["numpy"].fine
    told = {name: rows[name].found for name in ("torch", "pandas", "nbconvert") if not rows[name].fine}
    assert told == {
        "torch": "2.10.0+cpu; !=2.13.0,>=2.11 is needed",
        "pandas": "missing; >=3.1 is needed",
        "nbconvert": "7.16.4; >=7.16.5 is needed",
    }
