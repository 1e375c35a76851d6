"""How things are said to people: times, sizes, unknown names, errors."""

import difflib
import re
from collections.abc import Iterable


class Plain(Exception):
    """Mixed into an error whose message is meant for a reader: sentences, given one by one.

    A notebook shows them instead of a traceback, each on a line of its own; as text they are one paragraph.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(" ".join(sentences))
        self.sentences = sentences

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:  # it comes from worker processes as well
        return type(self), self.sentences

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        first, *rest = self.sentences
        return [f"{type(self).__name__}: {first}", *(f"- {sentence}" for sentence in rest)]


class WrongParameter(Plain, ValueError):
    """A parameter of a notebook is not what it may be; nothing was computed yet."""


def duration(seconds: float) -> str:
    """Return seconds as a reader says them: "8.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def readable(size: float) -> str:
    """Return bytes as a reader says them: "312 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"


def known(kind: str, given: str, names: Iterable[str]) -> str:
    """Return the sentence for an unknown name: what was given, the closest known names, and all of them."""
    names = list(names)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"There is no {kind} {given!r}.{hint} Known: {', '.join(names) if names else 'none'}."


def last_line(error: BaseException) -> str:
    """Return the last line of an error as a reader knows it: "ValueError: mu must be positive"."""
    name = getattr(error, "ename", "") or type(error).__name__
    text = str(error.evalue) if hasattr(error, "evalue") else str(error)  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return f"{name}: {lines[-1]}" if lines else name
