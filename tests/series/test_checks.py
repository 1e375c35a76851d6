"""What the exercises' checks say to a right answer, to a wrong one, and to none."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nbtools.series import checks


@pytest.mark.parametrize(
    "ask", [lambda: checks.same(..., torch.ones(2), "look there"), lambda: checks.true(..., "look there")]
)
def test_what_was_not_tried_is_no_mistake(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ask()
    assert capsys.readouterr().out == "not tried yet: replace the dots, then run this cell again\n"


def test_a_right_answer_is_right_within_the_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    expected = torch.tensor([1000.0, 1.0])
    checks.same(expected + 0.09, expected, "look there")
    checks.same(3, 3.0, "look there")
    checks.true(torch.tensor(True), "look there")
    assert capsys.readouterr().out == "right\n" * 3


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: checks.same(torch.tensor([1000.2, 1]), torch.tensor([1000.0, 1]), "look"), "off by 2.0e-04 .*; look"),
        (lambda: checks.same(torch.ones(3), torch.ones(2), "look"), r"the shape is \[3\], it should be \[2\]; look"),
        (lambda: checks.same(float("nan"), 1.0, "look"), "off by nan .*; look"),
        (lambda: checks.true(False, "look"), "^look"),
    ],
)
def test_a_wrong_answer_is_told_where_to_look(ask: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        ask()


@pytest.mark.parametrize(("asr", "twin", "message"), [(89, 1, "did not take: ASR 89.0"), (99, 16, "twin .* ASR 16.0")])
def test_a_backdoor_that_did_not_take_is_noticed(asr: float, twin: float, message: str) -> None:
    def model(value: float) -> Any:
        return SimpleNamespace(before=SimpleNamespace(asr=value))

    checks.backdoor_took(model(90), model(15))
    with pytest.raises(AssertionError, match=message):
        checks.backdoor_took(model(asr), model(twin))
