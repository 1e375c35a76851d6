"""A network cut in two: both parts together are the network, whatever it is, and a way around the cut is refused."""

import copy

import pytest
import torch
from tiny import left_alone, network, pictures, plain
from torch import nn

from nbtools.networks.above import above, at

CUTS = [
    *(("resnet18", place) for place in ("", "conv1", "layer1", "layer1.0", "layer3", "layer4.1", "fc")),
    *(("preact_resnet18", place) for place in ("layer2", "bn")),
    ("vgg16_bn", "0.7"),
    ("vgg16_bn", "0.8"),
    ("mobilenet_v2", "features.5"),
    ("densenet", "features.transition1"),
]


@pytest.mark.parametrize(("name", "place"), CUTS)
def test_both_parts_together_are_the_network(name: str, place: str) -> None:
    model, images = network(name), pictures(4, 32)
    with torch.no_grad(), left_alone(model, images):
        whole = model(images.floats())
        maps = at(model, place, images, batch_size=3)
        torch.testing.assert_close(above(model, place)(maps), whole, rtol=1e-5, atol=1e-5)


def test_the_rest_shares_the_weights_and_holds_no_others() -> None:
    model = network()
    rest = above(model, "layer3")
    names = {name for name, _ in rest.named_parameters()}
    assert names == {name for name, _ in model.named_parameters() if name.startswith(("layer4", "fc"))}
    assert all(weight is model.get_parameter(name) for name, weight in rest.named_parameters())


def test_a_map_that_the_next_layer_changes_in_place_is_kept_as_it_was_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4)).eval()
    images = pictures(2)
    model(images.floats())
    assert bool((at(model, "0", images) < 0).any())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x))


class Odd(nn.Module):
    """Weights that are read before the cut, a module whose name is the graph's own, a branch that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.x, self.aux = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.gain = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = self.gain.reshape(1, 3, 1, 1)
        self.aux(x)
        return (self.x(self.output(x)) * (gain * 2)).mean((2, 3))


@pytest.mark.parametrize("place", ["", "output", "x"])
def test_what_is_made_of_weights_alone_is_no_way_around(place: str) -> None:
    model, images = Odd().eval(), pictures(3)
    with torch.no_grad():
        torch.testing.assert_close(above(model, place)(at(model, place, images)), model(images.floats()))


def test_between_two_places() -> None:
    model, images = network("resnet18"), pictures(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            above(model, "layer1", "layer3")(at(model, "layer1", images)), at(model, "layer3", images)
        )
    with pytest.raises(ValueError, match="ResNet18: layer1 does not depend on layer3"):
        above(model, "layer3", "layer1")


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x if y is None else y


@pytest.mark.parametrize(
    ("model", "place", "message"),
    [
        (plain(), "layer9", "Plain has no 'layer9'; its parts are normalise, relu, conv1"),
        (network(), "layer2.0.conv1", "ResNet18 has a way around layer2.0.conv1"),
        (network(), "layer2.0.downsample", "has a way around layer2.0.downsample"),
        (plain().train(), "bn1", "Plain is in training mode; put it in eval mode first"),
        (Odd().eval(), "aux", "Odd: what it gives does not depend on aux"),
        (Two().eval(), "", "Two takes 2 inputs; one is needed, the images"),
        (Twice().eval(), "conv", "conv of Twice is called 2 times; name one that is called once"),
    ],
)
def test_what_is_no_cut_is_refused(model: nn.Module, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        above(copy.deepcopy(model), place)
