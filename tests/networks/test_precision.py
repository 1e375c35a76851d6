"""Scores are computed in real float32, whatever a person has set, and the setting is left as it was."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import pictures, plain
from torch import Tensor, backends, nn

from nbtools.attacker.triggers import make_trigger
from nbtools.defender import FMP
from nbtools.defender.components import components, spectral_norms
from nbtools.defender.feature_maps import channel_accuracies
from nbtools.defender.fine_pruning import mean_activation
from nbtools.defender.magnitude import saliencies
from nbtools.evaluator.agreement import tac
from nbtools.networks.precision import PLACES, real_float32
from nbtools.networks.units import prunable_units


def settings() -> list[str]:
    return [place.fp32_precision for place in PLACES]


@pytest.fixture(params=["highest", "high", "medium"])
def asked(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a person has asked PyTorch for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_inside_all_products_are_float32_and_afterwards_as_before(asked: str) -> None:
    before = settings()
    with real_float32():
        assert settings() == ["ieee"] * 4
        with real_float32():
            pass
        assert settings() == ["ieee"] * 4
    assert settings() == before and torch.get_float32_matmul_precision() == asked
    assert backends.cuda.matmul.allow_tf32 == (asked != "highest"), "the older switches can be read again"
    with pytest.raises(ZeroDivisionError), real_float32():
        _ = 1 / 0
    assert settings() == before


def test_a_matrix_product_has_float32s_digits(asked: str) -> None:
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    with real_float32():
        assert float((a @ b - exact).abs().max() / exact.abs().max()) < 1e-5


MODEL, IMAGES = plain(), pictures(8)
UNITS = prunable_units(MODEL)
SCORES: dict[str, Callable[[nn.Module], object]] = {
    "components": lambda model: components(model, IMAGES),
    "spectral norms": lambda model: spectral_norms(model, UNITS),
    "feature maps": lambda model: channel_accuracies(model, *FMP().draw(IMAGES)),
    "activations": lambda model: mean_activation(model, UNITS.pairs[-1], IMAGES),
    "saliencies": lambda model: saliencies(model, IMAGES),
    "TAC": lambda model: tac(model, IMAGES, make_trigger("badnets")),
}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_computed_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward, bmm = set[str](), nn.functional.conv2d, torch.bmm

    def look(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def looking(*args: Tensor, **others: object) -> Tensor:
            seen.update(settings())
            return call(*args, **others)

        return looking

    monkeypatch.setattr(nn.functional, "conv2d", look(forward))
    monkeypatch.setattr(torch, "bmm", look(bmm))
    before = settings()
    SCORES[name](MODEL)
    assert seen == {"ieee"} and settings() == before
