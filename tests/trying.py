"""Tries a notebook's exercises in its own kernel: a first cell of the run calls `record`, its last one `report`."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from nbtools.series import checks

asked: dict[str, list[Callable[[Any], str]]] = {}
"""The exercise's function to its questions: each takes an answer and returns what the check printed."""
given: dict[str, list[Any]] = {}
"""The exercise's function to the answers of its solution, one a question."""


def record() -> None:
    """From now on every check of an exercise that was given an answer is remembered with what it was asked."""
    for name in ("same", "function"):
        setattr(checks, name, _remembering(getattr(checks, name)))


def _remembering(check: Callable[..., None]) -> Callable[..., None]:
    def remembered(answer: object, *rest: Any, **named: Any) -> None:
        if answer is not ...:
            frame = inspect.currentframe()
            assert frame and frame.f_back
            exercise = frame.f_back.f_code.co_name

            def ask(other: Any) -> str:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    check(other, *rest, **named)
                return printed.getvalue()

            asked.setdefault(exercise, []).append(ask)
            given.setdefault(exercise, []).append(answer)
        check(answer, *rest, **named)

    return remembered


class Strange:
    """What nobody would answer."""


ABSURD = (
    None, True, False, 0, 1, -1, 0.5, 100, 1e30, float("nan"), float("inf"), 1j, "", "a word", b"bytes", [], [1, "two"],
    [[1, 2], [3]], {}, {"a": 1}, set(), Strange, Strange(), len, lambda: None, lambda *_: None, lambda *_: 0,
    lambda *_: ..., torch.zeros(0), torch.tensor(1j), np.array(["a", "b"]),
)  # fmt: skip


def wrong(answer: Any) -> list[Any]:
    """Answers that are like the right one, and are not it."""
    if isinstance(answer, str):
        return [answer + "s", answer[:-1]]
    if isinstance(answer, Mapping):
        off = {name: float(value) + 1 for name, value in answer.items()}
        return [off, dict(list(answer.items())[1:]), {**answer, "more": 1.0}, dict.fromkeys(answer, 0.0)]
    if callable(answer):
        return [lambda *arguments: 2 * _tensor(answer(*arguments)) + 1, lambda *_: 1 / 0]
    right = _tensor(answer)
    shapes = [right[None], right.flatten()[:-1]] if right.numel() > 1 else [right[None].repeat(2)]
    return [
        *shapes,
        right + 0.1 * right.abs().max() + 1e-3,
        -right - 1,
        torch.zeros_like(right),
        torch.ones_like(right),
    ]


def _tensor(answer: Any) -> torch.Tensor:
    return answer.double() if isinstance(answer, torch.Tensor) else torch.as_tensor(np.asarray(answer, float))


def report() -> None:
    """Print one line of JSON: the exercise to what went wrong there."""
    problems: dict[str, list[str]] = {}
    for exercise, questions in asked.items():
        found = problems.setdefault(exercise, [])
        for ask, right in zip(questions, given[exercise], strict=True):
            cases = [(right, checks.RIGHT), (..., checks.NOT_TRIED)]
            cases += [(other, checks.NOT_YET) for other in (*wrong(right), *ABSURD)]
            for other, wanted in cases:
                try:
                    said = ask(other)
                except Exception as error:
                    said = f"raises {error!r}"
                if not said.startswith(wanted) or said.count("\n") != 1:
                    found.append(f"{other!r}: {said!r}")
    print(json.dumps({"exercises": problems}))
