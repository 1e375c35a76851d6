"""Networks that others write: layers fused or subclassed, forwards that keep a tensor or that torch.fx can't trace."""

import copy
import csv
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from flowing import empty, pairs_of_a_forward_pass
from tiny import pictures
from torch import Tensor, nn
from torchvision.models import get_model, googlenet

from nbtools.attacker.triggers import make_trigger
from nbtools.defender import FMP, FTSAM, Epochs, FineTuning, Suspiciousness
from nbtools.defender.components import components
from nbtools.defender.feature_maps import channel_accuracies, folded, noisy_images
from nbtools.defender.fine_pruning import FinePruning
from nbtools.defender.magnitude import saliencies
from nbtools.defender.pruning import Mask, pruned_copy, remove
from nbtools.defender.renormalise import Renormalise
from nbtools.defender.soft_masks import SoftMasks
from nbtools.evaluator.agreement import tac
from nbtools.networks.above import INPUT, above, last_place
from nbtools.networks.graph import duplicate
from nbtools.networks.maps import watch
from nbtools.networks.units import layers_of, prunable_units

IMAGES = pictures(12)


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation inside, its forward written out as in the libraries that have such layers."""

    def forward(self, input: Tensor) -> Tensor:
        own = self.training
        mean, var = (None, None) if own and not self.track_running_stats else (self.running_mean, self.running_var)
        return act(F.batch_norm(input, mean, var, self.weight, self.bias, own, self.momentum or 0.0, self.eps))


def act(x: Tensor) -> Tensor:
    """An activation that no ReLU behind it undoes, and that makes 0.69 of 0."""
    return F.softplus(x) * (x > -1)


class Net(nn.Module):
    """Two convolutions; the activation is inside the batch norms or behind them, the names and weights are the same."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        norm = NormAct if fused else nn.BatchNorm2d
        self.behind = nn.Identity() if fused else act
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 2), norm(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3), norm(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind(self.bn1(self.conv1(x)))
        return self.fc(self.behind(self.bn2(self.conv2(x))).mean((2, 3)))


def twins() -> tuple[Net, Net]:
    """The fused form and the plain one, the same weights and lively statistics."""
    torch.manual_seed(0)
    fused, plain = Net(True), Net(False)
    for norm in (fused.bn1, fused.bn2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    fused.train()(IMAGES.floats())
    plain.load_state_dict(fused.state_dict())
    return fused.eval(), plain.eval()


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


MASK = Mask({"conv1": torch.arange(6) == 2, "conv2": torch.arange(8) < 3})


def test_a_batch_norm_of_a_subclass_is_a_batch_norm() -> None:
    assert prunable_units(twins()[0]) == prunable_units(twins()[1])
    assert [(unit.conv, unit.bn) for unit in prunable_units(twins()[0])] == [("conv1", "bn1"), ("conv2", "bn2")]


def test_maps_and_scores_are_those_behind_the_batch_norm_not_behind_its_activation() -> None:
    parts = [components(model, IMAGES) for model in twins()]
    for term in ("sigma", "saliency", "activation", "correlation"):
        same(parts[0].of(term), parts[1].of(term))
    for after_relu in (True, False):
        seen: list[dict[str, Tensor]] = [{}, {}]
        for model, kept in zip(twins(), seen, strict=True):
            with watch(model, prunable_units(model), kept.__setitem__, after_relu):
                model(IMAGES.floats())
        same(*seen)


def test_what_a_trigger_moves_is_the_same() -> None:
    same(*(tac(model, IMAGES, make_trigger("badnets")) for model in twins()))


@pytest.mark.parametrize("exact", [True, False])
def test_saliency_masks_are_the_same(exact: bool) -> None:
    same(*(saliencies(model, IMAGES, exact) for model in twins()))


def test_exact_saliency_is_the_loss_of_the_pruned_network() -> None:
    model, found = twins()[0], saliencies(twins()[0], IMAGES, exact=True)
    loss = F.cross_entropy(model(IMAGES.floats()).double(), IMAGES.labels)
    for name, filters in (("conv1", 6), ("conv2", 8)):
        for number in range(filters):
            pruned = pruned_copy(model, Mask({name: torch.arange(filters) == number}))
            without = F.cross_entropy(pruned(IMAGES.floats()).double(), IMAGES.labels)
            assert float(found[name][number]) == pytest.approx((without - loss).item(), abs=1e-6)


def test_renormalising_gives_the_same_weights() -> None:
    done = []
    for before in twins():
        model = pruned_copy(before, MASK)
        rows = Renormalise()(model, IMAGES, MASK, before)
        done.append((model.state_dict(), rows[1]["gain"]))
    same(*done)
    assert not done[0][0]["bn1.weight"].equal(twins()[0].bn1.weight)


def test_soft_masks_and_folded_convolutions_answer_the_same() -> None:
    factors = torch.linspace(0.2, 1, 14)
    for statistics in (True, False):
        same(*(SoftMasks(m, prunable_units(m), statistics)(IMAGES.floats(), factors, factors) for m in twins()))
    maps = torch.randn(4, 6, 5, 5)
    for model, kept in zip(twins(), (act(maps), maps), strict=True):
        small = folded(model, prunable_units(model))
        same(small(IMAGES.floats()), model(IMAGES.floats()))
        norm = small.get_submodule("bn1")
        assert norm(maps).equal(kept) and (isinstance(norm, nn.BatchNorm2d) == isinstance(model.bn1, NormAct))


def test_adversarial_maps_are_the_same() -> None:
    noisy = noisy_images(IMAGES.floats(), 0.1, torch.Generator().manual_seed(0))
    one, other = (channel_accuracies(model, IMAGES, noisy) for model in twins())
    for name in one:
        assert one[name].correct.equal(other[name].correct)
        same(one[name].loss, other[name].loss)


def test_removing_filters_keeps_the_answers() -> None:
    """A pruned filter's map is not 0 behind an activation that makes something of 0: such a filter stays."""
    for model in twins():
        small = remove(model, MASK, IMAGES.floats())
        same(small(IMAGES.floats()), pruned_copy(model, MASK).eval()(IMAGES.floats()))
        assert [len(small.get_submodule(conv).weight) for conv in ("conv1", "conv2")] == [6, 8]  # type: ignore[arg-type]


class Padding(nn.Conv2d):
    """Pads as it runs, as convolutions taken over from TensorFlow do."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """Computes with other weights than it holds."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


def network_of(conv: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def test_a_convolution_that_pads_as_it_runs() -> None:
    torch.manual_seed(0)
    own, plain = network_of(Padding(3, 6, 2, 2)).eval(), nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)))
    plain.append(nn.Conv2d(3, 6, 2, 2)).extend(copy.deepcopy(own)[1:])  # type: ignore[index]
    plain[1].load_state_dict(own[0].state_dict())  # type: ignore[index]
    odd = IMAGES.floats()[:, :, :7, :7]
    images = type(IMAGES)((odd * 255).round().byte(), IMAGES.labels, IMAGES.classes)
    one, other = components(own, images), components(plain.eval(), images)
    for term in ("sigma", "saliency", "activation", "correlation"):
        same(one.of(term)["0"], other.of(term)["1"])
    same(
        components(own, images, per_image=False).saliency["0"], components(plain, images, per_image=False).saliency["1"]
    )
    noisy = noisy_images(images.floats(), 0.1, torch.Generator().manual_seed(0))
    same(*(next(iter(channel_accuracies(m, images, noisy, 0.1).values())).scores() for m in (own, plain)))


def test_a_convolution_that_changes_its_weights_is_no_part_of_a_pair() -> None:
    assert [unit.conv for unit in prunable_units(network_of(Padding(3, 6, 3)))] == ["0"]
    with pytest.raises(ValueError, match=r"no convolution that is followed by a batch norm \(1 convolutions"):
        prunable_units(network_of(Standardised(3, 6, 3)))


class Again(nn.Module):
    """A convolution and a batch norm that are called twice, and a pair beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.na, self.nb, self.nd = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x)) + self.a(x)
        x = self.nb(self.b(x)) + self.nb(self.c(x))
        return self.nd(self.d(x)).mean((2, 3))


def test_all_calls_of_a_module_count() -> None:
    units = prunable_units(Again())
    assert [unit.conv for unit in units] == ["d"] and units.without_bn == ("a", "b", "c")
    assert pairs_of_a_forward_pass(Again().to("meta")) == ([("d", "nd")], ["a", "b", "c"])


class ShapeBranch(nn.Module):
    """torch.fx can't follow its forward, which asks for the size of what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), NormAct(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.side, self.bn3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.last, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < 4:
            raise ValueError("too small")
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x)) + self.bn3(self.side(x))
        return self.fc(self.last(x).mean((2, 3)))


def test_where_torch_fx_sees_nothing_a_forward_pass_of_shapes_tells() -> None:
    model = ShapeBranch().eval()
    units = prunable_units(model)
    assert units.how == "forward" and units.without_bn == ("last",)
    assert [(unit.conv, unit.bn, unit.shortcut) for unit in units] == [
        ("conv1", "bn1", False),
        ("conv2", "bn2", True),
        ("side", "bn3", True),
    ]
    for unit, conv, bn in layers_of(model, units):  # with gamma and beta 0 no answer depends on the convolution
        twin = pruned_copy(model, Mask({unit.conv: torch.ones(unit.filters, dtype=torch.bool)}))
        answers = twin(IMAGES.floats())
        nn.init.normal_(layers_of(twin, [unit])[0][1].weight)
        assert twin(IMAGES.floats()).equal(answers) and conv.out_channels == bn.num_features


@pytest.mark.parametrize("defence", [Suspiciousness(mu=0.5), FinePruning(fine_tune=None, step=3)])
def test_a_defence_works_on_what_torch_fx_cant_trace(defence: Any) -> None:
    model = ShapeBranch().eval()
    assert last_place(model) == INPUT and above(model, INPUT)(IMAGES.floats()).equal(model(IMAGES.floats()))
    repair = defence(model, IMAGES)
    assert repair.mask.count and bool(torch.isfinite(repair.model(IMAGES.floats())).all())
    with pytest.raises(ValueError, match=r"torch\.fx can't trace ShapeBranch"):
        above(model, "conv1")


class OwnSize(nn.Module):
    def __init__(self, side: int, **told: Any) -> None:
        super().__init__()
        self.net, self.side = network_of(nn.Conv2d(3, 6, 3)), side
        for name, value in told.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != (self.side, self.side):
            raise ValueError(f"takes {self.side} alone")
        return self.net(x)


def test_the_size_is_the_models_own_or_the_examples() -> None:
    assert len(prunable_units(OwnSize(70, default_cfg={"input_size": (3, 70, 70)}))) == 1
    assert len(prunable_units(OwnSize(70, img_size=(70, 70)))) == len(prunable_units(OwnSize(224))) == 1
    assert len(prunable_units(OwnSize(70), torch.zeros(2, 3, 70, 70))) == 1
    with pytest.raises(ValueError, match=r"No image of 224x224, 32x32, .* goes through OwnSize \(224x224: takes 70"):
        prunable_units(OwnSize(70))
    with pytest.raises(ValueError, match=r"No image of 8x9 pixels goes through"):
        prunable_units(OwnSize(70), torch.zeros(2, 3, 9, 8))


class Keeping(nn.Module):
    """Keeps, in eval mode, what it made of its weights in the last forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.gain, self.kept = network_of(nn.Conv2d(3, 6, 3)), nn.Parameter(torch.ones(4)), {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["gain"] = [self.gain * 2]
        return self.net(x) * self.kept["gain"][0]


def test_a_network_that_keeps_a_tensor_can_be_copied_and_repaired() -> None:
    model = Keeping().eval()
    prunable_units(model)
    assert not model.kept, "a trace leaves nothing in the model"
    model(IMAGES.floats())
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    twin = duplicate(model)
    kept, own = (net.kept["gain"][0] for net in (twin, model))  # type: ignore[index]
    assert kept.equal(own) and not kept.requires_grad
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in model.parameters())
    Suspiciousness(mu=0.5)(model, IMAGES)
    FMP(n_images=4, divisor=4, fine_tune=None)(model, IMAGES)


class Answers(NamedTuple):
    logits: Tensor
    aux: Tensor


class Auxiliary(nn.Module):
    """Gives a second head's answers beside the logits in training mode, as GoogLeNet and Inception do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.aux = network_of(nn.Conv2d(3, 6, 3)), network_of(nn.Conv2d(3, 6, 3))

    def forward(self, x: Tensor) -> Tensor | Answers:
        return Answers(self.net(x), self.aux(x)) if self.training else self.net(x)


def test_the_table_of_other_peoples_networks_is_what_is_found() -> None:
    with (Path(__file__).parents[2] / "data" / "results" / "pairs_of_networks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["found"] == row["pairs_by_hooks"] and row["missed"] == row["extra"] == "0" for row in rows)
    libraries = Counter(row["library"] for row in rows)
    assert libraries["torchvision"] == 58 and libraries["timm"] >= 40
    few = "mnasnet0_5 resnet18 rexnet_100 levit_128s efficientvit_b0 mobilevit_xxs efficientformer_l1 hrnet_w18_small"
    tried = 0
    for row in rows:
        if row["network"] in few.split():
            create = get_model if row["library"] == "torchvision" else pytest.importorskip("timm").create_model
            units = prunable_units(empty(partial(create, row["network"])))
            assert [str(len(units)), units.how] == [row["found"], row["how"]], row["network"]
            tried += 1
    assert tried == 8


def test_pairs_are_those_of_eval_mode_and_training_leaves_auxiliary_heads_alone() -> None:
    with torch.device("meta"):
        model = googlenet(init_weights=False)
    units = prunable_units(model.train())
    assert model.training and not any(unit.conv.startswith("aux") for unit in units)
    assert [(unit.conv, unit.bn) for unit in units] == pairs_of_a_forward_pass(model)[0]
    epoch = Epochs(epochs=1, batch_size=4)
    for defence in (FineTuning(epoch), FTSAM(tune=epoch), FMP(n_images=4, divisor=4, fine_tune=epoch)):
        own = Auxiliary()
        repaired = defence(own, IMAGES).model.state_dict()
        assert not repaired["net.5.weight"].equal(own.net[5].weight), defence  # type: ignore[index]
    with pytest.raises(ValueError, match=r"the model gives a Answers in eval mode; it must give logits"):
        FineTuning(epoch)(Always(), IMAGES)


class Always(Auxiliary):
    def forward(self, x: Tensor) -> Answers:
        return Answers(self.net(x), self.aux(x))


class PlusOne(nn.BatchNorm2d):
    """Scales by 1 + gamma, so that no gamma of 0 silences it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, 1 + self.weight, self.bias)


class Around(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


@pytest.mark.parametrize("norm", [PlusOne, Around])
def test_a_batch_norm_that_gamma_and_beta_do_not_silence_prunes_nothing(norm: type[nn.BatchNorm2d]) -> None:
    own = norm(6)
    with pytest.raises(ValueError, match="no convolution that is followed by a batch norm"):
        prunable_units(nn.Sequential(nn.Conv2d(3, 6, 3), own))
    assert own.training and own.running_mean is not None
    assert float(own.running_mean.abs().max()) == 0, "it was tried in a copy"


def test_gamma_and_beta_of_two_batch_norms_prune_neither() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    assert len(prunable_units(model)) == 2
    model[3].weight = model[1].weight
    with pytest.raises(ValueError, match="no convolution that is followed by a batch norm"):
        prunable_units(model)


def test_a_batch_norm_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="not such a SyncBatchNorm as it has"):
        prunable_units(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6)))
