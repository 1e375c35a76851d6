# %% [markdown]
# # 13 · Open questions
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/13_open_questions.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/13_open_questions.ipynb)
#
# At the end of this notebook you know where the suspiciousness score stops working: few poisoned images, other
# networks, other goals of the attacker, longer trainings, and an attacker who has read the paper.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417), whose outlook names most of these. **The formula of the
# score is reconstructed from the paper's summary.** The attackers who train against it are ours.

# %% [markdown]
# > **You will learn**
# > - how an attacker who knows the score trains against it, and what that costs
# > - which of the four terms the score could do without
# > - what a long training does to the score, and why it is not the saliency
# > - whether a repair works on networks that it was not made for, and whether the backdoor comes back
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb), [12 · Mu](12_mu.ipynb) · **minutes to read**: 49 ·
# > **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set, and in section 2 the score itself | poisons, and adds a penalty to the training |
# | defender | the model and a hundred clean images with their labels | scores, prunes, tunes |
# | evaluator | test set and trigger | reports the measures below; chooses nothing |
#
# ACC is clean accuracy. ASR, the attack success rate, is the share of triggered images that the network takes for the
# target class. RA, the robust accuracy, is the share of them that it takes for their true class. TAC, the
# trigger-activated change, says how far the trigger moves a filter's map (notebook 02).

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
# With a weight of 1.0 a network of width 16 once did not learn its clean task on CIFAR-10 (seed 0: an ACC of 45); with
# 0.1 it trained steadily.
weight = 0.1  # of the adaptive attacker's penalty beside the cross-entropy
trainings = [1, 5]  # epochs of the models of section 6
samples_per_class = 10  # the defender's clean images of each class

# %%
import ast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from scipy.stats import spearmanr

import nbtools
from nbtools.attacker import adaptive
from nbtools.data.images import draw_clean, to_floats
from nbtools.defender import Suspiciousness
from nbtools.defender.saliency import SALIENCY_LOSSES, TEMPERATURE
from nbtools.evaluator.agreement import tac
from nbtools.evaluator.evaluation import predict
from nbtools.lab import tables as published
from nbtools.series import plots
from nbtools.series.exercises import open_questions as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
hidden = run.model(attack, poison_rate, target, adaptive=adaptive.Hide(weight))
defence = Suspiciousness()
clean = run.draw(samples_per_class)
models = {"plain": poisoned, "hiding": hidden}
pd.DataFrame({name: model.before.row() for name, model in models.items()}).T.round(1)

# %% [markdown]
# | question | here |
# |---|---|
# | attackers who know the score | `nbtools.attacker.adaptive.Hide`, `Spread` [ours] |
# | all-to-all | `target = -1`, `nbtools.attacker.triggers.ALL_TO_ALL` |
# | other networks | `nbtools.networks.architectures.ARCHITECTURES` |
# | other data sets | `dataset` of a grid: `cifar100`, `svhn`, `gtsrb`, or `folder:PATH` |
# | the tables below | `python -m nbtools sweep`, `open_questions`, `networks` and `held_out` of `data/grids` |
#
# Sections 2 and 6 compute here, and then show rows that were measured before and are committed with the series. The
# other sections show such rows only. Where nothing else is said, they are of CIFAR-10 and networks of width 16: one
# training of each model, the first 2,000 test images, and three draws of a hundred clean images. Those of sections 1 to
# 6 have the score's defaults of before: the saliency is the margin's, and the fine-tuning has folds.

# %% [markdown]
# ## 1. How few poisoned images?
#
# The sweep trained a BadNets network at each of several poison rates, and repaired it with three thresholds: two fixed
# values of `mu`, and the rule of notebook 12, which chooses one.

# %%
sweep = published.results("open_questions_cifar10_width16")
sweep["ACC lost"] = sweep.acc_before - sweep.acc_after
sweep["who"] = sweep.mu.map("mu {:g}".format).where(sweep.defence == "Suspiciousness", "rule (notebook 12)")
alone = (sweep.defence == "Suspiciousness") & sweep.fine_tune.isna()  # section 5's rows; None is read as missing
scored = sweep.defence.isin(["Suspiciousness", "ChosenMu"])  # the others are section 2's rivals
whole = sweep[scored & ~alone]
rates = whole[whole.adaptive.isna() & (whole.target == 0) & (whole.seed == 0)].sort_values("poison_rate")
rates = rates.assign(rate=(100 * rates.poison_rate).map("{:g} %".format))
columns = ["acc_before", "asr_before", "acc_after", "asr_after", "ACC lost", "pruned"]

# %% [markdown]
# > **Predict first.** A model that saw only a few dozen poisoned images: is its backdoor easier to remove, or harder?

# %% tags=["hide-input"]
WAYS = ["mu 2", "mu 2.5", "rule (notebook 12)"]


def before_and_after(table, x, label, title):
    """ASR before (a dash for each training) and after, and ACC lost, against x, with each draw as a dot."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    places = list(dict.fromkeys(table[x]))
    first = table.drop_duplicates([x, "seed"])
    axes[0].plot([places.index(v) for v in first[x]], first.asr_before, "_", ms=26, mew=2.5, color=plots.POISONED,
                 label="before")  # fmt: skip
    for axis, column in zip(axes, ("asr_after", "ACC lost"), strict=True):
        sns.stripplot(table, x=x, y=column, hue="who", hue_order=WAYS, order=places, dodge=True, size=6, ax=axis,
                      legend=axis is axes[0], palette=[plots.RED, plots.PINK, plots.GREEN])  # fmt: skip
        axis.set_xlabel(label)
        axis.tick_params(axis="x", labelsize=9)
    axes[0].set(ylabel="ASR (%)", ylim=(-3, 103))
    axes[1].set(ylabel="ACC lost (points)")
    axes[1].axhline(0, color=plots.GREY, lw=1)
    axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=4)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


plots.show(
    before_and_after(rates, "rate", "poison rate", "BadNets: before (dashes) and after the repair (dots: draws)"),
    "ASR before and after, and ACC lost, against the poison rate.",
)

# %%
rates.groupby(["rate", "who"], sort=False)[columns].mean().round(1)

# %% tags=["hide-input"]
learned = rates[rates.asr_before >= 50]
unlearned = rates[rates.asr_before < 50]
rarest = learned[learned.poison_rate == learned.poison_rate.min()]
images = round(nbtools.settings.get_profile("laptop").train * float(rarest.poison_rate.iloc[0]))
commonest = learned[learned.poison_rate == learned.poison_rate.max()]
gone = learned.asr_after.max() < 10
answer(
    f"You were right if you said {'neither' if gone else 'harder'}. At {' and '.join(dict.fromkeys(unlearned.rate))} "
    f"no backdoor is learned in ten epochs (an ASR of {unlearned.asr_before.max():.1f} %), so there is nothing to "
    f"remove, and the repair costs {unlearned['ACC lost'].mean():.1f} points of ACC on average all the same. The "
    f"rarest trigger that is learned is on {rarest.rate.iloc[0]} of the training images, which are {images}. Its ASR "
    f"is at most {rarest.asr_after.max():.1f} % after the repair. At {commonest.rate.iloc[0]} it is at most "
    f"{commonest.asr_after.max():.1f} %. " + ("That a trigger is rare does not hide it here." if gone else "")
)

# %% [markdown]
# ## 2. An attacker who has read the paper
#
# The attacker trains the model, so it can train *against the score*. Both of our attackers add a penalty to the
# cross-entropy of each batch, times $\lambda$, which is `weight` in the code. A quarter of the batch's images, with and
# without the trigger, give the penalty. Let $\omega_i = \mathrm{TAC}_i / \sum_j \mathrm{TAC}_j$ be filter $i$'s share
# of what the trigger moves in its layer, on these images.
#
# - **Hide** makes the filters that carry the trigger look like their neighbours: $\sum_i \omega_i \max(0, \log S_i -
#   \mathrm{mean}_j \log S_j)$. Here $S_i$ is the score without saliency, and no gradient flows through $\omega_i$. The
#   penalty makes spectral norms fall where the trigger sits, and makes correlations and activations rise.
# - **Spread** leaves the score alone and deals the trigger out to all $C_l$ filters of the layer: $\log \big( C_l
#   \sum_i \omega_i^2 \big)$. This is zero where all move alike, and $\log C_l$ where one filter carries everything.
#
# Both by hand for one layer's numbers, then by the package:


# %%
def hide_by_hand(score, moved):
    """sum_i omega_i max(0, log S_i - mean log S)."""
    share = moved / moved.sum()
    return (share * (score.log() - score.log().mean()).clamp_min(0)).sum()


def spread_by_hand(moved):
    """log(C_l sum_i omega_i^2)."""
    share = moved / moved.sum()
    return (len(moved) * (share**2).sum()).log()


generator = torch.Generator().manual_seed(0)
conv, bn = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8).eval()
maps, moved = torch.rand(16, 8, 6, 6, generator=generator), torch.rand(8, generator=generator)
with torch.no_grad():
    score = adaptive.sigma(conv, bn)
    for term in (adaptive.activation(maps), adaptive.correlation(maps)):
        score = score / (term / term.mean() + 0.01).sqrt()
    hide, spread = (one.of_layer(conv, bn, maps, moved) for one in (adaptive.Hide(), adaptive.Spread()))
assert abs(hide_by_hand(score, moved) - hide) < 1e-4 and abs(spread_by_hand(moved) - spread) < 1e-5
print(f"hide: {hide:.4f}, spread: {spread:.4f}, by hand and by nbtools")

# %% [markdown]
# `hidden` is a second model. It was trained on the same poisoned images as `poisoned`, with the penalty of Hide.
#
# > **Predict first.** Where will the filters that the trigger moves most stand in the order of the score in `hidden`?
# > Still at the top (more than one standard deviation above their layer's mean), in the middle, or at the bottom (more
# > than one below it)?

# %%
others = draw_clean(run.splits.test, 20, seed=seed)
others = others.subset(others.labels != target)
placed = []
for name, model in models.items():
    scores = defence.scores(defence.components(model.model, clean))
    change = tac(model.model, others, model.trigger)
    for layer, values in scores.items():
        heights = ((values - values.mean()) / values.std()).cpu()
        share = (change[layer] / change[layer].sum()).cpu()
        placed += [
            {"model": name, "layer": layer, "height": float(a), "times its even share": float(b) * len(share)}
            for a, b in zip(heights, share, strict=True)
        ]
placed = pd.DataFrame(placed)
moved_above = placed["times its even share"].where(placed.height > defence.mu, 0).groupby(placed.model).sum()
caught = 100 * moved_above / placed.groupby("model")["times its even share"].sum()

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True, sharey=True)
for axis, (name, part) in zip(axes, placed.groupby("model", sort=False), strict=True):
    axis.scatter(part.height, part["times its even share"], s=9, alpha=0.5, color=plots.POISONED)
    axis.axvline(defence.mu, color=plots.PRUNED, lw=1.5, label=f"pruned right of mu {defence.mu:g}")
    axis.set(title=f"{name}: {caught[name]:.0f} % of the change lies right of the line",
             xlabel="standard deviations above the layer's mean score")  # fmt: skip
    axis.title.set_fontsize(10)
axes[0].set_ylabel("moved by the trigger\n(1: its even share of the layer)")
axes[0].legend(frameon=False, fontsize=8)
plots.show(figure, "Each filter's share of what the trigger moves against its standardised score, for both models.")

# %% tags=["hide-input"]
furthest = placed.sort_values("times its even share").groupby("model").tail(10)
stand = furthest.groupby("model").height.mean()
right = (furthest.height > defence.mu).groupby(furthest.model).sum()
where = {n: "at the top" if h > 1 else "in the middle" if h >= -1 else "at the bottom" for n, h in stand.items()}
one = furthest.groupby("model").last()
answer(
    f"You were right if you said {where['hiding']}. Take the ten filters that the trigger moves furthest above their "
    f"even share. In the plain model {right['plain']} of them lie right of the line, and on average they stand "
    f"{stand['plain']:+.1f} standard deviations from their layer's mean. In the hiding model it is {right['hiding']}, "
    f"and {stand['hiding']:+.1f}. The first of the ten is moved by {one['times its even share']['plain']:.0f} times "
    f"its even share in the plain model, and stands at {one.height['plain']:+.1f}. In the hiding model it is "
    f"{one['times its even share']['hiding']:.0f} times, at {one.height['hiding']:+.1f}. "
    + (
        "The penalty asks for no more than that such a filter looks like the average. "
        if right["hiding"] < right["plain"]
        else "So at this weight the penalty has not taken such filters below the threshold. "
    )
    + f"Of all that the trigger moves, {caught['plain']:.0f} % lie right of the line in the plain model and "
    f"{caught['hiding']:.0f} % in the hiding one."
    + (
        " That is little even in the plain one: the trigger moves many filters a bit, and few of them far."
        if caught["plain"] < 25
        else ""
    )
)

# %% [markdown]
# The position in the order is one thing, and the repair is another. The next table has the whole defence, pruning and
# tuning, on both models.
#
# > **Predict first.** How much of each backdoor is left after the repair? And what does hiding cost the attacker, in
# > ACC and in ASR?

# %%
rows = []
for name, model in models.items():
    for draw in range(run.profile.draws):
        row = run.defend(model, defence, samples_per_class, draw=draw, glance=True)
        rows.append({"trained": name, **row})
hiding = pd.DataFrame(rows)
saved = run.save_rows(hiding, "13_hiding")
repaired = hiding.groupby("trained", sort=False)[
    ["acc_before", "asr_before", "pruned", "acc_after", "asr_after"]
].mean()
repaired.round(1)

# %% tags=["hide-input"]
usual, secret = repaired.loc["plain"], repaired.loc["hiding"]
cost_acc, cost_asr = usual.acc_before - secret.acc_before, usual.asr_before - secret.asr_before
evades = secret.asr_after > usual.asr_after + 10
answer(
    f"You were right if you said: an ASR of {usual.asr_after:.0f} % in the plain model, and of "
    f"{secret.asr_after:.0f} % in the hiding one. Before the repair the hiding model has {abs(cost_acc):.1f} points "
    f"of ACC {'less' if cost_acc > 0 else 'more'} than the plain one, and {abs(cost_asr):.1f} points of ASR "
    f"{'less' if cost_asr > 0 else 'more'}. The defence pruned {secret.pruned:.0f} filters of it, and "
    f"{usual.pruned:.0f} of the plain one. "
    + (
        "**Hide evades the score.** The score reads norms, activations and correlations off a network, and whoever "
        "trains the network writes them."
        if evades
        else "**Here Hide does not evade the score.** Either the penalty is too weak, or the tuning did what the "
        "pruning could not."
    )
    + (" But this attacker pays for it with the clean task." if cost_acc > 5 else "")
)

# %% [markdown]
# And on CIFAR-10, both attackers beside the plain one, from the sweep. Hide was trained with three weights.
#
# > **Predict first.** Which weights are enough to hide? And Spread never looked at the score: will the repair work
# > against it?


# %%
def with_attacker(table):
    """Rows of BadNets at 10 %, all to one, with the attacker's name; the plain one first."""
    table = table[(table.poison_rate == 0.1) & (table.target == 0)]
    name = table.adaptive.fillna("plain").str.replace(r"\(weight=(.*)\)", r" \1", regex=True)
    return table.assign(attacker=name).sort_values("attacker", key=lambda c: c.replace("plain", ""), kind="stable")


attackers = with_attacker(whole)
attackers.groupby(["attacker", "who"], sort=False)[columns].mean().round(1)

# %% tags=["hide-input"]
plots.show(
    before_and_after(
        attackers,
        "attacker",
        "attacker, and the weight of its penalty",
        "BadNets 10 %: before (dashes: trainings) and after (dots: draws)",
    ),
    "ASR before and after, and ACC lost, for the plain attacker and the two adaptive ones at several weights.",
)

# %% tags=["hide-input"]
least, most = attackers.groupby("attacker").asr_after.min(), attackers.groupby("attacker").asr_after.max()
trained = attackers.drop_duplicates(["attacker", "seed"]).set_index(["attacker", "seed"])
hides = [name for name in least.index if name.startswith("Hide")]
evading = [name for name in hides if least[name] > 50]
found = [name for name in hides if most[name] < 10]
enough, too_little = (" and ".join(n.removeprefix("Hide ") for n in names) for names in (evading, found))
prices = [trained.acc_before["plain", s] - trained.acc_before[n, s] for n, s in trained.index if n in evading]
mean_left = attackers.groupby(["attacker", "seed"]).asr_after.mean()
spread_left, plain_left = mean_left["Spread 1.0"].mean(), mean_left["plain"].mean()
spread_price = (trained.acc_before["plain"] - trained.acc_before["Spread 1.0"]).max()
answer(
    f"You were right if you said: {enough} are enough, {too_little} is not. Where Hide "
    f"evades, at least {least[evading].min():.0f} % of ASR are left in every draw, with either threshold and with the "
    f"rule. The attacker pays with {min(prices):.1f} to {max(prices):.1f} points of ACC. Against Spread the repair "
    f"works in part: {spread_left:.0f} % of ASR are left on average, where the plain attacker keeps {plain_left:.0f} "
    f"%, for at most {spread_price:.1f} points of ACC. So all that this series says about the score holds for "
    "attackers who do not know it."
)

# %% [markdown]
# Each weight but 1.0 was trained once, with one seed. In these rows Hide learned its clean task at weight 1.0, too.
# When that training was repeated with the code of today, it once did not. A strong penalty makes the training fragile,
# and the parameters cell above has the smaller weight for this reason.
#
# > **Predict first.** Neither attacker knows anything of the other defences. Which of them still removes what the
# > score can't see: those that prune, or those that learn the weights anew?

# %%
names = {"Suspiciousness": "suspiciousness", "SpectralNorm": "CLP", "FinePruning": "fine-pruning",
         "FineTuning": "fine-tuning"}  # fmt: skip
rivals = with_attacker(sweep[(sweep.seed == 0) & ~alone & ((sweep.mu == defence.mu) | ~scored)])
rivals = rivals[rivals.attacker.isin(["plain", "Hide 1.0", "Spread 1.0"]) & (rivals.defence != "ChosenMu")]
rivals = rivals.replace({"defence": names})
order = ["suspiciousness", *sorted(set(rivals.defence) - {"suspiciousness"}, key=str.lower)]
left = rivals.pivot_table(index="defence", columns="attacker", values="asr_after", sort=False).reindex(order)
lost = rivals.pivot_table(index="defence", columns="attacker", values="ACC lost", sort=False).reindex(order)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, cells, title, limits in (
    (axes[0], left, "ASR left (%)", (0, 100)), (axes[1], lost, "ACC lost (points)", (0, 20))
):  # fmt: skip
    plots.heat(axis, cells, "", ".1f", limits)
    axis.collections[0].colorbar.remove()
    axis.set(title=title, xlabel="", ylabel="")
figure.suptitle("BadNets 10 %, a hundred clean images", x=0.01, ha="left")
plots.show(figure, "Heat maps of the ASR left and the ACC lost for ten defences against three attackers.")

# %% tags=["hide-input"]
all_weights = ["AWM", "NAD", "fine-tuning"]
removing = [name for name in order if left["Hide 1.0"][name] < 50]
filters = [name for name in order if name not in all_weights and left["Hide 1.0"][name] >= 50]
told = [f"{n} leaves {left['Hide 1.0'][n]:.0f} % for {lost['Hide 1.0'][n]:.1f} points of ACC" for n in removing]
best = left["Spread 1.0"].nsmallest(3)
hidden_from = [name for name in filters if left["plain"][name] < 50]
blind = [name for name in filters if name not in hidden_from]
answer(
    f"You were right if you said {'some of the second kind' if set(removing) <= set(all_weights) else 'both kinds'}: "
    f"{', '.join(told)}. What looks for guilty *filters* or their scales ({', '.join(filters)}) leaves at least "
    f"{left['Hide 1.0'][filters].min():.1f} % of the hiding attacker's ASR. Of these, "
    f"{', '.join(hidden_from) or 'none'} repaired the plain attacker's network, so the hiding works against them, "
    f"though the attacker knew the score alone. {', '.join(blind) or 'None'} left the plain attacker's backdoor as "
    f"well. Plain fine-tuning leaves {left.loc['fine-tuning'].min():.0f} % or more of all three. Against Spread "
    f"{', '.join(best.index)} leave the least, {best.min():.0f} to {best.max():.0f} %."
)

# %% [markdown]
# (The rivals have one draw each, and ANP has 500 of its 2,000 iterations.)

# %% [markdown]
# ## 3. All-to-all
#
# So far every trigger led to one class. An all-to-all trigger shifts each class to the next, $y \mapsto y + 1$. The
# network has to know what it sees *and* that the trigger is there. So the backdoor cannot be a mere detector that is
# wired to one output.
#
# > **Predict first.** Does that make it harder to learn? And harder to remove?

# %%
plain = attackers[(attackers.attacker == "plain") & (attackers.seed == 0)]
goals = pd.concat([plain.assign(goal="all to one"), whole[whole.target == -1].assign(goal="all to all")])
goals.groupby(["goal", "who"], sort=False)[columns].mean().round(1)

# %% tags=["hide-input"]
asr_of, kept = (
    goals.groupby("goal")[column].agg(how) for column, how in (("asr_before", "mean"), ("asr_after", "max"))
)
no_harder = kept["all to all"] < kept["all to one"] + 5
answer(
    f"You were right if you said: {'harder' if asr_of['all to all'] < asr_of['all to one'] - 5 else 'not harder'} to "
    f"learn, {'not ' if no_harder else 'and '}harder to remove. Its ASR is {asr_of['all to all']:.0f} % after ten "
    f"epochs, where the other has {asr_of['all to one']:.0f} %. The repair leaves at most {kept['all to all']:.1f} % "
    f"of it, and at most {kept['all to one']:.1f} % of the other. "
    + ("That a backdoor must know the class does not hide it." if no_harder else "")
)

# %% [markdown]
# ## 4. Other networks
#
# The same attack and recipe, at width 16, on five others: ResNet-34; PreAct-ResNet-18, whose batch norms come before
# the convolutions; VGG-16-BN, without shortcuts; DenseNet, where each layer feeds all later ones; MobileNetV2, with
# depthwise convolutions, each filter of which sees a single channel.
#
# > **Predict first.** On which of them will the score fail?


# %%
def way(table):
    """How each row's threshold was taken, in words."""
    who = table.mu.map("mu {:g}".format)
    who = who.where(table.rounds != 2, "twice, " + who).where(~(table.alive > 0), "living, " + who)
    return who.where(table.defence == "Suspiciousness", "rule (notebook 12)")


def lost_and_left(table, rows, columns, lost, left):
    """Means, as "points of ACC lost / ASR left"."""
    means = table.pivot_table(index=rows, columns=columns, values=[lost, left])
    cells = means[lost].map("{:.1f}".format) + " / " + means[left].map("{:.1f}".format)
    return cells.where(means[lost].notna(), "")


networks = published.results("networks_width16")
networks["ACC lost"] = networks.acc_before - networks.acc_after
networks["who"] = way(networks)
longer_or_shorter = (networks.defence == "Suspiciousness") & networks.fine_tune.isna()  # section 6's rows
of_networks = pd.concat([plain, networks[~longer_or_shorter]])
print("points of ACC lost / ASR left")
lost_and_left(of_networks, "who", "architecture", "ACC lost", "asr_after")

# %% tags=["hide-input"]
of_networks["network"] = of_networks.architecture.str.replace("_", "\n")
plots.show(
    before_and_after(
        of_networks[of_networks.who.isin(WAYS)], "network", "", "BadNets 10 %: before (dashes), after (dots: draws)"
    ),
    "ASR before and after, and ACC lost, for each architecture.",
)

# %% tags=["hide-input"]
fixed = of_networks[of_networks.who.isin(WAYS)].groupby("architecture").asr_after.min()
failing, fine = fixed[fixed > 50].index, fixed[fixed <= 50].index
at_two = of_networks[of_networks.who == "mu 2"].groupby("architecture")["ACC lost"].mean()[fine]
cured = of_networks[of_networks.architecture.isin(failing)].groupby("who").asr_after.mean()
cured = cured[["living, mu 2", "twice, mu 2.75"]]
answer(
    f"You were right if you said {' and '.join(failing)}: at either threshold and with the rule at least "
    f"{fixed[failing].min():.0f} % of ASR are left in every draw. From the other {len(fine)} networks the backdoor "
    f"goes, for {at_two.min():.1f} to {at_two.max():.1f} points of ACC at `mu` 2. In some layers of MobileNetV2 a few "
    "filters are all but dead: their spectral norm is small, and it is divided by next to nothing. So they score "
    "very high, and the layer's standard deviation grows until it covers the filters that carry the trigger. If the "
    "threshold is taken a second time over the filters that are left (*twice*), or without the dead ones (*living*, "
    f"section 6), {cured.min():.0f} to {cured.max():.0f} % are left."
)

# %% [markdown]
# ## 5. Each term left out
#
# Pruning alone at four thresholds, on four attacks and the clean model, two trainings of each, one draw. In the figure
# a variant of the score is a line. The nearer a line is to the lower left, the better is the variant, whatever its own
# best threshold is.
#
# > **Predict first.** The score divides the spectral norm by saliency, activation and correlation. Which of the four
# > will be missed most, and which least?


# %%
def variant(powers):
    """The name of a score from its exponents."""
    powers = ast.literal_eval(powers)
    missing = [term for term in ("sigma", "saliency", "activation", "correlation") if not powers.get(term)]
    if len(missing) == 3:
        return "sigma alone"
    if missing:
        return f"without {missing[0]}"
    return "all four" if powers["saliency"] == -0.5 else "all four, no root"


terms = sweep[alone].copy()
terms["variant"] = terms.powers.map(variant)
terms["lost"] = terms.acc_before - terms.acc_pruned
bad = terms[terms.attack != "none"].groupby(["variant", "mu"])[["lost", "asr_pruned"]].mean()
price = terms[terms.attack == "none"].groupby(["variant", "mu"]).lost.mean().rename("clean model: lost")
bad.rename(columns={"asr_pruned": "ASR left"}).join(price).unstack("mu").round(1)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(8, 4.4))
for (name, part), color in zip(bad.groupby(level=0), sns.color_palette("colorblind", 7), strict=False):
    axis.plot(part.lost, part.asr_pruned, "o-", color=color, label=name, lw=3 if name == "all four" else 1.3)
axis.set(xlabel="ACC lost (points, mean over the poisoned models)", ylabel="ASR left (%)", ylim=(0, None))
axis.set_xscale("symlog", linthresh=1)
axis.set_xlim(0, None)
axis.set_title("Each variant of the score at mu 3, 2.5, 2, 1.5 (left to right)")
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "ASR left against ACC lost for the score and its variants, each a line over four thresholds.")

# %% [markdown]
# Variants prune different numbers of filters at the same `mu`, so a look at equal `mu` can mislead. The next cell reads
# the figure at equal *cost*: for each point of a variant, how much more ASR is left than the full score leaves for the
# same points of ACC? (The full score's line is interpolated. Points left of its left end have no partner. Points right
# of its right end are compared with that end, although it costs less.)

# %%
full = bad.loc["all four"].sort_values("lost")
at_equal_cost = bad[bad.lost >= full.lost.min()].drop("all four")
gap = at_equal_cost.asr_pruned - np.interp(at_equal_cost.lost, full.lost, full.asr_pruned)
gaps = gap.groupby("variant").agg(["mean", "min", "max", "size"]).sort_values("mean", ascending=False)
gaps.round(1)

# %% tags=["hide-input"]
without = gaps["mean"][[name for name in gaps.index if name.startswith("without")]]
at_mu = bad.lost.unstack("mu")[defence.mu]
costly = [name for name in without.index if at_mu[name] > 3 * at_mu["all four"]]
cheap = [name for name in without.index if name not in costly]
answer(
    f"You were right if you said {without.index[0].split()[1]} for the most and {without.index[-1].split()[1]} for the "
    f"least. At equal cost {' and '.join(f'{n} {without[n]:.0f}' for n in without.index[:2])} points more of ASR are "
    f"left than with all four. At `mu` {defence.mu:g} ACC falls by "
    f"{' and '.join(f'{at_mu[n]:.0f} points {n}' for n in costly)}, where all four lose {at_mu['all four']:.1f}. "
    f"The others are worth less: {' and '.join(f'{n} {without[n]:.1f}' for n in cheap)} points more are left. At "
    f"equal `mu` sigma looks more important than it is, because without it less is pruned. The square root is worth "
    f"{gaps['mean']['all four, no root']:.1f}, but its points go from {gaps['min']['all four, no root']:+.1f} to "
    f"{gaps['max']['all four, no root']:+.1f}: these rows do not settle it."
)

# %% [markdown]
# ## 6. Saturation
#
# The saliency of a filter is the norm of the gradient that its weights get from one clean image. All of it comes
# through the gradient $g$ of the image's loss at the logits $z$. For cross-entropy $g$ is $p$ minus the one-hot vector
# of the label $y$. This is the error itself, and it vanishes where the network is sure and right. For the margin $z_y -
# \max_{j \ne y} z_j$ it has the length $\sqrt 2$, whatever the image. Cross-entropy that is softened by a temperature
# $\tau$ vanishes later.
#
# How many of the $n$ images still have a say? Take the lengths of their gradients. The share of the images with a say
# is $(\sum \lVert g \rVert)^2 / (n \sum \lVert g \rVert^2)$. It is 1 where all speak alike, and $1/n$ where one
# speaks for all.
#
# > **Predict first.** What will this share be for each of the three forms, after few epochs and after many? And does
# > the score find the trigger's filters less well where few images have a say?
#
# (The lines that the computation prints also count *dead* filters. What these are stands below the table.)


# %%
def lengths(logits, labels, kind):
    """|| g || of each image."""
    if kind == "margin":
        return torch.full((len(labels),), 2**0.5)
    tau = TEMPERATURE if kind == "softened" else 1
    error = (logits / tau).softmax(1)
    error[torch.arange(len(labels)), labels] -= 1
    return error.norm(dim=1) / tau


def told_by(model, logits, labels, kind):
    """Share of images with a say, and the score's mean rank correlation with TAC, for one form of the saliency."""
    g = lengths(logits, labels, kind).numpy()
    form = Suspiciousness(saliency=kind)
    scores, change = form.scores(form.components(model, clean)), tac(model, others, poisoned.trigger)
    agree = [spearmanr(scores[n].cpu(), change[n].cpu()).statistic for n in scores]
    say = 100 * g.sum() ** 2 / (len(g) * (g**2).sum())
    return {"saliency": kind, "images with a say (%)": say, "score's rank correlation with TAC": np.mean(agree)}


# %%
pool = draw_clean(run.splits.reserved, 50, seed=seed)
labels, rows, took = pool.labels.cpu(), [], {}
for length in trainings:
    longer = nbtools.start(profile, epochs=length, seed=seed, small=True, quiet=True)
    model = longer.model(attack, poison_rate, target)
    with torch.no_grad():
        logits = torch.cat([model.model(to_floats(x)) for x in pool.images.split(250)]).float().cpu()
    assert torch.equal(logits.argmax(1), predict(model.model, pool).cpu())
    rows += [{"epochs": length, **told_by(model.model, logits, labels, kind)} for kind in SALIENCY_LOSSES]
    right = 100 * float((logits.argmax(1) == labels).double().mean())
    sigma = defence.components(model.model, clean).of("sigma")
    dead = sum(int((values <= values.mean() / 4).sum()) for values in sigma.values())
    took[length] = model.before_at_a_glance.asr
    told = f"{length:3} epochs: {right:.1f} % of {len(pool)} images right, ASR {took[length]:.1f}"
    print(f"{told}, {dead} of {sum(map(len, sigma.values())):,} filters dead")
say = pd.DataFrame(rows)
saved = run.save_rows(say, "13_saturation")
said = say.pivot_table(index="saliency", columns="epochs", sort=False)
said.round(2)

# %% tags=["hide-input"]
shares, agreement = said["images with a say (%)"], said["score's rank correlation with TAC"]
short, long = min(trainings), max(trainings)
fades = [kind for kind in shares.index if shares[long][kind] < shares[short][kind] - 2]
apart = max(float(agreement[length].max() - agreement[length].min()) for length in trainings)
answer(
    f"You were right if you said {', '.join(f'{k} {s:.0f} %' for k, s in shares[short].items())} after {short} "
    f"epoch{'s' if short > 1 else ''}, and {', '.join(f'{k} {s:.0f} %' for k, s in shares[long].items())} after "
    f"{long}. "
    + (f"What fades with the training: {', '.join(fades)}. " if fades else "Nothing fades between these trainings. ")
    + f"Between the three forms of one model, the score's rank correlation with TAC differs by at most {apart:.2f}. "
    + (
        "So here it matters little how many images have a say. "
        if apart < 0.1
        else "So the form of the saliency matters here. "
    )
    + f"With cross-entropy it is {agreement[short]['cross_entropy']:+.2f} after {short} and "
    f"{agreement[long]['cross_entropy']:+.2f} after {long}. "
    + (f"The ASR after {short} is {took[short]:.0f} %: there is no backdoor to find yet. " if took[short] < 50 else "")
    + (
        "These are weak correlations. Over all filters of a layer the order of the score is not that of TAC, and the "
        "threshold uses only the top of the order."
        if float(agreement.abs().max().max()) < 0.3
        else ""
    )
)

# %% [markdown]
# Now the score with each of the three forms, after trainings of different lengths: on CIFAR-10, and on images made by
# code (`shapes`), which a network learns nearly without error. Weight decay makes filters small. We call a filter
# *dead* where batch norm and spectral norm together are below a quarter of their layer's mean. The dashed lines leave
# out the dead filters and the first convolution: `Suspiciousness(alive=0.25, first=False)` [ours].
#
# > **Predict first.** After many epochs, what matters more: the form of the saliency, or leaving out the dead filters?

# %%
forms = networks[longer_or_shorter].copy()
forms["lost"] = forms.acc_before - forms.acc_pruned
forms["filters"] = (forms.alive > 0).map({False: "all", True: "living"})
at = forms[forms.mu == defence.mu]
print("points of ACC lost / ASR left")
lost_and_left(at, ["dataset", "epochs"], ["filters", "saliency"], "lost", "asr_pruned")

# %% tags=["hide-input"]
figure, axes = plt.subplots(2, 2, figsize=(10.5, 6), sharex="col", sharey="row")
for axis, (column, label, name) in zip(
    axes.flat, [(*of, name) for of in (("asr_pruned", "ASR left (%)"), ("lost", "ACC lost (points)"))
                for name in ("cifar10", "shapes")], strict=True
):  # fmt: skip
    part = at[at.dataset == name]
    sns.lineplot(part, x="epochs", y=column, hue="saliency", style="filters", style_order=["all", "living"],
                 markers=True, errorbar=("pi", 100), err_kws={"alpha": 0.1}, ax=axis,
                 legend=axis is axes[0, 0])  # fmt: skip
    axis.set(title=name if axis in axes[0] else "", ylabel=label, xscale="log")
    axis.set_xticks(sorted(set(part.epochs)), [str(e) for e in sorted(set(part.epochs))])
    axis.minorticks_off()
axes[0, 0].legend(frameon=False, fontsize=8)
axes[0, 0].set_ylim(-3, 103)
figure.suptitle(f"Pruning alone at mu {defence.mu:g} after trainings of different lengths", x=0.01, ha="left")
plots.show(
    figure, "ASR left and ACC lost against epochs for three forms of the saliency, over all filters and the living."
)

# %% tags=["hide-input"]
mean = at.groupby(["dataset", "epochs", "filters", "saliency"])[["lost", "asr_pruned"]].mean()
by_form = mean.groupby(["dataset", "epochs", "filters"]).agg(lambda v: v.max() - v.min())
by_filters = mean.groupby(level=[0, 1, 2]).mean()
long_cifar, long_shapes = (mean.loc[name].index.get_level_values("epochs").max() for name in ("cifar10", "shapes"))
lost_long = {of: mean.lost["cifar10", long_cifar, of] for of in ("all", "living")}
wrecked = mean.loc["shapes", long_shapes, "all"]
spared = mean.loc["shapes", long_shapes, "living"]
worst = by_form.asr_pruned.drop(("shapes", long_shapes, "all"))
answer(
    "You were right if you said the dead filters. On CIFAR-10 after "
    f"{long_cifar} epochs the three forms lose {lost_long['all'].min():.0f} to {lost_long['all'].max():.0f} points of "
    f"ACC over all filters, and {lost_long['living'].min():.1f} to {lost_long['living'].max():.1f} over the living "
    f"ones. On the images made by code after {long_shapes} epochs they lose {wrecked.lost.min():.0f} points whatever "
    f"the form, and {spared.lost.min():.1f} to {spared.lost.max():.1f} over the living ones, which leave "
    f"{spared.asr_pruned.min():.0f} to {spared.asr_pruned.max():.0f} % of ASR. The form is not without weight: at "
    f"{worst.idxmax()[1]} epochs on `{worst.idxmax()[0]}` the forms differ by {worst.max():.0f} points of ASR. But "
    "there it is cross-entropy, whose gradients fade, that leaves "
    f"{'the least' if mean.loc[worst.idxmax()].asr_pruned.idxmin() == 'cross_entropy' else 'more than another'}. So a "
    "fading gradient is not what fails."
)

# %% [markdown]
# Weight decay kills more filters the longer the training is, and the easier the images are. A filter that is all but
# dead can score highest, and covers the others. One that is quite dead scores zero, and makes the living ones stand
# out. In the first layer of the longest training on the images made by code only a few filters live
# ([lab notes](../data/lab_notes.md#other-networks-and-long-trainings)). The threshold prunes them all, and the
# accuracy goes with them. The solid line ends in a network at chance level. What is then left of its ASR says nothing.
#
# The quarter and the spared layer were picked while looking at the ASR of these very networks. So they were put to
# the test. A rule was written into `data/grids/held_out.yaml` *before* eleven other networks were trained, all with
# seed 2. A form takes the place of the plain threshold if four things hold. Over the poisoned networks it leaves less
# ASR on average. It loses at most half a point of ACC more there. It loses at most half a point more on the clean
# one, too. And it leaves at most five points of ASR more on *any* network. These rows have the whole defence. *Twice*
# is `rounds=2` of notebook 12. (`mu` 2.5, for notebook 12, was added to the table afterwards. The network of images
# made by code has 500 test images.)
#
# > **Predict first.** Does one of the two forms pass all conditions?

# %%
held = published.results("held_out_width16")
held["ACC lost"] = held.acc_before - held.acc_after
held["who"] = way(held)
network = ["dataset", "architecture", "epochs", "attack"]
means = held[held.mu != 2.5].groupby([*network, "who"])[["ACC lost", "asr_after"]].mean().unstack("who")
bad = means.drop("none", level="attack")
conditions = pd.DataFrame(
    {
        "ASR left": bad["asr_after"].mean(),
        "ACC lost": bad["ACC lost"].mean(),
        "ACC lost, clean": means.xs("none", level="attack")["ACC lost"].iloc[0],
        "most ASR above the plain one": bad["asr_after"].sub(bad["asr_after", "mu 2"], axis=0).max(),
    }
)
print(conditions.round(1).to_string(), "\n\npoints of ACC lost / ASR left")
lost_and_left(held, network, "who", "ACC lost", "asr_after")

# %%
plainly = conditions.loc["mu 2"]
met = pd.DataFrame(
    {
        "ASR left": conditions["ASR left"] < plainly["ASR left"],
        "ACC lost": conditions["ACC lost"] <= plainly["ACC lost"] + 0.5,
        "ACC lost, clean": conditions["ACC lost, clean"] <= plainly["ACC lost, clean"] + 0.5,
        "most ASR above the plain one": conditions["most ASR above the plain one"] <= 5,
    }
)
passed = met.all(axis=1).drop("mu 2")
met.drop("mu 2").replace({True: "yes", False: "no"})

# %% tags=["hide-input"]
living, twice = "living, mu 2", "twice, mu 2.75"
more = bad["asr_after", living] - bad["asr_after", "mu 2"]
real, worst = more.drop("shapes", level="dataset"), more.idxmax()
fails = {form: [name for name in met.columns if not met[name][form]] for form in (living, twice)}
same = held[held.mu != 2.5].groupby([*network, "who"]).asr_after.mean().unstack("who").min(axis=1)
stuck = ["{1}, {3}".format(*place) for place in same[same > 90].index]
answer(
    f"You were right if you said {'yes' if passed.any() else 'no'}. *Living* leaves "
    f"{conditions['ASR left'][living]:.0f} % of ASR on average for {conditions['ACC lost'][living]:.1f} points of "
    f"ACC, the plain threshold {plainly['ASR left']:.0f} % for {plainly['ACC lost']:.1f}. On the {len(real)} poisoned "
    "CIFAR-10 networks it leaves "
    f"{'no more on any' if real.max() <= 0.05 else f'at most {real.max():.1f} points more'}. But on `{worst[0]}` "
    f"after {worst[2]} epochs it leaves {bad['asr_after', living][worst]:.0f} %, where the plain threshold, which "
    f"breaks part of that network, leaves {bad['asr_after', 'mu 2'][worst]:.0f}. *Twice* fails {len(fails[twice])} of "
    f"the {met.shape[1]} conditions. Whatever the form, more than 90 % are left on: "
    f"{'; '.join(stuck) or 'none'}. **The plain threshold stays.** No form of the score held throughout. The one that "
    "looked as if it did had been chosen on the networks that it was judged on."
)

# %% [markdown]
# (`defend -s alive 0.25 -s first False` is there for a MobileNetV2, or a network that was trained long.)

# %% [markdown]
# ## 7. A sceptic's questions about a repair
#
# A repair that was developed on a handful of networks may know them by heart. So these are other networks of width 16,
# with other seeds and another target class for each attack. Seeds 5 and 6 were trained when every setting but two was
# fixed: how the two places below are joined, and at which level, was settled with them in view. Seeds 7 and 8 were
# trained after that, and took no part in anything.
#
# *Shift unlearning* is our own repair. It prunes gently by the score. Then it asks towards which class one and the same
# change of the image, or of the maps below the last stage, moves even the images that resist most. A t-test compares
# the classes at each of the two places, and Fisher's method joins the two p-values. If a class stands out so far that
# it would happen by chance in at most 3 of 100 cases (a rough figure), it is the suspect. The last stage is then taught
# to ignore such a change ([lab notes](../data/lab_notes.md#shift-unlearning) tells the whole).
#
# The score stands here twice: with the defaults of now, and with those of before (the margin's saliency, fine-tuning
# with folds). There are three draws, but two for the score on seeds 5 and 6.
#
# > **Predict first.** On how many of the networks with a backdoor does shift unlearning suspect the right class? And
# > whom does it suspect in the clean ones?

# %%
unseen = published.results("unseen_networks_cifar10")
unseen["ACC lost"], unseen["ASR left"] = unseen.acc_before - unseen.acc, unseen.asr
named = unseen.attack + " " + (100 * unseen.poison_rate).map("{:g} %".format)
unseen["network"] = named.where(unseen.attack != "none", "clean") + ", seed " + unseen.seed.map(str)
unseen["suspected"] = unseen.suspect.map("{:.0f}".format).where(unseen.suspect.notna(), "none")
shifts = unseen[unseen.defence == "shift unlearning"]
suspects = shifts.groupby(["network", "target"], sort=False).suspected
print("points of ACC lost / ASR left (of the clean networks, what the trigger does where nobody planted it)")
table = lost_and_left(unseen, ["network", "target"], "defence", "ACC lost", "ASR left")
table.join(suspects.agg(lambda classes: " and ".join(dict.fromkeys(classes))).rename("suspected"))

# %% tags=["hide-input"]
guilty, innocent = shifts[shifts.attack != "none"], shifts[shifts.attack == "none"]
hit = (guilty.suspect == guilty.target).groupby(guilty.network).all()
named_wrong = int((guilty.suspect.notna() & (guilty.suspect != guilty.target)).sum())
found, missed = guilty[guilty.network.map(hit)], guilty[~guilty.network.map(hit)]
in_clean = int(innocent.suspect.notna().sum())
by_score = unseen[(unseen.defence == "suspiciousness") & (unseen.attack != "none")].groupby("network")
answer(
    f"You were right if you said {hit.sum()} of {len(hit)}, and "
    f"{'nobody' if not in_clean else f'somebody in {in_clean} draws'}. Where the target is suspected in all draws, "
    f"{found.groupby('network').asr.mean().max():.1f} % of ASR or less are left (means over the draws), for "
    f"{found['ACC lost'].mean():.1f} points of ACC. A wrong class is named in {named_wrong} draws. It fails on "
    f"{', '.join(sorted(set(missed.network))) or 'none'}: no class stands out, and {missed.asr.mean():.0f} % stay. The "
    f"score with its defaults of now leaves {by_score['ASR left'].mean().mean():.0f} % on average over the "
    f"{len(by_score)} networks, for {by_score['ACC lost'].mean().mean():.1f} points. The backdoored networks of seed "
    "7, which are wholly new, have only a patch and a warp. For blends only networks of seeds 5 and 6 speak."
)

# %% [markdown]
# Why SIG? In SIG only images of the target class carry the trigger. The evaluator, who holds the trigger, can see
# that its stripes are no short cut. Compare their length, as a change of the image, with the way to another class,
# which is the length of the change that leads there (for the class in the middle, by this length). The stripes at
# half of their strength are already as long as this way, and they send only a few images to the target. The patch of
# BadNets is as long as the way, too, and sends most of them. So the target of SIG is no easier to reach than other
# classes are. (On the SIG network of seed 0, in notebook 10, nobody is suspected either. There the gentle pruning
# alone removes the backdoor.) ([Lab notes](../data/lab_notes.md#networks-that-took-no-part-or-only-a-small-one) has
# the numbers; they were looked at once.)
#
# > **Predict first.** Shift unlearning names a suspect. What happens if it is told a wrong class? (In the table,
# > `badnets_10` is BadNets at a poison rate of 10 %, and so on.)

# %%
sceptic = published.results("sceptic_cifar10")
told = sceptic[sceptic.check == "class"].assign(told=lambda t: t.told.map("class {:.0f}".format, na_action="ignore"))
told["told"] = told.told.fillna("pruned alone").replace({"class 0": "class 0, the target"})
told["ACC lost"] = told.acc_before - told.acc
print("points of ACC lost / ASR left")
lost_and_left(told, ["width", "model"], "told", "ACC lost", "asr")

# %% tags=["hide-input"]
stays = told.pivot_table(index=["width", "model"], columns="told", values="asr")
wrong_class = stays[["class 3", "class 6"]]
warp = stays.index.get_level_values("model").str.startswith("wanet") & (stays.index.get_level_values("width") == 16)
all_to_all = sceptic[(sceptic.check == "all-to-all") & (sceptic.defence == "shift unlearning")].asr
answer(
    f"You were right if you said: most of the backdoor stays. Told class 3 or 6, it leaves "
    f"{wrong_class[~warp].min().min():.0f} to {wrong_class[~warp].max().max():.0f} % of ASR on all networks but "
    f"WaNet's of width 16. Told the target, it leaves {stays['class 0, the target'].max():.0f} % or less on all of "
    f"them. On that WaNet a wrong class even leaves more, {wrong_class[warp].min().min():.0f} and "
    f"{wrong_class[warp].max().max():.0f} %, than the gentle pruning alone, {stays['pruned alone'][warp].iloc[0]:.0f} "
    "%. So it is the shift of the right class that repairs, and not the tuning as such. (An all-to-all backdoor, as "
    "in section 3, has no target class: nobody is suspected, and the gentle pruning alone leaves "
    f"{all_to_all.max():.0f} % of it.)"
)

# %% [markdown]
# For the next question, all defences repair four networks with a hundred images (one draw). Then each repaired network
# is fine-tuned for ten epochs on 500 other clean images. No image carries a trigger.
#
# > **Predict first.** Does the backdoor stay away?

# %%
back = sceptic[sceptic.check == "fine-tuned"].copy()
numbers = ["acc_before", "acc", "acc_tuned", "asr", "asr_tuned"]
print("shift unlearning at width 64 (draw 1)")
print(back[back.width == 64].set_index("model")[numbers].round(1).to_string(), "\n\nwidth 16, means over the four")
back[back.width == 16].groupby("defence", sort=False)[numbers].mean().sort_values("asr_tuned").round(1)

# %% tags=["hide-input"]
groups = dict(list(back[back.width == 16].groupby("model", sort=False)))
figure, axes = plt.subplots(1, len(groups), figsize=(2.1 * len(groups) + 2, 4.6), sharey=True, squeeze=False)
ours = ["shift unlearning", "suspiciousness"]
ordered = [*dict.fromkeys(back.defence[~back.defence.isin(ours)])][::-1] + ours
for axis, (name, part) in zip(axes[0], groups.items(), strict=True):
    part = part.set_index("defence").reindex(ordered)
    axis.hlines(part.index, part.asr, part.asr_tuned, color=plots.GREY, lw=1.5)
    axis.scatter(part.asr, part.index, color=plots.BLUE, s=26, zorder=3, label="after the repair")
    axis.scatter(part.asr_tuned, part.index, color=plots.ORANGE, s=26, zorder=3, label="then fine-tuned")
    axis.set(xlim=(-6, 106), xlabel="ASR (%)", title=name)
    axis.grid(axis="y", alpha=0.4)
figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9)
figure.suptitle("Does it come back when 500 clean images train the repaired network on? (width 16)", x=0.01, ha="left")
plots.show(figure, "ASR after each repair and after ten more epochs on 500 clean images, a panel for each network.")

# %% tags=["hide-input"]
narrow = back[back.width == 16].assign(rise=lambda t: t.asr_tuned - t.asr)
silenced = narrow[narrow.asr < 50]
risen = silenced[silenced.rise > 10].sort_values("rise", ascending=False)
most = [f"{r.model} after {r.defence}, {r.asr:.0f} to {r.asr_tuned:.0f} %" for r in risen.head(5).itertuples()]
wide = back[back.width == 64].assign(rise=lambda t: t.asr_tuned - t.asr).sort_values("rise").iloc[-1]
calm = narrow.groupby("defence")[["asr_tuned", "acc"]].mean().nsmallest(2, "asr_tuned")
least_acc = set(narrow.groupby("defence").acc.mean().nsmallest(2).index)
kept = narrow[narrow.asr >= 50].groupby("model").asr_tuned.min()
answer(
    f"You were right if you said: often not. Of {len(silenced)} repairs of width 16 that had left less than 50 % of "
    f"ASR, {len(risen)} have more than 10 points more after the clean training. The largest: {'; '.join(most)}. At "
    f"width 64 {wide.model} after {wide.defence} goes from {wide.asr:.1f} to {wide.asr_tuned:.0f} %. The least is "
    f"left after {' and '.join(calm.index)}"
    + ("; these two had lost most accuracy. " if set(calm.index) == least_acc else ". ")
    + "Where a repair had left most of a backdoor, clean training can remove some of it. The lowest ASR that it "
    f"reaches there: {', '.join(f'{name} {value:.0f} %' for name, value in kept.items())}."
)

# %% [markdown]
# Notebook 06 knows a reason: the batch norms. In training mode they learn statistics of clean images alone, and that
# turns up what is left. The same ten epochs can be had with batch norms that keep their statistics
# (`Epochs(frozen_bn=True)`).
#
# > **Predict first.** How much comes back then?

# %%
which = ["width", "model", "defence"]
frozen = sceptic[sceptic.check == "fine-tuned, frozen"].set_index(which)
usual = back.set_index(which).reindex(frozen.index)
pd.DataFrame(
    {
        "ASR, repaired": frozen.asr,
        "then fine-tuned": usual.asr_tuned,
        "with frozen batch norms": frozen.asr_tuned,
        "ACC, repaired": frozen.acc,
        "then, fine-tuned": usual.acc_tuned,
        "with frozen ones": frozen.acc_tuned,
    }
).round(1)

# %% tags=["hide-input"]
rise, fell = frozen.asr_tuned - frozen.asr, frozen.acc - frozen.acc_tuned
big = rise[rise > 5]
two = fell.index.get_level_values("defence").isin(ours) & (frozen.asr < 50)
of = sorted(set(big.index.get_level_values("defence")))
answer(
    f"You were right if you said hardly anything. In {len(rise) - len(big)} of {len(rise)} rows at most "
    f"{rise[rise <= 5].max():.2f} points come back. The other {len(big)} are of {' and '.join(of)}, whose masks lie on "
    "the weights, so that training may move them back (that was not tried apart). So if you train a repaired network "
    "further, keep its batch norms in eval mode. It is no gain in itself: after shift unlearning and the score this "
    f"training costs up to {fell[two].max():.1f} points of ACC, where 500 images are all there is."
)

# %% [markdown]
# ## 8. Exercises
#
# **Exercise 1** (easy, 5 minutes). A layer has 64 filters. The trigger moves 4 of them, all alike, and no other. What
# is Spread's penalty for this layer, before its weight?

# %%
penalty = ...  # your answer, a number

exercises.spread_penalty(penalty)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). A network gives the right class a probability of 0.999, and the rest to one other
# class. How long is the gradient at the logits, for cross-entropy?

# %%
length = ...  # your answer, a number

exercises.gradient_length(length)

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). In which stage does hiding change most? The stage is the first part of a layer's
# name, as `layer3` of `layer3.1.conv1`. Take all of a stage's layers together. Which share of what the trigger moves
# lies in filters above `defence.mu`, in percent, in the plain model, and how many points less is it in the hiding
# one? Give a dictionary from each stage to plain minus hiding. Use `placed`: its column `times its even share` is
# what the trigger moves, and `height` is compared with `defence.mu`.

# %%
by_stage = ...  # your answer: a dictionary from stage to points

exercises.hidden_by_stage(by_stage, placed, defence.mu)

# %% [markdown]
# ## 9. What we saw, and what this does not show
#
# - The score finds a backdoor that was planted without thinking of it, rare or frequent. It need not find one that was
#   trained against it, and in the committed rows that attacker loses little.
# - Saliency and activation carry the score. Correlation and sigma help less, and the square root is not settled.
# - After a long training the score fails, or destroys the network, with any saliency: dead filters make the living ones
#   look guilty. Leaving the dead ones out helps on most networks, and failed the test on one of ten.
# - A repair can work on networks that it has never seen, and still be undone by ten epochs on 500 clean images. What
#   was silenced is not gone. The batch norms decide whether it is heard.
# - It does **not** show the other defences against attackers of their own, nor the score on CIFAR-100, SVHN or GTSRB,
#   whose files were not at hand. But for a few rows of section 7, it does not show what full width would change.
#
# **For the reading group**
# 1. An adaptive attack pays in ACC or ASR, or is found. Which of the three did each of ours do?
# 2. What would an attacker add who knows that the defender tunes afterwards?
# 3. Which of these answers would you expect to change at full width, on a GPU?
#
# **Further reading**: Athalye, Carlini and Wagner ([1802.00420](https://arxiv.org/abs/1802.00420)) on why a defence is
# tested against those who know it. Tramèr et al. ([2002.08347](https://arxiv.org/abs/2002.08347)), how to design such
# attacks one by one. Qi et al. ([2205.13613](https://arxiv.org/abs/2205.13613)), backdoors that do not separate in
# latent space.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
import math

penalty = math.log(64 * 4 * (1 / 4) ** 2)
exercises.spread_penalty(penalty)
print(f"log(64 / 4) = {penalty:.4f}: each of the four has a share of a quarter")

length = math.hypot(0.999 - 1, 1 - 0.999)
exercises.gradient_length(length)
print(f"two entries are not zero, -0.001 and 0.001: {length:.6f}")

stage = placed.layer.str.split(".").str[0]
above = placed["times its even share"].where(placed.height > defence.mu, 0)
of_stage = [values.groupby([placed.model, stage]).sum() for values in (above, placed["times its even share"])]
percent = 100 * of_stage[0] / of_stage[1]
by_stage = (percent["plain"] - percent["hiding"]).to_dict()
exercises.hidden_by_stage(by_stage, placed, defence.mu)
print("plain minus hiding:", {name: round(points, 1) for name, points in by_stage.items()})

# %% [markdown]
# Previous: [12 · Mu](12_mu.ipynb) · The series' first page: [00 · Start here](00_start_here.ipynb)

# %% tags=["check", "remove-cell"]
assert poisoned.before.asr >= 90 and hidden.before.acc >= poisoned.before.acc - 10, "the plain model, or the hiding one"
left = hiding.groupby("trained").asr_after.mean()
assert left["hiding"] > left["plain"] + 10, "the penalty did not hide the trigger from the score"
