# %% [markdown]
# # 08 · Magnitude-based pruning
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/08_magnitude_pruning.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/08_magnitude_pruning.ipynb)
#
# At the end of this notebook you have asked the *size* of a filter's weights two questions. Does a model have a
# backdoor at all? A detector looks at how size and importance go together in each layer. And which filters carry the
# backdoor? Masks tell, learned under three objectives. Where an answer falls short, you know how far, and why.
#
# Paper: *Magnitude-based neuron pruning*, MNP ([arXiv 2405.17750](https://arxiv.org/abs/2405.17750)). **The formulas
# are reconstructed from the paper's summary and from secondary sources.** Two statements are the paper's: backdoor
# neurons deviate from the relation of magnitude and saliency, and there are three objectives (suppression, penalty,
# preserving). How saliency is measured, how the objectives are joined, and every number in them is ours. Nothing here
# reproduces a table of the paper.

# %% [markdown]
# > **You will learn**
# > - how large a filter is, how much the clean images need it, and what it means when the two do not go together
# > - why a detector needs other models to compare with, and how little a few of them can prove
# > - how a network that *forgets* its task shows which filters belong to the task, and what a threshold on the masks
# >   can do when only clean images may choose it
# >
# > **Read before**: [03 · Saliency](03_saliency.ipynb), [07 · Feature map pruning](07_feature_map_pruning.ipynb) ·
# > **minutes to read**: 56 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts the trigger on a few training images |
# | defender | model, a few **clean images with labels**; for the detector clean models too | measures, prunes |
# | evaluator | test set, trigger, and which model is which | reports the scores below; chooses nothing |
#
# The evaluator's scores are the clean accuracy (ACC), the attack success rate (ASR: how many triggered images get the
# target class) and the robust accuracy (RA: how many triggered images get their true class). The ground truth is the
# trigger-activated change (TAC, notebook 02): how far the trigger moves a filter's map.

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
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

import nbtools
from nbtools.data.images import draw_clean, to_floats
from nbtools.evaluator.agreement import tac
from nbtools.lab import tables
from nbtools.lab.zoo import zoo
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots
from nbtools.series.exercises import magnitude_pruning as exercises
from nbtools.series.words import answer

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
# | here | in the code |
# |---|---|
# | $M_i$, magnitude of filter $i$ [ours: which norm] | `nbtools.defender.magnitude.magnitudes` |
# | $s_i$, its saliency [ours] | `nbtools.defender.magnitude.saliencies` |
# | $\rho_l$, rank correlation of the two in layer $l$ [paper] | `nbtools.defender.magnitude.magnitude_saliency` |
# | the detector's statistic, in four forms [ours], and its ROC | `nbtools.defender.detection` |
# | suppression, penalty, preserving [paper; joined by us] | `nbtools.defender.mnp.MNP` |
# | suppression alone, RNP ([arXiv 2305.14876](https://arxiv.org/abs/2305.14876)) | `nbtools.defender.rnp.RNP` |
# | threshold by held-back clean images [ours] | `nbtools.defender.threshold_sweep` |

# %% tags=["hide-input"]
from nbtools.series import schematics

schematics.show("magnitude pruning")

# %% [markdown]
# ## 1. Large and needed
#
# A filter's magnitude is the norm of its weights, and needs no image. Its saliency says how much the clean images need
# it. Put a factor $m_i$ on what the batch norm of filter $i$ gives. With $m_i = 1$ the network is as it was, with
# $m_i = 0$ the filter is shut. Then
#
# $$M_i = \lVert W_i \rVert_1, \qquad
# s_i^\mathrm{exact} = L(m_i = 0) - L(m_i = 1) \;\approx\; - \frac{\partial L}{\partial m_i}, \qquad
# s_i = \left\lvert \frac{\partial L}{\partial m_i} \right\rvert_{m = 1} .$$
#
# The exact form takes one forward pass for each filter. The fast form $s_i$ is the size of its first-order estimate,
# and one backward pass gives it for all filters at once. (Notebook 03 takes the slope by the weights instead, image by
# image.) Training makes large what it needs, and weight decay makes small what it does not need. So in a layer, the two
# should rank the filters alike. A backdoor breaks that rule, says the paper: its filters had to grow for the trigger,
# and no clean image needs them.


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


# %%
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
#
# > **Predict first.** The fast form looks at $m_i = 1$ only. How well will it rank the filters: is its rank correlation
# > with the exact form high or low? And what can a size never tell?

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
print(f"the loop above and nbtools agree on {len(mine)} filters of {layer}")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), width_ratios=(1, 1.6))
axes[0].scatter(fast[layer].cpu(), exact[layer].cpu(), s=14, color=plots.POISONED, linewidth=0)
axes[0].axhline(0, color=plots.GREY, lw=1)
axes[0].set(xlabel=r"fast $s_i$: one backward pass", ylabel="exact: rise of the loss", title=layer)
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

# %% tags=["hide-input"]
signed, sized = (pd.Series(values) for values in alike.values())
below = int((exact[layer] < 0).sum())
said = "high" if signed.mean() > 0.7 else "low" if signed.mean() < 0.3 else "in between"
answer(
    f"You were right if you said {said}: {signed[layer]:+.2f} in {layer}, and {signed.mean():+.2f} on average over the "
    f"layers. And a size has no sign. Of {len(exact[layer])} filters of {layer}, {below} lie below the grey line: "
    "without such a filter the clean loss is *lower*. The fast form cannot say so, and ranks it among the needed ones "
    "if its slope is steep. "
    f"Compared with the size of the exact form, the mean correlation is {sized.mean():+.2f}. "
    + (
        "So the sign is most of what the fast form misses."
        if sized.mean() > 0.7 >= signed.mean()
        else "So the fast form misses little."
        if sized.mean() > 0.7
        else "So the sign is not all that it misses: the slope at 1 is a poor guide to what happens at 0."
    )
)

# %% [markdown]
# The detector below takes the fast form, as anyone with many models would. So it measures how much a filter *moves* the
# clean loss, up or down.
#
# ## 2. Layer by layer
#
# The next figure shows four layers: the poisoned model above, its clean twin below. The evaluator rings the three
# filters of each layer that the trigger moves most (TAC).
#
# > **Predict first.** If the paper's observation holds here, where do the rings of the upper row lie: on the rising
# > cloud, or below it on the right?

# %%
others = draw_clean(run.splits.test, samples_per_class=20, seed=seed)
others = others.subset(others.labels != target)
truth = {trained.name: tac(trained.model, others, trained.trigger) for trained in both}


def places(values):
    """Each filter's place in its layer, from 0 (lowest) to 100 (highest)."""
    return {name: 100 * (pd.Series(v.cpu().numpy()).rank() - 0.5).to_numpy() / len(v) for name, v in values.items()}


ringed = {}
for trained in both:
    large, needed = (places(values) for values in pairs[trained.name])
    rings = {name: change.topk(3).indices.cpu().numpy() for name, change in truth[trained.name].items()}
    everywhere = {name: slice(None) for name in rings}
    row = ringed[trained.name] = {}
    for label, which in (("rings", rings), ("all filters", everywhere)):
        x, y = (np.concatenate([of[name][which[name]] for name in which]) for of in (large, needed))
        row |= {f"{label}: place by magnitude": x.mean(), f"{label}: place by saliency": y.mean()}
        row[f"{label}: large, not needed (%)"] = 100 * np.mean((x > 50) & (y < 50))

# %% tags=["hide-input"]
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
pd.DataFrame(ringed).round(0)

# %% tags=["hide-input"]
of, of_twin = ringed[poisoned.name], ringed[clean_twin.name]
asked = "large, not needed (%)"
there, chance, in_twin = of[f"rings: {asked}"], of[f"all filters: {asked}"], of_twin[f"rings: {asked}"]
wanted = of["rings: place by saliency"]
answer(
    "You were right if you said: below it, on the right. That is what the observation asks for, large filters that the "
    "clean images do not need. What is measured, over all layers: "
    f"{there:.0f} % of the rings are large and not needed (above the middle of their layer by magnitude, below it by "
    f"saliency). Of all filters {chance:.0f} % are, and of the clean twin's rings {in_twin:.0f} %. By saliency, a ring "
    f"stands on average at {wanted:.0f} of 100. "
    + (
        "So the rings lie where the paper expects them."
        if there > max(chance, in_twin) + 10
        else "So this figure does not support the observation: the trigger moves filters that the clean images need "
        "as well."
        if wanted > 55
        else "So this figure does not support the observation: the rings are hardly told from the other filters, or "
        "from those of a model without a backdoor."
    )
)

# %% [markdown]
# Now all layers, each with one number: the rank correlation $\rho_l$ of magnitude and saliency.
#
# > **Predict first.** A backdoor should pull $\rho_l$ down. In how many layers will the poisoned model lie below its
# > clean twin? And by more than a line jumps from one layer to the next?

# %% tags=["hide-input"]
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

# %% tags=["hide-input"]
lines = pd.DataFrame(rho)
lower = int((lines[poisoned.name] < lines[clean_twin.name]).sum())
gap = float((lines[clean_twin.name] - lines[poisoned.name]).mean())
jump = float(lines[clean_twin.name].diff().abs().mean())
said = "about half of them" if abs(lower / len(lines) - 0.5) < 0.2 else "few" if 2 * lower < len(lines) else "most"
answer(
    f"You were right if you said {said}: {lower} of {len(lines)}. On average the poisoned model lies {abs(gap):.2f} "
    f"{'below' if gap > 0 else 'above'} its twin, and from one layer to the next the twin's line jumps by {jump:.2f}. "
    + (
        "Even a difference that is larger than the jumps is one pair of models. "
        if gap > jump
        else "A difference that is smaller than the jumps says nothing. "
        if gap > 0
        else "A difference the other way is no sign of a backdoor. "
    )
    + "Two models always differ, by their data and by chance. So a *detector* has to be tried on many."
)

# %% [markdown]
# Another question is easier: do the lines lie above zero? As far as they do, the rule of section 1 holds in networks
# of this size.
#
# ## 3. A detector, and what it needs
#
# A detector needs one number for a whole model: how far does it deviate? With $\rho_l$ the correlation in layer $l$,
# here are four candidates [ours]:
#
# | form | statistic, higher is more suspicious |
# |---|---|
# | last stage mean | $1 - \mathrm{mean}\,\rho_l$ over the layers of the last stage |
# | first half mean | $1 - \mathrm{mean}\,\rho_l$ over the first half of the layers |
# | minimum | $1 - \min_l \rho_l$ |
# | largest residual | the filter that lies furthest below the line through its layer's ranks, in standard deviations |
#
# Magnitude now has the batch norm folded in,
# $M_i = \lVert W_i \rVert_1 \, |\gamma_i| / \sqrt{v_i + \epsilon_\mathrm{bn}}$. The scale of the weights before a batch
# norm means nothing alone, since the batch norm divides it out again. ($\gamma_i$ is the batch norm's scale for filter
# $i$, $v_i$ its running variance, and $\epsilon_\mathrm{bn}$ the small constant that is added to the variance.)
#
# **The second form was found by looking.** Twenty forms were tried on eight clean and eight backdoored networks of
# CIFAR-10, and this one told them apart almost without a mistake, far ahead of the next. (The table of all twenty comes
# below.) The models of the next cell have seeds that this choice has not seen.
#
# They are a *zoo*: narrow networks, clean and backdoored in turn, each pair with a seed of its own. Only the evaluator
# knows which is which. (They are trained now if the cache does not hold them. That is the longest wait of this
# notebook.)
#
# > **Predict first.** Which form will tell them apart best? Will it be the second?

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
# Look at the evaluator's columns before the others. A backdoored model whose `asr` is low has not learned its backdoor,
# and there is nothing in it to detect. And where `acc` differs between the two kinds, a statistic may tell well trained
# models from poorly trained ones, which is another question.
#
# Now the curve. The alarm is raised at a value of the statistic and above. Each such value gives a share of
# backdoored models caught, and a share of clean models accused. All these pairs of shares are the ROC curve (receiver
# operating characteristic). The area under it (AUC) is also a plain count: in how many pairs of a backdoored and a
# clean model does the backdoored one have the higher statistic? Tossing a coin gives 0.5.


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


by_form = {form: (models.loc[~backdoored, form].tolist(), models.loc[backdoored, form].tolist()) for form in FORMS}
found = []
for form, values in by_form.items():
    estimate, (low, high) = roc_auc(*values)
    assert abs(estimate - area(*values)) < 1e-9
    found.append({"form": form, "AUC": estimate, "from": low, "to": high})
areas = pd.DataFrame(found).set_index("form")
areas.round(2)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 5, figsize=(12, 3.9), width_ratios=(1, 1, 1, 1, 1.6))
generator = torch.Generator().manual_seed(0)
for axis, (form, values), color, thick in zip(axes, by_form.items(), plots.LINES, (4, 3, 2, 1), strict=False):
    for place, of_kind, mark in zip((0, 1), values, (plots.CLEAN, plots.POISONED), strict=True):
        across = place + 0.3 * (torch.rand(len(of_kind), generator=generator) - 0.5)
        axis.scatter(across, of_kind, s=30, color=mark, alpha=0.8, linewidth=0)
    axis.set_xticks([0, 1], ["clean", "backdoored"])
    axis.set(xlim=(-0.6, 1.6))
    axis.set_title(form, fontsize=9)
    accused, caught = roc(*values)
    label = "{}: {:.2f} [{:.2f}, {:.2f}]".format(form, *areas.loc[form])
    axes[-1].step(accused, caught, where="post", lw=thick, color=color, label=label)
axes[0].set_ylabel("statistic of a model")
axes[-1].plot([0, 1], [0, 1], ":", color=plots.GREY)
axes[-1].set(xlabel="clean models accused", ylabel="backdoored models caught", ylim=(-0.03, 1.03))
figure.legend(frameon=False, fontsize=9, title="area [95 % interval]", loc="outside lower center", ncols=2)
counts = f"{int((~backdoored).sum())} clean and {int(backdoored.sum())} backdoored models"
figure.suptitle(f"{counts}: the statistic in four forms, and its ROC", x=0.01, ha="left")
plots.show(figure, "Statistic of clean and backdoored models in four forms, and their ROC curves with areas.")

# %% tags=["hide-input"]
best = areas.query("AUC == AUC.max()").index
above = areas.index[areas["from"] > 0.5]
perfect = roc_auc([0.0] * int((~backdoored).sum()), [1.0] * int(backdoored.sum()))[1][0]
second = areas.loc["first half mean"]
answer(
    f"You were right if you said {' or '.join(f'*{form}*' for form in best)}: the area is {areas.AUC.max():.2f}. "
    f"*First half mean* has {second.AUC:.2f} (95 % interval {second['from']:.2f} to {second.to:.2f}). "
    + (
        "The intervals of all four forms reach down to 0.5 or below, so none is shown to be better than a coin. "
        if not len(above)
        else f"The interval lies above 0.5 for {' and '.join(f'*{form}*' for form in above)}. But that is the best of "
        "four, and its interval does not know it. "
    )
    + f"With {counts} even a detector that makes no mistake would have an interval from {perfect:.2f} to 1"
    + (", so this figure is a picture of the method and no evidence." if perfect < 0.7 else ".")
)

# %% [markdown]
# The next table is for a detector that makes no mistake at all. It gives the interval of its area. Beside it stands
# what a defender with so many clean reference models could say of a model that stands above them all.
#
# > **Predict first.** How many models of each kind would you want to see, before an interval that starts above
# > 0.85 makes you believe in an area of 1?

# %%
rows = []
for count in (2, 5, 10, 20, 50):
    low, high = roc_auc([0.0] * count, [1.0] * count)[1]
    verdict = judge(1.0, [0.0] * count)
    rows.append({"models of each kind": count, "AUC 1, interval from": low, "to": high,
                 "p-value of one that stands out": verdict.p_value,
                 "clean models above it, up to": verdict.interval[1]})  # fmt: skip
needed = pd.DataFrame(rows).set_index("models of each kind")
needed.round(2)

# %% tags=["hide-input"]
starts = needed["AUC 1, interval from"]
enough = int(starts.index[starts > 0.85].min())
few_models = int(starts.index[starts.index < enough].max())
answer(
    f"You were right if you said more than {few_models}. With {few_models} of each kind the interval starts at "
    f"{starts[few_models]:.2f}, with {enough} at {starts[enough]:.2f}. And with {few_models} clean models to compare "
    f"with, a model that stands above them all has a p-value of "
    f"{needed['p-value of one that stands out'][few_models]:.2f}: so often a clean model would stand there, too."
)

# %% [markdown]
# That is what the detector asks of a defender: not one clean model but dozens, of the same architecture, data and
# recipe, measured with as many clean images. Whoever can train these does not need the suspicious model. Where they
# cannot be had, the statistic of a single model is a number without a scale.
#
# ### The winner of twenty
#
# Now the search that found *first half mean*. Two of our committed tables hold its numbers, whatever profile you run:
# the twenty forms on the first sixteen networks, and eight of them on twenty fresh networks. A form is one of the
# statistics above (or the mean over all layers), with the magnitude folded or bare, with the fast saliency or the
# exact one. (The fresh networks have the seeds 100 to 109. In the profile `laptop` so have those of the table above,
# but they were trained at another time. So their areas are not the same.)
#
# > **Predict first.** The winner told the first sixteen networks apart almost without a mistake. What will its area be
# > on the fresh ones?


# %%
def statistics_of(table):
    """A row for each model, a column for each form; and which rows are backdoored."""
    table = table.replace({"fold_bn": {True: "folded", False: "bare"}, "saliency": {"gradient": "fast"}})
    form = table.form + ", " + table.fold_bn.astype(str) + ", " + table.saliency
    wide = table.assign(form=form).pivot(index=["model", "seed"], columns="form", values="statistic")
    return wide, wide.index.get_level_values("model") != "clean"


def all_areas(wide, guilty):
    """`area` of every column."""
    apart = wide.to_numpy()[guilty][:, None] - wide.to_numpy()[~guilty][None]
    return ((apart > 0) + 0.5 * (apart == 0)).mean((0, 1))


first, guilty = statistics_of(tables.results("detector_forms_cifar10_width16"))
fresh = tables.results("detector_zoo_cifar10_width16").rename(columns={"model_seed": "seed"})
fresh, guilty_fresh = statistics_of(fresh.assign(saliency="gradient"))  # the fast form
rng = np.random.default_rng(0)
by_luck = np.array([all_areas(first, rng.permutation(guilty)).max() for _ in range(2000)])  # no form knows anything
searched = {}
for networks, wide, of_kind in (("first 16", first, guilty), ("fresh 20", fresh, guilty_fresh)):
    rows = {}
    for form, estimate in zip(wide, all_areas(wide, of_kind), strict=True):
        low, high = roc_auc(wide.loc[~of_kind, form].tolist(), wide.loc[of_kind, form].tolist())[1]
        rows[form] = {"area": estimate, "from": low, "to": high}
    searched[networks] = pd.DataFrame(rows).T.sort_values("area")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), width_ratios=(1.5, 1))
heights = {form: height for height, form in enumerate(searched["first 16"].index)}
for (networks, part), color, shift in zip(searched.items(), (plots.GREY, plots.PURPLE), (0.13, -0.13), strict=True):
    at = [heights[form] + shift for form in part.index]
    axes[0].hlines(at, part["from"], part["to"], color=color, lw=1)
    axes[0].plot(part["area"], at, "o", ms=5, color=color, label=f"{networks} networks")
axes[0].axvline(0.5, color="black", ls=":", lw=1)
axes[0].set_yticks(range(len(heights)), list(heights), fontsize=8)
axes[0].set(xlim=(0, 1.02), xlabel="area, with its 95 % interval", title="Twenty forms, and eight of them again")
axes[0].legend(frameon=False, fontsize=8, loc="lower right")
axes[1].hist(by_luck, bins=(np.arange(32, 67, 2) - 0.5) / 64, color=plots.GREY)
axes[1].axvline(searched["first 16"].area.max(), color=plots.PRUNED, lw=1.5)
axes[1].set(xlabel="best area of the twenty forms", ylabel=f"of {len(by_luck):,} shuffles")
axes[1].set_title("Labels shuffled (red: the real ones)")
figure.suptitle("The best form of the first networks, tried on fresh ones", x=0.01, ha="left")
plots.show(figure, "Left: area and interval of each form on both sets of networks. Right: best area, labels shuffled.")

# %% tags=["hide-input"]
winner, later_winner = (part.index[-1] for part in searched.values())
then, now = (part.loc[winner] for part in searched.values())
later = searched["fresh 20"].loc[later_winner]
reached, middle = 100 * float((by_luck >= then.area - 1e-9).mean()), float(np.median(by_luck))
coin = now["from"] < 0.5 < now.to
answer(
    f"You were right if you said {'about a half' if coin else 'as high again' if now.area > 0.9 else 'lower'}. "
    f"*{winner.capitalize()}* went from {then.area:.2f} (95 % interval {then['from']:.2f} to {then.to:.2f}) to "
    f"{now.area:.2f} ({now['from']:.2f} to {now.to:.2f}){', no better than a coin' if coin else ''}. On the fresh "
    f"networks *{later_winner}* is best, with {later.area:.2f} ({later['from']:.2f} to {later.to:.2f}), and its "
    f"interval {'holds 0.5, too' if later['from'] < 0.5 else 'lies above 0.5'}. Nobody cheated. But the best of twenty "
    f"numbers is high because it is the best of twenty: when the labels are shuffled, half of the time it is above "
    f"{middle:.2f}, though no form knows anything then. An interval does not know how many forms were tried. "
    + (
        f"And that is not all: shuffled labels reach {then.area:.2f} in only {reached:.1f} % of the cases. Something "
        "else helped on the first networks, and we do not know what. Only the fresh ones could tell that it was no "
        "mark of a backdoor."
        if reached < 5
        else f"Shuffled labels reach {then.area:.2f} in {reached:.1f} % of the cases."
    )
)

# %% [markdown]
# The lesson is about choosing. Choose a form on some models, and test it on others. The notes on both tables are in
# [`data/lab_notes.md`](../data/lab_notes.md#the-detector).
#
# ## 4. Clean suppression: forget the task
#
# Detection aside, which filters should go? MNP's first objective makes a copy of the network *forget*. Its weights
# $\theta'$ start as the given $\theta$. They climb the clean loss instead of descending it,
#
# $$\max_{\theta'} \; L(\theta') - \lambda_\theta \lVert \theta' \rVert_2^2 ,$$
#
# until the defender's own images are classified no better than 20 %, or twenty epochs are over. What the clean images
# use is torn down. What only the trigger wakes is not torn down, since no image carries the trigger. It should stay,
# and stand *exposed*. (The penalty on the norm, with its weight $\lambda_\theta$, is the optimiser's weight decay. RNP
# has the same step.)
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


# %% [markdown]
# The evaluator looks on, with some of the test images. A high ASR can mean two things: the network obeys the trigger,
# or it calls *everything* the target. So the evaluator also counts how many images of other classes get the target
# class without a trigger.

# %%
from nbtools.evaluator.evaluation import accuracy, predict


def few(images, count=200):
    """Some of the evaluator's images, evenly spread."""
    return images.subset(torch.arange(0, len(images), max(len(images) // count, 1)))


def to_target(model, images):
    """Percent of the images that get the target class."""
    return 100 * float((predict(model, images) == target).float().mean())


probe, triggered = few(poisoned.evaluate.test), few(poisoned.evaluate.triggered)
untriggered = probe.subset(probe.labels != target)
curve, suppressed = [], poisoned.model
for suppressed in [poisoned.model, *map(copy.deepcopy, forget(poisoned.model, len(history) - 1))]:
    curve.append({"ACC": 100 * accuracy(suppressed, probe), "ASR": to_target(suppressed, triggered),
                  "no trigger, target": to_target(suppressed, untriggered)})  # fmt: skip
forgetting = pd.concat([pd.DataFrame(history), pd.DataFrame(curve)], axis=1)
columns = ["epoch", "steps", "loss", "accuracy", *curve[0]]
forgetting.iloc[[0, len(forgetting) // 2, -1]][columns].round(2)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4))
axes[0].plot(forgetting.epoch, forgetting.loss, "o-", ms=4, color=plots.BLUE)
axes[0].set(ylabel="clean loss", title="What the defender sees: the loss")
axes[1].plot(forgetting.epoch, 100 * forgetting.accuracy, "o-", ms=4, color=plots.BLUE, label="the defender's images")
axes[1].plot(forgetting.epoch, forgetting.ACC, "o--", ms=4, color=plots.SKY, label="ACC (evaluator)")
axes[1].plot(forgetting.epoch, forgetting.ASR, "s--", ms=4, color=plots.POISONED, label="ASR (evaluator)")
axes[1].plot(forgetting.epoch, forgetting["no trigger, target"], ":", color=plots.PURPLE, label="no trigger, target")
axes[1].axhline(100 * defence.until, color=plots.GREY, ls=":", lw=1)
axes[1].set(ylabel="percent", ylim=(-3, 103), title="Accuracy, and what happens to the attack")
axes[1].legend(frameon=False, fontsize=8)
for axis in axes:
    axis.set(xlabel=f"epoch of suppression ({len(learn)} images)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
figure.suptitle(f"{poisoned.name}: climbing the clean loss (grey dots: where it stops)", x=0.01, ha="left")
plots.show(figure, "Left: clean loss by epoch of suppression. Right: accuracy, ACC and ASR by epoch.")

# %% tags=["hide-input"]
start, end = forgetting.iloc[0], forgetting.iloc[-1]
change = end.ASR - start.ASR
said = "it rises" if change > 5 else "it stays" if change > -20 else "it falls"
answer(
    f"You were right if you said: {said}. ACC goes from {start.ACC:.0f} to {end.ACC:.0f} %, ASR from {start.ASR:.0f} "
    f"to {end.ASR:.0f} %. Without a trigger, {start['no trigger, target']:.0f} % of the images of other classes got "
    f"the target class before, and {end['no trigger, target']:.0f} % get it now. "
    + (
        "So trigger and task share filters, or the whole network has become noise: the backdoor is torn down as well."
        if change <= -20
        else f"But after {end.steps:.0f} steps the task is hardly torn down. So this run cannot say whether the "
        "backdoor would outlive it."
        if end.ACC > start.ACC / 2
        else "So the backdoor is exposed, as the argument says: the task is gone, and the trigger still works."
        if end.ASR - end["no trigger, target"] > 50
        else "So this is no exposed backdoor: the network that has forgotten answers the target to most images, "
        "trigger or not, and its ASR says little."
        if end["no trigger, target"] > 50
        else "So the trigger still makes a difference, but a smaller one than before."
    )
)

# %% [markdown]
# Two accuracies of the same network can lie apart. The defender's is taken with batch norms that normalise by the
# batch, since the masks of the next section meet the network like that. ACC and ASR are those of the network as it
# would be used, with running statistics.
#
# ## 5. Masks under three objectives
#
# Now one factor $m_i \in [0, 1]$ is put on each filter's $\gamma_i$, and every weight is frozen. The wish: with these
# masks, the suppressed network shall answer clean images again. Masks sink where a filter stands in the way. MNP adds
# two terms. With $L(m, \theta)$ the mean clean loss of the network with weights $\theta$ and masks $m$,
#
# $$\min_{m \in [0, 1]} \; (1 - \alpha)\, L(m, \theta') \;+\; \alpha\, L(m, \theta) \;+\;
# \lambda \sum_i m_i \frac{M_i}{\sum_j M_j} .$$
#
# | objective | what it asks of the masks | left out by |
# |---|---|---|
# | clean suppression, $\theta'$ | shut what keeps a network that has forgotten from remembering | $\theta' = \theta$ |
# | weight penalty, $\lambda$ | pay for every open filter, more for a large one | $\lambda = 0$ |
# | clean preserving, $\alpha$ | the network as given must still work | $\alpha = 0$ |
#
# $M_i$ is that of section 1, without the batch norm. Without the last two objectives it is RNP, our control. (A test
# of the package checks that the two are then equal to the last bit.)


# %%
def learn_masks(variant):
    """One factor for each filter, by SGD from 1: descend the clean loss of the masked networks, pay for magnitude."""
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


# %%
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
# > **Predict first.** Which of the five pulls the masks down furthest? And without suppression, what reason is left for
# > a mask to sink at all?

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.3), width_ratios=(1, 1.2))
colors = dict(zip(variants, (plots.BLUE, plots.GREEN, plots.PURPLE, plots.BROWN, plots.GREY), strict=True))
share, sizes = torch.linspace(0, 100, len(price)), [unit.filters for unit in units]
for name, values in masks.items():
    axes[0].plot(values.sort().values.cpu(), share, color=colors[name], label=name)
axes[0].set(xlabel="mask", ylabel="filters at or below (%)", title="How far the masks sink")
axes[0].legend(frameon=False, fontsize=8)
for name, values in masks.items():
    axes[1].plot([unit.conv for unit in units], [float(part.mean()) for part in values.split(sizes)], "o-", ms=3,
                 color=colors[name])  # fmt: skip
axes[1].tick_params(axis="x", labelrotation=90, labelsize=7)
axes[1].set(ylabel="mean mask", title="Where they sink")
figure.suptitle(f"{poisoned.name}: the masks under three objectives, each left out in turn", x=0.01, ha="left")
plots.show(figure, "Left: cumulative distribution of the masks, five variants. Right: mean mask by layer.")

# %% [markdown]
# Do the masks sink on the right filters? The evaluator compares them with TAC, divided by its layer's mean so that no
# layer rules.


# %%
def rank_agreement(values):
    """Spearman's correlation of low masks with TAC, mean over the layers; where all masks are alike it is 0."""
    found = []
    for unit, part in zip(units, values.cpu().split([unit.filters for unit in units]), strict=True):
        varied = float(part.max() - part.min()) > 1e-6
        found.append(spearmanr(-part, truth[poisoned.name][unit.conv].cpu()).statistic if varied else 0.0)
    return sum(found) / len(found)


flat = torch.cat([truth[poisoned.name][unit.conv] / truth[poisoned.name][unit.conv].mean() for unit in units]).cpu()
moved, lowest = flat >= flat.quantile(0.95), max(len(price) // 20, 1)
hit = "of the 5 % lowest, among TAC's top 5 %"
rows = {
    name: {
        "mean mask": float(values.mean()),
        "shut (mask 0)": int((values == 0).sum()),
        "below 0.5": int((values < 0.5).sum()),
        "rank agreement with TAC": rank_agreement(values),
        hit: 100 * float(moved[values.cpu().argsort()[:lowest]].float().mean()),
    }
    for name, values in masks.items()
}
by_variant = pd.DataFrame(rows).T
by_variant.round(2)

# %% tags=["hide-input"]
deepest, finder = by_variant["mean mask"].idxmin(), by_variant[hit].idxmax()
mean, right = by_variant["mean mask"], by_variant[hit]
rnp = "RNP: suppression alone"
answer(
    f"You were right if you said *{deepest}*: its masks are {mean[deepest]:.3f} on average, and "
    f"{by_variant['below 0.5'][deepest]:.0f} of {len(price)} are below 0.5. With all three objectives the mean is "
    f"{mean['all three']:.3f}: preserving holds masks up, since the given network needs its filters. Without "
    "suppression two reasons are left: the penalty has its price, and lower masks can make the clean loss of the given "
    f"network a little smaller. The two lower the masks by {1 - mean['no suppression']:.3f} on average. And do the "
    f"right ones sink? Of the filters that would fall first, {right['all three']:.0f} % are among those that the "
    f"trigger moves most with all three, {right[rnp]:.0f} % with RNP, and {right['no suppression']:.0f} % without "
    "suppression; by chance it would be 5 %. "
    + (
        "Here the masks find the trigger's filters best *without* suppression, which was made to expose them."
        if finder == "no suppression"
        else f"The best here is *{finder}*."
    )
)

# %% [markdown]
# The evaluator's columns are the ones that matter, and the defender cannot have them. And masks are no probabilities: a
# mask of 0.3 says how far it got in a short training, not how suspicious a filter is.
#
# ## 6. The threshold, and who may choose it
#
# Filters with $m_i \le \tau$ are pruned ($\gamma_i = 0$) in the model *as it was given*. The defender tries the
# thresholds from the lowest to the highest and stops before the accuracy on the held-back clean images falls too far:
# by more than two points, or by more than one image where one image is worth more. The evaluator can draw the whole
# curve.
#
# > **Predict first.** Is there a threshold at which ASR is gone and ACC is not? Will the rule find it?

# %%
from nbtools.defender.threshold_sweep import choose_threshold, sweep

NOTHING = -0.05  # stands for "prune nothing" among the thresholds


def walk(trained, values, held):
    """Held-back accuracy (the defender's), ACC and ASR (the evaluator's) at each threshold, and the rule's choice."""
    chosen, record = choose_threshold(trained.model, units, values, defence.thresholds, held, defence.validation)
    seen, probe, triggered = [], few(trained.evaluate.test), few(trained.evaluate.triggered)

    def look(twin):
        seen.append((100 * accuracy(twin, probe), to_target(twin, triggered)))
        return len(seen) - 1

    looked = sweep(trained.model, units, values, [-math.inf, *defence.thresholds], look)
    table = pd.DataFrame([seen[int(row["measured"])] for row in looked], columns=["ACC", "ASR"])
    table["threshold"] = [NOTHING, *sorted(defence.thresholds)]
    table["pruned"] = [row["pruned"] for row in looked]
    table["held-back"] = [100 * accuracy(trained.model, held), *(100 * row["held_back"] for row in record)]
    return table.assign(chosen=table.threshold == (NOTHING if chosen is None else chosen))


# %%
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

# %% tags=["hide-input"]
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

# %% [markdown]
# In the next table, *oracle* is the threshold with the best DER on the evaluator's images (defence effectiveness
# rating: the fall of ASR counts for it, the fall of ACC against it). Nobody who defends a model can choose it. It is
# here to be compared with. A threshold of -0.05 means that nothing is pruned.

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

# %% tags=["hide-input"]
GONE, LOST = 20, 5


def repaired(table):
    """At which thresholds ASR is gone and ACC is not."""
    lost = table.ACC.iloc[0] - table.ACC
    return (table.ASR < GONE) & (lost < LOST)


of_poisoned = {name: table for name, table in walks.items() if name.startswith(poisoned.name)}
there = {name: bool(repaired(table).any()) for name, table in of_poisoned.items()}
hits = {name: bool(repaired(table)[table.chosen].any()) for name, table in of_poisoned.items()}
elsewhere = [table for name, table in of_poisoned.items() if there[name] and not hits[name]]
early = sum(float(table[table.chosen].ASR.iloc[0]) >= GONE for table in elsewhere)
missed = len(elsewhere)
stops = [f"too early in {early}, and the backdoor stays"] if early else []
stops += [f"too late in {missed - early}, and ACC pays for it"] if missed > early else []
main = f"{poisoned.name}: all three"
by_rule, by_oracle = (choices.set_index(["masks", "choice"]).loc[(main, kind)] for kind in ("rule", "oracle"))
answer(
    f"Let gone mean an ASR below {GONE} %, and ACC kept if it loses less than {LOST} points. For *all three* with "
    f"{len(clean)} images, you were right if you said "
    f"{'yes' if there[main] else 'no'}"
    + (
        f", and {'the rule finds it' if hits[main] else 'the rule does not find it'}. "
        if there[main]
        else ", there is none. "
    )
    + f"The rule prunes {by_rule.pruned:.0f} filters and leaves an ASR of {by_rule.ASR:.0f} %, with an ACC of "
    f"{by_rule.ACC:.0f} %. The oracle's threshold gives {by_oracle.ASR:.0f} and {by_oracle.ACC:.0f} %. In the panels "
    f"of the poisoned model, such a threshold exists in {sum(there.values()) or 'none'} of {len(there)}"
    + (f", and the rule chooses one in {sum(hits.values()) or 'none'}. " if any(there.values()) else ". ")
    + (
        f"Elsewhere it stops {' and '.join(stops)}."
        if missed
        else "Where no threshold is good, the masks are at fault, not the rule."
        if sum(there.values()) < len(there)
        else "So the clean images were enough to choose."
    )
)

# %% [markdown]
# How to read the table:
#
# - Where the rule prunes nothing or next to nothing, even a low threshold costs more held-back accuracy than it allows.
#   Some of the masks that sink belong to filters that the clean task needs. A defence that does nothing is not wrong by
#   its own rule, but it is no defence.
# - The rule can also stop too late: ASR is gone, and so is more ACC than the held-back images could see.
# - Where oracle and rule lie far apart, a paper that reports the oracle's column reports something else than a defence.
#   [Notebook 10](10_comparison.ipynb) takes that up as the *leakage lesson*.
# - Where even the oracle gives up much ACC, the masks are at fault, not the rule.
# - The clean twin shows the price where there is no backdoor: what the rule prunes, and what that costs.
#
# Now the whole defence, measured on all test images. RNP is the control, and where the profile allows it there are
# rows with more clean images.
#
# > **Predict first.** Will MNP leave less ASR than RNP, from the same few images? And what will it cost the clean twin?

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

# %% tags=["hide-input"]
mnp, rnp = (whole.loc[(poisoned.name, f"{name}, {samples_per_class} a class")] for name in ("MNP", "RNP"))
twin = whole.loc[(clean_twin.name, f"MNP, {samples_per_class} a class")]
lost = whole["acc before"] - whole["acc after"]
allowed = 100 * max(defence.validation.allowed, 1 / len(held))
unseen = int((lost[[label.endswith(f" {samples_per_class} a class") for _, label in whole.index]] > allowed).sum())
more = [count for _, count in repairs if count != samples_per_class]
better = rnp["asr after"] - mnp["asr after"]
said = "about as much as RNP" if abs(better) < 5 else "less" if better > 0 else "more"
answer(
    f"You were right if you said {said}: MNP leaves an ASR of {mnp['asr after']:.0f} % for "
    f"{mnp['acc before'] - mnp['acc after']:.1f} points of ACC, RNP {rnp['asr after']:.0f} % for "
    f"{rnp['acc before'] - rnp['acc after']:.1f}. The clean twin pays {twin['acc before'] - twin['acc after']:.1f} "
    f"points for MNP, which prunes {twin.pruned:.0f} of its filters. "
    + "".join(
        f"With {count} images of each class MNP leaves {r['asr after']:.0f} % for "
        f"{r['acc before'] - r['acc after']:.1f} points, and the twin pays {t['acc before'] - t['acc after']:.1f}. "
        for count in dict.fromkeys(more)
        for r, t in [[whole.loc[(m.name, f"MNP, {count} a class")] for m in both]]
    )
    + f"The rule allows a loss of {allowed:.0f} points on {len(held)} held-back images. In {unseen} of the rows "
    "with so few images the test accuracy fell by more"
    + (": a few images do not see every fall." if unseen else ", so here the few images saw enough.")
)

# %% [markdown]
# ## 7. Exercises
#
# **Exercise 1** (easy, 5 minutes). A batch norm scales what its filter gives, so the norm of the weights alone is
# only half of its size. Compute, for each filter of `layer`, the magnitude with the batch norm folded in,
# $\lVert W_i \rVert_1 \, |\gamma_i| / \sqrt{v_i + \epsilon_\mathrm{bn}}$.

# %%
conv, bn = next((conv, bn) for unit, conv, bn in layers_of(poisoned.model, units) if unit.conv == layer)
folded = ...  # your answer, [filters]

exercises.folded_magnitude(folded, poisoned.model, layer)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). How far can the penalty alone push a mask? The loss is multiplied by
# `defence.recover_share`. So at every step the penalty's gradient on mask $i$ is the same number: the product of
# `defence.recover_share`, $\lambda$ (`defence.penalty`) and $M_i / \sum_j M_j$ (`price`). Stochastic gradient descent
# (SGD) starts from 1, with learning rate `defence.recover_lr` and momentum `defence.momentum`: its velocity is the
# gradient plus the momentum times the velocity before. Without the clamp, what is the mean over the filters of
# $1 - m_i$ after `steps` steps? The answer is one number, from a closed form or from a loop of three lines.

# %%
steps = defence.recover_epochs * -(-len(learn) // defence.batch_size)
pushed = ...  # your answer, a number

exercises.pushed_by_the_penalty(pushed, defence, price, steps)

# %% [markdown]
# **Exercise 3** (hard, 30 minutes). Does the detector depend on choices that nobody can check? Take the last stage's
# mean, over the models of `zoo(run, zoo_attacks, zoo_rate, target)`, in two other settings: with the l2 norm, and
# with the l1 norm of the bare weights (`fold_bn=False`). `detector_statistic` takes both as arguments, and `area` is
# that of section 3. For each setting give a row of two numbers: the area, and the difference of the means (backdoored
# minus clean).

# %%
other_areas = ...  # your answer, [2, 2]: a row for each setting, its area and its difference

exercises.other_areas(other_areas, zoo(run, zoo_attacks, zoo_rate, target), clean)

# %% [markdown]
# ## 8. What we saw, and what this does not show
#
# - Magnitude and saliency go together in a layer, more or less. Section 2 says how much. Whether a backdoor lowers that
#   relation is a statement about many models, and the intervals of section 3 say how far ours support it.
# - The detector is a comparison. Without clean models of the same kind there is no scale to read it on. And a form
#   that was picked among twenty by its area lost that area on the next twenty models.
# - Suppression raises the clean loss. Section 4 says how far it tears the task down, and what it leaves of the attack.
#   The masks that bring the task back sink for more reasons than one.
# - A threshold chosen by clean images is bound by what clean images can see. Where it prunes nothing, that is an
#   honest result of this rule on this model with so few images.
# - It does **not** show that the paper's method works no better than this: the formulas are reconstructed, the networks
#   small, the images few (RNP's own setting is 500 in all, fifty of each class), and the rule is ours.
#
# **For the reading group**
# 1. Weight decay makes unneeded filters small. What would the scatter of section 2 look like for a network trained
#    without it?
# 2. A defender downloads one model and can train none. What, if anything, can the statistic still tell?
# 3. Suppression stops at 20 % on images that the network then learns its masks on. What would you hold back, and for
#    what?
#
# **Further reading**: the paper (2405.17750). Li et al., *Reconstructive neuron pruning* (2305.14876): suppression and
# masks, on which MNP builds. Wu and Wang, *Adversarial neuron pruning* (2110.14430): masks without forgetting. Li et
# al., *Pruning filters for efficient ConvNets* (1608.08710): magnitude as importance, the opposite sign.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
folded = conv.weight.detach().abs().flatten(1).sum(1) * bn.weight.abs() / (bn.running_var + bn.eps).sqrt()
exercises.folded_magnitude(folded, poisoned.model, layer)
bare = conv.weight.detach().abs().flatten(1).sum(1)
print(f"rank correlation with the bare magnitude: {spearmanr(folded.detach().cpu(), bare.cpu()).statistic:+.2f}")

gradient = defence.recover_share * defence.penalty * float(price.double().mean())
velocities = [sum(defence.momentum**k for k in range(step)) for step in range(1, steps + 1)]
pushed = defence.recover_lr * gradient * sum(velocities)
exercises.pushed_by_the_penalty(pushed, defence, price, steps)
print(f"in {steps} steps the penalty alone pushes a mask down by {pushed:.4f} on average")

settings = {"l1": {}, "l2": {"norm": "l2"}, "l1, bare weights": {"fold_bn": False}}
values = {name: {False: [], True: []} for name in settings}
for trained in zoo(run, zoo_attacks, zoo_rate, target):
    for name, setting in settings.items():
        values[name][trained.name != "clean"].append(detector_statistic(trained.model, clean, **setting))
both_numbers = {
    name: [area(kind[False], kind[True]), float(np.mean(kind[True]) - np.mean(kind[False]))]
    for name, kind in values.items()
}
other_areas = [both_numbers["l2"], both_numbers["l1, bare weights"]]
exercises.other_areas(other_areas, zoo(run, zoo_attacks, zoo_rate, target), clean)
assert abs(both_numbers["l1"][0] - areas.AUC["last stage mean"]) < 1e-9
print("; ".join(f"{name}: area {one:.2f}, difference {two:+.3f}" for name, (one, two) in both_numbers.items()))

# %% [markdown]
# Previous: [07 · Feature map pruning](07_feature_map_pruning.ipynb) · Next: [09 · Baselines](09_baselines.ipynb)

# %% tags=["check", "remove-cell"]
limits = {  # in quick it depends on the machine how far the task is forgotten
    "quick": {"zoo_asr": 60, "zoo_acc": 50, "rho": 0.2, "forgotten": 0.05, "cost": 7},
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
