"""What an exercise's check says: one gentle line, and never the answer; and what the notebooks assert of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbtools.lab.trained import Trained

Number = Tensor | np.ndarray | float | Sequence[float]
Expected = Number | str | Mapping[str, float]

NOT_TRIED = "not tried yet: replace the dots, then run this cell again"
RIGHT = "right"
NOT_YET = "not right yet: "


def same(answer: object, expected: Expected | Callable[[], Expected], hint: str, tolerance: float = 1e-4) -> None:
    """Say whether an exercise's answer is the expected one; whatever was answered, one line is printed.

    Args:
        answer: what the reader computed; `...` means that it was not tried yet.
        expected: numbers of any shape, a word, or a dictionary from names to numbers; or a function that returns it,
            which is called only when there is an answer to compare.
        hint: what to look at where they differ: the way, not the answer.
        tolerance: relative, measured against the largest expected magnitude.
    """
    if answer is ...:
        print(NOT_TRIED)
        return
    wrong = _difference(answer, expected() if callable(expected) else expected, tolerance)
    print(f"{NOT_YET}{wrong}; {hint}" if wrong else RIGHT)


def function(
    answer: object, cases: Sequence[tuple[tuple[Any, ...], Expected]], hint: str, tolerance: float = 1e-4
) -> None:
    """Say whether a function that the reader wrote returns what it should; see `same`.

    Args:
        answer: the reader's function; `...` means that it was not tried yet.
        cases: arguments, and what is expected for them; at least one, and some that the notebook does not show.
        hint: what to look at where they differ.
        tolerance: as for `same`.
    """
    if answer is ...:
        print(NOT_TRIED)
        return
    if not callable(answer):
        print(f"{NOT_YET}a function is asked for, this is {_kind(answer)}; {hint}")
        return
    for arguments, expected in cases:
        try:
            returned = answer(*arguments)
        except Exception as error:  # the reader's code; whatever it raises becomes a line
            told = " ".join(str(error).split())
            print(f"{NOT_YET}the function raises {type(error).__name__}: {told}; {hint}")
            return
        missing = "it still returns `...`" if returned is ... else "it returns nothing" if returned is None else ""
        if wrong := missing or _difference(returned, expected, tolerance):
            print(f"{NOT_YET}{wrong}; {hint}")
            return
    print(RIGHT)


def _difference(answer: object, expected: Expected, tolerance: float) -> str:
    """What is wrong with an answer, in a few words that do not tell the right one; "" where nothing is."""
    if isinstance(expected, str):
        if not isinstance(answer, str):
            return f"a word is asked for, this is {_kind(answer)}"
        return "" if answer.strip().casefold() == expected.casefold() else "it is another one"
    if isinstance(expected, Mapping):
        if not isinstance(answer, Mapping):
            return f"a dictionary is asked for, this is {_kind(answer)}"
        mine = {str(name): value for name, value in answer.items()}
        if strange := set(mine) ^ set(expected):
            return f"its keys should be {', '.join(expected)}: look at {', '.join(sorted(strange))}"
        return _difference([mine[name] for name in expected], list(expected.values()), tolerance)
    right = torch.as_tensor(expected).detach().double().cpu()
    mine = _numbers(answer)
    if mine is None:
        return f"{'a number is' if right.ndim == 0 else 'numbers are'} asked for, this is {_kind(answer)}"
    if mine.shape != right.shape:
        if right.ndim == 0:
            return f"one number is asked for, these are {mine.numel()}"
        return f"the shape should be {list(right.shape)}, this is {list(mine.shape)}"
    if bool(mine.isnan().any()) and not bool(right.isnan().any()):
        return "not a number (nan)" if right.ndim == 0 else f"{int(mine.isnan().sum())} of its values are nan"
    off = ~torch.isclose(mine, right, rtol=0, atol=tolerance * _largest(right), equal_nan=True)
    if not bool(off.any()):
        return ""
    if right.ndim == 0:
        return "it is too large" if bool(mine > right) else "it is too small"
    return f"{int(off.sum())} of its {right.numel()} values are off"


def _largest(numbers: Tensor) -> float:
    """The largest finite magnitude, and a small number where all are zero."""
    magnitudes = numbers[numbers.isfinite()].abs()
    return max(float(magnitudes.max()), 1e-12) if magnitudes.numel() else 1.0


def _numbers(answer: object) -> Tensor | None:
    """An answer as float64 on the CPU; None where it holds no numbers."""
    if isinstance(answer, str | bytes | Mapping) or answer is None:
        return None
    try:
        tensor = answer if isinstance(answer, Tensor) else torch.as_tensor(np.asarray(answer, dtype=np.float64))
        return None if tensor.is_complex() else tensor.detach().double().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _kind(answer: object) -> str:
    """What somebody gave instead: "a str", "an int"."""
    name = type(answer).__name__
    return "None" if answer is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def backdoor_took(poisoned: Trained, clean_twin: Trained, at_least: float = 90, twin_at_most: float = 15) -> None:
    """What every notebook stands on: the poisoned model obeys the trigger, and its clean twin does not.

    Args:
        poisoned, clean_twin: as `Run.model` and `Run.clean_model` return them.
        at_least, twin_at_most: ASR in percent.

    Raises:
        AssertionError: where it is otherwise; the message holds the ASR.
    """
    asr, twin = poisoned.before.asr, clean_twin.before.asr
    assert asr >= at_least, f"the backdoor did not take: ASR {asr:.1f}"
    assert twin <= twin_at_most, f"the clean twin reacts to the trigger: ASR {twin:.1f}"
