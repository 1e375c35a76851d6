"""MNP: RNP where magnitude and the given model are left out, and each objective by itself."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, pictures, plain, same_bits
from torch import Tensor

from nbtools.data.images import Images
from nbtools.defender.magnitude import magnitudes
from nbtools.defender.mnp import MNP
from nbtools.defender.repair import Repair
from nbtools.defender.rnp import RNP
from nbtools.defender.soft_masks import SoftMasks
from nbtools.networks.units import prunable_units

SHORT: dict[str, Any] = {
    "unlearn_lr": 0.05,
    "unlearn_epochs": 3,
    "recover_epochs": 3,
    "thresholds": (0.2, 0.9, 1.0),
    "batch_size": 8,
}


def masks_of(repair: Repair) -> Tensor:
    return 1 - torch.cat(list(repair.scores.values()))


def stages(repair: Repair) -> set[str]:
    return {row["stage"] for row in repair.history}


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_without_preserving_and_penalty_it_is_rnp_bit_for_bit(batch_statistics: bool) -> None:
    model, clean = plain(), pictures(24)
    settings: dict[str, Any] = {**SHORT, "batch_statistics": batch_statistics}
    first, second = RNP(**settings)(model, clean), MNP(**settings, preserve=0, penalty=0)(model, clean)
    assert same_bits(first.scores, second.scores) and same_bits(bits(first.model), bits(second.model))
    assert first.history == second.history and bool((masks_of(first) < 1).any())
    assert MNP(**settings, preserve=0, penalty=0) != RNP(**settings), "two defences"
    for a, penalty in ((0.5, 0), (0, 1)):
        assert not same_bits(first.scores, MNP(**settings, preserve=a, penalty=penalty)(model, clean).scores)


class Recorded(MNP):
    """Keeps what the masks descend."""

    def recover(self, objective: Any, filters: int, images: Images) -> Any:
        seen.append(objective)
        return super().recover(objective, filters, images)


seen: list[Any] = []


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("fold_bn", [True, False])
@pytest.mark.parametrize(
    ("a", "penalty", "suppress"),
    [(0.3, 2.0, True), (0.0, 1.0, True), (1.0, 0.0, True), (1.0, 0.5, True), (0.3, 3.0, False)],
)
def test_the_masks_descend_the_formula(a: float, penalty: float, suppress: bool, norm: str, fold_bn: bool) -> None:
    model, clean = plain(), pictures(16)
    defence = Recorded(**SHORT, preserve=a, penalty=penalty, suppress=suppress, norm=norm, fold_bn=fold_bn)
    defence(model, clean)
    objective, units = seen.pop(), prunable_units(model)
    learn, _ = defence.validation.split(clean)
    theta = SoftMasks(model, units)
    unlearned = SoftMasks(defence.unlearn(model, units, learn)[0], units) if suppress else theta
    weights = torch.cat(list(magnitudes(model, units, norm, fold_bn).values())).tolist()
    masks = torch.rand(len(weights), generator=torch.Generator().manual_seed(1))
    x, y = clean.floats(), clean.labels
    price = sum(m * w for m, w in zip(masks.tolist(), weights, strict=True)) / sum(weights)
    first, second = (float(F.cross_entropy(network(x, masks), y)) for network in (unlearned, theta))
    expected = 0.2 * ((1 - a) * first + a * second + penalty * price)
    assert float(objective(x, y, masks)) == pytest.approx(expected, rel=1e-5)


def test_without_suppression_nothing_is_unlearned_and_the_share_has_no_effect() -> None:
    model, clean = plain(), pictures(24)
    first, second = (MNP(**SHORT, suppress=False, preserve=a)(model, clean) for a in (0, 1))
    assert stages(first) == {"recover", "threshold"} and same_bits(first.scores, second.scores)
    assert stages(MNP(**SHORT)(model, clean)) == {"unlearn", "recover", "threshold"}


def test_the_penalty_lowers_large_filters_first() -> None:
    model, clean = plain(), pictures(24)
    with torch.no_grad():
        model.conv2.weight[:4] *= 1e-3  # its batch norm is left as it is, so these pay next to nothing
    model.fc.weight.data[:] = 0  # cross-entropy says nothing about masks: the penalty is alone
    values = 1 - MNP(**SHORT, penalty=5)(model, clean).scores["conv2"]
    assert values[4:].max() < values[:4].min() and values[4:].max() < 0.9


def test_the_sum_of_masks_falls_as_the_penalty_grows() -> None:
    model, clean = plain(), pictures(24)
    sums = [float(masks_of(MNP(**SHORT, penalty=p)(model, clean)).sum()) for p in (0, 1, 10, 100)]
    assert sums == sorted(sums, reverse=True) and sums[-1] < sums[0] - 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("preserve", -0.1, r"preserve must lie in \[0, 1\]"),
        ("preserve", math.nan, r"preserve must lie in \[0, 1\]"),
        ("penalty", -1, "penalty be 0 or more"),
        ("penalty", math.inf, "penalty be 0 or more"),
        ("norm", "l3", "unknown norm 'l3'; known: l1, l2"),
        ("unlearn_lr", 0, "must be above 0"),
    ],
)
def test_settings_are_checked_before_any_work(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNP(**{name: value})
