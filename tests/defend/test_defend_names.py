"""What a layer is called: as its file calls it, without what wrappers put before it."""

import pytest
import torch

from nbtools.defend import options
from nbtools.defend.fitting import fit
from nbtools.defend.kinds import KINDS
from nbtools.defend.names import unwrapped
from nbtools.defender.choices import DEFENCES
from nbtools.networks.units import prunable_units

WRAPPED = ("", "module.", "model.0.", "_orig_mod.", "module._orig_mod.backbone.", "1.")


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("arch", KINDS)
def test_a_layer_is_called_as_the_file_calls_it_without_its_wrappers(arch: str, prefix: str) -> None:
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn.weight": (512,)}
    with torch.device("meta"):
        state = KINDS[arch].build(shapes, (1, 1, 2, 2, 2), 10).state_dict()
    others = {name.replace("downsample", "shortcut"): value for name, value in state.items()}
    for plain in (state, others) if "resnet" in arch else (state,):
        plain = {name: value for name, value in plain.items() if not name.startswith("normalise.")}
        fitted = fit({prefix + name: value for name, value in plain.items()}, arch)
        units = prunable_units(fitted.model)
        convs = [*(unit.conv for unit in units), *units.without_bn]
        assert len(convs) == sum(value.ndim == 4 for value in plain.values())
        for conv in convs:
            assert f"{fitted.short_name(conv)}.weight" in plain
            assert fitted.own_name(conv) == prefix + fitted.short_name(conv)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("features.0.0.weight", "features.0.0.weight"),
        ("features.denseblock1.denselayer1.conv1.weight", "features.denseblock1.denselayer1.conv1.weight"),
        ("model.0.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("module.features.10.weight", "features.10.weight"),
        ("mynet.conv1.weight", "mynet.conv1.weight"),
        ("conv1.module.weight", "conv1.module.weight"),
        ("10.conv1.weight", "conv1.weight"),
        ("", ""),
    ],
)
def test_only_what_stands_before_a_name_is_a_prefix(key: str, name: str) -> None:
    assert unwrapped(key) == name and unwrapped(name) == name


def test_the_defences_that_are_refused_without_torch_are_all_that_there_are() -> None:
    assert tuple(DEFENCES) == options.DEFENCES
