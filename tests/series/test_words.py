"""Answers that a run completes with its own numbers."""

import IPython.display
import pytest

from nbtools.series import words


def test_an_answer_is_shown_as_prose_and_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append((data, raw)))
    words.answer("You were right\n    if you said 3.")
    plain = "You were right if you said 3."
    assert shown == [({"text/markdown": f"> **Answer.** {plain}", "text/plain": f"Answer. {plain}"}, True)]


@pytest.mark.parametrize("text", ["", "  ", "it falls to"])
def test_half_a_sentence_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole sentence"):
        words.answer(text)
