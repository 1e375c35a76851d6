"""What the exercises' checks say to a right answer, to a wrong one, and to none."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nbtools.series import checks


def said(capsys: pytest.CaptureFixture[str], answer: Any, expected: Any, tolerance: float = 1e-4) -> str:
    checks.same(answer, expected, "look there", tolerance)
    return capsys.readouterr().out


def test_what_was_not_tried_is_no_mistake_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def expensive() -> float:
        raise NotImplementedError

    checks.same(..., expensive, "look there")
    checks.function(..., [((), 1)], "look there")
    assert capsys.readouterr().out == f"{checks.NOT_TRIED}\n" * 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (torch.tensor([1000.09, 1.09], requires_grad=True), torch.tensor([1000.0, 1.0])),
        (3, 3.0),
        (torch.tensor([[3.0, 4]]).norm(dim=1)[0], lambda: 5),
        ([torch.tensor(1.0), 2], np.array([1.0, 2])),
        (pd.Series([1, 2, 3], index=list("abc")), [1, 2, 3]),
        ((True, False), torch.tensor([True, False])),
        ([1.0, float("nan")], torch.tensor([1.0, float("nan")])),
        (" Correlation", "correlation"),
        ({"b": 2, "a": 1.00001}, {"a": 1.0, "b": 2.0}),
        ({1: 0.5, 2: 0.25}, {"1": 0.5, "2": 0.25}),
        (torch.zeros(2), torch.zeros(2)),
    ],
)
def test_a_right_answer_is_right_within_the_tolerance(
    answer: Any, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, answer, expected) == "right\n"


@pytest.mark.parametrize(
    ("answer", "expected", "told"),
    [
        (torch.tensor([1000.2, 1]), torch.tensor([1000.0, 1]), "1 of its 2 values are off"),
        (torch.ones(3), torch.ones(2), "the shape should be [2], this is [3]"),
        ([1.0, 2.0], 1.5, "one number is asked for, these are 2"),
        (float("nan"), 1.0, "not a number (nan)"),
        ([float("nan"), 1], [1.0, 1.0], "1 of its values are nan"),
        (float("inf"), 1.0, "it is too large"),
        (-1, 1.0, "it is too small"),
        ("three", 3.0, "a number is asked for, this is a str"),
        (None, 3.0, "a number is asked for, this is None"),
        ([1, "two"], [1, 2], "numbers are asked for, this is a list"),
        ([[1, 2], [3]], [1, 2], "numbers are asked for, this is a list"),
        (len, 3.0, "a number is asked for, this is a builtin_function_or_method"),
        (1j, 3.0, "a number is asked for, this is a complex"),
        (3, "saliency", "a word is asked for, this is an int"),
        ("norm", "saliency", "it is another one"),
        ([1, 2], {"a": 1, "b": 2}, "a dictionary is asked for, this is a list"),
        ({"a": 1, "c": 2}, {"a": 1, "b": 2}, "its keys should be a, b: look at b, c"),
        ({"a": 1, "b": 3}, {"a": 1, "b": 2}, "1 of its 2 values are off"),
        ({"a": 1, "b": None}, {"a": 1, "b": 2}, "1 of its values are nan"),
    ],
)
def test_a_wrong_answer_gets_one_line_that_does_not_tell_the_right_one(
    answer: Any, expected: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, answer, expected) == f"not right yet: {told}; look there\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda a, b: a + b, "right"),
        (lambda a, b: a * b, "not right yet: it is too small; look there"),
        (lambda a, b: ..., "not right yet: it still returns `...`; look there"),
        (lambda a, b: None, "not right yet: it returns nothing; look there"),
        (lambda a: a, "not right yet: the function raises TypeError: "),
        (3, "not right yet: a function is asked for, this is an int; look there"),
    ],
)
def test_a_function_is_tried_on_every_case(answer: Any, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    checks.function(answer, [((2, 2), 4), ((1, 3), 4.0)], "look there")
    printed = capsys.readouterr().out
    assert printed.startswith(told) and printed.count("\n") == 1


@pytest.mark.parametrize(("asr", "twin", "message"), [(89, 1, "did not take: ASR 89.0"), (99, 16, "twin .* ASR 16.0")])
def test_a_backdoor_that_did_not_take_is_noticed(asr: float, twin: float, message: str) -> None:
    def model(value: float) -> Any:
        return SimpleNamespace(before=SimpleNamespace(asr=value))

    checks.backdoor_took(model(90), model(15))
    with pytest.raises(AssertionError, match=message):
        checks.backdoor_took(model(asr), model(twin))
