"""The exercises' checks: each says what to look at when an answer is not right, never what the answer is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
    if answer is ...:
        print("not tried yet: replace the dots, then run this cell again")
        return
    mine, right = torch.as_tensor(answer).double().cpu(), torch.as_tensor(expected).double().cpu()
    assert mine.shape == right.shape, f"the shape is {list(mine.shape)}, it should be {list(right.shape)}; {hint}"
    error = float((mine - right).abs().max() / right.abs().max().clamp_min(1e-12))
    assert error <= tolerance, f"off by {error:.1e} of the largest value; {hint}"
    print("right")


def same_layers(answer: object, expected: Mapping[str, Tensor], hint: str, tolerance: float = 1e-4) -> None:
    """As `same`, for a dictionary from convolution to `[filters]`."""
    if answer is ...:
        print("not tried yet: replace the dots, then run this cell again")
        return
    assert isinstance(answer, Mapping), f"a dictionary from convolution to tensor is wanted; {hint}"
    missing = set(expected) - set(answer)
    assert not missing, f"{len(missing)} layers are missing, for instance {sorted(missing)[0]}; {hint}"
    for name, right in expected.items():
        error = float((torch.as_tensor(answer[name]).cpu() - right.cpu()).abs().max() / right.abs().max())
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest value; {hint}"
    print("right")


def true(claim: object, hint: str) -> None:
    """An answer that is a yes or no.

    Raises:
        AssertionError: where the claim does not hold; the message is the hint.
    """
    if claim is ...:
        print("not tried yet: replace the dots, then run this cell again")
        return
    assert bool(claim), hint
    print("right")
