"""One contract for every defence that the package offers: what it refuses, leaves alone, hands out and writes down."""

import functools
import importlib
import inspect
import itertools
import json
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest
import torch
from tiny import CLASSES, Plain, bits, hooks_of, left_alone, pictures, plain, same_bits, settled
from torch import Tensor, nn

from nbtools import defender
from nbtools.data.images import Images
from nbtools.defender import (
    ANP,
    AWM,
    D3,
    FMP,
    FTSAM,
    LMR,
    MNP,
    NAD,
    NFT,
    RNP,
    ChosenMu,
    Defence,
    Epochs,
    FinePruning,
    FineTune,
    FineTuning,
    LastStage,
    RandomPruning,
    Renormalise,
    Repair,
    ShiftUnlearning,
    SpectralNorm,
    Suspiciousness,
    Validation,
)
from nbtools.defender.pruning import Mask, pruned_copy
from nbtools.networks.training import DivergedError
from nbtools.networks.units import Units, prunable_units

CLEAN = pictures(12)
GAMMA, BOTH, NONE = ("weight",), ("weight", "bias"), ()
"""What is 0 in the batch norm of a pruned filter: gamma alone, gamma and beta; or no filter is pruned."""


@dataclass(frozen=True)
class Case:
    """A defence with cheap settings, and what it promises where the defences differ.

    Args:
        defence: prunes some filters of `plain`, or never any.
        zero: GAMMA (as in some of the public code), BOTH or NONE.
        wild: settings that no training survives, and what the DivergedError says.
        forbidden: settings whose tuning the held-back images forbid: the model is handed out pruned and untuned.
        unit_scores: its scores are 1 - a mask in [0, 1].
        blind: it looks at no image, so there need be none, and their classes do not matter.
    """

    defence: Defence
    zero: tuple[str, ...]
    wild: tuple[tuple[Defence, str], ...] = ()
    forbidden: Defence | None = None
    unit_scores: bool = False
    blind: bool = False


ANY = Validation(allowed=0.99)
EPOCH, WILD = Epochs(epochs=1, batch_size=4), Epochs(epochs=5, lr=1e10)
LOWER_LR = r"the fine-tuning's loss is (nan|inf) in epoch \d; try an lr below 1"
LOOKS = FineTune(steps=2, every=1, folds=2, lr=0.01, teacher="labels", confidence=0, frozen_bn=False)
LAST = LastStage(share=0.5, steps=8, lr=0.01, batch_size=4, copies=1, temperature=0.2)
SCORE, WILD_SCORE = (Suspiciousness(mu=1, fine_tune=tune) for tune in (LOOKS, replace(LOOKS, lr=1e30)))
FMP_4 = FMP(n_images=4, divisor=4, fine_tune=EPOCH)
RNP_3 = RNP(unlearn_lr=0.05, unlearn_epochs=2, recover_lr=5, recover_epochs=3, batch_size=4, thresholds=(0.2, 0.9))
MNP_3 = MNP(unlearn_lr=0.05, unlearn_epochs=2, recover_lr=5, recover_epochs=3, batch_size=4, thresholds=(0.2,))
ANP_3 = ANP(iterations=3, lr=10, batch_size=4, validation=ANY)
AWM_1, AWM_FEW = AWM(rounds=1, passes=1, batch_size=4), replace(AWM.few(), rounds=1, passes=1)
LMR_2, NFT_2 = LMR(ascent_epochs=1, epochs=2, final_epochs=1, batch_size=4), NFT(epochs=2, batch_size=4)
SHIFT = ShiftUnlearning(
    replace(SCORE, fine_tune=None), (), ("bn1",), level=1.0, shifts=1, steps=3, batch_size=4, copies=1
)
"""At this level some class always stands out."""
NAD_1 = NAD(EPOCH, EPOCH, betas=(5.0,), layers=("conv1",))


def reconstructive(defence: RNP) -> Case:
    """RNP, or MNP, which is one: each of its two trainings can leave the finite numbers."""
    defence = replace(defence, validation=ANY)
    wild = [(replace(defence, recover_share=3e38, until=1.0), "the masks' loss is (nan|inf) in epoch 1")]
    if not isinstance(defence, MNP) or defence.suppress:
        unlearning = "the loss is (nan|inf) after epoch 1 of unlearning; try an unlearn_lr"
        wild.append((replace(defence, unlearn_lr=1e30, until=0.0), unlearning))
    return Case(defence, GAMMA, tuple(wild), unit_scores=True)


def adversarial(defence: ANP) -> Case:
    wild = replace(defence, epsilon=1e38), "the masks' loss is (nan|inf) at iteration 3"
    return Case(defence, GAMMA, (wild,), unit_scores=True)


def fading(defence: AWM) -> Case:
    wild = replace(defence, penalty=3e38), r"the masks' training diverged: .*(nan|inf)"
    return Case(defence, NONE, (wild,), unit_scores=True)


def shifting(defence: ShiftUnlearning) -> Case:
    return Case(defence, BOTH, ((replace(defence, lr=1e36), "the unlearning's loss is (nan|inf) after 3 steps"),))


CASES = {
    "Suspiciousness": Case(SCORE, BOTH, forbidden=WILD_SCORE),
    "Suspiciousness, not tuned": Case(replace(SCORE, fine_tune=None), BOTH),
    "Suspiciousness, last part tuned": Case(
        replace(SCORE, fine_tune=LAST), BOTH, forbidden=replace(SCORE, fine_tune=replace(LAST, lr=1e30))
    ),
    "Suspiciousness, renormalised": Case(replace(SCORE, fine_tune=Renormalise(most=8)), BOTH),
    "ChosenMu": Case(ChosenMu(SCORE, (2, 1), 0.5), BOTH, forbidden=ChosenMu(WILD_SCORE, (2, 1), 0.5)),
    "RandomPruning": Case(RandomPruning(SCORE), BOTH, forbidden=RandomPruning(WILD_SCORE)),
    "ShiftUnlearning": shifting(SHIFT),
    "ShiftUnlearning, at the image too": shifting(replace(SHIFT, places=("", "bn1"))),
    "SpectralNorm, tuned": Case(SpectralNorm(1, LOOKS), BOTH, forbidden=SpectralNorm(1, WILD_SCORE.fine_tune)),
    "SpectralNorm, as published": Case(SpectralNorm(1), BOTH, blind=True),
    "FMP": Case(FMP_4, BOTH, ((replace(FMP_4, fine_tune=WILD), LOWER_LR),)),
    "FMP, as published": Case(
        replace(FMP_4, freeze_pruned=False), GAMMA, ((replace(FMP_4, freeze_pruned=False, fine_tune=WILD), LOWER_LR),)
    ),
    "FMP, not tuned": Case(replace(FMP_4, fine_tune=None), BOTH),
    "RNP": reconstructive(RNP_3),
    "RNP, running statistics": reconstructive(replace(RNP_3, batch_statistics=False)),
    "MNP": reconstructive(MNP_3),
    "MNP, running statistics": reconstructive(replace(MNP_3, batch_statistics=False)),
    "MNP, no suppression": reconstructive(replace(MNP_3, suppress=False)),
    "ANP": adversarial(ANP_3),
    "ANP, running statistics": adversarial(replace(ANP_3, lr=30, batch_statistics=False)),
    "AWM": fading(AWM_1),
    "AWM, few images": fading(AWM_FEW),
    "NAD": Case(NAD_1, NONE, ((replace(NAD_1, teacher=WILD), LOWER_LR), (replace(NAD_1, student=WILD), LOWER_LR))),
    "D3": Case(D3(tune=EPOCH), NONE, ((D3(tune=WILD), LOWER_LR),)),
    "FTSAM": Case(FTSAM(tune=EPOCH), NONE, ((FTSAM(tune=WILD), LOWER_LR),)),
    "LMR": Case(LMR_2, NONE, ((replace(LMR_2, lr=3e37), "the head's loss is (nan|inf) in epoch"),)),
    "NFT": Case(NFT_2, NONE, unit_scores=True),  # its factors stay in [0, 1] whatever the step
    "FinePruning": Case(FinePruning(ANY, EPOCH), BOTH, ((FinePruning(ANY, WILD), LOWER_LR),)),
    "FinePruning, not tuned": Case(FinePruning(ANY, None), BOTH),
    "FineTuning": Case(FineTuning(EPOCH), NONE, ((FineTuning(WILD), LOWER_LR),)),
}
each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def usual(name: str) -> Repair:
    """What a defence makes of `plain` and CLEAN; tests share it, so it must not be changed."""
    return CASES[name].defence(plain(), CLEAN)


def outcome(repair: Repair) -> dict[str, Tensor]:
    """All tensors of a repair, the record aside."""
    untuned = {} if repair.untuned is None else bits(repair.untuned)
    parts = {"model": bits(repair.model), "untuned": untuned, "mask": repair.mask.pruned, "score": repair.scores}
    return {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}


def memory(model: nn.Module) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}


def makers(module: object) -> set[type]:
    """The dataclasses among a module's names whose call returns a `Repair`."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and is_dataclass(kind)]
    calls = {kind: inspect.getattr_static(kind, "__call__", None) for kind in kinds}
    return {kind for kind, call in calls.items() if call is not None and get_type_hints(call).get("return") is Repair}


def test_every_defence_is_exported_and_has_a_case() -> None:
    names = [f"nbtools.defender.{module.name}" for module in pkgutil.iter_modules(defender.__path__)]
    offered = {kind for kind in makers(defender) if kind.__name__ in defender.__all__}
    assert offered == set().union(*(makers(importlib.import_module(name)) for name in names))
    assert offered == {type(case.defence) for case in CASES.values()}


def spoiled(name: str, value: float) -> Plain:
    """A network with one bad number."""
    model = plain()
    model.state_dict()[name].view(-1)[0] = value
    return model


def two_outputs() -> Plain:
    model = plain()
    model.fc = nn.Linear(8, 2)
    return model.eval()


FINITE = "the model holds NaN or infinite values in {}; its training diverged or its file is damaged"
CLASSES_NEEDED = (
    "the model tells {} classes apart, the clean images have {}; use the classes that the model was trained on"
)
BAD: dict[str, tuple[Callable[[], nn.Module], Images, str]] = {
    "no images": (
        plain,
        CLEAN.subset(torch.arange(0)),
        "there are no clean images; give at least one (ten a class is what the series uses)",
    ),
    "a class too many": (plain, Images(CLEAN.images, CLEAN.labels, (*CLASSES, "fifth")), CLASSES_NEEDED.format(4, 5)),
    "labels beyond the outputs": (two_outputs, CLEAN, CLASSES_NEEDED.format(2, 4)),
    "a NaN weight": (lambda: spoiled("conv2.weight", math.nan), CLEAN, FINITE.format("conv2.weight")),
    "an infinite bias": (lambda: spoiled("fc.bias", -math.inf), CLEAN, FINITE.format("fc.bias")),
    "an infinite statistic": (lambda: spoiled("bn2.running_var", math.inf), CLEAN, FINITE.format("bn2.running_var")),
    "no batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        CLEAN,
        "Sequential has no convolution that is followed by a batch norm (1 convolutions without one); "
        "filters are pruned through their batch norm",
    ),
}
OF_IMAGES = {"no images", "a class too many", "labels beyond the outputs"}
UNSEEN = [(name, bad) for name, bad in itertools.product(CASES, BAD) if CASES[name].blind and bad in OF_IMAGES]
REFUSED = [pair for pair in itertools.product(CASES, BAD) if pair not in UNSEEN]


def watched(make: Callable[[], nn.Module]) -> tuple[nn.Module, list[int]]:
    """A model, and how many images went into each pass through it or a copy of it."""
    model, sizes = make(), []
    model.register_forward_pre_hook(lambda _model, inputs: sizes.append(len(inputs[0])))
    return model, sizes


@pytest.mark.parametrize(("name", "bad"), REFUSED)
def test_bad_input_is_refused_by_the_same_sentence_before_any_work(name: str, bad: str) -> None:
    make, clean, sentence = BAD[bad]
    model, passes = watched(make)
    with left_alone(model, clean), pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        CASES[name].defence(model, clean)
    assert len(passes) <= 1, "one look may tell how many outputs there are"


@pytest.mark.parametrize(("name", "bad"), UNSEEN)
def test_a_defence_that_looks_at_no_image_takes_any(name: str, bad: str) -> None:
    make, clean, _ = BAD[bad]
    model, passes = watched(make)
    with left_alone(model, clean):
        repair = CASES[name].defence(model, clean)
    assert passes == [] and same_bits(repair.mask.pruned, usual(name).mask.pruned)
    check(repair, model, CASES[name])


def check(repair: Repair, given: nn.Module, case: Case) -> None:
    """The promises that every repair must keep."""
    made = [repair.model] if repair.untuned is None else [repair.model, repair.untuned]
    assert (repair.untuned is not None) == (repair.tuned_steps > 0)
    for first, second in itertools.combinations([given, *made], 2):
        assert not memory(first) & memory(second)
    units = prunable_units(given)
    assert list(repair.mask.pruned) == [unit.conv for unit in units]
    for model in made:
        check_model(model, given)
        check_pruned(model, units, repair.mask, case.zero)
    check_scores(repair, case)
    assert repair.seconds > 0 and repair.peak_bytes >= 0 and repair.defence == repr(case.defence)
    assert json.loads(json.dumps(repair.history, allow_nan=False)) == repair.history


def check_model(model: nn.Module, given: nn.Module) -> None:
    """In eval mode, finite, and otherwise made like the given model."""
    for of in (lambda m: {n: (v.shape, v.dtype) for n, v in m.state_dict().items()}, flags, lambda m: len(hooks_of(m))):
        assert of(model) == of(given)
    assert not any(module.training for module in model.modules())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert all(p.grad is None for p in model.parameters())


def flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


def check_pruned(model: nn.Module, units: Units, mask: Mask, zero: tuple[str, ...]) -> None:
    """What the mask prunes is 0, and nothing else is."""
    state = model.state_dict()
    for unit in units:
        pruned = mask.pruned[unit.conv]
        assert pruned.dtype == torch.bool and pruned.shape == (unit.filters,) and (zero or not pruned.any())
        for part in zero:
            assert (state[f"{unit.bn}.{part}"] == 0).equal(pruned)


def check_scores(repair: Repair, case: Case) -> None:
    for name, scores in repair.scores.items():
        assert scores.shape == repair.mask.pruned[name].shape and bool(scores.isfinite().all())
        assert not case.unit_scores or bool(((scores >= 0) & (scores <= 1)).all())


@each_case
def test_a_repair_keeps_its_promises(name: str) -> None:
    case, repair = CASES[name], usual(name)
    check(repair, plain(), case)
    assert repair.mask.filters == 16 and (0 < repair.mask.count < 16) == bool(case.zero)


LITTLE = {
    "one image": pictures(1, size=4),
    "two images": pictures(2, size=4),
    "one class": pictures(24, size=4).of_class(2),
    "a class missing": pictures(12).subset(pictures(12).labels != 3),
}
"""In images of 4 pixels the last map of `plain` is a single one, which no batch norm takes from a single image."""


@each_case
@pytest.mark.parametrize("little", LITTLE)
def test_little_input_is_enough(name: str, little: str) -> None:
    model, clean = plain(), LITTLE[little]
    repair = CASES[name].defence(model, clean)
    check(repair, model, CASES[name])
    assert bool(repair.model(clean.floats()).isfinite().all())


def mixed(model: nn.Module) -> None:
    """Layers in either mode, weights frozen or not, a gradient at each of them, and a hook."""
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval().requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.register_forward_hook(lambda _model, _inputs, _outputs: None)


STATES: dict[str, Callable[[nn.Module], object]] = {
    "as it is": lambda model: model.eval(),
    "train mode": lambda model: model.train(),
    "frozen": lambda model: model.requires_grad_(False),
    "mixed": mixed,
}


@each_case
@pytest.mark.parametrize("state", STATES)
def test_the_given_model_is_left_alone_and_its_state_changes_no_bit_of_the_repair(name: str, state: str) -> None:
    model = plain()
    STATES[state](model)
    with left_alone(model, CLEAN):
        repair = CASES[name].defence(model, CLEAN)
    check(repair, model, CASES[name])
    assert same_bits(outcome(repair), outcome(usual(name)))
    assert repair.history == usual(name).history and repair.tuned_steps == usual(name).tuned_steps


class Thorny(nn.Module):
    """A shortcut, a batch norm behind a sum, a convolution without one, layers that work in place, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, 1, groups=2), nn.BatchNorm2d(8)
        self.short, self.bn3 = nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.bn4, self.conv3 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.bn2(self.conv2(x)) + self.bn3(self.short(x))
        x = x + self.conv3(self.relu(self.bn4(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def thorny() -> nn.Module:
    torch.manual_seed(0)
    return settled(Thorny())


@each_case
def test_a_network_with_all_that_plain_ones_lack_is_left_alone_and_repaired_the_same_way_twice(name: str) -> None:
    model, repairs = thorny(), []
    mixed(model)
    for state in (0, 1):
        torch.manual_seed(state)  # from which dropout would draw
        with left_alone(model, CLEAN):
            repairs.append(CASES[name].defence(model, CLEAN))
        check(repairs[-1], model, CASES[name])
    assert same_bits(*map(outcome, repairs)) and repairs[0].history == repairs[1].history


def other_seeds(settings: Any, path: str = "") -> dict[str, Any]:
    """For each seed in the settings its path, and the same settings with this one changed."""
    found: dict[str, Any] = {}
    for name in (setting.name for setting in fields(settings)):
        value = getattr(settings, name)
        if name == "seed":
            found[f"{path}seed"] = replace(settings, seed=value + 1)
        elif is_dataclass(value):
            inner = other_seeds(value, f"{path}{name}.")
            found |= {place: replace(settings, **{name: other}) for place, other in inner.items()}
    return found


SEEDS = [(name, seed) for name, case in CASES.items() for seed in other_seeds(case.defence)]


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_every_seed_matters(name: str, seed: str) -> None:
    other = other_seeds(CASES[name].defence)[seed](plain(), CLEAN)
    assert not same_bits(outcome(other), outcome(usual(name)))


UNUSUAL: list[Defence] = [
    Suspiciousness(powers={"sigma": 1, "correlation": -1}, scope="global", fine_tune=None),
    Suspiciousness(mu=math.pi, saliency="softened", fold_bn=False, shortcuts=False),
    RandomPruning(Suspiciousness(fine_tune=FineTune(frozen_bn=False, lr=1e-5)), seed=7),
    MNP(norm="l2", penalty=math.pi),
    NAD(EPOCH, WILD, betas=(1.0, 2.0), layers=("conv1", "conv2"), power=1.5, first_lr=0.1),
    FinePruning(Validation(allowed=0.05), step=3),
    FineTuning(Epochs(epochs=3, lr=0.02, nesterov=True, cutout=4)),
]


@pytest.mark.parametrize("defence", [*(case.defence for case in CASES.values()), *UNUSUAL])
def test_a_repr_is_a_complete_record(defence: Defence) -> None:
    again = eval(repr(defence), {name: getattr(defender, name) for name in defender.__all__})
    assert again == defence and again is not defence and type(again) is type(defence)


@each_case
def test_settings_are_fixed_and_all_of_them_count(name: str) -> None:
    defence: Any = CASES[name].defence
    for part in (defence, *(value for value in vars(defence).values() if is_dataclass(value))):
        assert all(setting.init and setting.repr and setting.compare for setting in fields(part))
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)


@pytest.mark.parametrize(
    ("defence", "message"),
    [pytest.param(*pair, id=f"{name} {n}") for name, case in CASES.items() for n, pair in enumerate(case.wild, 1)],
)
def test_a_training_that_diverges_is_reported_and_nothing_is_handed_out(defence: Defence, message: str) -> None:
    model = plain()
    with left_alone(model, CLEAN), pytest.raises(DivergedError, match=message):
        defence(model, CLEAN)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wild])
def test_a_model_whose_answers_overflow_can_not_be_trained(name: str) -> None:
    model = plain()
    model.fc.weight.data.fill_(3e38)
    with left_alone(model, CLEAN), pytest.raises(DivergedError, match=r"nan|inf"):
        CASES[name].defence(model, CLEAN)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.forbidden])
def test_a_model_is_handed_out_untuned_where_tuning_breaks_it(name: str) -> None:
    defence, model = CASES[name].forbidden, plain()
    assert defence is not None and usual(name).tuned_steps > 0
    with left_alone(model, CLEAN):
        repair = defence(model, CLEAN)
    assert repair.untuned is None and repair.tuned_steps == 0 and repair.mask.count > 0
    assert same_bits(bits(repair.model), bits(pruned_copy(model, repair.mask)))
    assert [row["step"] for row in repair.history if "step" in row and row["chosen"]] == [0]


def test_only_what_trains_nothing_can_not_diverge() -> None:
    steady = [case.defence for case in CASES.values() if not case.wild and case.forbidden is None]
    assert len(steady) == 6 and NFT_2 in steady
    trains_not = (None, Renormalise(most=8))
    assert all(getattr(defence, "fine_tune", "missing") in trains_not for defence in steady if defence != NFT_2)
