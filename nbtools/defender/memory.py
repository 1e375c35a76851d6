"""How much memory a piece of work takes at its highest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """What `peak` measured.

    Args:
        size: bytes above what was taken when the work began; 0 where the system can't tell.
    """

    size: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """While the context lasts, watch the memory; afterwards the yielded `Peak` knows the highest, in bytes.

    On a GPU it is what PyTorch's allocator had given out. On the CPU of a Linux system it is the process's resident
    memory, whose high-water mark is set back first: pages that an earlier piece of work left behind are used again
    and not counted, so it is a lower bound. Where there is no such mark, or it can't be set back, it is 0.

    Args:
        device: where the work is done.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.size = max(0, torch.cuda.max_memory_allocated(device) - before)
        return
    before = 0
    with suppress(OSError):
        CLEAR.write_text("5")  # proc(5): sets the high-water mark to what is resident now
        before = _resident("VmRSS")
    yield found
    if before:  # else the mark may be that of work long past
        found.size = max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """One of the process's counters in bytes, 0 where there is none."""
    with suppress(OSError):
        line = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        return 1024 * int(line[1]) if line else 0
    return 0
