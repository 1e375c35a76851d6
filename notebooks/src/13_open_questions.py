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
# score is reconstructed from the paper's summary**, and so are, all the more, the attackers who train against it.

# %% [markdown]
# > **You will learn**
# > - how an attacker who knows the score trains against it, and what that costs
# > - which of the four terms the score could do without
# > - what a long training does to the score, and why it is not the saliency
# > - whether a repair works on networks that it was not made for, and whether the backdoor comes back
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb), [12 · Mu](12_mu.ipynb) · **minutes to read**: 20 ·
# > **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set, and in section 2 the score itself | poisons, and adds a penalty to the training |
# | defender | the model and a hundred clean images with their labels | scores, prunes, tunes |
# | evaluator | test set and trigger | reports ACC and ASR; chooses nothing |

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
weight = 1.0  # of the adaptive attacker's penalty beside the cross-entropy
trainings = [1, 5]  # epochs of the models of section 6
samples_per_class = 10  # the defender's clean images of each class

# %%
import ast

import matplotlib.pyplot as plt
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
from nbtools.series import checks, plots

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
# Sections 1 and 3 to 5 show the committed rows of sweeps, sections 2 and 6 first compute here and then show such
# rows as well: CIFAR-10, width 16, three draws of a hundred clean images, the first 2,000 test images, one training
# of each model where nothing else is said.

# %% [markdown]
# ## 1. How few poisoned images?
#
# > **Predict first.** A model that saw only a few dozen poisoned images: is its backdoor easier to remove, or harder?

# %%
sweep = published.results("open_questions_cifar10_width16")
sweep["ACC lost"] = sweep.acc_before - sweep.acc_after
sweep["who"] = sweep.mu.map("mu {:g}".format).where(sweep.defence == "Suspiciousness", "rule (notebook 12)")
alone = (sweep.defence == "Suspiciousness") & sweep.fine_tune.isna()  # section 5's rows; None is read as missing
scored = sweep.defence.isin(["Suspiciousness", "ChosenMu"])  # the others are section 2's rivals
whole = sweep[scored & ~alone]
rates = whole[whole.adaptive.isna() & (whole.target == 0) & (whole.seed == 0)]


WAYS = ["mu 2", "mu 2.5", "rule (notebook 12)"]


def way(table):
    """How each row's threshold was taken, in words."""
    who = table.mu.map("mu {:g}".format)
    who = who.where(table.rounds != 2, "twice, " + who).where(~(table.alive > 0), "living, " + who)
    return who.where(table.defence == "Suspiciousness", "rule (notebook 12)")


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


rates = rates.sort_values("poison_rate").assign(rate=lambda t: (100 * t.poison_rate).map("{:g} %".format))
plots.show(
    before_and_after(rates, "rate", "poison rate", "BadNets: before (dashes) and after the repair (dots: draws)"),
    "ASR before and after, and ACC lost, against the poison rate.",
)
rates.groupby(["rate", "who"], sort=False)[["asr_before", "asr_after", "ACC lost", "pruned"]].mean().round(1)

# %% [markdown]
# Below 1 % nothing is learned in ten epochs: the dashes lie at the bottom, there is nothing to remove, and the repair
# only costs. From 1 % to 20 % the backdoor is learned, and it goes. That a trigger is rare does not hide it here.

# %% [markdown]
# ## 2. An attacker who has read the paper
#
# The attacker trains the model, so it can train *against the score*. Both of ours add a penalty to the cross-entropy of
# each batch, computed on a quarter of its images with and without the trigger. Let $m_i$ be how far the trigger moves
# the map of filter $i$, and $w_i = m_i / \sum_j m_j$ its share in the layer.
#
# - **Hide** makes the filters that carry the trigger look like their neighbours: $\sum_i w_i \max(0, \log S_i -
#   \mathrm{mean}_j \log S_j)$, with $S$ the score without saliency, $w$ held fixed. Spectral norms fall, correlations
#   and activations rise where the trigger sits.
# - **Spread** leaves the score alone and deals the trigger out to all filters: $\log \big( n \sum_i w_i^2 \big)$, zero
#   where all move alike, $\log n$ where one carries everything.
#
# Both by hand for one layer's numbers, then by the package:


# %%
def hide_by_hand(score, moved):
    """sum_i w_i max(0, log S_i - mean log S)."""
    share = moved / moved.sum()
    return (share * (score.log() - score.log().mean()).clamp_min(0)).sum()


def spread_by_hand(moved):
    """log(n sum_i w_i^2)."""
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
# > **Predict first.** `hidden` was trained with the first penalty. Where will the filters that the trigger moves most
# > stand in the order of the score: still at the top, in the middle, at the bottom?

# %%
others = draw_clean(run.splits.test, 20, seed=seed)
others = others.subset(others.labels != target)
placed = []
for name, model in models.items():
    scores = defence.scores(defence.components(model.model, clean))
    change = tac(model.model, others, model.trigger)
    for layer, values in scores.items():
        z = ((values - values.mean()) / values.std()).cpu()
        share = (change[layer] / change[layer].sum()).cpu()
        placed += [
            {"model": name, "layer": layer, "z": float(a), "times its even share": float(b) * len(z)}
            for a, b in zip(z, share, strict=True)
        ]
placed = pd.DataFrame(placed)
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True, sharey=True)
for axis, (name, part) in zip(axes, placed.groupby("model", sort=False), strict=True):
    axis.scatter(part.z, part["times its even share"], s=9, alpha=0.5, color=plots.POISONED)
    axis.axvline(defence.mu, color=plots.PRUNED, lw=1.5, label=f"pruned right of mu {defence.mu:g}")
    caught = part[part.z > defence.mu]["times its even share"].sum() / part["times its even share"].sum()
    axis.set(title=f"{name}: {100 * caught:.0f} % of the trigger's change lies right of the line",
             xlabel="standard deviations above the layer's mean score")  # fmt: skip
    axis.title.set_fontsize(10)
axes[0].set_ylabel("moved by the trigger\n(1: its even share of the layer)")
axes[0].legend(frameon=False, fontsize=8)
plots.show(figure, "Each filter's share of what the trigger moves against its standardised score, for both models.")

# %%
rows = []
for name, model in models.items():
    for draw in range(run.profile.draws):
        row = run.defend(model, defence, samples_per_class, draw=draw, glance=True)
        rows.append({"trained": name, **row})
hiding = pd.DataFrame(rows)
saved = run.save_rows(hiding, "13_hiding")
hiding.groupby("trained", sort=False)[["acc_before", "asr_before", "pruned", "acc_after", "asr_after"]].mean().round(1)

# %% [markdown]
# And on CIFAR-10, both attackers beside the plain one, from the sweep:


# %%
def with_attacker(table):
    """Rows of BadNets at 10 %, all to one, with the attacker's name; the plain one first."""
    table = table[(table.poison_rate == 0.1) & (table.target == 0)]
    name = table.adaptive.fillna("plain").str.replace(r"\(weight=(.*)\)", r" \1", regex=True)
    return table.assign(attacker=name).sort_values("attacker", key=lambda c: c.replace("plain", ""), kind="stable")


attackers = with_attacker(whole)
plots.show(
    before_and_after(
        attackers,
        "attacker",
        "weight of the penalty",
        "BadNets 10 %: before (dashes: trainings) and after (dots: draws)",
    ),
    "ASR before and after, and ACC lost, for the plain attacker and the two adaptive ones at several weights.",
)
columns = ["acc_before", "asr_before", "acc_after", "asr_after", "pruned"]
attackers.groupby(["attacker", "who"], sort=False)[columns].mean().round(1)

# %% [markdown]
# **Hide evades the score.** After the repair its ASR is what it was before, at either threshold and with the rule, in
# two trainings, and with a tenth of the weight as well; the attacker pays with two points of ACC and no ASR. A
# hundredth of the weight hides nothing. The score reads norms, activations and correlations off a network, and whoever
# trains the network writes them. Spread never looked at the score: in two trainings it leaves several times the plain
# attacker's ASR, for less than a point of ACC. So all that this series says about the score holds for attackers who do
# not know it.
#
# > **Predict first.** Neither attacker knows anything of the other defences. Which of them still removes what the
# > score can't see: those that prune, or those that learn the weights anew?

# %%
names = {"Suspiciousness": "suspiciousness", "SpectralNorm": "CLP", "FinePruning": "fine-pruning",
         "FineTuning": "fine-tuning"}  # fmt: skip
rivals = with_attacker(sweep[(sweep.seed == 0) & ~alone & ((sweep.mu == defence.mu) | ~scored)])
rivals = rivals[rivals.attacker.isin(["plain", "Hide 1.0", "Spread 1.0"])].replace({"defence": names})
order = ["suspiciousness", *sorted(set(rivals.defence) - {"suspiciousness"}, key=str.lower)]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, column, title, limits in (
    (axes[0], "asr_after", "ASR left (%)", (0, 100)), (axes[1], "ACC lost", "ACC lost (points)", (0, 20))
):  # fmt: skip
    cells = rivals.pivot_table(index="defence", columns="attacker", values=column, sort=False).reindex(order)
    plots.heat(axis, cells, "", ".1f", limits)
    axis.collections[0].colorbar.remove()
    axis.set(title=title, xlabel="", ylabel="")
figure.suptitle("BadNets 10 %, a hundred clean images", x=0.01, ha="left")
plots.show(figure, "Heat maps of the ASR left and the ACC lost for ten defences against three attackers.")

# %% [markdown]
# The score is not alone with it. What looks for guilty *filters* (CLP, FMP, MNP, RNP, ANP, fine-pruning) finds them in
# the hiding network no better, even by means that this attacker never heard of. Of what works on all *weights* AWM
# still does, for seven to eight points of ACC, and NAD, which takes half of the accuracy along; fine-tuning removes
# nothing from any of the three. Against Spread AWM, ANP and the score leave the least. (The rivals: one draw each; ANP
# with 500 of its 2,000 iterations.)

# %% [markdown]
# ## 3. All-to-all
#
# So far every trigger led to one class. An all-to-all trigger shifts each class to the next, $y \mapsto y + 1$: the
# network has to know what it sees *and* that the trigger is there, so the backdoor can't be a mere detector wired to
# one output.

# %%
plain = attackers[(attackers.attacker == "plain") & (attackers.seed == 0)]
goals = pd.concat([plain.assign(goal="all to one"), whole[whole.target == -1].assign(goal="all to all")])
goals.groupby(["goal", "who"], sort=False)[columns].mean().round(1)

# %% [markdown]
# It is learned less well (an ASR of 78 % in ten epochs) and removed as well as the other: that a backdoor must know the
# class does not help it to hide.

# %% [markdown]
# ## 4. Other networks
#
# The same attack and recipe, at width 16, on five others: ResNet-34; PreAct-ResNet-18, whose batch norms come before
# the convolutions; VGG-16-BN, without shortcuts; DenseNet, where each layer feeds all later ones; MobileNetV2, with
# depthwise convolutions, each filter of which sees a single channel.
#
# > **Predict first.** On which of them will the score fail?

# %%
networks = published.results("networks_width16")
networks["ACC lost"] = networks.acc_before - networks.acc_after
networks["who"] = way(networks)
longer_or_shorter = (networks.defence == "Suspiciousness") & networks.fine_tune.isna()  # section 6's rows
of_networks = pd.concat([plain, networks[~longer_or_shorter]])
of_networks["network"] = of_networks.architecture.str.replace("_", "\n")
plots.show(
    before_and_after(
        of_networks[of_networks.who.isin(WAYS)], "network", "", "BadNets 10 %: before (dashes), after (dots: draws)"
    ),
    "ASR before and after, and ACC lost, for each architecture.",
)


def lost_and_left(table, rows, columns, lost, left):
    """Means, as "points of ACC lost / ASR left"."""
    means = table.pivot_table(index=rows, columns=columns, values=[lost, left])
    cells = means[lost].map("{:.1f}".format) + " / " + means[left].map("{:.1f}".format)
    return cells.where(means[lost].notna(), "")


print("points of ACC lost / ASR left")
lost_and_left(of_networks, "who", "architecture", "ACC lost", "asr_after")

# %% [markdown]
# From five of the six the backdoor goes, for half a point to three points of ACC at `mu` 2. **On MobileNetV2 it stays
# as it was**, at either threshold and with the rule. In three of its layers two filters that are all but dead
# score so high (a small norm, divided by next to nothing) that the layer's standard deviation covers those that carry
# the trigger. Taken a second time over the filters that are left (*twice*), or without the dead ones (*living*, section
# 6), the threshold leaves 4 to 5 %.

# %% [markdown]
# ## 5. Each term left out
#
# Pruning alone at four thresholds, on four attacks and the clean model, two trainings of each, one draw. A variant is
# a line: the nearer to the lower left, the better, whatever its own best threshold is.


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
figure, axis = plt.subplots(figsize=(8, 4.4))
for (name, part), color in zip(bad.groupby(level=0), sns.color_palette("colorblind", 7), strict=False):
    axis.plot(part.lost, part.asr_pruned, "o-", color=color, label=name, lw=3 if name == "all four" else 1.3)
axis.set(xlabel="ACC lost (points, mean over the poisoned models)", ylabel="ASR left (%)", ylim=(0, None))
axis.set_xscale("symlog", linthresh=1)
axis.set_xlim(0, None)
axis.set_title("Each variant of the score at mu 3, 2.5, 2, 1.5 (left to right)")
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "ASR left against ACC lost for the score and its variants, each a line over four thresholds.")
price = terms[terms.attack == "none"].groupby(["variant", "mu"]).lost.mean().rename("clean model: lost")
bad.rename(columns={"asr_pruned": "ASR left"}).join(price).unstack("mu").round(1)

# %% [markdown]
# **Saliency and activation earn their place plainly**: without either eighteen to twenty points of ACC go at `mu` 2,
# and more ASR is left. Correlation does from `mu` 2 down; above, the line without it lies no higher. Sigma, the term
# that needs no image, is worth less than a look at equal `mu` says (without it the score prunes less, of everything):
# at equal ACC lost it takes one to three points more of the ASR away. The square root makes no difference that these
# rows could show.

# %% [markdown]
# ## 6. Saturation
#
# The saliency of a filter is the norm of the gradient that its weights get from one clean image, and all of it comes
# through the gradient at the logits $f$. For cross-entropy that is $p - y$, the error itself, which vanishes where the
# network is sure and right. For the margin $f_y - \max_{j \ne y} f_j$ it has the length $\sqrt 2$, whatever the image.
# Softened by a temperature it vanishes later.
#
# How many of the images still have a say? With $g$ the lengths of the gradients, $(\sum g)^2 / (n \sum g^2)$ is 1 where
# all speak alike, and $1/n$ where one speaks for all.
#
# > **Predict first.** What will this share be for each of the three, on the images of the defender, after few epochs
# > and after many?


# %%
def lengths(logits, labels, kind):
    """|| dL/df || of each image."""
    if kind == "margin":
        return torch.full((len(labels),), 2**0.5)
    scale = TEMPERATURE if kind == "softened" else 1
    error = (logits / scale).softmax(1)
    error[torch.arange(len(labels)), labels] -= 1
    return error.norm(dim=1) / scale


pool = draw_clean(run.splits.reserved, 50, seed=seed)
rows = []
for length in trainings:
    longer = nbtools.start(profile, epochs=length, seed=seed, small=True, quiet=True)
    model = longer.model(attack, poison_rate, target)
    with torch.no_grad():
        logits = torch.cat([model.model(to_floats(x)) for x in pool.images.split(250)]).float().cpu()
    labels = pool.labels.cpu()
    assert torch.equal(logits.argmax(1), predict(model.model, pool).cpu())
    change = tac(model.model, others, model.trigger)
    for kind in SALIENCY_LOSSES:
        g = lengths(logits, labels, kind).numpy()
        form = Suspiciousness(saliency=kind)
        scores = form.scores(form.components(model.model, clean))
        agree = [spearmanr(scores[n].cpu(), change[n].cpu()).statistic for n in scores]
        row = {
            "epochs": length,
            "saliency": kind,
            "images with a say (%)": 100 * g.sum() ** 2 / (len(g) * (g**2).sum()),
        }
        rows.append(row | {"score's rank correlation with TAC": pd.Series(agree).mean()})
    right = float((logits.argmax(1) == labels).double().mean())
    sigma = defence.components(model.model, clean).of("sigma")
    dead = sum(int((values <= values.mean() / 4).sum()) for values in sigma.values())
    told = f"{length:3} epochs: {100 * right:.1f} % of {len(pool)} images right, ASR {model.before_at_a_glance.asr:.1f}"
    print(f"{told}, {dead} of {sum(map(len, sigma.values())):,} filters dead")
say = pd.DataFrame(rows)
saved = run.save_rows(say, "13_saturation")
say.pivot_table(index="saliency", columns="epochs", sort=False).round(2)

# %% [markdown]
# And the score with each of the three forms, after trainings of different lengths: CIFAR-10, and images made by code,
# which a network learns nearly without error. Dashed: without the filters that weight decay has all but killed (batch
# norm and spectral norm together below a quarter of their layer's mean) and without the first convolution,
# `Suspiciousness(alive=0.25, first=False)` [ours].

# %%
forms = networks[longer_or_shorter].copy()
forms["lost"] = forms.acc_before - forms.acc_pruned
forms["filters"] = (forms.alive > 0).map({False: "all", True: "living"})
at = forms[forms.mu == defence.mu]
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
print("points of ACC lost / ASR left")
lost_and_left(at, ["dataset", "epochs"], ["filters", "saliency"], "lost", "asr_pruned")

# %% [markdown]
# **It is not the saliency.** Its three forms go together everywhere, although the gradients of cross-entropy fade. What
# grows with the training is the number of *dead filters* (printed above for CIFAR-10; after a hundred epochs on the
# easy images it is a quarter of all): weight decay kills them. A filter that is all but dead can score highest, and
# covers the others; one that is quite dead scores zero, and makes the living ones stand out. In the first layer of that
# network two of sixteen live; both are pruned, and the accuracy with them: the solid line at a hundred epochs is a
# network at chance level, in which nothing is left of the backdoor either.
#
# Over the living, and without the first convolution, one threshold serves these networks from 5 to 100 epochs: on
# CIFAR-10 fifty epochs cost three points instead of ten or more, and on the easy images 4 to 8 % of the ASR are left,
# 21 to 24 % after twenty epochs. But the quarter and the spared layer were picked while looking at their ASR.
#
# So they were put to the test. A rule was written into `data/grids/held_out.yaml` *before* eleven other networks were
# trained, all with seed 2: a form takes the place of the plain threshold if, over the poisoned ones, it leaves less
# ASR on average, loses at most half a point of ACC more (on the clean one, too), and leaves at most five points of ASR
# more on *any*. The whole defence, three draws; *twice* is `rounds=2` of notebook 12. (`mu` 2.5, for notebook 12, was
# added to the table afterwards.)

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
plainly = conditions.loc["mu 2"]
passed = (
    (conditions["ASR left"] < plainly["ASR left"])
    & (conditions["ACC lost"] <= plainly["ACC lost"] + 0.5)
    & (conditions["ACC lost, clean"] <= plainly["ACC lost, clean"] + 0.5)
    & (conditions["most ASR above the plain one"] <= 5)
)
conditions["passed"] = passed.map({True: "yes", False: "no"}).where(passed.index != "mu 2", "")
print(conditions.round(1).to_string(), "\n\npoints of ACC lost / ASR left")
lost_and_left(held, network, "who", "ACC lost", "asr_after")

# %% [markdown]
# **The plain threshold stays.** On each of the nine poisoned CIFAR-10 networks the living ones leave no more ASR than
# all filters do, on MobileNetV2 ten and forty-five points less, and over all they lose less ACC. But after fifty
# epochs on the images made by code they leave 90 %, where the plain threshold breaks enough of the network to leave
# 51. Taking it twice fails plainly. And one network, a PreAct-ResNet-18 with a blended trigger, keeps 98 % whatever the
# form. **So no form of the score held throughout**; the one that looked as if it did had been chosen on the networks
# that it was judged on. (`defend -s alive 0.25 -s first False` is there for a MobileNetV2, or a network that was
# trained long.)

# %% [markdown]
# ## 7. A sceptic's questions about a repair
#
# A repair that was developed on a handful of networks may know them by heart. So these are other networks of width 16,
# with other seeds and another target class for each attack. Seeds 5 and 6 were trained when every setting but two was
# fixed: how the two places below are joined, and at which level, was settled with them in view. Seeds 7 and 8 were
# trained after that, and took no part in anything. *Shift unlearning* is our own repair. It prunes gently by the score.
# Then it asks towards which class one and the same change of the image, or of the maps below the last stage, moves even
# the images that resist most. A t-test compares the classes at each of the two places, and Fisher's method joins the
# two p-values. Where a class stands out so far that it would happen by chance in at most 3 of 100 cases (a rough
# figure), the last stage is taught to ignore such a change ([lab notes](../data/lab_notes.md#shift-unlearning) tells
# the whole). The score stands here twice: with the defaults of now, and with those of before (the margin's saliency,
# fine-tuning with folds). A hundred clean images, the first 2,000 test images; three draws, but two for the score on
# seeds 5 and 6:

# %%
unseen = published.results("unseen_networks_cifar10")
unseen["ACC lost"], unseen["ASR left"] = unseen.acc_before - unseen.acc, unseen.asr
named = unseen.attack + " " + (100 * unseen.poison_rate).map("{:g} %".format)
unseen["network"] = named.where(unseen.attack != "none", "clean") + ", seed " + unseen.seed.map(str)
unseen["suspected"] = unseen.suspect.map("{:.0f}".format).where(unseen.suspect.notna(), "none")
suspects = unseen[unseen.defence == "shift unlearning"].groupby(["network", "target"], sort=False).suspected
print("points of ACC lost / ASR left (of the clean networks, what the trigger does where nobody planted it)")
table = lost_and_left(unseen, ["network", "target"], "defence", "ACC lost", "ASR left")
table.join(suspects.agg(lambda classes: " and ".join(dict.fromkeys(classes))).rename("suspected"))

# %% [markdown]
# Where a shift is found, it is that of the target, and what is left is a few percent; on the clean networks nobody is
# suspected. The two backdoored networks of seed 7, which are wholly new, have a patch and a warp; for blends only
# networks of seeds 5 and 6 speak. **It fails on SIG**, where only images of the target class carry the trigger: with
# seed 0 the gentle pruning alone had removed it; here it does not, no class stands out, and 91 % stay. The score
# removes less than on the networks where its settings were found, and it costs more.
#
# Why SIG? The evaluator, who holds the trigger, can see it: its stripes are no short cut. Half of the stripes is as
# long, as a change of the image, as the way to the middle class (0.38 standard deviations; the way is 0.39 and 0.35 in
# the networks of seeds 0 and 6), and sends only 17 and 23 % of the images to the target. The patch of BadNets (seed 5)
# is as long as the way there, 0.36, and sends 80 %. So the target of SIG is no easier to reach than other classes are.
#
# > **Predict first.** Shift unlearning names a suspect. What happens if it is told a wrong class? And when the repaired
# > network is trained on, with clean images only, does the backdoor stay away?

# %%
sceptic = published.results("sceptic_cifar10")
told = sceptic[sceptic.check == "class"].assign(told=lambda t: t.told.map("class {:.0f}".format, na_action="ignore"))
told["told"] = told.told.fillna("pruned alone").replace({"class 0": "class 0, the target"})
told["ACC lost"] = told.acc_before - told.acc
print("points of ACC lost / ASR left")
lost_and_left(told, ["width", "model"], "told", "ACC lost", "asr")

# %% [markdown]
# Told class 3 or 6, it leaves 48 to 94 % of BadNets and Blended, and 27 and 32 of WaNet, where the pruning alone leaves
# 12; at full width 61 to 87 % of Blended and WaNet. So it is the shift of the right class that repairs, and not the
# tuning as such. (An all-to-all backdoor, as in section 3, has no target class: nobody is suspected, and the gentle
# pruning alone leaves 3 % of it.)
#
# For the other question, all defences repair four networks with a hundred images (one draw). Then each repaired network
# is fine-tuned for ten epochs on 500 other clean images:

# %%
back = sceptic[sceptic.check == "fine-tuned"].copy()
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
numbers = ["acc_before", "acc", "acc_tuned", "asr", "asr_tuned"]
print("shift unlearning at width 64 (draw 1)")
print(back[back.width == 64].set_index("model")[numbers].round(1).to_string(), "\n\nwidth 16, means over the four")
back[back.width == 16].groupby("defence", sort=False)[numbers].mean().sort_values("asr_tuned").round(1)

# %% [markdown]
# **A backdoor that a repair had silenced often comes back**, in part or nearly whole, although no trigger is shown:
# Blended after shift unlearning (3 to 56 %; at full width 0 to 84), the score (16 to 64), AWM and ANP; SIG after AWM;
# BadNets after MNP. After D3 and NAD it does so least; these had lost most accuracy. And where a repair had left a
# backdoor in place, clean training removes BadNets and WaNet in part, but never Blended or SIG.
#
# Notebook 06 knows a reason: the batch norms. In training mode they learn statistics of clean images alone, and that
# turns up what is left. The same ten epochs, with batch norms that keep their statistics (`Epochs(frozen_bn=True)`):

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

# %% [markdown]
# With frozen batch norms hardly anything comes back: at most 1.6 points in all rows but two. The two are of AWM, whose
# masks lie on the weights, so that training may move them back (that was not tried apart). So if you train a repaired
# network further, keep its batch norms in eval mode. (Of the repairs that leave little, shift unlearning and the score,
# this training costs up to four points of ACC, where 500 images are all there is; it is no gain.)

# %% [markdown]
# ## 8. Exercises
#
# **Exercise 1** (easy, 5 minutes). A layer has 64 filters. The trigger moves 4 of them, all alike, and no other. What
# is Spread's penalty for this layer, before its weight?

# %%
penalty = ...  # your answer

checks.same(penalty, 2.772589, "n = 64, and each of four filters has a share of a quarter")

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). A network gives the right class a probability of 0.999, and the rest to one other
# class. How long is the gradient at the logits, for cross-entropy?

# %%
length = ...  # your answer

checks.same(length, 0.001414214, "p - y has two entries that are not zero")

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). Which layer hides best? For `hidden`: the layer in which the least of what the
# trigger moves lies in filters above `defence.mu`, as a share of the layer. (Use `placed`; the answer is the smallest
# share.)

# %%
smallest = ...  # your answer, a share in [0, 1]

in_hidden = placed[placed.model == "hiding"]
of_layer = in_hidden.groupby("layer")["times its even share"].sum()
above = in_hidden[in_hidden.z > defence.mu].groupby("layer")["times its even share"].sum().reindex(of_layer.index)
checks.same(
    smallest, float((above.fillna(0) / of_layer).min()), "a layer without a filter above mu has a share of zero"
)

# %% [markdown]
# ## 9. What we saw, and what this does not show
#
# - The score finds a backdoor that was planted without thinking of it, rare or frequent. It does not find one that was
#   trained against it, and the attacker loses little.
# - Saliency and activation carry the score, correlation and sigma help a little, the square root hardly matters.
# - After a long training the score fails, or destroys the network, with any saliency: dead filters make the living ones
#   look guilty. Leaving the dead ones out helps on most networks, and failed the test on one of ten.
# - A repair can work on networks that it has never seen, and still be undone by ten epochs on 500 clean images. What
#   was silenced is not gone; the batch norms decide whether it is heard.
# - It does **not** show the other defences against attackers of their own, nor the score on CIFAR-100, SVHN or GTSRB,
#   whose files were not at hand; nor, but for a few rows of section 7, what full width would change.
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
checks.same(penalty, 2.772589, "log(64 / 4)")

length = math.hypot(0.001, 0.001)
checks.same(length, 0.001414214, "p - y = (-0.001, 0.001)")

shares = []
for _, part in in_hidden.groupby("layer"):
    moved_by_trigger = part["times its even share"]
    shares.append(float(moved_by_trigger[part.z > defence.mu].sum() / moved_by_trigger.sum()))
smallest = min(shares)
checks.same(smallest, float((above.fillna(0) / of_layer).min()), "layer by layer")

# %% [markdown]
# Previous: [12 · Mu](12_mu.ipynb) · The series' first page: [00 · Start here](00_start_here.ipynb)

# %% tags=["check", "remove-cell"]
assert poisoned.before.asr >= 90 and hidden.before.acc >= poisoned.before.acc - 10, "the plain model, or the hiding one"
left = hiding.groupby("trained").asr_after.mean()
assert left["hiding"] > left["plain"] + 10, "the penalty did not hide the trigger from the score"
