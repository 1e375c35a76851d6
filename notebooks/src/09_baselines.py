# %% [markdown]
# # 09 · Baselines
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/09_baselines.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/09_baselines.ipynb)
#
# At the end of this notebook you know seven older ways to repair a backdoored network: each as ten lines of code,
# with one picture of what it does to ours. You know four newer ones in brief. All of them stand in one table.
#
# The papers: fine-tuning, the field's control; *fine-pruning* ([arXiv 1805.12185](https://arxiv.org/abs/1805.12185));
# *NAD* ([2101.05930](https://arxiv.org/abs/2101.05930)); *CLP* ([2208.03111](https://arxiv.org/abs/2208.03111));
# *ANP* ([2110.14430](https://arxiv.org/abs/2110.14430)); *AWM* ([2207.04497](https://arxiv.org/abs/2207.04497));
# *RNP* ([2305.14876](https://arxiv.org/abs/2305.14876)). Formulas and settings are those of the papers and of their
# public code. The newer four, *FT-SAM*, *D3*, *LMR* and *NFT*, are written **from public summaries**. Section 8 says
# what these state and what we filled in. **What is ours**: every choice is made by clean images that the defender
# holds back. The public code of several of them leaves the choice to whoever looks at the poisoned test images.

# %% [markdown]
# > **You will learn**
# > - seven ideas: train on, prune what sleeps, copy attention, cut loud filters, shake, mask weights, unlearn
# > - what each of them needs, what it costs, and where it fails
# > - which mistakes of public code make a defence look better than it is
# >
# > **Read before**: [02](02_spectral_norm.ipynb) and [06](06_suspiciousness.ipynb) · **minutes to read**: 58 ·
# > **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model and a few clean images, far fewer than most of these papers give | trains on, prunes or masks |
# | evaluator | test set and trigger | reports the scores below; chooses nothing |
#
# The evaluator's scores are the accuracy (ACC), the attack success rate (ASR: how many triggered images get the
# target class), the robust accuracy (RA: how many triggered images get their true class) and the trigger-activated
# change (TAC: how far the trigger moves a filter's map).

# %% tags=["install", "hide-input"]
# Does nothing where nbtools is installed. Elsewhere, as on Colab, it fetches the series and installs it.
from importlib.util import find_spec

if find_spec("nbtools") is None:
    import os
    import subprocess
    import sys

    address = "https://github.com/OWNER/REPOSITORY"
    checkout = "backdoor-series"
    clone = ["git", "clone", "--quiet", "--depth", "1", address, checkout]
    if not os.path.isdir(checkout) and subprocess.run(clone).returncode:
        sys.exit(f"{address} could not be fetched: is the address right, and is there a network?")
    sys.path.insert(0, checkout)
    from nbtools.series.install import install

    install()

# %% tags=["parameters"]
profile = ""  # quick, laptop or paper; "" is paper with a GPU and CIFAR-10, else quick
attack = "badnets"  # badnets, blended, sig or wanet
poison_rate = 0.05  # share of the training set that carries the trigger
target = 0  # the class that the trigger leads to
seed = 0  # of data, initial weights and training
epochs = 0  # 0 is what the profile says
samples_per_class = 10  # the defender's clean images of each class
draw = 0  # which draw of clean images the defender happens to get

# %%
import copy
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator

import nbtools
from nbtools.data.images import draw_clean, to_floats
from nbtools.defender import ANP, AWM, RNP
from nbtools.defender.ft_sam import uphill
from nbtools.defender.soft_masks import SoftMasks
from nbtools.evaluator.agreement import tac
from nbtools.evaluator.evaluation import Evaluator, predict
from nbtools.lab.comparison import contenders, cuts
from nbtools.networks.training import augment
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots
from nbtools.series.exercises import baselines as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
entries = contenders(run.profile)
older, newer = ("fine-tuning", "fine-pruning", "NAD", "CLP", "ANP", "AWM", "RNP"), ("FT-SAM", "D3", "LMR", "NFT")
line_up = {name: entries[name].defence for name in (*older, *newer)}
cut_short = {name: cut for name, cut in cuts(entries).items() if name in line_up}
print(f"cut short by this profile: {cut_short or 'nothing'}")

# %% [markdown]
# How many iterations the two slowest get is a matter of scale, like the number of test images. The profile sets it.
# Where one is cut short, its row says what a hurried ANP or AWM does, not what the paper's does.
#
# | in the papers | here |
# |---|---|
# | fine-tuning | `nbtools.defender.FineTuning` |
# | mean clean activation, prune the dormant, tune | `nbtools.defender.FinePruning` |
# | attention map, distillation | `nbtools.defender.nad.attention`, `NAD` |
# | $\sigma_i > \mathrm{mean}_l + \mu\,\mathrm{std}_l$ (its paper calls $\mu$ $u$) | `nbtools.defender.SpectralNorm` |
# | $\gamma_i (m_i + \delta_i)$, $\beta_i (1 + \xi_i)$ | `nbtools.defender.soft_masks.SoftMasks`, `ANP` |
# | universal perturbation, masks on weights | `nbtools.defender.AWM` |
# | unlearn, recover, prune | `nbtools.defender.RNP` |
# | the newer four | `nbtools.defender.FTSAM`, `D3`, `LMR`, `NFT` |
# | "the strongest setting that held-back clean images allow" (ours) | `nbtools.defender.Validation` |
#
# Every section prints one line: how many images the paper gives the method and how many it gets here, what that cost,
# and what came out. The figures ring the three filters of each layer that the trigger moves most (TAC). Only the
# evaluator can know them.

# %%
papers_images = {name: entries[name].per_class * run.splits.reserved.num_classes for name in line_up}
clean = run.draw(samples_per_class, draw=draw)
few_tests = draw_clean(run.splits.test, samples_per_class=10, seed=seed)
others = few_tests.subset(few_tests.labels != target)
truth = tac(poisoned.model, others, poisoned.trigger)
probe = Evaluator(few_tests, poisoned.trigger, target)  # some test images, for the many points of a curve
scores_of, rows_of = {}, {}


def repaired(name):
    """The defence of the line-up on the poisoned model; prints what it needs, what it costs, and what came out."""
    repair = run.repair(poisoned, line_up[name], samples_per_class, draw=draw)
    row = run.defend(poisoned, line_up[name], samples_per_class, draw=draw)
    given = len(clean) if papers_images[name] else 0
    print(f"{name}: {papers_images[name]:,} clean images in the paper, here {given} · {row['seconds']:.1f} s, "
          f"{row['peak_mb']:.0f} MB · ACC {row['acc_before']:.1f} to {row['acc_after']:.1f}, "
          f"ASR {row['asr_before']:.1f} to {row['asr_after']:.1f}")  # fmt: skip
    scores_of[name], rows_of[name] = repair.scores, row
    return repair


# %% tags=["hide-input"]
def ranked(axis, scores, label):
    """All filters by their score, the highest first, each layer's top three by TAC ringed."""
    values = torch.cat(list(scores.values())).double().cpu()
    moved = torch.cat([truth[n] >= truth[n].topk(3).values[-1] for n in scores]).cpu()
    order = values.argsort(descending=True, stable=True)
    axis.plot(values[order], color=plots.BLUE, lw=1.5)
    places = moved[order].nonzero().flatten()
    axis.scatter(places, values[order][places], s=40, facecolor="none", edgecolor="black", linewidth=0.8)
    axis.set(xlabel="filters, sorted (ringed: top TAC)", ylabel=label)


def outcome(name):
    """What a defence cost and left, for the answers."""
    row = rows_of[name]
    lost, left = row["acc_before"] - row["acc_after"], row["asr_after"]
    told = "most of the backdoor stays" if left > 50 else "most of the backdoor is gone"
    told += " and much of the clean task with it" if lost > 10 and left <= 50 else ""
    told += ", and it costs much of the clean task" if lost > 10 and left > 50 else ""
    return (
        f"It takes {row['seconds']:.1f} s; ACC goes from {row['acc_before']:.1f} to {row['acc_after']:.1f}, ASR from "
        f"{row['asr_before']:.1f} to {left:.1f}: {told}."
    )


# %% [markdown]
# (The papers' numbers are for CIFAR-10. Fine-pruning's states none. In our comparison it gets NAD's 5 % of the
# training set, and so does fine-tuning. MB is what the process took above what it had, at its highest; on a CPU it is
# a lower bound.)
#
# ## 1. Fine-tuning
#
# This is the control that every other defence must beat: train on, with the clean images and their labels. The hope
# is that the network *forgets* what it is no longer shown. With $L$ the mean loss over the clean images and $\theta$
# all weights,
#
# $$\theta \leftarrow \theta - \eta \, \nabla_\theta L(\theta), \qquad
# \eta \text{ falling from } 0.01 \text{ as a cosine.}$$


# %%
def fine_tune(model, images, recipe):
    """SGD over the clean images; yields the model after each epoch."""
    model.train().requires_grad_(True)
    sgd = torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        wave = (1 + math.cos(math.pi * epoch / (recipe.epochs - 1))) / 2
        sgd.param_groups[0]["lr"] = recipe.final_lr + (recipe.lr - recipe.final_lr) * wave
        for batch in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x = to_floats(augment(images.images[batch], generator))  # crop and flip
            sgd.zero_grad()
            F.cross_entropy(model(x), images.labels[batch]).backward()
            sgd.step()
        yield model.eval()
        model.train()


# %% [markdown]
# > **Predict first.** Nothing in these images speaks against the trigger. Will ASR fall at all?

# %%
repair = repaired("fine-tuning")
tuned = copy.deepcopy(poisoned.model)
curve = [probe(tuned).row()] + [probe(model).row() for model in fine_tune(tuned, clean, line_up["fine-tuning"].tune)]
for mine, theirs in zip(tuned.parameters(), repair.model.parameters(), strict=True):
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=5e-4)
print("the loop above and nbtools give the same network")

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.5, 3.2))
for column, color in (("acc", plots.CLEAN), ("asr", plots.POISONED), ("ra", plots.GREEN)):
    axis.plot([row[column] for row in curve], "o-", ms=4, color=color, label=column.upper())
axis.set(title="Fine-tuning, epoch by epoch (evaluator's view)", xlabel="epochs over the clean images",
         ylabel="percent of some test images", ylim=(-3, 103))  # fmt: skip
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "ACC, ASR and RA of the fine-tuned model after each epoch.")

# %% tags=["hide-input"]
fell = rows_of["fine-tuning"]["asr_before"] - rows_of["fine-tuning"]["asr_after"]
answer(
    f"You were right if you said {'hardly' if fell < 20 else 'yes'}. {outcome('fine-tuning')} "
    + (
        "It fails because a gradient on clean images has no reason to touch what only the trigger wakes. What is not "
        "shown is not thereby forgotten."
        if fell < 20
        else "No clean image speaks against the trigger. But large steps, and batch norms that follow a few images, "
        "shook the whole network, the backdoor included. Such steps have no particular direction, and fewer of them "
        "leave more of it."
    )
)

# %% [markdown]
# ## 2. Fine-pruning
#
# The idea: the backdoor's channels are those that clean images leave *dormant*, which means nearly silent. Rank the
# channels of the last convolution by their mean clean activation. Prune from the lowest on, as long as the accuracy
# on held-back images lasts. Then fine-tune. With $A_i(x)$ the channel's map behind batch norm and ReLU, the $n$ clean
# images give
#
# $$\bar A_i = \frac{1}{n} \sum_x \mathrm{mean}_{h,w} \, A_i(x)_{h,w} .$$


# %%
def dormancy(model, bn_name, images):
    """Mean activation of each channel behind batch norm and ReLU."""
    seen = []
    bn = model.get_submodule(bn_name)
    handle = bn.register_forward_hook(lambda _module, _inputs, maps: seen.append(maps.relu().mean((0, 2, 3))))
    with torch.no_grad():
        model(images.floats())
    handle.remove()
    return seen[0]


def how_many(accuracies, allowed):
    """The last count before held-back accuracy falls by more than `allowed`; counts go up one by one from 0."""
    bad = [k for k, accuracy in enumerate(accuracies) if accuracy < accuracies[0] - allowed - 1e-9]
    return bad[0] - 1 if bad else len(accuracies) - 1


repair = repaired("fine-pruning")
last = [unit for unit in prunable_units(poisoned.model) if not unit.shortcut][-1]
learned, held = line_up["fine-pruning"].validation.split(clean)
activation = dormancy(poisoned.model, last.bn, learned)
torch.testing.assert_close(activation.double(), repair.scores[last.conv], rtol=1e-4, atol=1e-6)
tried = pd.DataFrame([row for row in repair.history if row["phase"] == "prune"])
allowed = max(line_up["fine-pruning"].validation.allowed, 1 / len(held))  # of few images one may always go wrong
count = how_many(list(tried.accuracy), allowed)
order = activation.argsort(stable=True)
assert repair.mask.pruned[last.conv][order].cpu().tolist() == [k < count for k in range(last.filters)]
print(f"the lines above and nbtools agree: the {count} most dormant of the {last.filters} channels of {last.conv}")

# %% [markdown]
# > **Predict first.** On the left the channels stand in the order in which they are pruned. Where do you expect those
# > that the trigger moves?

# %%
untuned = probe(repair.untuned) if repair.untuned is not None else probe(repair.model)
rest = int((truth[last.conv].topk(10).indices[:, None] == order[count:]).any(1).sum())
print(f"pruned, not yet tuned: {untuned}; {rest} of the ten channels with the highest TAC were kept")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.5))
dots = axes[0].scatter(range(last.filters), activation[order].cpu(), c=truth[last.conv][order].cpu(), s=16,
                       cmap="cividis", linewidth=0)  # fmt: skip
figure.colorbar(dots, ax=axes[0], label="TAC (evaluator only)")
axes[0].axvline(count - 0.5, color=plots.PRUNED, ls="--", lw=1)
axes[0].set(xlabel="channels, the most dormant first", ylabel="mean clean activation")
axes[1].plot(tried.pruned, 100 * tried.accuracy, color=plots.BLUE, lw=1.5)
axes[1].axvline(count, color=plots.PRUNED, ls="--", lw=1)
axes[1].set(xlabel="channels pruned", ylabel=f"accuracy on {len(held)}\nheld-back images (%)", ylim=(-3, 103))
figure.suptitle(f"{last.conv}: {count} of {last.filters} channels sleep enough to be pruned",
                x=0.01, ha="left", fontweight="bold")  # fmt: skip
plots.show(
    figure,
    "Left: mean activations of the last convolution's channels, sorted, TAC as colour. Right: held-back accuracy "
    "against the number of channels pruned.",
)

# %% tags=["hide-input"]
places = (order[:, None] == truth[last.conv].topk(10).indices).any(1).nonzero().flatten() + 1
middle = float(places.double().median())
side = "left" if middle < last.filters / 3 else "right" if middle > 2 * last.filters / 3 else "middle"
answer(
    f"You were right if you said {'in the middle' if side == 'middle' else 'on the ' + side}: of the ten channels with "
    f"the highest TAC, half stand at place {middle:.0f} of {last.filters} or before it. "
    + {
        "left": "They sleep, as the idea says. ",
        "middle": "They sleep no more than others do, and the idea fails. ",
        "right": "They are among the least dormant, and the idea fails. ",
    }[side]
    + outcome("fine-pruning")
    + f" Before the tuning it left {untuned.asr:.1f} % of ASR"
    + (
        f", though {count} of {last.filters} channels were pruned: where nearly a whole layer can go, the network "
        "does not need it. In a ResNet the shortcut leads around it, for clean images and for the backdoor."
        if count > 0.9 * last.filters
        else f", with {count} of {last.filters} channels pruned."
    )
)

# %% [markdown]
# (The paper's networks had no shortcuts. And the method looks at one layer only.)

# %% [markdown]
# ## 3. NAD, neural attention distillation
#
# Fine-tune a copy, the teacher. Then let the backdoored network, the student, learn the labels *and* learn to look
# where the teacher looks. Its attention maps shall be the teacher's. With $A_i(x)$ the maps of layer $l$,
#
# $$\mathrm{att}_l(x) = \frac{\sum_i A_i(x)^2}{\lVert \sum_i A_i(x)^2 \rVert_2 + 10^{-6}}, \qquad
# L + \sum_l \lambda_l \, \frac{1}{n} \sum_x
# \lVert \mathrm{att}_l^\text{student}(x) - \mathrm{att}_l^\text{teacher}(x) \rVert_2^2$$
#
# (The public code also takes the mean over the positions of a map. Its weights $\lambda_l$ are meant for the maps of
# a full-size ResNet-18, and there the two agree. On smaller maps, as here in the narrow networks, that mean would
# pull several times as hard [ours]. The code also starts with a learning rate of 0.1 for two epochs; ours is 0.01
# throughout [ours].)


# %%
def attention(maps):
    """[n, channels, h, w] to [n, h * w]: where a layer looks."""
    energy = (maps**2).sum(1).flatten(1)
    return energy / (energy.norm(dim=1, keepdim=True) + 1e-6)


@torch.no_grad()
def looks(model, x, layers):
    """Layer name to its maps."""
    maps, handles = {}, []
    for name in layers:
        hook = lambda _module, _inputs, out, name=name: maps.update({name: out})  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    model(x)
    for handle in handles:
        handle.remove()
    return maps


# %%
from nbtools.defender.nad import attention as theirs

nad = line_up["NAD"]
repair = repaired("NAD")
teacher = copy.deepcopy(poisoned.model)
nad.teacher(teacher, clean)  # the teacher: ten epochs of fine-tuning
shown = others.subset(torch.arange(0, len(others), len(others) // 5)[:5])
triggered = poisoned.trigger(shown.floats())
models = {"before": poisoned.model, "teacher": teacher, "student": repair.model}
maps = {name: looks(model, triggered, nad.layers) for name, model in models.items()}
for layer in nad.layers:
    torch.testing.assert_close(attention(maps["student"][layer]), theirs(maps["student"][layer]))
mine = sum(beta * (attention(maps["before"][name]) - attention(maps["teacher"][name])).square().sum(1).mean()
           for beta, name in zip(nad.betas, nad.layers, strict=True))  # fmt: skip
torch.testing.assert_close(mine, nad.distance(maps["before"], maps["teacher"]), rtol=1e-4, atol=1e-4)
print("attention and distance above are those of nbtools")

# %% [markdown]
# > **Predict first.** These images carry the trigger, which neither teacher nor student ever saw in the defence.
# > Where does the backdoored network look, and where does the teacher?

# %%
layers = nad.layers[:2]  # the last stage's map has too few positions to show much
obeys = {
    name: 100 * float((predict(model, probe.triggered) == target).double().mean()) for name, model in models.items()
}
print("ASR on some test images: " + ", ".join(f"{name} {asr:.1f}" for name, asr in obeys.items()))

# %% tags=["hide-input"]
figure, axes = plt.subplots(len(shown), 1 + 3 * len(layers), figsize=(9.5, 1.35 * len(shown) + 0.6))
for row, picture in zip(axes, triggered, strict=True):
    row[0].imshow(plots.pixels(picture), interpolation="nearest")
for block, layer in enumerate(layers):
    for column, name in enumerate(models, start=1 + 3 * block):
        side = maps[name][layer].shape[-2:]
        for row, energy in zip(axes[:, column], attention(maps[name][layer]), strict=True):
            row.imshow(energy.view(side).cpu(), cmap="cividis", vmin=0)
        axes[0, column].set_title(f"{layer}\n{name}", fontsize=8, fontweight="normal", loc="center")
axes[0, 0].set_title("with the trigger", fontsize=8, fontweight="normal", loc="center")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
figure.suptitle("Where the networks look on triggered images", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Triggered images and their attention maps in two layers: before, in the teacher, in the student.")

# %% tags=["hide-input"]
brightest = attention(maps["before"][layers[0]]).argmax(1, keepdim=True)
lit = {}
for name in models:
    energy = attention(maps[name][layers[0]])
    lit[name] = 100 * float((energy.gather(1, brightest)[:, 0] / energy.sum(1)).mean())
touched = (triggered - shown.floats()).abs().amax(1, keepdim=True)
under = F.adaptive_max_pool2d(touched, maps["before"][layers[0]].shape[-2:]).flatten(1).gather(1, brightest) > 1e-3
answer(
    f"In {layers[0]} the backdoored network looks most at a place that lies under the trigger in {int(under.sum())} of "
    f"{len(shown)} images. There lies {lit['before']:.0f} % of its attention, {lit['teacher']:.0f} % of the teacher's "
    f"and {lit['student']:.0f} % of the student's. You were right if you said that the teacher looks "
    + ("there too" if lit["teacher"] > lit["before"] / 2 else "there less")
    + f". It is the same backdoored network, trained on a little, with an ASR of {obeys['teacher']:.1f}. "
    + outcome("NAD")
    + (
        " The student cannot have its low ASR from its teacher. And fine-tuning without the maps (section 1) left "
        f"{rows_of['fine-tuning']['asr_after']:.1f} %. So it is the strong pull of the maps that has shaken it."
        if obeys["student"] < min(obeys["teacher"], rows_of["fine-tuning"]["asr_after"]) - 10
        else " It fails where the teacher still obeys the trigger, because the student is taught to look there."
    )
)

# %% [markdown]
# ## 4. CLP, channel Lipschitz pruning
#
# CLP needs no image at all. A channel that can answer a small patch loudly has a large Lipschitz bound: its spectral
# norm, with the batch norm folded in. Prune what stands out in its layer. Notebook [02](02_spectral_norm.ipynb) is
# about this norm. With $W_i$ as a matrix of $C_\text{in}$ rows and $k^2$ columns,
#
# $$\sigma_i = \lVert W_i \rVert_2 \, \frac{|\gamma_i|}{\sqrt{v_i + \epsilon_\mathrm{bn}}}, \qquad
# \text{prune where } \sigma_i > \mathrm{mean}_l(\sigma) + \mu \, \mathrm{std}_l(\sigma), \; \mu = 3 .$$

# %%
repair = repaired("CLP")
for unit, conv, bn in layers_of(poisoned.model, prunable_units(poisoned.model)):
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    folded = conv.weight.flatten(2) * scale[:, None, None]  # [filters, C_in, k * k]
    sigma = torch.linalg.matrix_norm(folded.double(), ord=2)
    torch.testing.assert_close(sigma, repair.scores[unit.conv], rtol=1e-5, atol=1e-9)
    stands_out = sigma > sigma.mean() + line_up["CLP"].mu * sigma.std()
    assert torch.equal(stands_out, repair.mask.pruned[unit.conv])
print("the six lines above and nbtools prune the same filters")

# %% [markdown]
# > **Predict first.** How many of the rings lie above the line?

# %% tags=["hide-input"]
plots.show(
    plots.score_distribution(
        repair.scores, repair.mask, line_up["CLP"].mu, f"CLP prunes {repair.mask.count} of {repair.mask.filters}", truth
    ),
    "Strip plot of the spectral norm by layer with the threshold; pruned filters crossed, top TAC filters ringed.",
)

# %% tags=["hide-input"]
rings = sum(min(3, len(moved)) for moved in truth.values())
above = sum(int(repair.mask.pruned[name][moved.topk(3).indices].sum()) for name, moved in truth.items())
row = rows_of["CLP"]
answer(
    f"You were right if you said {'few' if above < rings / 3 else 'many'}: {above} of {rings}, among "
    f"{repair.mask.count} filters above the line. {outcome('CLP')} "
    + (
        f"It fails where the backdoor does not stand out: {rings - above} of the {rings} filters that the trigger "
        "moves most lie below the line."
        if row["asr_after"] > 50
        else "Few filters were enough. "
    )
    + (
        " And without images it cannot know on which loud filters the clean task lives."
        if row["acc_before"] - row["acc_after"] > 10
        else " And without images it could not have noticed if the clean task had lived on them."
    )
)

# %% [markdown]
# (In a pre-activation network its public code pairs convolutions with the wrong batch norms. Here the pairs are read
# from the graph.)

# %% [markdown]
# ## 5. ANP, adversarial neuron pruning
#
# The idea: a backdoored network collapses sooner when its neurons are *shaken*. Small, adversarial changes of the
# batch norms make it say the target class for clean images. So learn masks $m$ that make the shaken network right
# again, and prune what they switch off. With $\delta_i$ and $\xi_i$ the noise on a filter's scale and shift, and $R$
# its largest size,
#
# $$\min_{m \in [0,1]} \; \alpha \, L(m) + (1 - \alpha) \max_{|\delta_i|, |\xi_i| \le R} L(m + \delta, \xi), \qquad
# \gamma_i \to \gamma_i (m_i + \delta_i), \quad \beta_i \to \beta_i (1 + \xi_i) .$$


# %%
def shaken(model, x, factors, shifts):
    """Logits with every gamma times its factor and every beta times its shift, batch norms normalising by the batch."""
    twin = copy.deepcopy(model).train()
    units = prunable_units(twin)
    sizes = [unit.filters for unit in units]
    for (_, _, bn), factor, shift in zip(
        layers_of(twin, units), factors.split(sizes), shifts.split(sizes), strict=True
    ):
        bn.weight.data *= factor
        bn.bias.data *= shift
    return twin(x)


def worst_noise(soft, m, x, y, epsilon, generator):
    """One signed step uphill from a random start, inside the box: delta and xi, [2, filters]."""
    noise = epsilon * (2 * torch.rand(2, soft.count, generator=generator) - 1).to(x.device)
    noise.requires_grad_(True)
    loss = F.cross_entropy(soft(x, m + noise[0], 1 + noise[1]), y)
    (gradient,) = torch.autograd.grad(loss, noise)
    return (noise + epsilon * gradient.sign()).clamp(-epsilon, epsilon).detach()


# %% [markdown]
# With these, here is one iteration: a batch, its worst noise, and a step of the masks.

# %%
anp, generator = line_up["ANP"], torch.Generator().manual_seed(line_up["ANP"].seed)
soft = SoftMasks(poisoned.model, prunable_units(poisoned.model))  # convolutions frozen: only masks get a gradient
m = torch.ones(soft.count, device=run.device, requires_grad=True)
part = clean.subset(torch.randperm(len(clean), generator=generator)[: anp.batch_size])
x, y = to_floats(augment(part.images, generator)), part.labels
delta, xi = worst_noise(soft, m.detach(), x, y, anp.epsilon, generator)
calm, noisy = soft(x, m), soft(x, m + delta, 1 + xi)
torch.testing.assert_close(noisy, shaken(poisoned.model, x, m + delta, 1 + xi), rtol=1e-3, atol=1e-3)
(anp.share * F.cross_entropy(calm, y) + (1 - anp.share) * F.cross_entropy(noisy, y)).backward()
one_step = (m - anp.lr * m.grad).clamp(0, 1).detach()
torch.testing.assert_close(one_step, ANP(iterations=1).masks(poisoned.model, clean)[1], rtol=1e-3, atol=1e-3)
print("the forward pass under noise and the first step of the masks are those of nbtools")

# %% [markdown]
# > **Predict first.** Clean images, no trigger, shaken batch norms. What share of them will the poisoned network send
# > to the target class, and the clean twin? And once the masks are learned?

# %%
from nbtools.defender.threshold_sweep import sweep

repair = repaired("ANP")
masks = 1 - torch.cat(list(repair.scores.values()))
strengths = [0.0, 0.1, 0.2, 0.4]
own = clean.subset(clean.labels != target)
x, y = own.floats(), own.labels
drawn = {}
for name, trained, m in (("poisoned", poisoned, None), ("clean twin", clean_twin, None),
                         ("poisoned, masks learned", poisoned, masks)):  # fmt: skip
    soft = SoftMasks(trained.model, prunable_units(trained.model))
    m = torch.ones(soft.count, device=run.device) if m is None else m
    drawn[name] = []
    for epsilon in strengths:
        noise = worst_noise(soft, m, x, y, epsilon, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            drawn[name].append(100 * float((soft(x, m + noise[0], 1 + noise[1]).argmax(1) == target).double().mean()))


# %%
def obedience(model):
    """ASR of a pruned copy on some test images."""
    return 100 * float((predict(model, probe.triggered) == target).double().mean())


units = prunable_units(poisoned.model)
swept = pd.DataFrame([row for row in repair.history if row["kind"] == "threshold"])
held = anp.validation.split(clean)[1]
swept["asr"] = [row["measured"] for row in sweep(poisoned.model, units, masks, anp.thresholds, obedience)]

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for (name, line), color in zip(drawn.items(), (plots.POISONED, plots.CLEAN, plots.GREEN), strict=True):
    axes[0].plot(strengths, line, "o-", ms=4, color=color, label=name)
axes[0].set(xlabel="largest noise on the batch norms, R", ylabel="clean images sent to the target (%)", ylim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
ranked(axes[1], repair.scores, "1 - mask")
axes[2].plot(swept.threshold, 100 * swept.held_back, color=plots.CLEAN, label="held-back accuracy (defender)")
axes[2].plot(swept.threshold, swept.asr, color=plots.POISONED, label="ASR (evaluator)")
for threshold in swept.threshold[swept.chosen]:
    axes[2].axvline(threshold, color=plots.PRUNED, ls="--", lw=1)
axes[2].set(xlabel="prune masks up to (dashed: chosen)", ylabel="percent", ylim=(-3, 103))
axes[2].legend(frameon=False, fontsize=8)
figure.suptitle("ANP: what noise does, what the masks learn, what each threshold leaves",
                x=0.01, ha="left", fontweight="bold")  # fmt: skip
plots.show(
    figure,
    "Left: share of clean images sent to the target against the noise. Middle: one minus mask of all filters, sorted, "
    "top TAC filters ringed. Right: held-back accuracy and ASR against the threshold.",
)

# %% tags=["hide-input"]
ours, twins, calmed = (line[-1] for line in drawn.values())
lost = rows_of["ANP"]["acc_before"] - rows_of["ANP"]["acc_after"]
answer(
    f"With noise up to {strengths[-1]:g} the poisoned network sends {ours:.0f} % of the clean images of other classes "
    f"to the target, the clean twin {twins:.0f} %, and once the masks are learned it is {calmed:.0f} %. You were right "
    f"if you said {'more' if ours > twins + 10 else 'no more'} than the twin"
    + (": ANP's guess holds for this network. " if ours > twins + 10 else ": ANP's guess does not hold here. ")
    + (
        "The learned masks hardly calm it at this strength, although such noise is what they were learned under. The "
        "noise is added to a mask, so it weighs more where the mask has become small. "
        if calmed > ours - 10 and ours > twins + 10
        else ""
    )
    + outcome("ANP")
    + " Where it fails is the threshold: "
    + (
        "the held-back images let none pass."
        if not swept.chosen.any()
        else f"{len(held)} held-back images did not see that the chosen one costs {lost:.1f} points of ACC."
        if lost > 5
        else f"{len(held)} held-back images must choose it, and they show nothing of ASR."
    )
)

# %% [markdown]
# Masks need iterations: two thousand in the paper. Few images are soon known by heart, and a mask that shuts a filter
# which *they* do not need costs nothing. Between "does nothing" and "breaks the network" the window of good thresholds
# may be narrow, and the defender sees only the blue line on the right. Notebook [10](10_comparison.ipynb) shows how
# much better ANP looks if one chooses by the orange line.

# %% [markdown]
# ## 6. AWM, adversarial weight masking
#
# AWM is finer than filters: every *weight* gets a mask. In each round it finds one *universal* perturbation $\delta$,
# the same for all images, that changes the network's own answers $\hat y$ on as many clean images as it can. This
# stands in for the unknown trigger. Then the masks learn to be right with and without it. With $m \odot \theta$ the
# masked weights, and the perturbed images clipped to $[0, 1]$,
#
# $$\min_{m \in [0,1]} \alpha \, L(x; m \odot \theta) + (1 - \alpha) \, L(x + \delta; m \odot \theta) +
# \lambda \lVert m \rVert_1, \qquad \delta = \arg\max_{\lVert \delta \rVert_1 \le R} L(x + \delta, \hat y; \theta) .$$

# %%
from torch.func import functional_call


def universal(model, x, tau, passes, size, seed, ascent=10.0):
    """One perturbation for all images that changes what the model answers; no label is used."""
    with torch.no_grad():
        answers = model(x).argmax(1)
    delta, generator = torch.zeros_like(x[:1]).requires_grad_(True), torch.Generator().manual_seed(seed)
    for batch in [b for _ in range(passes) for b in torch.randperm(len(x), generator=generator).split(size)]:
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x[batch] + delta), answers[batch]), delta)
        delta = (delta + ascent * gradient).detach().requires_grad_(True)
    return (delta * (tau / delta.abs().sum()).clamp_max(1)).detach()


def masked_loss(model, masks, x, y, delta, a=0.9, c=1e-8):
    """What the masks descend."""
    weights = {name: model.get_parameter(name) * mask for name, mask in masks.items()}
    quiet = F.cross_entropy(functional_call(model, weights, (x,)), y)
    loud = F.cross_entropy(functional_call(model, weights, ((x + delta).clamp(0, 1),)), y)
    return a * quiet + (1 - a) * loud + c * sum(mask.sum() for mask in masks.values())


awm = line_up["AWM"]
one = AWM(rounds=1, passes=1, batch_size=len(clean))  # a single step: small enough to check by hand
history = one.masks(poisoned.model, prunable_units(poisoned.model), clean)[1]
delta = universal(poisoned.model, clean.floats(), one.tau, one.passes, one.batch_size, one.seed)
ones = {name: torch.ones_like(p) for name, p in poisoned.model.named_parameters() if p.ndim == 4}
loss = masked_loss(poisoned.model, ones, clean.floats(), clean.labels, delta)
assert math.isclose(loss, history[0]["loss"], rel_tol=1e-3)
assert math.isclose(delta.abs().sum(), history[0]["norm"], rel_tol=1e-3)
print(f"loss {loss:.4f} and l1 norm {delta.abs().sum():.1f} of the perturbation are those of nbtools")

# %% [markdown]
# > **Predict first.** Will the perturbation resemble the trigger? Will the clean twin's look different?

# %%
repair = repaired("AWM")
x = clean.floats()
found = {name: universal(trained.model, x, awm.tau, awm.passes, awm.batch_size, awm.seed)
         for name, trained in (("poisoned", poisoned), ("clean twin", clean_twin))}  # fmt: skip
change = poisoned.trigger(own.floats()) - own.floats()
most = int(change.abs().sum((1, 2, 3)).argmax())  # on an image whose corner is white a white square is no change
example = own.floats()[most][None]
misread, sent = {}, {}
with torch.no_grad():
    for name, trained in (("poisoned", poisoned), ("clean twin", clean_twin)):
        moved = trained.model((own.floats() + found[name]).clamp(0, 1)).argmax(1)
        misread[name] = 100 * float((moved != own.labels).double().mean())
        sent[name] = 100 * float((moved == target).double().mean())
        print(f"{name}: under its perturbation {misread[name]:.0f} % of the clean images are misread, "
              f"{sent[name]:.0f} % as the target")  # fmt: skip

# %% tags=["hide-input"]
panels = {
    "the trigger's change\n(evaluator only)": change[most][None] + 0.5,
    "perturbation,\npoisoned": 0.5 + found["poisoned"],
    "perturbation,\nclean twin": 0.5 + found["clean twin"],
    "an image": example,
    "with the perturbation\nof the poisoned": example + found["poisoned"],
}
figure, axes = plt.subplots(1, len(panels) + 1, figsize=(11.5, 2.5), width_ratios=[1] * len(panels) + [2.2])
for axis, (name, picture) in zip(axes, panels.items(), strict=False):
    axis.imshow(plots.pixels(picture[0].clamp(0, 1)), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=8, fontweight="normal", loc="center")
ranked(axes[-1], repair.scores, "1 - mean mask")
figure.suptitle("AWM: a stand-in for the trigger, and whose weights fade", x=0.01, ha="left", fontweight="bold")
plots.show(
    figure,
    "The trigger's change, the universal perturbations of both networks, an image with and without it, and the filters "
    "by how far their weights faded, top TAC filters ringed.",
)

# %% tags=["hide-input"]
poisoned_one, twin_one = (perturbation.flatten() for perturbation in found.values())
alike = float(F.cosine_similarity(poisoned_one, change.mean(0).flatten(), dim=0))
pair = float(F.cosine_similarity(poisoned_one, twin_one, dim=0))
answer(
    f"You were right if you said {'yes' if alike > 0.5 else 'no'}: its cosine with the trigger's mean change is "
    f"{alike:.2f} (1 would be the same picture). The clean twin's looks {'alike' if pair > 0.5 else 'different'}: the "
    f"cosine of the two is {pair:.2f}. In the poisoned network it sends {sent['poisoned']:.0f} % of the clean images "
    f"to the target, in the twin {sent['clean twin']:.0f} %, but there {misread['clean twin']:.0f} % are misread. "
    f"{outcome('AWM')} It fails where it finds another weakness than the backdoor, since it may change every pixel: "
    "then the masks learn robustness in general, and pay for it in ACC."
)

# %% [markdown]
# A mask moves by at most about the learning rate (0.01) in each step, so a hurried AWM can hardly fade anything: the
# axis of the last panel says how far it got. And no filter ever becomes exactly removable.

# %% [markdown]
# ## 7. RNP, reconstructive neuron pruning
#
# First make the network *forget* the clean task, by gradient ascent on the clean loss $L$. What only the trigger
# wakes is not ascended on, and stays. Then freeze the weights $\theta'$ that this gives, and let masks bring the
# clean task back. The filters that are in its way, whose masks sink, are the backdoor's. Prune these in the original
# network.
#
# $$\theta' = \text{ascend } L(\theta) \text{ until the accuracy} \le 0.2, \qquad
# m = \arg\min_{m \in [0,1]} L(m; \theta'), \qquad \text{prune where } m_i \le \tau$$


# %%
def unlearn(model, images, rnp, epochs):
    """Gradient ascent on the clean loss, all weights; yields the network before it and after each epoch."""
    model.train().requires_grad_(True)
    sgd = torch.optim.SGD(
        model.parameters(), rnp.unlearn_lr, rnp.momentum, weight_decay=rnp.weight_decay, maximize=True
    )
    generator = torch.Generator().manual_seed(rnp.seed)
    yield model.eval()
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images), generator=generator).split(rnp.batch_size):
            x = to_floats(augment(images.images[batch], generator))
            sgd.zero_grad()
            F.cross_entropy(model(x), images.labels[batch]).backward()
            sgd.step()
        yield model.eval()


rnp = line_up["RNP"]
learned, _ = rnp.validation.split(clean)
mine = list(unlearn(copy.deepcopy(poisoned.model), learned, rnp, 1))[-1]
theirs, _ = RNP(unlearn_epochs=1).unlearn(poisoned.model, prunable_units(poisoned.model), learned)
for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
print("an epoch of the loop above and of nbtools give the same network")

# %% [markdown]
# > **Predict first.** While the network forgets, which goes first: what it knows of clean images, or the backdoor?

# %%
repair = repaired("RNP")
steps = pd.DataFrame([row for row in repair.history if row["stage"] == "unlearn"])
copies = unlearn(copy.deepcopy(poisoned.model), learned, rnp, int(steps.epoch.max()))
forgetting = pd.DataFrame([probe(model).row() for model in copies])

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4))
axes[0].plot(steps.epoch, 100 * steps.accuracy, "x:", color=plots.GREY, label="accuracy on the defender's images")
axes[0].plot(forgetting.acc, "o-", ms=4, color=plots.CLEAN, label="ACC (some test images)")
axes[0].plot(forgetting.asr, "s-", ms=4, color=plots.POISONED, label="ASR (some test images)")
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].axhline(100 * rnp.until, color=plots.PRUNED, ls="--", lw=1)
axes[0].set(xlabel="epochs of unlearning (dashed: stop)", ylabel="percent", ylim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
ranked(axes[1], repair.scores, "1 - mask, after recovery")
title = f"RNP: {len(steps) - 1} epochs of unlearning, then {repair.mask.count} of {repair.mask.filters} filters pruned"
figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
plots.show(
    figure,
    "Left: accuracy, ACC and ASR while the network unlearns the clean images. Right: one minus mask of all filters, "
    "sorted, top TAC filters ringed.",
)

# %% tags=["hide-input"]
start, end = forgetting.iloc[0], forgetting.iloc[-1]
clean_first = start.acc - end.acc > start.asr - end.asr
row = rows_of["RNP"]
if row["asr_after"] <= 50:
    why = "It fails where ASR goes down together with ACC: what recovery must then switch off is not the backdoor."
elif clean_first:
    why = "It fails here all the same: a few held-back images let it prune "
    why += f"{repair.mask.count} of {repair.mask.filters} filters, and these were not enough."
else:
    why = "It fails since ASR goes down together with ACC: what recovery must switch off is not the backdoor."
if steps.accuracy.iloc[-1] > rnp.until:
    why += " Unlearning also ran out of epochs before it reached the dashed line."
answer(
    f"You were right if you said {'the clean task' if clean_first else 'the backdoor'}: after {len(forgetting) - 1} "
    f"epochs ACC has gone from {start.acc:.0f} to {end.acc:.0f} on some test images, and ASR from {start.asr:.0f} to "
    f"{end.asr:.0f}. {outcome('RNP')} {why}"
)

# %% [markdown]
# ## 8. Four newer ones, as summarised
#
# We could read summaries of these papers, not the papers. The idea and the loss of each are theirs. What a summary
# leaves open, such as epochs and learning rates, is ours, and the same for all attacks. So a bad row in the table
# says that *this* version fails here, on *these* networks and amounts of images.
#
# - **FT-SAM** (2023): train on, but go where the loss is low *all around*. The gradient is not taken at the weights
#   $\theta$, but at $\theta + \delta$, a step uphill in each weight's own scale: $\delta = R\, \theta^2 g \,/\,
#   \lVert \lvert \theta \rvert g \rVert$ entry by entry, with $g$ the gradient of $L$ and $R = 2$.
# - **NFT** (2024): learn one factor $m_i \le 1$ for each filter, on blends of two images, with the loss $L + \lambda
#   \sum_i (1 - m_i)$.
# - **D3** (2025): leave the place where the backdoor was learned. The loss is $-\lVert \theta - \theta_0 \rVert +
#   \lambda \max(0, L - \tau)$, with $\theta$ the weights of the head (the last, linear layer), whose norm is kept,
#   and $\theta_0$ what they were. All other weights follow, by the gradient of $L$.
# - **LMR** (2026): find the class $c$ that the network falls back on, and push its logit $z_c$ down in the head
#   alone. The loss is $L + \lambda \max(0, z_c - z_\text{other} + 3)$ for images of other classes, with
#   $z_\text{other}$ the highest logit of all other classes, and a term that holds the true class up.
#
# The code below writes two of them out and compares them with the package.


# %%
def uphill_by_hand(weights, gradients, radius):
    """FT-SAM's step: the direction of steepest ascent when each weight's step is counted in units of the weight."""
    length = sum(float((w.abs() * g).square().sum()) for w, g in zip(weights, gradients, strict=True)) ** 0.5
    return [radius * w.square() * g / length for w, g in zip(weights, gradients, strict=True)]


def repel_by_hand(logits, labels, c, a=1.0, b=0.25):
    """LMR's loss, image by image."""
    total = 0.0
    for z, y in zip(logits, labels.tolist(), strict=True):
        others = torch.cat([z[:c], z[c + 1 :]]).max()
        rivals = torch.cat([z[:y], z[y + 1 :]]).max()
        if y != c:
            total += F.cross_entropy(z, torch.tensor(y, device=z.device)) + a * (z[c] - others + 3.0).relu()
        total += b * (rivals - z[y] + 0.5).relu()
    return total / len(labels)


model, lmr = copy.deepcopy(poisoned.model).requires_grad_(True), line_up["LMR"]
weights = list(model.parameters())
loss = F.cross_entropy(model(clean.floats()), clean.labels)
gradients = torch.autograd.grad(loss, weights)
here = [weight.detach() for weight in weights]
mine = uphill_by_hand(here, gradients, 2.0)
for step, theirs in zip(mine, uphill(here, gradients, 2.0), strict=True):
    torch.testing.assert_close(step, theirs, rtol=1e-3, atol=1e-5)
with torch.no_grad():
    logits = poisoned.model(clean.floats())
    torch.testing.assert_close(repel_by_hand(logits, clean.labels, target), lmr.loss(logits, clean.labels, target))
    for weight, step in zip(weights, mine, strict=True):
        weight += step
    steep = F.cross_entropy(model(clean.floats()), clean.labels)
print(f"both agree with nbtools; FT-SAM's step takes the clean loss from {loss.item():.2f} to {float(steep):.2f}")

# %% [markdown]
# LMR needs to know the class. It takes a copy, ascends the clean loss, and asks which class the copy falls back on.
#
# > **Predict first.** Will that be the target? And which class will the clean twin fall back on?

# %%
fallen = {one.name: lmr.fallen_back_on(one.model, clean).exp().cpu() for one in (poisoned, clean_twin)}
for name, probabilities in fallen.items():
    most = clean.classes[int(probabilities.argmax())]
    print(f"{name}: falls back on {most} (the target is {clean.classes[target]})")
for name in newer:
    repaired(name)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.5, 2.8))
for (name, probabilities), place, color in zip(fallen.items(), (-0.2, 0.2), (plots.POISONED, plots.CLEAN), strict=True):
    axis.bar(torch.arange(len(probabilities)) + place, probabilities, 0.4, color=color, label=name)
axis.set(xticks=range(len(clean.classes)), ylabel="probability (geometric mean)")
axis.set_title("LMR: which class a copy falls back on when it forgets")
axis.set_xticklabels(clean.classes, rotation=40, ha="right")
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Mean probability of each class after the ascent, for the poisoned network and its clean twin.")

# %% tags=["hide-input"]
suspect, of_twin = (int(probabilities.argmax()) for probabilities in fallen.values())
rest = {name: rows_of[name] for name in ("FT-SAM", "NFT", "D3")}
left = [f"{name} {r['asr_after']:.0f} % for {r['acc_before'] - r['acc_after']:.1f} points" for name, r in rest.items()]
stays = rows_of["LMR"]["asr_after"] > 50
answer(
    f"You were right if you said {'yes' if suspect == target else 'no'}: the poisoned network falls back on "
    f"{clean.classes[suspect]}, the clean twin {'too' if of_twin == suspect else 'on ' + clean.classes[of_twin]}. "
    f"A class is always named, with a backdoor or without one. {outcome('LMR').replace('It', 'LMR', 1)} "
    + (
        "Even the right suspect is not enough: LMR changes the head alone. "
        if suspect == target and stays
        else "A wrong suspect leaves the backdoor where it is. "
        if stays
        else "The right suspect was enough. "
        if suspect == target
        else ""
    )
    + f"What the other three leave of ASR, and their cost in ACC: {', '.join(left)}."
)

# %% [markdown]
# **Where they fail.** FT-SAM and D3 move all weights with few images, so they pay in ACC. D3 and LMR act through the
# head. If the backdoor has made its features look like the target's before the head sees them, the head cannot tell
# them apart. NFT's factors may only sink, and only blends of images can ask for it.

# %% [markdown]
# ## 9. All of them
#
# One loop, the same clean images, the same evaluation, on the poisoned network and on its clean twin.
#
# > **Predict first.** Which two will leave the least ASR? Which will cost the clean twin most?

# %%
table = []
for name, defence in line_up.items():
    for trained in (poisoned, clean_twin):
        row = run.defend(trained, defence, samples_per_class, draw=draw)
        table.append({"name": name, "cut_short": name in cut_short, **row})
table = pd.DataFrame(table)
run.save_rows(table, "09_baselines")
wide = table.pivot(index="name", columns="attack").loc[list(line_up)]
pd.DataFrame(
    {
        "clean images, paper": pd.Series(papers_images),
        "ACC before": wide["acc_before"][attack],
        "ACC after": wide["acc_after"][attack],
        "ASR before": wide["asr_before"][attack],
        "ASR after": wide["asr_after"][attack],
        "RA after": wide["ra_after"][attack],
        "twin: ACC before": wide["acc_before"]["none"],
        "twin: ACC after": wide["acc_after"]["none"],
        "pruned": wide["pruned"][attack],
        "seconds": wide["seconds"][attack],
        "MB": wide["peak_mb"][attack],
    }
).round(1)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
places = range(len(line_up))
for column, axis in zip(("acc", "asr"), axes, strict=True):
    for kind, color, shift in ((attack, plots.POISONED, -0.12), ("none", plots.CLEAN, 0.12)):
        values, before = wide[f"{column}_after"][kind], wide[f"{column}_before"][kind]
        rows = [place + shift for place in places]
        axis.hlines(rows, before, values, color=color, lw=1, alpha=0.5)
        axis.scatter(values, rows, color=color, s=30, label=poisoned.name if kind == attack else "clean twin")
        axis.scatter(before, rows, color=color, s=30, marker="|")
    axis.set(xlabel=f"{column.upper()} (%)")
axes[0].set_yticks(places, list(line_up))
axes[0].invert_yaxis()
axes[1].set(xlim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
figure.suptitle(f"{len(clean)} clean images: before (bar) and after (dot)", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "ACC and ASR of the poisoned network and its clean twin before and after each of the baselines.")

# %% tags=["hide-input"]
asr, acc = wide["asr_after"][attack].sort_values(), wide["acc_before"][attack] - wide["acc_after"][attack]
on_twin = wide["acc_before"]["none"] - wide["acc_after"]["none"]
good = [name for name in line_up if asr[name] <= 10 and acc[name] <= 5 and on_twin[name] <= 5]
answer(
    f"You were right if you said {asr.index[0]} ({asr.iloc[0]:.1f} %, for {acc[asr.index[0]]:.1f} points of ACC) and "
    f"{asr.index[1]} ({asr.iloc[1]:.1f} %, for {acc[asr.index[1]]:.1f}). Of all, the clean twin pays most for "
    f"{on_twin.idxmax()}: {on_twin.max():.1f} points. A low ASR alone says little, since a broken network obeys no "
    f"trigger either: {', '.join(good) or 'none of them'} leave{'' if len(good) > 1 else 's'} at most 10 % of ASR "
    "for at most 5 points of ACC on either network."
)

# %% [markdown]
# How to read a row: where the dot of ASR has gone left and that of ACC has stayed, the method works here. Where both
# went left, it broke the network, and the backdoor with it. The clean twin's dot is the price for those who have no
# backdoor. The twin's ASR is no attack: it counts the triggered images that a network takes for the target anyway.
# Where it *rises*, the repaired network has begun to say that class for other reasons.
#
# One model and one draw of clean images do not make a ranking, and most of these methods have far more images in their
# papers. Notebook [10](10_comparison.ipynb) gives them both: several attacks, and the papers' own amounts.
#
# **One more stands in that comparison, shift unlearning.** It is our own (`nbtools.defender.shift_unlearning`). A
# trigger moves a network's maps in nearly the same way in every image. So this defence looks for something that acts
# like a trigger: *one shift* that is added to the pixels of all clean images, or to all their maps below the last
# stage. For each class it asks how far such a shift moves even the images that resist most towards this class. A
# statistical test decides whether one class is reached far too easily. If so, this class is the suspect. The last
# stage alone is then trained until shifted images get the answers that they got without the shift. Before all this,
# the network is pruned gently by the suspiciousness score. Where no class stands out, it is only pruned. At full
# width it takes about three minutes on two cores. It fails where the search finds no suspect or a wrong one, as with
# a SIG network of width 16 that took no part in its development
# ([lab notes](../data/lab_notes.md#shift-unlearning)).

# %% [markdown]
# ## 10. Mistakes seen in public code
#
# None of these mistakes speaks against an idea. The last one costs time. Each of the others changes what a table says.
# Beside each stands the test of this package that would fail if it were made here.
#
# | mistake seen | where | the test |
# |---|---|---|
# | threshold chosen by *test* ASR | ANP, BackdoorBench | `test_anp`: the strongest that the held-back images allow |
# | the same | RNP, BackdoorBench | `test_rnp`: the threshold comes from images that were held back |
# | masks trained on the test split | ANP, backdoor-toolbox | `test_isolation`: no import reaches the test set |
# | clean data taken from the test set | AWM | `test_datasets`: three parts that share no picture |
# | target class counted in ASR | AWM, BackdoorBox | `test_evaluation`: ASR and RA count all but the target |
# | target class dropped from ACC | NAD, RNP | `test_evaluation`: ACC counts all classes |
# | model aliased: "before" is after | fine-pruning, BackdoorBench | `test_fine_pruning`: copied and not aliased |
# | images normalised twice | FMP | `test_fmp`: the network sees images from 0 to 1 |
# | test images move BN statistics | FMP | `test_evaluation`: evaluation changes nothing in the model |
# | a seed option that is never applied | backdoor-toolbox | `test_plain_fine_tuning`: another seed, another model |
# | convolutions paired with wrong batch norms | CLP, pre-activation | `test_models`: pairs of a forward pass |
# | attention taken after the pooling | NAD, copies of it | `test_nad`: maps are taken before the pooling |
# | gradients made that nothing uses | ANP | `test_anp`: no gradient of a convolution's weights is ever made |

# %% [markdown]
# ## 11. Exercises
#
# **Exercise 1** (easy, 10 minutes). Somebody takes NAD's attention *after* the global average pooling, where a map is
# a single number. How far apart are teacher and student then? Take their maps in `nad.layers[-1]`, the squared
# distance of their attention (summed over the positions, mean over the images, without weight), once from the maps as
# they are and once after `F.adaptive_avg_pool2d(..., 1)`. What can this term teach after the pooling?

# %%
after_pooling = ...  # your answer, [2]: the distance before the pooling, and after it

exercises.after_pooling(after_pooling, maps["student"][nad.layers[-1]], maps["teacher"][nad.layers[-1]])

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Fine-pruning believes that the backdoor sleeps on clean images. Test it:
# compute Spearman's rank correlation between dormancy (minus `activation`) and TAC over the channels of `last.conv`.
# Which sign would the belief need?

# %%
belief = ...  # your answer, in [-1, 1]

exercises.dormant_and_moved(belief, activation, truth[last.conv])

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). CLP, ANP and RNP all score filters. Do they suspect the same ones? For each pair,
# which share of the ten highest scores in `last.conv` do they have in common? And which share would two rankings by
# chance have in common? The scores are in `scores_of`.

# %%
pairs = [("CLP", "ANP"), ("CLP", "RNP"), ("ANP", "RNP")]
in_common = ...  # your answer, [4]: a share for each of the pairs, then that of chance

exercises.in_common(in_common, scores_of, last.conv, pairs)

# %% [markdown]
# ## 12. What we saw, and what this does not show
#
# - Seven baselines are seven guesses about what sets a backdoor's filters apart: nothing (fine-tuning), that they
#   sleep, where they look, how loud they can be, how they bear noise, what a universal perturbation leans on, what is
#   left when the clean task is forgotten. The answers above say, for one network, how far each guess holds.
# - The newer four add four more: a flat loss, a head far away, a class pushed down, or blended images undo the
#   backdoor.
# - Most of them need a number that somebody chooses (channels, threshold, epochs), and the defender has little to
#   choose it with. What a baseline achieves, and what it could have achieved with the trigger in hand, are two
#   different results.
# - It does **not** show how these methods rank: one attack, one network, one draw, fewer images than their papers
#   give, and in a hurried profile only a part of the iterations of ANP and AWM.
#
# **For the reading group**
# 1. Which of these would survive an attacker who knows it? What would this attacker add to the training?
# 2. A repaired network has lost a point of ACC. Is that the price of the repair or of the few images? Which
#    experiment would tell?
# 3. ANP and RNP let batch norms normalise by the batch while the masks are learned. What could go wrong when the
#    masks are then used with running statistics?
#
# **Further reading**: the papers above. Wu et al., *BackdoorBench* (2206.12654): most of these in one framework, with
# the choices that section 10 lists. Min et al., *Towards stable backdoor purification through feature shift tuning*
# (2310.01875): why fine-tuning alone works at high poison rates and fails at low ones.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
student, teachers = (maps[name][nad.layers[-1]] for name in ("student", "teacher"))
after_pooling = []
for one, other in ((student, teachers), [F.adaptive_avg_pool2d(part, 1) for part in (student, teachers)]):
    after_pooling.append(float((attention(one) - attention(other)).square().sum(1).mean()))
exercises.after_pooling(after_pooling, student, teachers)
print(
    f"distance {after_pooling[0]:.4f} before the pooling, {after_pooling[1]:.4f} after it: there attention is 1, always"
)

from scipy.stats import spearmanr

belief = float(spearmanr(-activation.cpu(), truth[last.conv].cpu()).statistic)
exercises.dormant_and_moved(belief, activation, truth[last.conv])
print(f"dormancy against TAC: {belief:+.2f}; the belief would need a plus")

highest = {name: set(scores_of[name][last.conv].topk(10).indices.tolist()) for name in ("CLP", "ANP", "RNP")}
in_common = [*(len(highest[a] & highest[b]) / 10 for a, b in pairs), 10 / last.filters]
exercises.in_common(in_common, scores_of, last.conv, pairs)
print("in common:", dict(zip([*pairs, "chance"], [round(share, 2) for share in in_common], strict=True)))

# %% [markdown]
# Previous: [08 · Magnitude-based pruning](08_magnitude_pruning.ipynb) · Next: [10 · Comparison](10_comparison.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
after = wide["asr_after"][attack]
left = {"quick": 80, "laptop": 50, "paper": 50}[run.profile.name]
assert after["fine-tuning"] >= left, "fine-tuning on a few images should leave the backdoor in place"
if run.profile.name != "quick":  # there rounding decides whether any of the hurried baselines succeeds
    assert after.min() <= 60, "none of them does anything to the backdoor"
lost = wide["acc_before"]["none"] - wide["acc_after"]["none"]
assert lost[list(older)].median() <= 5, "most of the seven should leave a clean network as it is"
assert steps.loss.iloc[-1] > steps.loss.iloc[0], "unlearning should raise the clean loss"
