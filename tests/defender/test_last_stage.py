"""The highest part of a pruned network is tuned alone: it helps, nothing below moves, and harm is taken back."""

from dataclasses import replace

import pytest
import torch
from tiny import bits, mask_of, network, pictures, plain, same_bits, taught
from torch import nn

from nbtools.defender import LastStage, Suspiciousness
from nbtools.defender.last_stage import AT_ONCE
from nbtools.defender.learning import answers, joined
from nbtools.defender.pruning import pruned_copy
from nbtools.networks.above import INPUT, above, at, last_place
from nbtools.networks.units import prunable_units

CLEAN = pictures(24, seed=1)
TUNE = LastStage(share=0.5, steps=60, lr=5e-3)


def divergence(model: nn.Module, before: nn.Module, temperature: float) -> float:
    p, q = ((answers(net, CLEAN) / temperature).double().softmax(1) for net in (before, model))
    return float(temperature**2 * (p * (p.log() - q.log())).sum(1).mean())


def test_it_comes_nearer_and_moves_nothing_below() -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0, 1, 2], "conv2": [0, 1]})
    model = pruned_copy(before, mask).eval()
    flags = [weight.requires_grad for weight in model.parameters()]
    was, kept, random, far = bits(model), bits(before), torch.get_rng_state(), divergence(model, before, 2)
    start, end = TUNE(model, CLEAN, mask, before)
    assert (start["step"], end["step"], start["chosen"], end["chosen"]) == (0, 60, False, True)
    assert end["gain"] == pytest.approx(far - divergence(model, before, 2), rel=1e-3) and end["gain"] > 0
    moved = {name for name, values in bits(model).items() if not values.equal(was[name])}
    assert moved == {"conv2.weight", "bn2.weight", "bn2.bias", "fc.weight", "fc.bias"}, "what lies above bn1, no more"
    assert not model.get_parameter("bn2.weight")[[0, 1]].any() and not model.get_parameter("bn2.bias")[[0, 1]].any()
    assert same_bits(bits(before), kept) and torch.get_rng_state().equal(random)
    assert not model.training and [weight.requires_grad for weight in model.parameters()] == flags


@pytest.mark.parametrize(("share", "copies"), [(0.5, 0), (0.5, 2), (1.0, 1)])
def test_steps_are_those_of_the_whole_network_with_all_below_held(share: float, copies: int) -> None:
    """Three steps by hand: the whole pruned network, the upper part's gradients alone, momentum, and a falling rate."""
    before = taught()
    mask = mask_of(before, {"conv1": [0], "conv2": [3]})
    model, other = (pruned_copy(before, mask).eval() for _ in range(2))
    tune = replace(TUNE, share=share, steps=3, copies=copies, lr=0.01, seed=4)
    assert tune(model, CLEAN, mask, before)[1]["chosen"]
    generator = torch.Generator().manual_seed(4)
    floats = joined(CLEAN, copies, generator).floats()
    names = [name for name, _ in other.named_parameters() if share == 1 or name.startswith(("conv2", "bn2", "fc"))]
    upper, speed = [other.get_parameter(name).requires_grad_(True) for name in names], [torch.zeros(())] * len(names)
    for step in range(3):
        batch = floats[torch.randint(len(floats), (tune.batch_size,), generator=generator)]
        with torch.no_grad():
            p = (before(batch) / 2).softmax(1)
        loss = -4 * (p * (other(batch) / 2).log_softmax(1)).sum(1).mean()  # but for a constant
        gradients = torch.autograd.grad(loss, upper)
        speed = [0.9 * old + gradient for old, gradient in zip(speed, gradients, strict=True)]
        with torch.no_grad():
            for weight, change in zip(upper, speed, strict=True):
                weight -= 0.01 * (1 - step / 3) * change
            for norm, gone in (("bn1", 0), ("bn2", 3)):
                other.get_parameter(f"{norm}.weight")[gone] = other.get_parameter(f"{norm}.bias")[gone] = 0
    for name in names:
        torch.testing.assert_close(model.get_parameter(name), other.get_parameter(name), rtol=1e-3, atol=1e-5)


def test_each_image_goes_once_through_the_teacher_and_once_through_what_lies_below() -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0], "conv2": []})
    model = pruned_copy(before, mask).eval()
    seen: list[int] = []
    for net in (before, model):
        net.get_submodule("conv1").register_forward_hook(lambda _conv, inputs, _output: seen.append(len(inputs[0])))
    replace(TUNE, copies=2, steps=2)(model, CLEAN, mask, before)
    assert sum(seen) == 2 * 3 * len(CLEAN) and max(seen) == AT_ONCE < 3 * len(CLEAN), "and no more of them at once"


def test_of_many_images_so_many_are_drawn() -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0, 1], "conv2": []})
    order = torch.randperm(len(CLEAN), generator=torch.Generator().manual_seed(0))[:10]
    few, many = (pruned_copy(before, mask).eval() for _ in range(2))
    gains = [
        replace(TUNE, most=10)(many, CLEAN, mask, before)[1]["gain"],
        TUNE(few, CLEAN.subset(order), mask, before)[1]["gain"],
    ]
    assert gains[0] > 0 and gains[1] > 0 and not same_bits(bits(few), bits(many)), "one generator: other batches follow"
    whole = pruned_copy(before, mask).eval()
    replace(TUNE, most=len(CLEAN))(whole, CLEAN, mask, before)
    TUNE(plain_again := pruned_copy(before, mask).eval(), CLEAN, mask, before)
    assert same_bits(bits(whole), bits(plain_again)), "where there are no more nothing is drawn"


def test_an_error_on_the_way_leaves_no_weight_that_wants_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    before = taught().requires_grad_(False)
    mask = mask_of(before, {"conv1": [0], "conv2": []})
    model = pruned_copy(before, mask).eval()

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch.autograd, "grad", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        TUNE(model, CLEAN, mask, before)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_place_above_which_weights_of_below_are_used_is_passed_over() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = plain(), nn.Conv2d(8, 8, 3, padding=1)
            self.norm, self.middle = nn.BatchNorm2d(8), nn.ReLU()
            self.last, self.end, self.fc = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first.bn1(self.first.conv1(x))
            x = self.first.bn2(self.first.conv2(x)).relu()
            x = self.norm(self.middle(self.norm(self.conv(x))))
            return self.fc(self.end(self.last(x)).mean((2, 3)))

    model = Shared().eval()
    assert above(model, "middle") and last_place(model, 0.25) == "conv", "norm is called below middle and above it"


@pytest.mark.parametrize("lr", [50.0, 1e30])
def test_what_does_not_come_nearer_is_taken_back(lr: float) -> None:
    before = taught()
    mask = mask_of(before, {"conv1": [0], "conv2": []})
    model = pruned_copy(before, mask).eval()
    was = bits(model)
    start, end = replace(TUNE, lr=lr)(model, CLEAN, mask, before)
    assert start["chosen"] and not end["chosen"] and not end["gain"] > 0 and same_bits(bits(model), was)


@pytest.mark.parametrize(
    ("name", "share", "wanted"),
    [("resnet18", 0.25, "layer3.1"), ("resnet18", 0.5, "layer2.1"), ("resnet18", 1.0, "normalise")],
)
def test_the_place_of_a_residual_network_is_the_end_of_a_stage(name: str, share: float, wanted: str) -> None:
    model = network(name)
    assert last_place(model, share) == wanted
    end = "layer3" if share == 0.25 else "layer2"
    if share < 1:
        assert torch.equal(at(model, wanted, CLEAN), at(model, end, CLEAN)), "the same maps"


@pytest.mark.parametrize("name", ["resnet34", "preact_resnet18", "vgg16_bn", "densenet", "mobilenet_v2"])
def test_every_network_of_the_series_has_a_place(name: str) -> None:
    model, images = network(name), pictures(4, size=32)
    place = last_place(model)
    convs = {unit.conv for unit in prunable_units(model)}
    there = {found for found, _ in above(model, place).named_modules()} & convs
    assert 0.25 * len(convs) <= len(there) < 0.6 * len(convs), "a part of it, and not much more than was asked for"
    torch.testing.assert_close(above(model, place)(at(model, place, images)), answers(model, images))


def test_where_no_module_qualifies_the_place_is_the_image() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(7, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.cat([self.bn(self.conv(x)).mean((2, 3)), x.mean((2, 3))], 1))

    assert last_place(Around().eval()) == INPUT


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_enough(count: int) -> None:
    images = pictures(4).subset(torch.arange(count))
    repair = Suspiciousness(mu=1)(plain(), images)
    assert all(bool(values.isfinite().all()) for values in repair.model.state_dict().values())
    assert [row["step"] for row in repair.history] == [0, LastStage().steps]


def test_it_is_the_default() -> None:
    assert Suspiciousness().fine_tune == LastStage()


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"share": 1.1}, {"steps": 0}, {"lr": 0}, {"lr": float("nan")}, {"momentum": 1}, {"copies": -1},
     {"batch_size": 0}, {"temperature": 0}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="are needed, got LastStage"):
        replace(LastStage(), **wrong)
