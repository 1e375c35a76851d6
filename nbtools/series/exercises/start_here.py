"""The exercises of 00 · Start here."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nbtools.defender import Suspiciousness
from nbtools.evaluator.evaluation import Evaluation, Evaluator, der
from nbtools.lab.experiments import Run
from nbtools.series import checks


def three_ways(answer: object, before: Tensor, after: Tensor, labels: Tensor, target: int) -> None:
    """Exercise 1: `[2, 3]` in percent, from the predictions `before` and `after` of triggered images of these labels.

    Rows: before, after. Columns: to the target, to the true class, to a third one; no label is the target.
    """

    def expected() -> Tensor:
        rows = []
        for said in (before, after):
            asr, ra = (100 * float((said == wanted).double().mean()) for wanted in (target, labels))
            rows.append([asr, ra, 100 - asr - ra])
        return torch.tensor(rows)

    checks.same(
        answer,
        expected,
        "each column is the mean of a comparison, times 100; a third class is neither `target` nor the label",
    )


def rating(answer: object) -> None:
    """Exercise 2: a function of ASR before, ACC before, ASR after and ACC after, all in percent, to DER in percent."""
    repairs = [(97.0, 92.0, 2.0, 90.0), (97.0, 92.0, 97.0, 92.0), (10.0, 90.0, 60.0, 70.0), (80.0, 70.0, 30.0, 95.0)]
    cases = [(four, der(_measured(*four[:2]), _measured(*four[2:]))) for four in repairs]
    checks.function(
        answer,
        cases,
        "a fall is before minus after, as a share in [0, 1]; where a number rises, its fall counts as 0; "
        "at the end multiply by 100",
    )


def _measured(asr: float, acc: float) -> Evaluation:
    """An evaluation of which only these two matter."""
    none = (0.0, 0.0)
    return Evaluation(acc=acc, asr=asr, ra=0.0, acc_interval=none, asr_interval=none, ra_interval=none)


def by_draw(
    answer: object, run: Run, defence: Suspiciousness, model: nn.Module, evaluate: Evaluator, samples_per_class: int
) -> None:
    """Exercise 3: `[3, 2]` in percent, ASR and ACC after pruning alone with draws 0 to 2 of clean images."""

    def expected() -> Tensor:
        blind = replace(defence, fine_tune=None)
        repairs = [blind(model, run.draw(samples_per_class, draw=number)) for number in range(3)]
        return torch.tensor([(found.asr, found.acc) for found in (evaluate(repair.model) for repair in repairs)])

    checks.same(
        answer,
        expected,
        "run.draw(samples_per_class, draw=number) is what changes; measure with `on_few`, and write ASR before ACC",
    )
