"""The exercises' checks: each says what to look at when an answer is not right, never what the answer is."""

from __future__ import annotations

import torch
from torch import Tensor

from nbtools.lab.trained import Trained


def same(answer: object, expected: Tensor | float, hint: str, tolerance: float = 1e-4) -> None:
    """Compare an exercise's answer with the expected numbers.

    Args:
        answer: what the reader computed; `...` means that it was not tried yet.
        expected: a tensor or a number.
        hint: what to look at where they differ.
        tolerance: relative, measured against the largest expected magnitude.

    Raises:
        AssertionError: where the answer is not right; the message holds the hint.
    """
    if _not_tried(answer):
        return
    mine, right = torch.as_tensor(answer).double().cpu(), torch.as_tensor(expected).double().cpu()
    assert mine.shape == right.shape, f"the shape is {list(mine.shape)}, it should be {list(right.shape)}; {hint}"
    error = float((mine - right).abs().max() / right.abs().max().clamp_min(1e-12))
    assert error <= tolerance, f"off by {error:.1e} of the largest value; {hint}"
    print("right")


def true(claim: object, hint: str) -> None:
    """An answer that is a yes or no.

    Raises:
        AssertionError: where the claim does not hold; the message is the hint.
    """
    if _not_tried(claim):
        return
    assert bool(claim), hint
    print("right")


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


def _not_tried(answer: object) -> bool:
    if answer is ...:
        print("not tried yet: replace the dots, then run this cell again")
    return answer is ...
