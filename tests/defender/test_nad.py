"""NAD: the student's loss and steps against written-out loops, and attention that is never taken behind the pooling."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, bits, network, pictures, plain, same_bits
from torch import Tensor, nn

from nbtools.data.images import to_floats
from nbtools.defender.learning import Epochs, batches, cutout
from nbtools.defender.nad import NAD, attention, outputs
from nbtools.networks.architectures import make_model
from nbtools.networks.training import augment

TEACHER, STUDENT = Epochs(epochs=1, batch_size=8), Epochs(epochs=2, batch_size=8, nesterov=True, cutout=5)
SHORT = NAD(TEACHER, STUDENT)
SMALL = NAD(TEACHER, STUDENT, betas=(5.0, 10.0), layers=("conv1", "conv2"))
"""For the network of two convolutions."""


def plain_attention(maps: Tensor, power: float) -> Tensor:
    """One image, one position, one channel after the other."""
    rows = []
    for image in maps:
        row = []
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                row.append(sum(abs(float(channel[y, x])) ** power for channel in image))
        length = math.sqrt(sum(value**2 for value in row))
        rows.append([value / (length + 1e-6) for value in row])
    return torch.tensor(rows)


def stages(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The outputs of a ResNet's stages and the logits, without a hook."""
    found: dict[str, Tensor] = {}
    if hasattr(model, "bn1"):
        x = F.relu(model.get_submodule("bn1")(model.get_submodule("conv1")(model.get_submodule("normalise")(inputs))))
    else:
        x = model.get_submodule("conv1")(model.get_submodule("normalise")(inputs))
    for number in range(1, 5):
        x = found[f"layer{number}"] = model.get_submodule(f"layer{number}")(x)
    if not hasattr(model, "bn1"):
        x = F.relu(model.get_submodule("bn")(x))
    return found, model.get_submodule("fc")(x.mean((2, 3)))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_is_the_written_out_loop(power: float) -> None:
    maps = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(maps, power), plain_attention(maps, power))
    assert attention(maps, power).shape == (3, 10)


def test_attention_has_length_one_whatever_the_scale_and_dead_maps_no_gradient() -> None:
    maps = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(maps).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(attention(7 * maps), attention(maps))
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention(dead).sum().backward()
    assert not attention(dead).any() and dead.grad is not None and not dead.grad.any()


def maps_of(sizes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def test_on_the_papers_maps_the_distance_is_the_public_codes_weighted_mean_squares() -> None:
    sizes: dict[str, tuple[int, ...]] = {"layer2": (4, 8, 16, 16), "layer3": (4, 16, 8, 8), "layer4": (4, 32, 4, 4)}
    student, teacher = maps_of(sizes, 0), maps_of(sizes, 1)
    expected = 0.0
    for name, beta in zip(sizes, (500, 1000, 1000), strict=True):
        gap = plain_attention(student[name], 2) - plain_attention(teacher[name], 2)
        expected += beta * sum(float(g) ** 2 for g in gap.flatten()) / gap.numel()
    assert float(NAD().distance(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_the_distance_does_not_grow_where_maps_are_smaller() -> None:
    """Each position four times, at half the height: the same unit vectors, spread over four times the positions."""
    sizes: dict[str, tuple[int, ...]] = {"layer2": (4, 8, 6, 6), "layer3": (4, 16, 3, 3), "layer4": (4, 32, 2, 2)}
    student, teacher = maps_of(sizes, 0), maps_of(sizes, 1)
    larger = [{n: F.interpolate(m, scale_factor=2.0) for n, m in maps.items()} for maps in (student, teacher)]
    assert float(NAD().distance(*larger)) == pytest.approx(float(NAD().distance(student, teacher)), rel=1e-4)
    assert float(NAD().distance(student, student)) == 0
    assert float(NAD(betas=(0, 0, 0)).distance(student, teacher)) == 0


@pytest.mark.parametrize(("name", "first_lr"), [("resnet18", None), ("preact_resnet18", 0.05)])
def test_the_student_takes_the_steps_of_a_written_out_loop(name: str, first_lr: float | None) -> None:
    model, clean = network(name), pictures(8)
    defence = NAD(TEACHER, replace(STUDENT, epochs=3, lr=0.01, final_lr=0.001, batch_size=4), first_lr=first_lr)
    repair = defence(model, clean)

    teacher, student = copy.deepcopy(model), copy.deepcopy(model)
    TEACHER(teacher, clean)
    student.train()
    recipe, generator = defence.student, torch.Generator().manual_seed(defence.student.seed)
    rates = (0.01, 0.0055, 0.001) if first_lr is None else (0.05, 0.05, 0.001)
    optimizer = torch.optim.SGD(student.parameters(), 1.0, 0.9, weight_decay=recipe.weight_decay, nesterov=True)
    means = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        losses = []
        for batch in batches(len(clean), recipe.batch_size, generator):
            inputs = cutout(to_floats(augment(clean.images[batch], generator)), recipe.cutout, generator)
            with torch.no_grad():
                taught, _ = stages(teacher, inputs)
            learned, logits = stages(student, inputs)
            loss = F.cross_entropy(logits, clean.labels[batch])
            for beta, layer in ((500 / 256, "layer2"), (1000 / 64, "layer3"), (1000 / 16, "layer4")):
                maps = [found[layer].pow(2).sum(1).flatten(1) for found in (learned, taught)]
                gap = maps[0] / (maps[0].norm(dim=1, keepdim=True) + 1e-6)
                gap = gap - maps[1] / (maps[1].norm(dim=1, keepdim=True) + 1e-6)
                loss = loss + beta * gap.pow(2).sum() / len(gap)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        means.append(sum(losses) / len(losses))

    rows = [row for row in repair.history if row["phase"] == "student"]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-3)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(repair.model.state_dict()[key], value, rtol=1e-2, atol=1e-3)


def test_the_teacher_is_fine_tuned_and_the_student_starts_from_the_model() -> None:
    model, clean = plain(), pictures(12)
    repair = SMALL(model, clean)
    teacher = copy.deepcopy(model)
    rows = TEACHER(teacher, clean)
    assert [row for row in repair.history if row["phase"] == "teacher"] == [{"phase": "teacher", **row} for row in rows]
    assert repair.tuned_steps == 4 and repair.mask.count == 0 and repair.scores == {}
    assert repair.untuned is not None and same_bits(bits(repair.untuned), bits(model))
    still = replace(SMALL, student=replace(STUDENT, lr=1e-30, final_lr=0))(model, clean).model
    pairs = zip(still.named_parameters(), model.named_parameters(), strict=True)
    assert all(p.equal(q) for (_, p), (_, q) in pairs), "at no learning rate the student is the model, not the teacher"
    assert not same_bits(bits(still), bits(model)), "its batch norms follow the batches"


def test_distillation_brings_attention_closer_to_the_teacher() -> None:
    model, clean = plain(), pictures(32)
    teaching, learning = Epochs(epochs=10, lr=0.1, batch_size=8), Epochs(epochs=15, lr=0.005, batch_size=8)
    defence = NAD(teaching, learning, betas=(5.0, 10.0), layers=("bn1", "bn2"))
    teacher = copy.deepcopy(model)
    teaching(teacher, clean)
    gaps = []
    for betas in ((0.0, 0.0), defence.betas):
        student = replace(defence, betas=betas)(model, clean).model
        with torch.no_grad(), outputs(teacher, defence.layers) as taught, outputs(student, defence.layers) as learned:
            teacher(clean.floats())
            student(clean.floats())
            gaps.append(float(defence.distance(learned, taught)))
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_maps_are_taken_before_the_pooling(name: str) -> None:
    """Behind it a map has one position, its attention is 1 for every model, and no gradient comes from its term."""
    model, inputs = network(name), pictures(3).floats()
    with outputs(model, NAD().layers) as seen:
        model(inputs)
    assert [tuple(seen[layer].shape[2:]) for layer in NAD().layers] == [(8, 8), (4, 4), (2, 2)]
    for layer, maps in stages(model, inputs)[0].items():
        assert layer == "layer1" or seen[layer].equal(maps)
    for layer in NAD().layers:
        term = attention(seen[layer])
        assert float(term.detach().std()) > 1e-3
        (gradient,) = torch.autograd.grad(term[:, 0].sum(), seen[layer])
        assert bool(gradient.any())
    pooled = F.adaptive_avg_pool2d(seen["layer4"].detach(), 1)
    torch.testing.assert_close(attention(pooled), torch.ones(3, 1))


class Pooled(nn.Module):
    """A network whose pooling and whose last layer can be named."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)
        self.flat, self.fc, self.spare = nn.Flatten(), nn.Linear(4, len(CLASSES)), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.flat(self.pool(self.bn(self.conv(images)))))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("pool", r"pool gives \[1, 4, 1, 1\] where a map .* attention is 1 whatever the weights are"),
        ("fc", r"fc gives \[1, 4\] where a map"),
        ("spare", "spare gives nothing where a map"),
        ("layer4", r"Pooled has no layer4; its parts are conv, bn, pool, flat, fc, spare: name those"),
        ("", r"Pooled has no ; its parts are"),
    ],
)
def test_a_layer_that_gives_no_map_is_refused(layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NAD(TEACHER, STUDENT, betas=(1.0, 1.0), layers=("conv", layer))(Pooled(), pictures(8))


def test_images_too_small_for_a_map_are_refused() -> None:
    torch.manual_seed(0)
    model = make_model("resnet18", len(CLASSES), width=16, strides=(1, 2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"layer4 gives \[1, 128, 1, 1\] .* or use larger images"):
        SHORT(model, pictures(4, size=16))
    assert SHORT(model, pictures(4, size=32)).tuned_steps == 2


def test_all_layers_that_a_model_lacks_are_named() -> None:
    with pytest.raises(ValueError, match=r"Plain has no layer2, layer3, layer4; its parts are normalise, relu, conv1"):
        SHORT(plain(), pictures(8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": (500.0, 1000.0)}, "one beta of 0 or more for each of at least one layer is needed, got betas"),
        ({"betas": (), "layers": ()}, "one beta of 0 or more"),
        ({"betas": (1.0, -1.0, 1.0)}, "one beta of 0 or more"),
        ({"betas": (1.0, math.nan, 1.0)}, "one beta of 0 or more"),
        ({"betas": (1.0, math.inf, 1.0)}, "one beta of 0 or more"),
        ({"power": 0.5}, "power must be 1 or more, got 0.5"),
        ({"power": math.nan}, "power must be 1 or more, got nan"),
        ({"first_lr": 0.0}, "first_lr must be above 0, or None for the student's own, got 0.0"),
        ({"first_lr": math.nan}, "first_lr must be above 0"),
        ({"first_lr": math.inf}, "first_lr must be above 0"),
    ],
    ids=str,
)
def test_settings_are_checked_before_any_work(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NAD(**values)  # pyright: ignore[reportArgumentType]


def test_the_settings_are_those_of_the_public_code() -> None:
    defence = NAD()
    assert defence.layers == ("layer2", "layer3", "layer4") and defence.betas == (500 / 256, 1000 / 64, 1000 / 16)
    assert (defence.teacher.epochs, defence.student.epochs, defence.power) == (10, 20, 2)
    student = defence.student
    assert (student.lr_at(0), student.lr_at(19), student.nesterov) == (0.01, 0.01, True)
    assert (student.weight_decay, student.batch_size) == (1e-4, 64) and student.cutout > 0
