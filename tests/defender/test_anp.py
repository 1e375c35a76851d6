"""ANP against its iterations written out, its traps, and the threshold sweep that other defences share."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import Calls, ConvolutionGradients, bits, network, pictures, plain, same_bits, taught
from torch import Tensor, nn

from nbtools.data.images import Images
from nbtools.defender import anp
from nbtools.defender.anp import ANP
from nbtools.defender.learning import accuracy
from nbtools.defender.soft_masks import SoftMasks, shut
from nbtools.defender.threshold_sweep import choose_threshold, sweep
from nbtools.defender.validation import Validation
from nbtools.networks.training import augment
from nbtools.networks.units import layers_of, prunable_units

SHORT = ANP(iterations=4, batch_size=6, seed=3)
each_statistics = pytest.mark.parametrize("batch_statistics", [True, False], ids=["batch", "running"])


def by_hand(defence: ANP, model: nn.Module, clean: Images) -> tuple[list[Tensor], list[float]]:
    """m after each iteration and the losses: full copies, each with its own parameters, SGD written out."""
    norms = [bn for _, _, bn in layers_of(model, prunable_units(model))]
    sizes = [bn.num_features for bn in norms]
    generator = torch.Generator().manual_seed(defence.seed)
    m, velocity = torch.ones(sum(sizes)), torch.zeros(sum(sizes))
    history, losses = [], []

    def gradients(factors: Tensor, shifts: Tensor, x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
        """Loss, and its gradients by factors and shifts: those by gamma and beta times gamma and beta."""
        twin = copy.deepcopy(model).requires_grad_(True)
        twin.train(defence.batch_statistics)
        mine = [bn for _, _, bn in layers_of(twin, prunable_units(twin))]
        with torch.no_grad():
            for bn, a, b in zip(mine, factors.split(sizes), shifts.split(sizes), strict=True):
                bn.weight.mul_(a)
                bn.bias.mul_(b)
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        by_factor, by_shift = [], []
        for bn, before in zip(mine, norms, strict=True):
            assert bn.weight.grad is not None and bn.bias.grad is not None
            by_factor.append(bn.weight.grad * before.weight.detach())
            by_shift.append(bn.bias.grad * before.bias.detach())
        return float(loss.detach()), torch.cat(by_factor), torch.cat(by_shift)

    for _ in range(defence.iterations):
        part = clean.subset(torch.randperm(len(clean), generator=generator)[: defence.batch_size])
        x, y = augment(part.images, generator).float() / 255, part.labels
        d, xi = defence.epsilon * (2 * torch.rand(2, len(m), generator=generator) - 1)
        _, up, aside = gradients(m + d, 1 + xi, x, y)
        d, xi = d + defence.epsilon * up.sign(), xi + defence.epsilon * aside.sign()
        if defence.projected:
            d, xi = d.clamp(-defence.epsilon, defence.epsilon), xi.clamp(-defence.epsilon, defence.epsilon)
        calm, first, _ = gradients(m, torch.ones_like(m), x, y)
        shaken, second, _ = gradients(m + d, 1 + xi, x, y)
        step = defence.share * first + (1 - defence.share) * second
        velocity = step if not history else defence.momentum * velocity + step
        m = (m - defence.lr * velocity).clamp(0, 1)
        history.append(m)
        losses.append(defence.share * calm + (1 - defence.share) * shaken)
    return history, losses


@each_statistics
@pytest.mark.parametrize("projected", [True, False])
def test_the_masks_are_those_of_the_iterations_written_out(batch_statistics: bool, projected: bool) -> None:
    lr = 10 if batch_statistics else 30  # so that masks of 0 are reached
    defence = replace(SHORT, lr=lr, batch_statistics=batch_statistics, projected=projected)
    model, clean = plain(), pictures(8, size=32)
    wanted, losses = by_hand(defence, model, clean)
    for iterations in (1, 4):
        _, m, rows = replace(defence, iterations=iterations).masks(model, clean)
        assert torch.allclose(m, wanted[iterations - 1], atol=2e-5)
        assert [row["iteration"] for row in rows] == [iterations]
        assert rows[0]["loss"] == pytest.approx(sum(losses[:iterations]) / iterations, rel=1e-4)
        assert rows[0]["mean_mask"] == pytest.approx(float(m.mean()))
        assert rows[0]["at_zero"] == pytest.approx(int((m == 0).sum()) / 16)
    assert 0 < int((wanted[-1] == 0).sum()) < 16


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_iterations_written_out_on_deep_networks(name: str) -> None:
    defence = replace(SHORT, iterations=1, batch_size=4, lr=0.2)
    model, clean = network(name), pictures(4)
    _, m, _ = defence.masks(model, clean)
    wanted = by_hand(defence, model, clean)[0][0]
    # a sign of a gradient near zero may fall either way by rounding, which moves all masks a little
    assert float((m - wanted).abs().max()) < 0.02 * float((1 - wanted).abs().max()) and float(wanted.min()) < 0.99


@pytest.mark.parametrize(("projected", "most"), [(True, 0.4), (False, 0.8)])
def test_noise_stays_in_the_papers_box_unless_the_public_codes_is_asked_for(projected: bool, most: float) -> None:
    seen: list[float] = []

    class Spy(SoftMasks):
        def __call__(self, inputs: Tensor, factors: Tensor, shifts: Tensor | None = None) -> Tensor:
            if shifts is not None:
                seen.append(float((shifts.detach() - 1).abs().max()))
            return super().__call__(inputs, factors, shifts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbtools.defender.anp.SoftMasks", Spy)
        replace(SHORT, projected=projected).masks(plain(), pictures(8))
    drawn, stepped = seen[::2], seen[1::2]
    assert max(drawn) <= 0.4 and max(stepped) <= most + 1e-6 and max(stepped) > 0.9 * most


@each_statistics
def test_no_gradient_of_a_convolutions_weights_is_ever_made(batch_statistics: bool) -> None:
    model = plain().requires_grad_(True)
    with ConvolutionGradients() as watch:
        soft, _, _ = replace(SHORT, batch_statistics=batch_statistics).masks(model, pictures(8))
    # three losses an iteration; the first convolution's input needs no gradient, so its backward never runs
    assert len(watch.asked) == 3 * SHORT.iterations and set(watch.asked) == {(True, False, False)}
    assert all(p.grad is None and not p.requires_grad for p in soft.model.parameters())


@each_statistics
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_only_gamma_of_pruned_filters_changes(name: str, batch_statistics: bool) -> None:
    model, clean = network(name), pictures(8)
    defence = ANP(iterations=3, lr=5, batch_statistics=batch_statistics, validation=Validation(allowed=0.9))
    repair = defence(model, clean)
    assert 0 < repair.mask.count < repair.mask.filters
    before, after = bits(model), bits(repair.model)
    units = prunable_units(model)
    for unit in units:
        pruned = repair.mask.pruned[unit.conv]
        assert not after[f"{unit.bn}.weight"][pruned].any()
        after[f"{unit.bn}.weight"][pruned] = before[f"{unit.bn}.weight"][pruned]
    assert same_bits(before, after), "beta, statistics and all other weights stay, bit for bit"
    assert list(repair.scores) == list(repair.mask.pruned) == [unit.conv for unit in units]


def test_a_mask_at_the_threshold_is_pruned() -> None:
    defence = replace(SHORT, lr=20, thresholds=(0.0,), validation=Validation(allowed=0.99))
    repair = defence(plain(), pictures(8))
    assert repair.mask.count == round(16 * repair.history[0]["at_zero"]) > 0


def among(images: Images, some: Images) -> Tensor:
    """Which of the images are among `some`: bool `[n]`."""
    return (images.images[:, None] == some.images[None]).flatten(2).all(2).any(1)


def test_the_threshold_is_the_strongest_that_the_held_back_images_allow() -> None:
    model, clean, validation = taught(40), pictures(40), Validation(share=0.5, allowed=0.1)
    odd = among(clean, validation.split(clean)[1]) & (torch.arange(40) % 3 == 0)
    swapped = torch.where(odd[:, None, None, None], clean.images.flip(1), clean.images)
    clean = Images(swapped, clean.labels, clean.classes)  # the model errs on some of those held back, and on no other
    defence = replace(SHORT, lr=1, iterations=6, validation=validation)
    repair = defence(model, clean)
    steps = [row for row in repair.history if row["kind"] == "iteration"]
    rows = [row for row in repair.history if row["kind"] == "threshold"]
    assert repair.history == steps + rows and [row["threshold"] for row in rows] == list(defence.thresholds)
    learn, held = validation.split(clean)
    units, (_, m, _) = prunable_units(model), defence.masks(model, learn)
    before, passing = accuracy(model, held), []
    assert before < accuracy(model, learn)
    for row in rows:
        twin = shut(model, units, m <= row["threshold"])
        assert row["held_back"] == accuracy(twin, held) and row["pruned"] == int((m <= row["threshold"]).sum())
        passing.append(row["held_back"] >= before - 0.1)
    first = passing.index(False)
    assert first > 0 and [row["chosen"] for row in rows] == [k == first - 1 for k in range(20)]
    chosen = rows[first - 1]["threshold"]
    assert repair.mask.count == rows[first - 1]["pruned"] > 0
    assert torch.cat(list(repair.scores.values())).equal(1 - m)
    assert all((repair.scores[name] >= 1 - chosen).equal(pruned) for name, pruned in repair.mask.pruned.items())


def test_the_masks_never_see_what_is_held_back() -> None:
    model, clean, validation = plain(), pictures(24), SHORT.validation
    learn, held = validation.split(clean)
    is_held = among(clean, held)
    assert int(is_held.sum()) == len(held) > 0 and len(learn) + len(held) == 24
    first = SHORT(model, clean).scores
    for other, same in ((is_held, True), (~is_held, False)):
        changed = torch.where(other[:, None, None, None], 255 - clean.images, clean.images)
        scores = SHORT(model, Images(changed, clean.labels, clean.classes)).scores
        assert same_bits(first, scores) == same


def test_nothing_is_pruned_where_no_threshold_passes() -> None:
    model, units, validation = taught(40), prunable_units(plain()), Validation(share=0.5, allowed=0)
    held = pictures(12)
    answers = model(held.floats()).argmax(1)
    held = Images(held.images, answers, held.classes)  # labels that only the unpruned model gets all right
    chosen, rows = choose_threshold(model, units, torch.zeros(16), [0.5, 0.1], held, validation)
    assert len(set(answers.tolist())) > 1 and chosen is None
    assert [row["threshold"] for row in rows] == [0.1, 0.5] and not any(row["chosen"] for row in rows)
    assert all(row["pruned"] == 16 and row["held_back"] < 1 for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbtools.defender.anp.choose_threshold", lambda *_: (None, rows))
        repair = SHORT(model, pictures(8))
    assert repair.mask.count == 0 and same_bits(bits(repair.model), bits(model))


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_a_sweep_prunes_nested_sets_and_measures_each(name: str) -> None:
    model = network(name).train()
    before, units = bits(model), prunable_units(model)
    values = torch.rand(sum(unit.filters for unit in units), generator=torch.Generator().manual_seed(0))
    values[7] = 0.25  # at a threshold counts as below it
    inputs, asked = pictures(2).floats(), []

    @torch.no_grad()
    def measure(twin: nn.Module) -> float:
        asked.append([bn.weight == 0 for _, _, bn in layers_of(twin, units)])
        return float(twin(inputs).sum())

    rows = sweep(model, units, values, [0.75, -math.inf, 0.25, 0.25], measure)
    assert [row["threshold"] for row in rows] == [-math.inf, 0.25, 0.25, 0.75] and len(asked) == 3
    assert [row["pruned"] for row in rows] == [int((values <= t).sum()) for t in (-1, 0.25, 0.25, 0.75)]
    for row in rows:
        with torch.no_grad():
            alone = shut(model, units, values <= row["threshold"])(inputs).sum()
        assert row["measured"] == pytest.approx(float(alone), rel=1e-5)
    gone = [torch.cat(parts) for parts in asked]
    assert bool(gone[1][7]) and all((weak <= strong).all() for weak, strong in itertools.pairwise(gone))
    assert same_bits(bits(model), before) and all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("values", "thresholds", "message"),
    [
        (torch.zeros(15), [0.5], r"values must be \[16\], .* got \[15\]"),
        (torch.full((16,), math.nan), [0.5], "none NaN"),
        (torch.zeros(16), [], "thresholds must be one number or more"),
        (torch.zeros(16), [math.nan], "thresholds must be one number or more, none NaN"),
    ],
)
def test_what_cannot_be_swept_is_refused(values: Tensor, thresholds: list[float], message: str) -> None:
    units = prunable_units(plain())
    with pytest.raises(ValueError, match=message):
        sweep(plain(), units, values, thresholds, lambda _: 0.0)
    with pytest.raises(ValueError, match=message):
        choose_threshold(plain(), units, values, thresholds, pictures(4), Validation())


def test_no_iteration_waits_for_a_number_from_the_device() -> None:
    """On a GPU each would let its queue run empty; what is read before and after the iterations is read once."""

    def read(iterations: int) -> int:
        with Calls() as calls:
            replace(SHORT, iterations=iterations).masks(plain(), pictures(12))
        return calls.made[torch.ops.aten._local_scalar_dense.default]

    assert read(12) == read(2)


def test_the_history_has_a_row_every_hundred_iterations_and_at_the_end() -> None:
    assert anp.LOOK == 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anp, "LOOK", 3)
        rows = replace(SHORT, iterations=7).masks(plain(), pictures(8))[2]
    alone = [replace(SHORT, iterations=k).masks(plain(), pictures(8))[2][0]["loss"] for k in (3, 6, 7)]
    assert [row["iteration"] for row in rows] == [3, 6, 7]
    means = [alone[0], 2 * alone[1] - alone[0], 7 * alone[2] - 6 * alone[1]]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-4)


def test_a_filter_that_noise_can_turn_against_all_images_is_masked_first() -> None:
    model, clean = taught(40), pictures(40)
    with torch.no_grad():  # silent on all images, but a little noise on gamma or beta lets it shout "red"
        model.bn2.weight[5], model.bn2.bias[5] = 1.0, -4.0
        model.fc.weight[:, 5] = torch.tensor([60.0, 0, 0, 0])
    assert accuracy(model, clean) > 0.9
    _, m, _ = ANP(iterations=60, batch_size=40, batch_statistics=False).masks(model, clean)
    assert int(m.argmin()) == 8 + 5


def test_the_masks_alone_need_images_too() -> None:
    with pytest.raises(ValueError, match="there are no clean images; give at least one"):
        SHORT.masks(plain(), pictures(4).subset(torch.arange(0)))


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"share": 1.1},
        {"share": math.nan},
        {"lr": 0},
        {"lr": math.nan},
        {"momentum": 1},
        {"iterations": 0},
        {"batch_size": 1},
        {"thresholds": ()},
        {"thresholds": (0.5, math.nan)},
        {"thresholds": (0.5, 1.0)},
        {"thresholds": (-0.1,)},
    ],
    ids=str,
)
def test_settings_are_checked_before_any_work(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* (needed, got|NaN, got|pruned; got)"):
        replace(ANP(), **settings)
