"""Maps and their statistics against plain loops and numpy, whatever the batches."""

import math
from typing import Any

import pytest
import torch
from tiny import network, pictures, plain, plain_correlation
from torch import Tensor, nn

from nbtools.defender.components import MapStatistics
from nbtools.networks.maps import watch
from nbtools.networks.units import prunable_units


def drawn_maps(images: int = 30, filters: int = 6, side: int = 5, seed: int = 0) -> Tensor:
    """Maps of filters that share a signal, some weakly and some with the other sign."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(images, 1, side, side, generator=generator)
    own = torch.randn(images, filters, side, side, generator=generator)
    return shared * torch.linspace(-1, 1, filters)[None, :, None, None] + own


def collected(maps: Tensor, batch: int) -> MapStatistics:
    statistics = MapStatistics()
    for part in maps.split(batch):
        statistics.add(part)
    return statistics


def plain_norms(maps: Tensor) -> list[float]:
    """|| A_i(x) ||_F, added up pixel by pixel, averaged over the images."""
    array: list[Any] = maps.double().tolist()
    filters = range(len(array[0]))
    one = [[math.sqrt(sum(value**2 for row in image[i] for value in row)) for i in filters] for image in array]
    return [sum(norms[i] for norms in one) / len(array) for i in filters]


@pytest.mark.parametrize("batch", [1, 7, 30])
@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_statistics_equal_plain_loops_in_any_batches(batch: int, offset: float) -> None:
    maps = drawn_maps() + offset
    statistics = collected(maps, batch)
    assert statistics.images == 30
    assert statistics.activation_norm().tolist() == pytest.approx(plain_norms(maps), rel=1e-5, abs=0)
    assert statistics.correlation().tolist() == pytest.approx(plain_correlation(maps).tolist(), rel=1e-5, abs=0)


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_dead_maps_have_no_correlation(batch: int) -> None:
    maps = drawn_maps()
    maps[:, 1] = 0
    maps[:, 4] = 0.3  # a batch norm with gamma 0 leaves its beta everywhere
    statistics = collected(maps, batch)
    matrix = statistics.correlation_matrix()
    assert matrix.diagonal().tolist() == pytest.approx([1, 0, 1, 1, 0, 1])
    assert not matrix[[1, 4]].any() and not matrix[:, [1, 4]].any()
    assert statistics.correlation()[[1, 4]].tolist() == [0, 0]
    assert statistics.correlation().tolist() == pytest.approx(plain_correlation(maps).tolist(), rel=1e-5, abs=0)


def test_copies_and_mirror_images_are_fully_correlated() -> None:
    maps = drawn_maps(filters=1)
    statistics = collected(torch.cat([maps, 2 * maps + 1, -0.1 * maps], 1), 7)
    assert statistics.correlation_matrix()[0].tolist() == pytest.approx([1, 1, -1])
    assert statistics.correlation().tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("maps", [drawn_maps(filters=1), drawn_maps(images=1, side=1), torch.zeros(4, 3, 2, 2)])
def test_where_nothing_can_correlate_it_is_zero(maps: Tensor) -> None:
    assert collected(maps, 2).correlation().tolist() == [0] * maps.shape[1]


@pytest.mark.parametrize("after_relu", [True, False])
def test_watch_sees_what_the_batch_norm_gives(after_relu: bool) -> None:
    model, images = plain(), pictures(5).floats()
    seen: dict[str, Tensor] = {}
    with watch(model, prunable_units(model), seen.__setitem__, after_relu):
        model(images)
    first = model.bn1(model.conv1(model.normalise(images)))
    second = model.bn2(model.conv2(first.relu()))
    expected = {"conv1": first.relu(), "conv2": second.relu()} if after_relu else {"conv1": first, "conv2": second}
    assert list(seen) == list(expected)
    assert all(seen[name].equal(maps) and not seen[name].requires_grad for name, maps in expected.items())


def test_watch_is_not_misled_by_a_relu_in_place() -> None:
    model, images = network(), pictures(5).floats()
    seen: dict[str, Tensor] = {}
    with watch(model, prunable_units(model), lambda name, maps: seen.update({name: maps.clone()}), after_relu=False):
        model(images)
    stem = nn.Sequential(*(model.get_submodule(name) for name in ("normalise", "conv1", "bn1")))(images)
    assert "inplace=True" in repr(model.get_submodule("relu"))
    assert bool((stem < 0).any()) and seen["conv1"].equal(stem)


def test_watch_leaves_no_hook_behind_even_after_an_error() -> None:
    model = plain()

    def fail(_name: str, _maps: Tensor) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"), watch(model, prunable_units(model), fail):
        model(pictures(2).floats())
    assert not any(module._forward_hooks for module in model.modules())
