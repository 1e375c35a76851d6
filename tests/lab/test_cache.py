"""The cache: exact round trips, one build among many askers, and nothing half-written whatever happens."""

import ast
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from torch import Tensor

from nbtools.lab import cache

CONFIG = {"attack": "badnets", "rate": 0.05, "seed": 0}
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PRELUDE = """
import os, signal, sys, time, torch
from pathlib import Path
from nbtools.lab import cache
root, config = Path(sys.argv[1]), {"attack": "badnets", "rate": 0.05, "seed": 0}
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def build(work):
    (work / "checkpoint").write_text("epoch 3")
    return {"x": torch.arange(1000)}, {}
"""


class Builder:
    """A build that counts its calls and notes the checkpoint that it found."""

    def __init__(self, tensors: dict[str, Tensor] | None = None, card: dict[str, Any] | None = None) -> None:
        self.tensors, self.card = tensors or {"weight": torch.arange(6.0).reshape(2, 3)}, card or {"accuracy": 0.91}
        self.calls, self.found = 0, ""

    def __call__(self, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.calls += 1
        self.found = (work / "checkpoint").read_text() if (work / "checkpoint").exists() else ""
        return self.tensors, self.card


def entry_path(root: Path) -> Path:
    return root / "model" / cache.key(CONFIG)


def names(root: Path) -> set[str]:
    """What lies beside the entry, without its key: "" is the entry itself."""
    return {path.name.removeprefix(cache.key(CONFIG)) for path in (root / "model").iterdir()}


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def child(root: Path, script: str) -> subprocess.Popen[str]:
    paths = [str(cache.ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRELUDE + script, str(root)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


# Round trips and keys


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS, ids=str)
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    full = bits.view(dtype).reshape(2, 3)  # any bits, so NaNs and infinities among them
    tensors = {"z": full, "scalar": full[0, 0], "empty": full[:0], "turned": full.T, "spread": full[:1].expand(4, 3)}
    for _ in range(2):
        got = cache.cached("model", CONFIG, Builder(tensors), tmp_path).tensors
        assert list(got) == list(tensors), "the builder's order is kept"
        for name, tensor in tensors.items():
            assert got[name].dtype == dtype
            assert got[name].shape == tensor.shape
            assert raw(got[name]) == raw(tensor), name


def test_channels_last_tied_weights_and_parameters(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    got = cache.cached("model", CONFIG, Builder({"a": weight, "tied": weight}), tmp_path).tensors
    assert torch.equal(got["a"], weight)
    assert torch.equal(got["tied"], weight)
    assert not got["a"].requires_grad
    got["a"].zero_()
    assert torch.equal(got["tied"], weight), "each tensor has its own memory"


def test_first_and_later_callers_get_the_same_card(tmp_path: Path) -> None:
    build = Builder(card={"accuracy": 0.91, "shape": (32, 32)})
    first, second = (cache.cached("model", {**CONFIG, "sizes": (1, 2)}, build, tmp_path) for _ in range(2))
    assert build.calls == 1
    assert first.card == second.card
    assert first.path == second.path
    assert first.card["accuracy"] == 0.91
    assert first.card["config"] == {**CONFIG, "sizes": [1, 2]}
    assert first.card["key"] == first.path.name
    assert first.card["created"].endswith("+00:00")
    assert first.card["bytes"] == (first.path / "tensors.safetensors").stat().st_size
    assert first.card["tensors"] == {"weight": "float32 [2, 3]"}
    assert {path.suffix for path in first.path.parent.iterdir()} == {"", ".lock"}, "nothing else is left"


def test_key() -> None:
    assert cache.key({"a": 1, "b": [0.1, None]}) == "e4a9ad4b968106893e46", "a new key would orphan every cache"
    assert cache.key({"a": {"x": 1, "y": 2}, "b": 3}) == cache.key({"b": 3, "a": {"y": 2, "x": 1}})
    assert cache.key({"a": (1, 2)}) == cache.key({"a": [1, 2]})
    values = [1, 2, 1.0, True, "1", None, [1], {"a": 1}, 1e-300, "\ud800", ""]
    assert len({cache.key({"a": value}) for value in values}) == len(values)


@pytest.mark.parametrize("value", [math.nan, -math.inf, {1: 2}, {None: 1}, {1, 2}, b"x", Path("x"), torch.ones(2), len])
def test_what_json_cannot_hold_is_refused(tmp_path: Path, value: object) -> None:
    build = Builder()
    with pytest.raises(ValueError, match=r'config\["train"\]\[1\] is .* which JSON cannot hold; give None'):
        cache.cached("model", {"train": [0, value]}, build, tmp_path)
    assert build.calls == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("card", [{"loss": math.nan}, {"sha256": "mine"}])
def test_bad_card_is_refused(tmp_path: Path, card: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(card))):
        cache.cached("model", CONFIG, Builder(card=card), tmp_path)
    assert names(tmp_path) == {".work", ".lock"}


@pytest.mark.parametrize("kind", ["", "..", "a/b", "Model", "/etc", "-x"])
def test_bad_kind_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="kind is"):
        cache.cached(kind, CONFIG, Builder(), tmp_path)


def test_no_pickle(tmp_path: Path) -> None:
    data = (cache.cached("model", CONFIG, Builder(), tmp_path).path / "tensors.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["weight"]["dtype"] == "F32"
    tree = list(ast.walk(ast.parse(Path(cache.__file__).read_text())))
    imported = {alias.name for node in tree if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    called = {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)}
    assert not imported & {"pickle", "dill", "joblib", "shelve"}
    assert not called & {"torch.load", "torch.save"}


# Places


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    monkeypatch.delenv("NBTOOLS_CACHE", raising=False)
    assert cache.folder() == platformdirs.user_cache_path("nbtools")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data").mkdir()
    assert cache.folder() == tmp_path.resolve() / "data" / "cache"
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "chosen"))
    assert cache.folder() == tmp_path / "chosen"
    assert cache.size() == 0
    entry = cache.cached("model", CONFIG, Builder())
    assert entry.path.parent == tmp_path / "chosen" / "model"
    assert cache.size() == sum(path.stat().st_size for path in entry.path.iterdir())


# Several askers, and kills


def test_two_processes_build_once(tmp_path: Path) -> None:
    script = """
def build(work):
    with open(root / "built", "a") as file:
        file.write("x")
    time.sleep(0.5)
    return {"x": torch.arange(3)}, {"by": os.getpid()}
(root / f"ready{os.getpid()}").touch()
while not (root / "go").exists():
    time.sleep(0.005)
print("by", cache.cached("model", config, build, root).card["by"])
"""
    children = [child(tmp_path, script) for _ in range(2)]
    until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0] for process in children]
    assert [process.returncode for process in children] == [0, 0]
    assert (tmp_path / "built").read_text() == "x"
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]


def test_waiting_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, go, second = threading.Event(), threading.Event(), Builder()

    def slow(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        inside.set()
        assert go.wait(60)
        return {}, {}

    threads = [threading.Thread(target=cache.cached, args=("model", CONFIG, b, tmp_path)) for b in (slow, second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return bool(said)

    until(heard)
    go.set()
    for thread in threads:
        thread.join(60)
    assert said == f"Another process is building model/{cache.key(CONFIG)}; waiting for it.\n"
    assert second.calls == 0


def test_kill_in_the_middle_of_build(tmp_path: Path) -> None:
    process = child(tmp_path, "cache.cached('model', config, lambda work: (build(work), time.sleep(99))[0], root)")
    checkpoint = entry_path(tmp_path).with_suffix(".work") / "checkpoint"
    until(lambda: checkpoint.exists() and checkpoint.read_text() == "epoch 3")
    process.kill()
    process.communicate(timeout=60)
    assert names(tmp_path) == {".work", ".lock"}
    again = Builder()
    cache.cached("model", CONFIG, again, tmp_path)
    assert again.found == "epoch 3"
    assert names(tmp_path) == {"", ".lock"}


HALF = "def half(self, data):\n    open(self, 'wb', 0).write(data[:99])\n    die()\nPath.write_bytes = half\n"
LATE = "rename = os.rename\ndef late(*names):\n    rename(*names)\n    die()\nos.rename = late\n"
KILLS = {
    "tensors half written": HALF,
    "before the first sync": "os.fsync = die\n",
    "before the rename": "os.rename = die\n",
}


@pytest.mark.parametrize("patch", [*KILLS.values(), LATE], ids=[*KILLS, "after the rename"])
def test_kill_in_the_middle_of_writing(tmp_path: Path, patch: str) -> None:
    process = child(tmp_path, patch + "cache.cached('model', config, build, root)")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == ({".work", ".lock", ""} if patch == LATE else {".work", ".lock", ".tmp"})
    again = Builder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.cached("model", CONFIG, again, tmp_path)
    assert (again.calls, again.found) == ((0, "") if patch == LATE else (1, "epoch 3"))
    assert patch == LATE or names(tmp_path) == {"", ".lock"}


# Damage


def edit_card(path: Path, **changes: object) -> None:
    card = path / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def flip_last_byte(path: Path) -> None:
    data = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def swap_with_another(path: Path) -> None:
    other = cache.cached("model", {**CONFIG, "seed": 1}, Builder(), path.parents[1]).path
    shutil.rmtree(path)
    other.rename(path)


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors truncated": (lambda p: os.truncate(p / "tensors.safetensors", 50), "not as it was written .50 bytes now"),
    "tensors empty": (lambda p: os.truncate(p / "tensors.safetensors", 0), "tensors.safetensors is not as it was"),
    "one bit flipped": (flip_last_byte, "tensors.safetensors is not as it was written"),
    "tensors missing": (lambda p: (p / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
    "card missing": (lambda p: (p / "card.json").unlink(), "card.json is missing"),
    "card truncated": (lambda p: os.truncate(p / "card.json", 50), "card.json cannot be read as a card"),
    "card is bytes": (lambda p: (p / "card.json").write_bytes(b"\xff\xfe\xfd"), "cannot be read as a card"),
    "card is a list": (lambda p: (p / "card.json").write_text("[]"), "cannot be read as a card"),
    "card is a dict": (lambda p: (p / "card.json").write_text("{}"), "has the format None"),
    "card holds NaN": (lambda p: edit_card(p, accuracy=math.nan), "cannot be read as a card"),
    "a number edited": (lambda p: edit_card(p, accuracy=0.99), "card.json is not as it was written"),
    "config edited": (lambda p: edit_card(p, config={**CONFIG, "seed": 1}), "card.json is not as it was written"),
    "another entry": (swap_with_another, "belongs to another configuration"),
    "a later format": (lambda p: edit_card(p, format=2), "has the format 2, and this version reads 1"),
    "a file": (become_a_file, "card.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_set_aside_and_rebuilt(tmp_path: Path, name: str) -> None:
    build, (damage, reason) = Builder(), DAMAGE[name]
    path = cache.cached("model", CONFIG, build, tmp_path).path
    damage(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else path.read_bytes()
    with pytest.warns(UserWarning, match=f"damaged: .*{reason}.* set aside as .* built again") as caught:
        got = cache.cached("model", CONFIG, build, tmp_path)
    assert [warning.filename for warning in caught] == [__file__], "one warning, which points at the asker"
    assert build.calls == 2
    assert torch.equal(got.tensors["weight"], build.tensors["weight"])
    (aside,) = path.parent.glob(f"{path.name}.damaged-*Z")
    after = {file.name: file.read_bytes() for file in aside.iterdir()} if aside.is_dir() else aside.read_bytes()
    assert after == before, "what was found is kept as it was found"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.cached("model", CONFIG, build, tmp_path)
    assert build.calls == 2


# Folders that cannot be used, full disks, and builds that fail


@pytest.mark.parametrize("below", ["file", "file/deeper/still"])
def test_folder_at_or_below_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    build = Builder()
    with pytest.raises(
        OSError, match=f"The cache folder {tmp_path / below}/model cannot be used: .* Set NBTOOLS_CACHE"
    ):
        cache.cached("model", CONFIG, build, tmp_path / below)
    assert build.calls == 0


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    build = Builder()
    with pytest.raises(PermissionError, match=r"/model cannot be used: Permission denied\. Set NBTOOLS_CACHE"):
        cache.cached("model", CONFIG, build, tmp_path)
    assert build.calls == 0


def test_read_only_disk_serves_what_it_has(disk: Path) -> None:
    build = Builder()
    cache.cached("model", CONFIG, build, disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert torch.equal(cache.cached("model", CONFIG, build, disk).tensors["weight"], build.tensors["weight"])
    with pytest.raises(OSError, match=r"cannot be used: Read-only file system\. Set NBTOOLS_CACHE") as caught:
        cache.cached("model", {"other": 1}, build, disk)
    assert caught.value.errno == errno.EROFS
    assert build.calls == 1


def test_full_disk(disk: Path) -> None:
    class Large(Builder):
        def __call__(self, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            super().__call__(work)
            (work / "checkpoint").write_text("epoch 3")
            return {"x": torch.zeros(500_000)}, {}

    build = Large()
    with pytest.raises(OSError, match=r"No space left on device: this entry needs 2,000,\d{3} bytes and [\d,]+ bytes"):
        cache.cached("model", CONFIG, build, disk)
    assert names(disk) == {".work", ".lock"}
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(
        OSError, match=f"No space left on device: 0 bytes are free in {disk}/model. No entry was written"
    ):
        cache.cached("model", CONFIG, build, disk)
    assert build.calls == 1, "no work is begun on a disk that is full already"
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    assert cache.cached("model", CONFIG, build, disk).tensors["x"].numel() == 500_000
    assert build.found == "epoch 3"
    assert names(disk) == {"", ".lock"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=rf"{os.strerror(code)}: this entry needs [\d,]+ bytes and [\d,]+ bytes"):
            cache.cached("model", CONFIG, Builder(), tmp_path)
    assert names(tmp_path) == {".work", ".lock"}
    assert cache.cached("model", CONFIG, Builder(), tmp_path).card["accuracy"] == 0.91


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.ENOSPC, "mine"), KeyboardInterrupt()], ids=repr)
def test_what_build_raises_passes_unchanged(tmp_path: Path, error: BaseException) -> None:
    def fail(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        (work / "checkpoint").write_text("epoch 1")
        raise error

    with pytest.raises(type(error)) as caught:
        cache.cached("model", CONFIG, fail, tmp_path)
    assert caught.value is error
    assert names(tmp_path) == {".work", ".lock"}
    again = Builder()
    cache.cached("model", CONFIG, again, tmp_path)
    assert again.found == "epoch 1"
