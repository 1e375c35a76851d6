"""Sentences that a notebook's run completes with its own numbers."""

from __future__ import annotations


def answer(text: str) -> None:
    """Show the answer to a *Predict first*, in words, behind the figure that gave it.

    Args:
        text: Markdown, without the leading "Answer.": whole sentences, in which a number that differs by profile is
            computed from the run, and what is claimed follows from the run's numbers.

    Raises:
        ValueError: for a text that is empty or ends in no full stop, question mark or bracket: a sentence was cut off.
    """
    from IPython.display import display

    told = " ".join(text.split())
    if not told or told[-1] not in ".?!)":
        raise ValueError(f"an answer is a whole sentence, this is not: {told!r}")
    shown = f"> **Answer.** {told}"
    display({"text/markdown": shown, "text/plain": f"Answer. {told}"}, raw=True)
