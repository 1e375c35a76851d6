"""The same numbers on the CPU and on a GPU, where there is one, and work that stays on its device everywhere."""

import pytest
import torch
from tiny import network, pictures, taught

from nbtools.attacker.triggers import make_trigger
from nbtools.defender import FMP, RNP, FineTuning, Suspiciousness
from nbtools.defender.learning import Epochs
from nbtools.defender.repair import Defence
from nbtools.evaluator.agreement import tac
from nbtools.evaluator.evaluation import Evaluator, predict
from nbtools.lab.devices import Difference, difference
from nbtools.networks.training import Recipe, train

CPU, TRIGGER = torch.device("cpu"), make_trigger("badnets")


def test_two_copies_on_one_device_do_not_differ() -> None:
    found = difference(taught(), pictures(12), Evaluator(pictures(40), TRIGGER), CPU, CPU)
    assert found == Difference(0, 0, 0, 0)
    assert str(found).startswith("ACC +0.00 points, ASR +0.00 points; components at most 0.0e+00 apart; 0 filters")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "taught"])
def test_a_gpu_scores_as_the_cpu_does(name: str) -> None:
    model = taught() if name == "taught" else network(name)
    found = difference(model, pictures(24), Evaluator(pictures(40), TRIGGER), CPU, torch.device("cuda"))
    assert found.components < 1e-4 and found.other_filters == 0, str(found)


DEFENCES: dict[str, Defence] = {
    "suspiciousness": Suspiciousness(),
    "fine-tuning": FineTuning(Epochs(epochs=1)),
    "FMP": FMP(n_images=4, fine_tune=Epochs(epochs=1)),
    "RNP": RNP(unlearn_epochs=1, recover_epochs=1),
}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_repair_stays_on_its_device(name: str, device: torch.device) -> None:
    model, clean = taught().to(device), pictures(16).to(device)
    repair = DEFENCES[name](model, clean)
    assert {value.device.type for value in repair.model.state_dict().values()} == {device.type}
    assert {mask.device.type for mask in repair.mask.pruned.values()} == {device.type}


def test_training_and_measuring_stay_on_their_device(device: torch.device) -> None:
    model, images = network().to(device), pictures(40).to(device)
    (row,) = train(model, images, Recipe(epochs=1, batch_size=16, lr=0.01), log=None)
    assert 0 < row["loss"] < 10
    assert predict(model, images).device.type == device.type
    assert {value.device.type for value in tac(model, images, TRIGGER).values()} == {device.type}
