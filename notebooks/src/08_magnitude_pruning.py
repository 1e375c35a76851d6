# %% [markdown]
# # 08 · Magnitude-based pruning
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/08_magnitude_pruning.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/08_magnitude_pruning.ipynb)
#
# At the end of this notebook the *size* of a filter's weights has been asked two questions: whether a model has a
# backdoor at all, by how size and importance go together in each layer; and which filters carry it, by masks that are
# learned under three objectives. Where the answers fall short, the notebook shows how far, and why.
#
# Paper: *Magnitude-based neuron pruning*, MNP ([arXiv 2405.17750](https://arxiv.org/abs/2405.17750)). **The formulas
# are reconstructed from the paper's summary and from secondary sources**: that backdoor neurons deviate from the
# relation of magnitude and saliency, and that there are three objectives (suppression, penalty, preserving), is the
# paper's. How saliency is measured, how the objectives are joined, and every number in them is ours. Nothing here
# reproduces a table of the paper.

# %% [markdown]
# > **You will learn**
# > - how large a filter is, how much the clean images need it, and what it means when the two do not go together
# > - why a detector needs other models to compare with, and how little a few of them can prove
# > - how making a network *forget* its task shows which filters belong to it, and what a threshold on the masks can and
# >   can't do when only clean images may choose it
# >
# > **Read before**: [03 · Saliency](03_saliency.ipynb), [07 · Feature map pruning](07_feature_map_pruning.ipynb) ·
# > **minutes to read**: 25 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts the trigger on a few training images |
# | defender | model, a few **clean images with labels**; for the detector clean models too | measures, prunes |
# | evaluator | test set, trigger, and which model is which | reports ACC, ASR and TAC; chooses nothing |

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
paper_per_class = 50  # the number that RNP and its kin take, for section 6; a profile may cut it
draw = 0  # which draw of the clean images
zoo_attacks = []  # of the detector's backdoored models, in turn; [] is what the profile says, and so is their number
zoo_rate = 0.1  # share of their training sets that carries the trigger

# %%
import copy
import math
import textwrap
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

import nbtools
from nbtools.data.images import draw_clean, to_floats
from nbtools.evaluator.agreement import tac
from nbtools.lab.zoo import zoo
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
zoo_attacks = zoo_attacks or run.profile.zoo_attacks
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
both = (poisoned, clean_twin)
clean = run.draw(samples_per_class, draw=draw)
units = prunable_units(poisoned.model)
print(f"the defender holds {len(clean)} clean images")
pd.DataFrame({model.name: model.before.row() for model in both}).T.round(1)

# %% [markdown]
# | on this page | here |
# |---|---|
# | $M_i$, magnitude of filter $i$ [ours: which norm] | `nbtools.defender.magnitude.magnitudes` |
# | $S_i$, its saliency [ours] | `nbtools.defender.magnitude.saliencies` |
# | rank correlation of the two, layer by layer [paper] | `nbtools.defender.magnitude.magnitude_saliency` |
# | the detector's statistic, in four forms [ours], and its ROC | `nbtools.defender.detection` |
# | suppression, penalty, preserving [paper; joined by us] | `nbtools.defender.mnp.MNP` |
# | suppression alone, RNP ([arXiv 2305.14876](https://arxiv.org/abs/2305.14876)) | `nbtools.defender.rnp.RNP` |
# | threshold by held-back clean images [ours] | `nbtools.defender.threshold_sweep` |

# %% [markdown]
# ## 1. Large and needed
#
# A filter's magnitude is the norm of its weights, and needs no image. Its saliency is what the clean loss would lose
# with it: put a factor $m_i$ on what its batch norm gives, and turn it from 1 to 0,
#
# $$M_i = \lVert W_i \rVert_1, \qquad
# S_i = L(m_i = 0) - L(m_i = 1) \;\approx\; \left\lvert \frac{\partial L}{\partial m_i} \right\rvert_{m = 1} .$$
#
# The exact form takes a forward pass a filter; the right-hand side has the size of its first-order estimate, and one
# backward pass gives it for all filters at once. Training makes what it needs large, and weight decay makes small what
# it does not: in a layer, the two should rank the filters alike. A backdoor breaks that rule, says the paper: its
# filters had to grow for the trigger, and no clean image needs them.


# %%
def magnitude_and_saliency(model):
    """M_i and |dL/dm_i| of every filter, on the clean images."""
    layers, masks = layers_of(model, units), {}
    handles = []
    for unit, _, bn in layers:
        masks[unit.conv] = torch.ones(unit.filters, device=clean.images.device, requires_grad=True)
        factor = masks[unit.conv][None, :, None, None]
        handles.append(bn.register_forward_hook(lambda _bn, _inputs, maps, factor=factor: maps * factor))
    loss = F.cross_entropy(model(clean.floats()), clean.labels)
    slopes = torch.autograd.grad(loss, list(masks.values()))
    for handle in handles:
        handle.remove()
    magnitude = {unit.conv: conv.weight.detach().abs().flatten(1).sum(1) for unit, conv, _ in layers}
    return magnitude, {name: slope.abs() for name, slope in zip(masks, slopes, strict=True)}


from nbtools.defender.magnitude import magnitude_saliency, magnitudes, saliencies

pairs = {trained.name: magnitude_and_saliency(copy.deepcopy(trained.model)) for trained in both}
rho = {}
for trained in both:
    magnitude, saliency = pairs[trained.name]
    for mine, theirs in ((magnitude, magnitudes(trained.model)), (saliency, saliencies(trained.model, clean))):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name].double(), value, rtol=1e-3, atol=1e-3 * float(value.mean()))
    rho[trained.name] = magnitude_saliency(trained.model, clean)
print(f"the cell above and nbtools agree on {len(units)} layers of both models")

# %% [markdown]
# How far may the one backward pass be trusted? On one layer the exact form is a plain loop: shut a filter, measure the
# clean loss, open it again. (On a third of the clean images, for time.)

# %%
layer = "layer3.1.conv1"  # the layer that we look at closely
some = clean.subset(torch.arange(0, len(clean), 3))


@torch.no_grad()
def exact_saliency(model, layer):
    """What the clean loss gains when each filter of one layer is taken out in turn."""
    bn = next(bn for unit, _, bn in layers_of(model, units) if unit.conv == layer)
    x, y, found = some.floats(), some.labels, []
    before = F.cross_entropy(model(x), y)
    for number in range(len(bn.weight)):
        kept = bn.weight[number].clone(), bn.bias[number].clone()
        bn.weight[number] = bn.bias[number] = 0
        found.append(F.cross_entropy(model(x), y) - before)
        bn.weight[number], bn.bias[number] = kept
    return torch.stack(found)


mine = exact_saliency(copy.deepcopy(poisoned.model), layer)
exact, fast = saliencies(poisoned.model, some, exact=True), saliencies(poisoned.model, some)
torch.testing.assert_close(mine.double(), exact[layer], rtol=1e-3, atol=1e-2 * float(exact[layer].abs().max()))
alike = {
    "with the exact form": {n: float(spearmanr(fast[n].cpu(), exact[n].cpu()).statistic) for n in exact},
    "with its size alone": {n: float(spearmanr(fast[n].cpu(), exact[n].abs().cpu()).statistic) for n in exact},
}

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), width_ratios=(1, 1.6))
axes[0].scatter(fast[layer].cpu(), exact[layer].cpu(), s=14, color=plots.POISONED, linewidth=0)
axes[0].axhline(0, color=plots.GREY, lw=1)
axes[0].set(xlabel="|dL/dm|, one backward pass", ylabel="exact: rise of the loss", title=layer)
axes[0].xaxis.set_major_locator(MaxNLocator(4))
for (name, values), color in zip(alike.items(), (plots.PURPLE, plots.GREEN), strict=True):
    axes[1].plot(list(values), list(values.values()), "o-", ms=4, color=color, label=name)
axes[1].axhline(0, color=plots.GREY, lw=1)
axes[1].tick_params(axis="x", labelrotation=90, labelsize=7)
lowest = min(min(values.values()) for values in alike.values())
axes[1].set(ylabel="rank correlation", ylim=(min(0, lowest) - 0.05, 1.02), title="All layers")
look = {"frameon": False, "fontsize": 9, "title": "the one backward pass, compared"}
figure.legend(*axes[1].get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.08, 0.02), **look)
figure.suptitle(f"{poisoned.name}: how far the slope stands for the loss of a filter", x=0.01, ha="left")
plots.show(figure, "Left: exact saliency against the fast one for a layer. Right: their rank correlation by layer.")
print(
    f"{layer}: {int((exact[layer] < 0).sum())} of {len(exact[layer])} filters, taken out, make the clean loss smaller"
)

# %% [markdown]
# A filter below the grey line is one that the clean images are better off without: the fast form, a length, can't say
# so, and ranks it among the needed ones. Where green is high and purple low, that sign is all that it misses; where
# both are low, the slope at 1 is a poor guide to what happens at 0. The detector below takes the fast form, as anyone
# with many models would, and so measures how much a filter *moves* the clean loss, up or down.
#
# ## 2. Layer by layer
#
# > **Predict first.** The evaluator rings the three filters of each layer that the trigger moves most (TAC). If the
# > paper's observation holds here, where do the rings of the upper row lie: on the rising cloud, or below it on the
# > right?

# %%
others = draw_clean(run.splits.test, samples_per_class=20, seed=seed)
others = others.subset(others.labels != target)
truth = {trained.name: tac(trained.model, others, trained.trigger) for trained in both}
shown = [unit.conv for unit in units if unit.conv.endswith(".1.conv2")] + ["layer4.0.conv2"]
shown = sorted(shown)[-4:]
figure, axes = plt.subplots(2, len(shown), figsize=(10.5, 5.4))
for row, trained, color in zip(axes, both, (plots.POISONED, plots.CLEAN), strict=True):
    magnitude, saliency = pairs[trained.name]
    for axis, name in zip(row, shown, strict=True):
        x, y = (value[name].cpu() / value[name].cpu().mean() for value in (magnitude, saliency))
        y = y.clamp_min(1e-3)
        top = truth[trained.name][name].cpu().topk(3).indices
        axis.scatter(x, y, s=12, color=color, alpha=0.6, linewidth=0)
        axis.scatter(x[top], y[top], s=60, facecolor="none", edgecolor="black", linewidth=0.9)
        axis.set(yscale="log")
        axis.set_title(f"{name}: {rho[trained.name][name]:+.2f}", fontsize=9, fontweight="normal")
    row[0].set_ylabel(f"{trained.name}\nsaliency / mean")
figure.supxlabel("magnitude / the layer's mean (ringed: the three highest TACs; beside the name: rank correlation)",
                 fontsize=10)  # fmt: skip
figure.suptitle("Every filter's magnitude and saliency in four layers", x=0.01, ha="left")
plots.show(figure, "Scatter plots of saliency against magnitude, four layers of the poisoned and of the clean model.")

# %%
plots.show(
    plots.lines_by_layer(
        rho,
        "rank correlation of\nmagnitude and saliency",
        "How magnitude and saliency go together, layer by layer",
        (plots.POISONED, plots.CLEAN),
    ),
    "Line chart over the layers: correlation of magnitude and saliency in the poisoned and the clean model.",
)
print("mean over the layers:  " + "  ".join(f"{k} {pd.Series(v).mean():+.2f}" for k, v in rho.items()))

# %% [markdown]
# Two things to read. First, how far the lines lie above zero: that much of the rule holds in networks of this size.
# Second, whether orange lies below blue, and whether by more than blue jumps from one layer to the next. Two models
# differ anyway, by their data and by chance. So one pair decides nothing: a *detector* has to be tried on many.
#
# ## 3. A detector, and what it needs
#
# One number for a model: how far it deviates. With $\rho_l$ the correlation in layer $l$, four candidates [ours]:
#
# | form | statistic, higher is more suspicious |
# |---|---|
# | last stage mean | $1 - \mathrm{mean}\,\rho_l$ over the layers of the last stage |
# | first half mean | $1 - \mathrm{mean}\,\rho_l$ over the first half of the layers |
# | minimum | $1 - \min_l \rho_l$ |
# | largest residual | the filter that lies furthest below the line through its layer's ranks, in standard deviations |
#
# Magnitude now has the batch norm folded in, $M_i = \lVert W_i \rVert_1 \, |\gamma_i| / \sqrt{v_i + \epsilon}$: the
# scale of weights before a batch norm alone means nothing, since it is divided out again.
#
# **The second form was found by looking.** On eight clean and eight backdoored networks of CIFAR-10, twenty forms were
# tried, and this one told them apart with an area of 0.98 (95 % interval 0.73 to 1.00), far ahead of the next. The
# models below have seeds that this choice has not seen.
#
# The zoo: narrow networks, clean and backdoored in turn, each pair with a seed of its own. Only the evaluator knows
# which is which. (They are trained now if the cache does not hold them: the longest wait of this notebook.)
#
# > **Predict first.** Which form will tell them apart best? And how many models would you want to see before you
# > believe it?

# %%
from nbtools.defender.detection import FORMS, detector_statistic, detector_statistics, judge, roc_auc

rows = []
for trained in zoo(run, zoo_attacks, zoo_rate, target):
    about = {"model": trained.name, "model_seed": trained.card["config"]["seed"], **trained.before.row()}
    rows.append(about | detector_statistics(trained.model, clean))
models = pd.DataFrame(rows)
backdoored = models.model != "clean"
run.save_rows(models, "08_zoo")
models.sort_values(["model", "model_seed"]).round(2)

# %% [markdown]
# Look at the evaluator's columns before the others: a backdoored model whose `asr` is low has not learned its
# backdoor, and there is nothing in it to detect. And where `acc` differs between the two kinds, a statistic may tell
# well trained models from poorly trained ones, which is another question.
#
# Now the curve. Raise the alarm above some value; every value gives a share of backdoored models caught and of clean
# models accused. The area under that curve is also a plain count: in how many pairs of a backdoored and a clean model
# does the backdoored one have the higher statistic?


# %%
def area(clean_values, backdoored_values):
    """Share of pairs in which the backdoored model stands higher, ties counted half."""
    pairs = [(b > c) + 0.5 * (b == c) for b in backdoored_values for c in clean_values]
    return sum(pairs) / len(pairs)


def roc(clean_values, backdoored_values):
    """Shares of clean and of backdoored models at or above each possible alarm."""
    alarms = [math.inf, *sorted({*clean_values, *backdoored_values}, reverse=True)]
    return [[sum(v >= alarm for v in values) / len(values) for alarm in alarms]
            for values in (clean_values, backdoored_values)]  # fmt: skip


figure, axes = plt.subplots(1, 5, figsize=(12, 3.9), width_ratios=(1, 1, 1, 1, 1.6))
table, generator = [], torch.Generator().manual_seed(0)
for axis, form, color, thick in zip(axes, FORMS, plots.LINES, (4, 3, 2, 1), strict=False):
    values = models.loc[~backdoored, form].tolist(), models.loc[backdoored, form].tolist()
    estimate, (low, high) = roc_auc(*values)
    assert abs(estimate - area(*values)) < 1e-9
    table.append({"form": form, "AUC": estimate, "from": low, "to": high})
    for place, of_kind, mark in zip((0, 1), values, (plots.CLEAN, plots.POISONED), strict=True):
        across = place + 0.3 * (torch.rand(len(of_kind), generator=generator) - 0.5)
        axis.scatter(across, of_kind, s=30, color=mark, alpha=0.8, linewidth=0)
    axis.set_xticks([0, 1], ["clean", "backdoored"])
    axis.set(xlim=(-0.6, 1.6))
    axis.set_title(form, fontsize=9)
    accused, caught = roc(*values)
    label = f"{form}: {estimate:.2f} [{low:.2f}, {high:.2f}]"
    axes[-1].step(accused, caught, where="post", lw=thick, color=color, label=label)
axes[0].set_ylabel("statistic of a model")
axes[-1].plot([0, 1], [0, 1], ":", color=plots.GREY)
axes[-1].set(xlabel="clean models accused", ylabel="backdoored models caught", ylim=(-0.03, 1.03))
figure.legend(frameon=False, fontsize=9, title="area [95 % interval]", loc="outside lower center", ncols=2)
counts = f"{int((~backdoored).sum())} clean and {int(backdoored.sum())} backdoored models"
figure.suptitle(f"{counts}: the statistic in four forms, and its ROC", x=0.01, ha="left")
plots.show(figure, "Statistic of clean and backdoored models in four forms, and their ROC curves with areas.")
areas = pd.DataFrame(table).set_index("form")
areas.round(2)

# %% [markdown]
# Read the intervals before the areas. With two and two models, as in profile `quick`, even a perfect area comes with
# an interval that says next to nothing: the figure is then **a picture of the method and no evidence**. How many models
# would it take? Here is the interval of a detector that makes no mistake at all, and beside it what a defender with so
# many clean reference models could say of a model that stands above them all.

# %%
rows = []
for count in (2, 5, 10, 20, 50):
    low, high = roc_auc([0.0] * count, [1.0] * count)[1]
    verdict = judge(1.0, [0.0] * count)
    rows.append({"models of each kind": count, "AUC 1, interval from": low, "to": high,
                 "p-value of one that stands out": verdict.p_value,
                 "clean models above it, up to": verdict.interval[1]})  # fmt: skip
pd.DataFrame(rows).set_index("models of each kind").round(2)

# %% [markdown]
# That is what the detector asks of a defender: not one clean model but dozens, of the same architecture, data and
# recipe, measured with as many clean images. Who can train these does not need the suspicious model. Where they can't
# be had, the statistic of a single model is a number without a scale.
#
# And look at *first half mean* again, the winner of twenty with its 0.98. On CIFAR-10 its area over ten and ten fresh
# models was **0.41**, no better than a coin (the last line of this page says which profile you are looking at). Nobody
# cheated: the best of twenty numbers is high because it is the best of twenty, and its interval does not know how many
# were tried. `data/lab_notes.md` has both tables.
#
# ## 4. Clean suppression: forget the task
#
# Detection aside, which filters should go? MNP's first objective makes a copy of the network *forget*: climb the clean
# loss instead of descending it,
#
# $$\max_{\theta'} \; \mathbb{E}\, L(F(x; \theta'), y) - \mu \lVert \theta' \rVert_2^2 ,$$
#
# until the defender's own images are classified no better than 20 %, or twenty epochs are over. What the clean images
# use is torn down. What only the trigger wakes is not climbed on, since no image carries it: it should stay, and stand
# *exposed*. (The norm is the optimiser's weight decay. RNP has the same step.)
#
# > **Predict first.** While the clean accuracy falls, what will ASR do: fall with it, stay, or rise?

# %%
from nbtools.defender.learning import batches
from nbtools.defender.mnp import MNP
from nbtools.networks.training import augment

defence = MNP()
print(textwrap.fill(repr(defence), 100, subsequent_indent="    "))
learn, held = defence.validation.split(clean)  # one image in five is held back for the threshold
repair = run.repair(poisoned, defence, samples_per_class, draw=draw)  # all of it at once, to compare with
history = [row for row in repair.history if row["stage"] == "unlearn"]


def forget(model, epochs):
    """Climb the clean loss; yield the network, as it is used, after each epoch."""
    model, generator = copy.deepcopy(model).requires_grad_(True), torch.Generator().manual_seed(defence.seed)
    sgd = torch.optim.SGD(
        model.parameters(), defence.unlearn_lr, defence.momentum, weight_decay=defence.weight_decay, maximize=True
    )
    for _ in range(epochs):
        for batch in batches(len(learn), defence.batch_size, generator):
            part = learn.subset(batch)
            x = to_floats(augment(part.images, generator))
            sgd.zero_grad()
            F.cross_entropy(model.train()(x), part.labels).backward()
            sgd.step()
        yield model.eval()


def few(images, count=200):
    """Some of the evaluator's images, evenly spread."""
    return images.subset(torch.arange(0, len(images), max(len(images) // count, 1)))


from nbtools.evaluator.evaluation import accuracy, predict

probe, triggered = few(poisoned.evaluate.test), few(poisoned.evaluate.triggered)


def measured(model):
    """ACC and ASR in percent on the probe, the evaluator's."""
    return {
        "ACC": 100 * accuracy(model, probe),
        "ASR": 100 * float((predict(model, triggered) == target).float().mean()),
    }


curve, suppressed = [measured(poisoned.model)], poisoned.model
for suppressed in forget(poisoned.model, len(history) - 1):
    curve.append(measured(suppressed))
forgetting = pd.concat([pd.DataFrame(history), pd.DataFrame(curve)], axis=1)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4))
axes[0].plot(forgetting.epoch, forgetting.loss, "o-", ms=4, color=plots.BLUE)
axes[0].set(ylabel="clean loss", title="What the defender sees: the loss")
axes[1].plot(forgetting.epoch, 100 * forgetting.accuracy, "o-", ms=4, color=plots.BLUE, label="the defender's images")
axes[1].plot(forgetting.epoch, forgetting.ACC, "o--", ms=4, color=plots.SKY, label="ACC (evaluator)")
axes[1].plot(forgetting.epoch, forgetting.ASR, "s--", ms=4, color=plots.POISONED, label="ASR (evaluator)")
axes[1].axhline(100 * defence.until, color=plots.GREY, ls=":", lw=1)
axes[1].set(ylabel="percent", ylim=(-3, 103), title="Accuracy, and what happens to the attack")
axes[1].legend(frameon=False, fontsize=8)
for axis in axes:
    axis.set(xlabel=f"epoch of suppression ({len(learn)} images)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
figure.suptitle(f"{poisoned.name}: climbing the clean loss (dotted: where it stops)", x=0.01, ha="left")
plots.show(figure, "Left: clean loss by epoch of suppression. Right: accuracy, ACC and ASR by epoch.")
forgetting.iloc[[0, len(forgetting) // 2, -1]][["epoch", "steps", "loss", "accuracy", "ACC", "ASR"]].round(2)

# %% [markdown]
# Two accuracies of the same network can lie apart. The defender's is taken with batch norms that normalise by the
# batch, since that is how the masks of the next section will meet it; ACC and ASR are those of the network as it would
# be used, with running statistics. As for the orange line: where it stays up while blue comes down, the backdoor is
# exposed, as the argument says. Where it falls as well, trigger and task share filters or the whole network has become
# noise; where it rises, forgetting has made the target the answer to everything, and "ASR" no longer means a backdoor.
#
# ## 5. Masks under three objectives
#
# Now one factor $m_i \in [0, 1]$ on each filter's $\gamma$, every weight frozen, and a wish: with these masks, the
# suppressed network shall answer clean images again. Masks sink where a filter stands in the way. MNP adds two terms:
#
# $$\min_{m \in [0, 1]} \; (1 - a)\, L(F_m(x; \theta'), y) \;+\; a\, L(F_m(x; \theta), y) \;+\;
# \lambda \sum_i m_i \tilde M_i, \qquad \tilde M_i = \frac{M_i}{\sum_j M_j}$$
#
# | objective | what it asks of the masks | left out by |
# |---|---|---|
# | clean suppression, $\theta'$ | shut what keeps a network that has forgotten from remembering | $\theta' = \theta$ |
# | weight penalty, $\lambda$ | pay for every open filter, more for a large one | $\lambda = 0$ |
# | clean preserving, $a$ | the network as given must still work | $a = 0$ |
#
# Without the last two it is RNP, our control (a test of the package holds the two to the same bits).


# %%
def learn_masks(variant):
    """One factor a filter, by SGD from 1: descend the clean loss of the masked networks, pay for magnitude."""
    nets = [(1 - variant.preserve, suppressed), (variant.preserve, poisoned.model)]
    nets = nets if variant.suppress else [(1, poisoned.model)]
    nets = [(share, SoftMasks(net, units)) for share, net in nets if share]  # convolutions frozen, BN by the batch
    masks = torch.ones(len(price), device=price.device, requires_grad=True)
    sgd = torch.optim.SGD([masks], variant.recover_lr, variant.momentum)
    generator = torch.Generator().manual_seed(variant.seed)
    for _ in range(variant.recover_epochs):
        for batch in batches(len(learn), variant.batch_size, generator):
            part = learn.subset(batch)
            x = to_floats(augment(part.images, generator))
            loss = sum(share * F.cross_entropy(net(x, masks), part.labels) for share, net in nets)
            loss = loss + variant.penalty * (masks * price).sum()
            sgd.zero_grad()
            (variant.recover_share * loss).backward()  # RNP's factor
            sgd.step()
            masks.data.clamp_(0, 1)
    return masks.detach()


from nbtools.defender.soft_masks import SoftMasks

price = torch.cat([pairs[poisoned.name][0][unit.conv] for unit in units])
price = price / price.sum()
variants = {
    "all three": defence,
    "no suppression": replace(defence, suppress=False),
    "no penalty": replace(defence, penalty=0),
    "no preserving": replace(defence, preserve=0),
    "RNP: suppression alone": replace(defence, preserve=0, penalty=0),
}
masks = {name: learn_masks(variant) for name, variant in variants.items()}

theirs = torch.cat([1 - repair.scores[unit.conv] for unit in units])  # a score is high where it is suspicious
apart = float((masks["all three"] - theirs).abs().mean())
assert apart < 1e-3, f"the masks differ by {apart:.1e} on average"
print(f"the loops above, forgetting and masks, end where nbtools does ({len(price)} masks)")

# %% [markdown]
# > **Predict first.** Which of the five shuts the most filters? And without suppression, what reason is left for a
# > mask to sink at all?

# %%
flat = torch.cat([truth[poisoned.name][unit.conv] / truth[poisoned.name][unit.conv].mean() for unit in units]).cpu()
moved = flat >= flat.quantile(0.95)
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.3), width_ratios=(1, 1.2))
colors = dict(zip(variants, (plots.BLUE, plots.GREEN, plots.PURPLE, plots.BROWN, plots.GREY), strict=True))
share = torch.linspace(0, 100, len(price))
for name, values in masks.items():
    axes[0].plot(values.sort().values.cpu(), share, color=colors[name], label=name)
axes[0].set(xlabel="mask", ylabel="filters at or below (%)", title="How far the masks sink")
axes[0].legend(frameon=False, fontsize=8)
sizes = [unit.filters for unit in units]
for name, values in masks.items():
    axes[1].plot([unit.conv for unit in units], [float(part.mean()) for part in values.split(sizes)], "o-", ms=3,
                 color=colors[name])  # fmt: skip
axes[1].tick_params(axis="x", labelrotation=90, labelsize=7)
axes[1].set(ylabel="mean mask", title="Where they sink")
figure.suptitle(f"{poisoned.name}: the masks under three objectives, each left out in turn", x=0.01, ha="left")
plots.show(figure, "Left: cumulative distribution of the masks, five variants. Right: mean mask by layer.")


def rank_agreement(values):
    """Spearman's correlation of low masks with TAC, mean over the layers; where all masks are alike it is 0."""
    found = []
    for unit, part in zip(units, values.cpu().split(sizes), strict=True):
        varied = float(part.max() - part.min()) > 1e-6
        found.append(spearmanr(-part, truth[poisoned.name][unit.conv].cpu()).statistic if varied else 0.0)
    return sum(found) / len(found)


lowest = max(len(price) // 20, 1)
rows = {
    name: {
        "shut (mask 0)": int((values == 0).sum()),
        "below 0.5": int((values < 0.5).sum()),
        "rank agreement with TAC": rank_agreement(values),
        "of the 5 % lowest, among TAC's top 5 %": 100 * float(moved[values.cpu().argsort()[:lowest]].float().mean()),
    }
    for name, values in masks.items()
}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# The last column says what share of the filters that would fall first are among those that the trigger moves most (TAC
# over its layer's mean, so that no layer rules); by chance it is 5. The evaluator's column is the one that matters, and
# the defender can't have it. Whatever the distribution looks like, masks are no probabilities: a mask of 0.3 says how
# far it got in a short training, not how guilty a filter is.
#
# ## 6. The threshold, and who may choose it
#
# Filters with $m_i \le \tau$ are pruned ($\gamma_i = 0$) in the model *as it was given*. The defender walks the
# thresholds upwards and takes the last one before the accuracy on the held-back clean images falls by more than two
# points, or by more than one image where one is worth more. The evaluator can draw the whole curve.
#
# > **Predict first.** Is there a threshold at which ASR is gone and ACC is not? Will the rule find it?

# %%
from nbtools.defender.threshold_sweep import choose_threshold, sweep


def walk(trained, values, held):
    """Held-back accuracy (the defender's), ACC and ASR (the evaluator's) at each threshold, and the rule's choice."""
    chosen, record = choose_threshold(trained.model, units, values, defence.thresholds, held, defence.validation)
    seen, probe, triggered = [], few(trained.evaluate.test), few(trained.evaluate.triggered)

    def look(twin):
        hits = (predict(twin, triggered) == target).float().mean()
        seen.append((100 * accuracy(twin, probe), 100 * float(hits)))
        return len(seen) - 1

    looked = sweep(trained.model, units, values, [-math.inf, *defence.thresholds], look)
    table = pd.DataFrame([seen[int(row["measured"])] for row in looked], columns=["ACC", "ASR"])
    table["threshold"] = [NOTHING, *sorted(defence.thresholds)]
    table["pruned"] = [row["pruned"] for row in looked]
    table["held-back"] = [100 * accuracy(trained.model, held), *(100 * row["held_back"] for row in record)]
    return table.assign(chosen=table.threshold == (NOTHING if chosen is None else chosen))


NOTHING = -0.05  # stands for "prune nothing" among the thresholds
repairs = {(poisoned.name, samples_per_class): repair}
walks = {f"{poisoned.name}: {name}": walk(poisoned, values, held) for name, values in masks.items()}
for count in sorted({samples_per_class, min(paper_per_class, run.profile.most_per_class)}):
    images = run.draw(count, draw=draw)
    for trained in both:
        if (trained.name, count) not in repairs:
            made = repairs[trained.name, count] = defence(trained.model, images)
            values = torch.cat([1 - made.scores[unit.conv] for unit in units])
            panel = f"{trained.name}: all three, {count} a class"
            walks[panel] = walk(trained, values, defence.validation.split(images)[1])

# %%
tall = -(-len(walks) // 3)
figure, axes = plt.subplots(tall, 3, figsize=(11, 2.6 * tall + 0.6), sharex=True, sharey=True)
for axis in list(axes.flat)[len(walks) :]:
    axis.axis("off")
for axis, (name, table) in zip(axes.flat, walks.items(), strict=False):
    axis.plot(table.threshold, table["held-back"], color=plots.BLUE, lw=1.2, label="held-back images (defender)")
    axis.plot(table.threshold, table.ACC, "o--", ms=3, lw=1, color=plots.SKY, label="ACC (evaluator)")
    axis.plot(table.threshold, table.ASR, "s--", ms=3, lw=1, color=plots.POISONED, label="ASR (evaluator)")
    axis.axvline(float(table.threshold[table.chosen].iloc[0]), color=plots.PRUNED, lw=1.2, label="the rule's choice")
    axis.set(ylim=(-3, 103))
    axis.set_title(name, fontsize=9)
figure.legend(*axes.flat[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="outside lower center")
figure.supylabel("percent", fontsize=10)
for axis in axes[-1]:
    axis.set_xlabel("threshold (left end: nothing pruned)", fontsize=9)
figure.suptitle("What each threshold gives, and the one that clean images choose", x=0.01, ha="left")
plots.show(figure, "Small multiples: held-back accuracy, ACC and ASR against the threshold, with the rule's choice.")

# %%
rows = []
for name, table in walks.items():
    start, rule = table.iloc[0], table[table.chosen].iloc[0]
    quality = (start.ASR - table.ASR).clip(lower=0) - (start.ACC - table.ACC).clip(lower=0)  # DER without its constant
    chosen = {"before": start, "rule": rule, "oracle": table.loc[quality.idxmax()]}
    rows += [{"masks": name, "choice": kind, **row[["threshold", "pruned", "ACC", "ASR"]]} for kind, row in
             chosen.items()]  # fmt: skip
choices = pd.DataFrame(rows)
run.save_rows(choices, "08_thresholds")
choices.pivot(index="masks", columns="choice").loc[list(walks)].drop(
    columns=[("threshold", "before"), ("pruned", "before")]
).astype(float).round(2)

# %% [markdown]
# *oracle* is the threshold with the best DER on the evaluator's images: nobody who defends a model can choose it, and
# it is here to be compared with. A threshold of -0.05 means that nothing is pruned.
#
# - Where the rule prunes nothing or next to nothing, even a low threshold costs more held-back accuracy than it allows:
#   some of the masks that sink belong to filters that the clean task needs. A defence that does nothing is not wrong by
#   its own rule; it is only no defence.
# - Where oracle and rule lie far apart, the masks hold knowledge that clean images can't reach. A paper that reports
#   the oracle's column reports something else than a defence. [Notebook 10](10_comparison.ipynb) takes that up as the
#   *leakage lesson*.
# - Where even the oracle gives up much ACC, the masks are at fault, not the rule.
# - The clean twin shows the price where nothing is there: what the rule prunes, and what that costs.
# - Twenty held-back images, of which one may always be lost, don't see every fall: in the table below look for a row
#   whose test accuracy fell by more than the rule allows.
#
# How coarse the held-back line is, the next cell says first; then the whole defence, measured on all test images.

# %%
print(f"{len(learn)} images to learn from, {len(held)} held back: one of them is {100 / len(held):.1f} points")
control = defence.prune(poisoned.model, units, masks["RNP: suppression alone"], held, [])
rows = {}
for (name, count), made in [*repairs.items(), ((poisoned.name, 0), control)]:
    trained = poisoned if name == poisoned.name else clean_twin
    label = f"{type(defence).__name__}, {count} a class" if count else f"RNP, {samples_per_class} a class"
    after = trained.evaluate(made.model)
    rows[name, label] = {"pruned": made.mask.count, **trained.before.row(" before"), **after.row(" after")}
whole = pd.DataFrame(rows).T
run.save_rows(whole.reset_index(names=["model", "defence"]), "08_whole")
whole.drop(columns=["ra before", "ra after"]).round(1)

# %% [markdown]
# ## 7. Exercises
#
# **Exercise 1** (easy, 5 minutes). A batch norm scales what its filter gives, so the norm of the weights alone is only
# half of its size. Compute the magnitude of `layer` with the batch norm folded in,
# $\lVert W_i \rVert_1 \, |\gamma_i| / \sqrt{\mathrm{var}_i + \epsilon}$.

# %%
conv, bn = next((conv, bn) for unit, conv, bn in layers_of(poisoned.model, units) if unit.conv == layer)
folded = ...  # your answer, [filters]

checks.same(
    folded,
    magnitudes(poisoned.model, fold_bn=True)[layer],
    "sum of |weights| over all but the first dimension, then bn.weight, bn.running_var and bn.eps",
)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). How far can the penalty alone push a mask? Its gradient on mask $i$ is
# $g_i = \alpha \lambda \tilde M_i$ at every step (`defence.recover_share`, `defence.penalty`, `price`). SGD with
# momentum $\beta$ and learning rate $\eta$ starts from 1. Without the clamp, what is the mean over the filters of
# $1 - m_i$ after $n$ steps? Give a closed form, or a loop of three lines.

# %%
steps = defence.recover_epochs * -(-len(learn) // defence.batch_size)
pushed = ...  # your answer, a number

plain = torch.ones(len(price), dtype=torch.float64, requires_grad=True)
sgd = torch.optim.SGD([plain], defence.recover_lr, defence.momentum)
for _ in range(steps):
    sgd.zero_grad()
    (defence.recover_share * defence.penalty * (plain * price.cpu().double()).sum()).backward()
    sgd.step()
checks.same(
    pushed,
    float((1 - plain.detach()).mean()),
    "the velocity after step k is g (1 + b + ... + b^(k-1)); sum over k",
)

# %% [markdown]
# **Exercise 3** (hard, 30 minutes). Does the detector depend on choices that nobody can check? Compute its area for
# the last stage's mean with the l2 norm, and with the bare weights, over the same models.

# %%
other_areas = ...  # your answer: a dictionary from setting to area

# %% [markdown]
# ## 8. What we saw, and what this does not show
#
# - Magnitude and saliency go together in a layer, more or less: the line chart of section 2 says how much. Whether a
#   backdoor lowers that relation is a statement about many models, and the interval of section 3 says how far ours
#   support it.
# - The detector is a comparison. Without clean models of the same kind there is no scale to read it on. And a form that
#   was picked among twenty by its area had lost that area on the next twenty models.
# - Suppression takes the clean task apart within a few steps, and the evaluator's line says what it leaves of the
#   attack. The masks that bring the task back sink for more reasons than one.
# - A threshold chosen by clean images is bound by what clean images can see. Where it prunes nothing, that is an
#   honest result of this rule on this model with so few images.
# - It does **not** show that the paper's method works no better than this: the formulas are reconstructed, the networks
#   small, the images few (RNP's own setting is 500 in all, fifty a class), and the rule is ours.
#
# **For the reading group**
# 1. Weight decay makes unneeded filters small. What would the scatter of section 2 look like for a network trained
#    without it?
# 2. A defender downloads one model and can train none. What, if anything, can the statistic still tell?
# 3. Suppression stops at 20 % on images that the network then learns its masks on. What would you hold back, and for
#    what?
#
# **Further reading**: the paper (2405.17750). Li et al., *Reconstructive neuron pruning* (2305.14876): suppression and
# masks, the ground it stands on. Wu and Wang, *Adversarial neuron pruning* (2110.14430): masks without forgetting. Li
# et al., *Pruning filters for efficient ConvNets* (1608.08710): magnitude as importance, the opposite sign.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
folded = conv.weight.detach().abs().flatten(1).sum(1) * bn.weight.abs() / (bn.running_var + bn.eps).sqrt()
checks.same(folded, magnitudes(poisoned.model, fold_bn=True)[layer], "see the formula")

b = defence.momentum
gradient = defence.recover_share * defence.penalty * float(price.double().mean())
pushed = defence.recover_lr * gradient * sum((1 - b**k) / (1 - b) for k in range(1, steps + 1))
checks.same(pushed, float((1 - plain.detach()).mean()), "the sum over the steps of the velocity")
print(f"in {steps} steps the penalty alone pushes a mask down by {pushed:.4f} on average")

settings = {"l1": {}, "l2": {"norm": "l2"}, "l1, bare weights": {"fold_bn": False}}
found = {name: [] for name in settings}
for trained in zoo(run, zoo_attacks, zoo_rate, target):
    for name, setting in settings.items():
        found[name].append(detector_statistic(trained.model, clean, **setting))
kinds = backdoored.to_numpy()
other_areas = {
    name: roc_auc([v for v, k in zip(values, kinds, strict=True) if not k],
                  [v for v, k in zip(values, kinds, strict=True) if k])[0]
    for name, values in found.items()
}  # fmt: skip
checks.true(abs(other_areas["l1"] - areas.AUC["last stage mean"]) < 1e-9, "the first is that of section 3")
print({name: round(value, 2) for name, value in other_areas.items()})

# %% [markdown]
# Previous: [07 · Feature map pruning](07_feature_map_pruning.ipynb) · Next: [09 · Baselines](09_baselines.ipynb)

# %% tags=["check", "remove-cell"]
limits = {
    "quick": {"zoo_asr": 60, "zoo_acc": 50, "rho": 0.2, "forgotten": 0.15, "cost": 7},
    "laptop": {"zoo_asr": 50, "zoo_acc": 60, "rho": 0.1, "forgotten": 0.1, "cost": 12},
    "paper": {"zoo_asr": 50, "zoo_acc": 60, "rho": 0.1, "forgotten": 0.1, "cost": 7},
}[run.profile.name]
checks.backdoor_took(poisoned, clean_twin)
assert models.asr[backdoored].min() >= limits["zoo_asr"], "each backdoored model of the zoo should obey its trigger"
assert models.acc.min() >= limits["zoo_acc"], "each model of the zoo should know its task"
assert min(pd.Series(values).mean() for values in rho.values()) >= limits["rho"], (
    "magnitude and saliency should go along"
)
assert areas["from"].between(0, 1).all() and (areas["from"] <= areas.AUC).all() and (areas["to"] >= areas.AUC).all()
first, last = forgetting.iloc[0], forgetting.iloc[-1]
assert last.loss > first.loss and last.accuracy <= first.accuracy - limits["forgotten"], "the task should be forgotten"
assert masks["all three"].mean() < masks["no penalty"].mean(), "the penalty should lower the masks"
assert masks["no preserving"].mean() < masks["all three"].mean(), "preserving should hold masks up"
assert (whole["acc before"] - whole["acc after"]).max() <= limits["cost"], "the rule should keep the clean accuracy"
