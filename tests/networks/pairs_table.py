"""The pairs found in all of torchvision's and many of timm's networks: data/results/pairs_of_networks.csv.

`PYTHONPATH=.:tests python tests/networks/pairs_table.py OUT.csv` makes it, or goes on with it.

Each network is built without weights on the device "meta"; the reference is a forward pass with hooks at the network's
own size. It takes a few minutes on one core.
"""

import csv
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torchvision
from flowing import empty, pairs_of_a_forward_pass
from torch import nn

from nbtools.networks.units import prunable_units

TIMM = """
eca_botnext26ts_256 eca_resnext26ts convmixer_768_32 cpubone_b0_bfrobust cs3darknet_focus_s cspnext_tiny densenet121
dla46x_c dpn48b efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0
fasternet_t0 fastvit_mci0 ghostnet_050 hardcorenas_b hgnetv2_b0 hrnet_w18_small iformer_m inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 coatnet_0_224 lcnet_035
mobilevit_xxs nasnetalarge nextvit_small pnasnet5large regnetx_002 repghostnet_050 repvit_m1 res2net50_14w_8s
resnest14d ecaresnet26t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18 starnet_s050
swiftformer_xs tiny_vit_5m_224 tresnet_m visformer_tiny vit_base_mci_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224 tf_efficientnet_b0 mobilenetv3_small_050 halonet26t lambda_resnet26t
"""
"""One of each file of timm's models whose networks have a batch norm of maps, the smallest of its first, and four more
for other layers in them (convolutions that pad as they run, attention among convolutions)."""
COLUMNS = ("library", "version", "network", "pairs_by_hooks", "found", "missed", "extra", "how", "refused_why")


def networks(done: set[tuple[str, str]]) -> Iterator[tuple[str, str, str, nn.Module, int]]:
    """Library, version, name, the network and the side of its images, of those that are not done."""
    import timm  # type: ignore[import-not-found]

    for name in TIMM.split():
        if ("timm", name) not in done:
            model = empty(partial(timm.create_model, name, pretrained=False))
            config = timm.get_pretrained_cfg(name)
            assert config is not None
            yield "timm", timm.__version__, name, model, config.input_size[1]
    for name in torchvision.models.list_models(module=torchvision.models):
        if ("torchvision", name) not in done:
            model = empty(partial(torchvision.models.get_model, name))
            if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
                yield "torchvision", torchvision.__version__, name, model, 299 if name == "inception_v3" else 224


def measured(model: nn.Module, side: int) -> list[object]:
    """The columns from the fourth on."""
    try:
        units, why = prunable_units(model), ""
        found, how = {(unit.conv, unit.bn) for unit in units}, units.how
    except ValueError as error:
        found, how, why = set[tuple[str, str]](), "", str(error)
    pairs = set(pairs_of_a_forward_pass(model, side)[0])
    return [len(pairs), len(found), len(pairs - found), len(found - pairs), how, why]


def main(out: Path) -> None:
    """Write the table; one that is there is gone on with. Its rows are sorted at the end."""
    warnings.filterwarnings("ignore")
    rows = list(csv.reader(out.open(newline="", encoding="utf-8")))[1:] if out.exists() else []
    for library, version, name, model, side in networks({(row[0], row[2]) for row in rows}):
        rows.append([library, version.split("+")[0], name, *map(str, measured(model, side))])
        with out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
