"""The memory that a piece of work takes: a known block is seen, a missing counter is no number, never below zero."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nbtools.defender import memory
from nbtools.defender.memory import peak

CPU = torch.device("cpu")
MB = 2**20
linux = pytest.mark.skipif(not os.access(memory.CLEAR, os.W_OK), reason="the system has no mark that can be set back")


def counters(folder: Path, monkeypatch: pytest.MonkeyPatch, status: str | None) -> Path:
    """Take the place of the system's files; without `status` there are none."""
    path = folder / "status"
    if status is not None:
        path.write_text(status)
        (folder / "clear_refs").touch()
    monkeypatch.setattr(memory, "STATUS", path)
    monkeypatch.setattr(memory, "CLEAR", folder / ("clear_refs" if status is not None else "no folder/clear_refs"))
    return path


def take(size: int) -> mmap.mmap:
    """Fresh pages from the system, all touched: what malloc hands out may have been resident before."""
    pages = mmap.mmap(-1, size * MB)
    np.frombuffer(pages, dtype=np.uint8)[:] = 1
    return pages


@linux
@pytest.mark.parametrize("size", [16, 48])
def test_a_block_of_known_size_is_seen(size: int) -> None:
    with peak(CPU) as found:
        take(size).close()
    assert 0.9 * size * MB <= found.size <= size * MB + 8 * MB


@linux
def test_the_highest_counts_and_not_the_sum() -> None:
    with peak(CPU) as found:
        for _ in range(4):
            take(32).close()
    assert 0.9 * 32 * MB <= found.size <= 32 * MB + 8 * MB


@linux
def test_what_was_taken_before_is_not_counted() -> None:
    kept = take(48)
    take(48).close()
    with peak(CPU) as found:
        torch.ones(1000)
    assert found.size < 8 * MB and kept[-1] == 1


def test_the_number_is_the_rise_of_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = counters(tmp_path, monkeypatch, "Name:\tpython\nVmHWM:\t    900 kB\nVmRSS:\t    500 kB\n")
    with peak(CPU) as found:
        assert memory.CLEAR.read_text() == "5", "the mark is set back first"
        path.write_text("VmPeak:\t 9999 kB\nVmHWM:\t    750 kB\nVmRSS:\t    600 kB\n")
    assert found.size == 250 * 1024


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        ("Name:\tpython\n", "Name:\tpython\n"),
        ("VmHWM:\t 900 kB\n", "VmHWM:\t 900 kB\n"),
        ("VmRSS:\t 500 kB\n", "VmRSS:\t 700 kB\n"),
        ("VmRSS:\t 500 kB\nVmHWM:\t 900 kB\n", "VmRSS:\t 300 kB\nVmHWM:\t 400 kB\n"),
    ],
    ids=["no files", "no counters", "no resident size", "no mark", "a mark below the start"],
)
def test_what_can_not_be_told_is_zero(
    before: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = counters(tmp_path, monkeypatch, before)
    with peak(CPU) as found:
        if after is not None:
            path.write_text(after)
    assert found.size == 0


def test_a_mark_that_can_not_be_set_back_is_not_taken_for_this_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters(tmp_path, monkeypatch, "VmRSS:\t 500 kB\nVmHWM:\t 90000 kB\n")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "no folder" / "clear_refs")
    with peak(CPU) as found:
        assert found.size == 0
    assert found.size == 0


def test_an_error_inside_comes_out() -> None:
    with pytest.raises(KeyError, match="lost"), peak(CPU):
        raise KeyError("lost")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_block_on_the_gpu_is_seen_to_the_byte() -> None:
    device = torch.device("cuda")
    kept = torch.ones(8 * MB, device=device)
    with peak(device) as found:
        block = torch.ones(32 * MB // 4, device=device)
        del block
    assert found.size == 32 * MB and len(kept)
