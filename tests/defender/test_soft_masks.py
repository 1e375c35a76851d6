"""Soft masks: the same as a model whose gamma is set by hand, gradients for the factors alone, nothing else moved."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import bits, network, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.defender.pruning import apply
from nbtools.defender.soft_masks import SoftMasks, as_mask, shut
from nbtools.networks.units import layers_of, prunable_units

NETWORKS = ["resnet18", "preact_resnet18", "plain"]
each_network = pytest.mark.parametrize("name", NETWORKS)
each_mode = pytest.mark.parametrize("batch_statistics", [True, False], ids=["batch", "running"])
IMAGES = pictures(6)


def made(name: str) -> nn.Module:
    return plain() if name == "plain" else network(name)


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def by_hand(model: nn.Module, factors: Tensor, shifts: Tensor | None, batch_statistics: bool) -> nn.Module:
    """A copy whose gamma and beta are multiplied, one filter after the other; train mode is for batch statistics."""
    twin, place = copy.deepcopy(model), 0
    with torch.no_grad():
        for _, _, bn in layers_of(twin, prunable_units(twin)):
            for i in range(bn.num_features):
                bn.weight[i] *= factors[place]
                if shifts is not None:
                    bn.bias[i] *= shifts[place]
                place += 1
    assert place == len(factors)
    return twin.train(batch_statistics)


@each_mode
@each_network
@pytest.mark.parametrize("shifted", [True, False], ids=["beta too", "gamma alone"])
def test_factors_are_those_of_a_model_whose_gamma_is_set_by_hand(
    name: str, shifted: bool, batch_statistics: bool
) -> None:
    model = made(name)
    masks = SoftMasks(model, prunable_units(model), batch_statistics)
    factors, shifts = drawn(masks.count, 1), drawn(masks.count, 2) if shifted else None
    twin = by_hand(model, factors, shifts, batch_statistics)
    with torch.no_grad():
        got, expected = masks(IMAGES.floats(), factors, shifts), twin(IMAGES.floats())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got, model(IMAGES.floats()), atol=1e-2)


@each_mode
@each_network
def test_factors_of_one_change_nothing(name: str, batch_statistics: bool) -> None:
    model = made(name)
    masks = SoftMasks(model, prunable_units(model), batch_statistics)
    ones = torch.ones(masks.count)
    with torch.no_grad():
        got = masks(IMAGES.floats(), ones, ones)
        torch.testing.assert_close(got, copy.deepcopy(model).train(batch_statistics)(IMAGES.floats()))


@each_mode
@each_network
def test_gradients_are_those_of_gamma_and_beta_by_the_chain_rule(name: str, batch_statistics: bool) -> None:
    model = made(name)
    units = prunable_units(model)
    masks = SoftMasks(model, units, batch_statistics)
    factors, shifts = drawn(masks.count, 1).requires_grad_(), drawn(masks.count, 2).requires_grad_()
    F.cross_entropy(masks(IMAGES.floats(), factors, shifts), IMAGES.labels).backward()
    twin = by_hand(model, factors.detach(), shifts.detach(), batch_statistics)
    F.cross_entropy(twin(IMAGES.floats()), IMAGES.labels).backward()
    for values, part in ((factors, "weight"), (shifts, "bias")):
        names = [f"{unit.bn}.{part}" for unit in units]
        slopes = [twin.get_parameter(name).grad for name in names]
        expected = [model.get_parameter(n) * slope for n, slope in zip(names, slopes, strict=True) if slope is not None]
        assert values.grad is not None and bool(values.grad.any())
        torch.testing.assert_close(values.grad, torch.cat(expected), rtol=1e-3, atol=1e-5)


@each_mode
def test_gradients_are_finite_differences(batch_statistics: bool) -> None:
    model = plain().double()
    masks, inputs = SoftMasks(model, prunable_units(model), batch_statistics), IMAGES.floats().double()

    def loss(factors: Tensor) -> Tensor:
        return F.cross_entropy(masks(inputs, factors), IMAGES.labels)

    factors = drawn(masks.count).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(factors), factors)
    step = 1e-6 * torch.eye(masks.count).double()
    with torch.no_grad():
        expected = torch.stack([(loss(factors + e) - loss(factors - e)) / 2e-6 for e in step])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


@each_mode
@each_network
@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_factors_gets_a_gradient_or_moves(name: str, batch_statistics: bool, training: bool) -> None:
    model = made(name).train(training)
    was = bits(model)
    masks = SoftMasks(model, prunable_units(model), batch_statistics)
    for _ in range(2):
        factors = drawn(masks.count).requires_grad_()
        masks(IMAGES.floats(), factors).sum().backward()
        assert factors.grad is not None
    for other in (model, masks.model):
        assert same_bits(bits(other), was), "neither weights nor running statistics move"
        assert all(p.grad is None for p in other.parameters())
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters()) and not any(m.training for m in masks.model.modules())
    assert not any(p.requires_grad for p in masks.model.parameters())


def test_the_masks_are_a_copy_of_the_model() -> None:
    model = plain()
    masks = SoftMasks(model, prunable_units(model), batch_statistics=False)
    before = masks(IMAGES.floats(), torch.ones(masks.count))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert masks(IMAGES.floats(), torch.ones(masks.count)).equal(before) and bool(before.any())


def test_statistics_are_put_back_where_a_pass_fails() -> None:
    model = plain()
    masks = SoftMasks(model, prunable_units(model))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        masks(torch.zeros(1, 3, 4, 4), torch.ones(masks.count))
    norms = [module for module in masks.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bn.track_running_stats and not bn.training for bn in norms)
    with torch.no_grad():
        expected = model(IMAGES.floats())
        torch.testing.assert_close(masks.model(IMAGES.floats()), expected)


def test_a_batch_norm_without_a_unit_follows_the_batch_too() -> None:
    """In a pre-activation network the batch norms behind the sums have no factor."""
    model = network("preact_resnet18")
    masks = SoftMasks(model, prunable_units(model))
    units = {unit.bn for unit in masks.units}
    free = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and name not in units]
    assert "bn" in free
    ones = torch.ones(masks.count)
    with torch.no_grad():
        before = masks(IMAGES.floats(), ones)
        for name in free:
            bn = masks.model.get_submodule(name)
            assert isinstance(bn, nn.BatchNorm2d) and bn.running_mean is not None
            bn.running_mean += 3
        assert masks(IMAGES.floats(), ones).equal(before)


@each_network
def test_vectors_are_dealt_out_by_layer(name: str) -> None:
    model = made(name)
    units = prunable_units(model)
    masks = SoftMasks(model, units)
    parts = masks.by_layer(torch.arange(masks.count))
    assert masks.count == sum(unit.filters for unit in units)
    assert [(conv, len(part)) for conv, part in parts.items()] == [(unit.conv, unit.filters) for unit in units]
    assert torch.cat(list(parts.values())).equal(torch.arange(masks.count))
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        masks.by_layer(torch.zeros(masks.count + 1))


@each_network
def test_shut_sets_gamma_to_zero_and_leaves_all_else(name: str) -> None:
    model = made(name).train()
    was, units = bits(model), prunable_units(model)
    pruned = drawn(sum(unit.filters for unit in units)) < 0.3
    twin = shut(model, units, pruned)
    assert same_bits(bits(model), was) and model.training and not any(m.training for m in twin.modules())
    expected, place = dict(was), 0
    for unit in units:
        gamma = was[f"{unit.bn}.weight"].clone()
        for i in range(unit.filters):
            gamma[i] = 0 if pruned[place + i] else gamma[i]
        expected[f"{unit.bn}.weight"], place = gamma, place + unit.filters
    assert same_bits(bits(twin), expected)
    memory = {value.data_ptr() for value in model.state_dict().values()}
    assert not memory & {value.data_ptr() for value in twin.state_dict().values()}
    factors = torch.where(pruned, 0.0, 1.0)
    with torch.no_grad():
        soft = SoftMasks(model, units, batch_statistics=False)(IMAGES.floats(), factors)
        torch.testing.assert_close(twin(IMAGES.floats()), soft, rtol=1e-5, atol=1e-5)


@each_network
def test_a_vector_is_the_mask_of_its_layers(name: str) -> None:
    model = made(name)
    units = prunable_units(model)
    pruned = drawn(sum(unit.filters for unit in units)) < 0.3
    mask = as_mask(units, pruned)
    assert list(mask.pruned) == [unit.conv for unit in units] and mask.count == int(pruned.sum())
    assert torch.cat(list(mask.pruned.values())).equal(pruned)
    apply(model, mask)
    gammas = torch.cat([bn.weight for _, _, bn in layers_of(model, units)])
    assert (gammas == 0).equal(pruned)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        as_mask(units, pruned[1:])
