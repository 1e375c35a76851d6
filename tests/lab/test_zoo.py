"""The zoo's models in turn, each of its own seed."""

from dataclasses import replace

import pytest

from nbtools.lab.experiments import Run, start
from nbtools.lab.zoo import zoo
from nbtools.settings import PROFILES

TINY = replace(
    PROFILES["quick"],
    name="tiny",
    train=64,
    reserved=40,
    test=40,
    glance=25,
    epochs=1,
    zoo=3,
    zoo_train=48,
    zoo_epochs=0,
    zoo_lr=0,
    width=20,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny", TINY)
        patch.setenv("NBTOOLS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield start("tiny", device="cpu", quiet=True)


def test_a_zoo_has_clean_and_poisoned_models_in_turn_each_of_its_own_seed(run: Run) -> None:
    models = list(zoo(replace(run, profile=replace(TINY, padding=4)), ["badnets", "blended"], 0.25))
    assert [m.name for m in models] == ["clean", "badnets 25 %", "clean", "blended 25 %", "clean", "badnets 25 %"]
    configs = [m.card["config"] for m in models]
    assert [c["seed"] for c in configs] == [100, 100, 101, 101, 102, 102]
    assert {c["train_images"] for c in configs} == {48} and {c["width"] for c in configs} == {16}
    assert {c["recipe"]["padding"] for c in configs} == {0}
    assert len({m.card["key"] for m in models}) == 6
    assert models[0].model.get_submodule("conv1").stride == (2, 2)
    assert [type(m.trigger).__name__ for m in models] == ["BadNets"] * 2 + ["Blended"] * 2 + ["BadNets"] * 2


def test_a_zoo_has_its_target_and_may_have_its_own_epochs_and_learning_rate(run: Run) -> None:
    longer = replace(run, profile=replace(run.profile, zoo=1, zoo_epochs=2, zoo_lr=0.01))
    models = list(zoo(longer, ["badnets"], 0.25, target=1))
    assert {m.target for m in models} == {1} and [len(m.card["history"]) for m in models] == [2, 2]
    assert {m.card["config"]["recipe"]["lr"] for m in models} == {0.01}
