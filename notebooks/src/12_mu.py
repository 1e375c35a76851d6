# %% [markdown]
# # 12 · Mu
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/12_mu.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/12_mu.ipynb)
#
# At the end of this notebook you know what the threshold `mu` costs and what it buys, on every attack of the series.
# And you know whether clean images alone can choose it.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417) prunes where the score lies above mean + `mu` standard
# deviations of its layer. **The formula of the score is reconstructed from the paper's summary.**

# %% [markdown]
# > **You will learn**
# > - why one number orders all filters of a network, and how `mu` cuts that order
# > - how wide the road is between "the backdoor stays" and "the accuracy goes"
# > - whether a rule that sees clean images only finds this road
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb) · **minutes to read**: 31 · **to run**: printed at
# > the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model and a hundred clean images with their labels | chooses `mu`, prunes |
# | evaluator | test set and trigger | reports the scores below; plays the oracle of section 4 |
#
# The evaluator's scores are the accuracy (ACC), the attack success rate (ASR: how many triggered images get the target
# class), the defence effectiveness rating (DER: 50 for doing nothing, 100 for a perfect repair) and the
# trigger-activated change (TAC: how far the trigger moves a filter's map).

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
mus = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0]  # thresholds, standard deviations above the layer's mean
draws = 0  # draws of the clean images; 0 is what the profile says
allowed = 0.03  # accuracy that the rule of section 4 may lose on the clean images
most = 60  # filters that section 3 prunes one after the other
slider = False  # a slider for section 3 (JupyterLab only; nothing of it can be kept in a file)

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

import nbtools
from nbtools.data.images import draw_clean
from nbtools.defender import ChosenMu, Suspiciousness
from nbtools.defender.pruning import Mask, pruned_copy, threshold
from nbtools.evaluator.agreement import tac
from nbtools.evaluator.evaluation import accuracy
from nbtools.lab import tables as published
from nbtools.series import checks, plots
from nbtools.series.exercises import mu as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
draws = draws or run.profile.draws
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
models = (poisoned, clean_twin)
defence = Suspiciousness(fine_tune=None)
clean = run.draw(samples_per_class)
pd.DataFrame({model.name: model.before.row() for model in models}).T.round(1)

# %% [markdown]
# | in the paper | here |
# |---|---|
# | prune where $S_i > \mathrm{mean}_l(S) + \mu \, \mathrm{std}_l(S)$ | `nbtools.defender.pruning.threshold` |
# | (not there) a rule for $\mu$ | `nbtools.defender.ChosenMu` |
# | many values of it on many models | `python -m nbtools sweep data/grids/mu.yaml` |

# %% [markdown]
# ## 1. One number for every filter
#
# Write the rule the other way round: a filter falls as soon as `mu` is below its *distance*
#
# $$d_i = \frac{S_i - \mathrm{mean}_l(S)}{\mathrm{std}_l(S)}$$
#
# where $S_i$ is the score of filter $i$, with mean and standard deviation of its own layer $l$. So $d$ puts all
# filters of the network into *one* order, and `mu` is where that order is cut. (A narrow layer has a low ceiling. Of
# $n$ numbers none lies further than $(n - 1) / \sqrt n$ standard deviations above their mean: 3.75 for sixteen
# filters, 7.9 for 64.)


# %%
def distances(scores):
    """d of every filter, one vector over the layers, and the name of each filter's layer."""
    d = torch.cat([(values - values.mean()) / values.std() for values in scores.values()])
    return d.cpu(), [layer for layer, values in scores.items() for _ in values]


parts = {model.name: defence.components(model.model, clean) for model in models}
scores = {name: defence.scores(of_model) for name, of_model in parts.items()}
d, layers = distances(scores[poisoned.name])
for mu in mus:
    assert int((d > mu).sum()) == threshold(scores[poisoned.name], mu).count
counts = pd.DataFrame({model.name: [threshold(scores[model.name], mu).count for mu in mus] for model in models}, mus)
counts.rename_axis("mu").T

# %% [markdown]
# > **Predict first.** If the scores of every layer were normally distributed, every layer would lose about the same
# > share of its filters. Will the poisoned model's layers lose equal shares?

# %%
per_layer = pd.DataFrame({mu: threshold(scores[poisoned.name], mu).by_layer() for mu in mus if mu <= 4})
sizes = pd.Series(layers).value_counts()
shares = 100 * per_layer.div(sizes.reindex(per_layer.index), axis=0)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(8, 0.24 * len(shares) + 1.2))
plots.heat(axis, shares, "share of the layer's filters (%)", ".1f", (0, 20))
axis.set(xlabel="mu", ylabel="")
axis.set_title(f"{poisoned.name}: where the filters fall")
plots.show(figure, "Heat map of the share of each layer's filters that each mu prunes.")

# %% tags=["hide-input"]
at_default = threshold(scores[poisoned.name], defence.mu)
share = (100 * pd.Series(at_default.by_layer()) / sizes).sort_values()
equal = share.max() - share.min() < 2
by_stage = pd.Series(at_default.by_layer()).groupby(lambda name: name.split(".")[0], sort=False).sum()
answer(
    f"You were right if you said {'yes' if equal else 'no'}. At `mu` {defence.mu:g} the shares go from "
    f"{share.iloc[0]:.1f} % ({share.index[0]}) to {share.iloc[-1]:.1f} % ({share.index[-1]}). In numbers of filters: "
    + ", ".join(f"{stage} {count}" for stage, count in by_stage.items())
    + ". "
    + (
        ""
        if equal
        else "Most scores of a layer lie close together, and a few lie far above. How many these are depends on the "
        "layer. "
    )
    + f"Of the clean twin, which has no backdoor, {threshold(scores[clean_twin.name], defence.mu).count} filters fall, "
    f"of the poisoned model {at_default.count}: a threshold in standard deviations always finds something."
)

# %% [markdown]
# ## 2. What it costs, what it buys
#
# > **Predict first.** ASR falls as `mu` falls, and so does ACC. Which falls first on the way down? And is there a
# > stretch where only one of them has fallen?

# %%
rows = []
for model in models:
    for draw in range(draws):
        for mu in mus:
            row = run.defend(model, replace(defence, mu=mu), samples_per_class, draw=draw, glance=True)
            rows.append({"mu": mu, **row})
rows = pd.DataFrame(rows)
run.save_rows(rows, "12_mu")
rows.pivot_table(index="model", columns="mu", values=["acc_after", "asr_after"], sort=False).round(1)


# %% tags=["hide-input"]
def bands(table, title, columns=0):
    """ACC and ASR after pruning against mu, a panel a model: means, and the range of all rows."""
    names = list(dict.fromkeys(table.model))
    columns = columns or len(names)
    figure, axes = plt.subplots(
        -(-len(names) // columns), columns, figsize=(3.7 * columns, 2.9 * -(-len(names) // columns)),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axis, name in zip(axes.flat, names, strict=False):
        part = table[table.model == name]
        for column, color, text in (("acc", plots.CLEAN, "ACC"), ("asr", plots.POISONED, "ASR")):
            sns.lineplot(part, x="mu", y=f"{column}_pruned", color=color, marker="o", errorbar=("pi", 100), ax=axis,
                         label=text, legend=False)  # fmt: skip
            axis.axhline(part[f"{column}_before"].mean(), color=color, ls=":", lw=1.2)
        axis.set(title=name, ylabel="percent", ylim=(-3, 103))
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


plots.show(
    bands(rows, f"ACC and ASR after pruning (bands: draws, {draws}; dotted: before)"),
    "ACC and ASR against mu for the poisoned model and for its clean twin.",
)

# %% tags=["hide-input"]
by_mu = rows[rows.model == poisoned.name].groupby("mu")[["acc_before", "acc_after", "asr_after"]].mean()
by_mu["lost"] = by_mu.acc_before - by_mu.acc_after
freed, paid = by_mu.index[by_mu.asr_after <= 20], by_mu.index[by_mu.lost > 5]
asr_falls, acc_falls = max(freed, default=-1.0), max(paid, default=-1.0)
road = by_mu[(by_mu.asr_after <= 20) & (by_mu.lost <= 5)]
earlier = "ASR" if asr_falls > acc_falls else "ACC" if acc_falls > asr_falls else "both at once"
stretch = "no" if asr_falls == acc_falls else "yes"
on_twin = rows[rows.attack == "none"].groupby("mu")[["acc_before", "acc_after"]].mean()
price = on_twin.acc_before - on_twin.acc_after
answer(
    f"You were right if you said {earlier}, and {stretch}. "
    + (
        f"On the way down, ASR is first at 20 % or less at `mu` {asr_falls:g}. "
        if len(freed)
        else "ASR stays above 20. "
    )
    + (f"ACC has first lost five points at `mu` {acc_falls:g}. " if len(paid) else "ACC never loses five points. ")
    + (
        f"The road between them: `mu` {', '.join(f'{mu:g}' for mu in road.index)}. "
        if len(road)
        else "None of these `mu` removes the backdoor for five points or less: there is no road. "
    )
    + "The clean twin has no backdoor to lose, only ACC: "
    + ", ".join(f"{price[mu]:.1f} points at `mu` {mu:g}" for mu in sorted(price.index)[:5])
    + "."
)

# %% [markdown]
# ## 3. One filter after the other
#
# Now the order of $d$ is walked down filter by filter, and after the tenth in steps of several. Marked on top is
# where each `mu` would stop. The table shows the first ten filters, and what only the evaluator knows: the rank by
# TAC that each has within its layer. Rank 1 is the filter that the trigger moves most. A score that finds the
# backdoor prunes such filters first.
#
# > **Predict first.** How many filters must fall until the ASR is below 20? And how many of the first ten are among the
# > ten of their layer that the trigger moves most?

# %%
order = d.argsort(descending=True)
names = list(dict.fromkeys(layers))
starts = {name: layers.index(name) for name in names}


def first(k):
    """The mask of the k filters with the highest d."""
    gone = torch.zeros(len(d), dtype=torch.bool)
    gone[order[:k]] = True
    return Mask({n: gone[starts[n] : starts[n] + len(s)].to(s.device) for n, s in scores[poisoned.name].items()})


above_three = threshold(scores[poisoned.name], 3).pruned
assert all(torch.equal(mask, above_three[n]) for n, mask in first(int((d > 3).sum())).pruned.items())
walk = []
for k in sorted({*range(11), *range(12, most + 1, 4)}):
    after = poisoned.glance(pruned_copy(poisoned.model, first(k)))
    walk.append({"pruned": k, "acc": after.acc, "asr": after.asr})
walk = pd.DataFrame(walk)

# %%
moved = tac(poisoned.model, draw_clean(run.splits.test, 20, seed=seed), poisoned.trigger)
shown = [(layers[i], int(i) - starts[layers[i]]) for i in order[:10].tolist()]
where = {name: values.argsort(descending=True).argsort() for name, values in moved.items()}
ranks = [int(where[name][number]) + 1 for name, number in shown]
pd.DataFrame(
    {
        "layer": [name for name, _ in shown],
        "filter": [number for _, number in shown],
        "d": d[order[:10]].round(decimals=1),
        "rank by TAC": [f"{rank} of {len(where[name])}" for rank, (name, _) in zip(ranks, shown, strict=True)],
    },
    index=range(1, 11),
)


# %% tags=["hide-input"]
def curve(k=None):
    """ACC and ASR against the number of pruned filters, with a mark at k, the last filter's name on top."""
    figure, axis = plt.subplots(figsize=(8.5, 3.6))
    axis.plot(walk.pruned, walk.acc, "o-", ms=4, color=plots.CLEAN, label="ACC")
    axis.plot(walk.pruned, walk.asr, "s-", ms=4, color=plots.POISONED, label="ASR")
    last = np.inf
    for mu in sorted(mus):  # the marks come from the right
        count = int((d > mu).sum())
        if 0 < count <= most:
            axis.axvline(count, color=plots.GREY, lw=0.8)
            if last - count >= 4:  # else it would cover its neighbour
                axis.annotate(f"mu {mu:g}", (count, 104), fontsize=8, ha="center", annotation_clip=False)
                last = count
    title = f"{poisoned.name}: filter by filter"
    if k:
        lowest = int(order[k - 1])
        layer = layers[lowest]
        title = f"{poisoned.name}: {k} pruned, the last of them filter {lowest - starts[layer]} of {layer}"
        axis.axvline(k, color=plots.PRUNED, lw=2)
    axis.set(xlabel="filters pruned, the highest d first", ylabel="percent", ylim=(-3, 103))
    axis.set_title(title, pad=18)
    axis.legend(frameon=False, loc="center right")
    return figure


if slider:
    import ipywidgets

    alt = "ACC and ASR against the number of pruned filters; the slider's line marks one number."
    ipywidgets.interact(lambda k: plots.show(curve(k), alt), k=ipywidgets.IntSlider(0, 0, most))
else:
    plots.show(curve(), "ACC and ASR against the number of filters pruned, the most suspicious first.")

# %% tags=["hide-input"]
below, top = walk[walk.asr < 20], sum(rank <= 10 for rank in ranks)
steps = walk.asr.diff()
steepest, key = int(steps.idxmin()), int(steps[walk.pruned <= 10].idxmin())  # the first eleven rows are 0 to 10
of_ten = walk[walk.pruned <= 10]
lost_by_ten = of_ten.acc.iloc[0] - of_ten.acc.iloc[-1]
answer(
    f"You were right if you said {f'about {int(below.pruned.iloc[0])}' if len(below) else f'more than {most}'}, and "
    f"{top}. "
    + (f"After {int(below.pruned.iloc[0])} filters ASR is {below.asr.iloc[0]:.0f}, ACC {below.acc.iloc[0]:.0f}. "
       if len(below) else "")
    + f"The steepest step is from {int(walk.pruned[steepest - 1])} to {int(walk.pruned[steepest])} filters, where ASR "
    f"goes from {walk.asr[steepest - 1]:.0f} to {walk.asr[steepest]:.0f}. "
    + (
        f"Of the first ten, number {key} lowers ASR most, by {-steps[key]:.0f} points; its rank by TAC is "
        f"{ranks[key - 1]}. "
        if steps[key] < -1
        else "None of the first ten lowers ASR by more than a point. "
    )
    + (
        f"Most of the first ten are not those that the trigger moves most. Pruning these ten changes ACC by "
        f"{0 - lost_by_ten:+.1f} points: "
        + ("next to nothing, since the clean task hardly uses them." if lost_by_ten < 2 else "they did some work.")
        if top <= 5
        else f"Most of the first ten are filters that the trigger moves much. Pruning these ten changes ACC by "
        f"{0 - lost_by_ten:+.1f} points."
    )
)  # fmt: skip

# %% [markdown]
# ## 4. Can clean images choose?
#
# The defender sees the blue line alone, and of it only what a hundred images show, in steps of one point. The plainest
# rule is this: walk `mu` down, and stop before the accuracy on the clean images falls by more than `allowed`.
#
# > **Predict first.** Where will this rule stop: at a higher `mu` than the default, or at a lower one? And will it
# > leave more of the ASR than the default does?

# %%
rule = ChosenMu(defence, allowed=allowed)
kept, chosen = accuracy(poisoned.model, clean), np.inf
least = kept - max(allowed, 1 / len(clean))
for mu in sorted(rule.mus, reverse=True):
    share = accuracy(pruned_copy(poisoned.model, threshold(scores[poisoned.name], mu)), clean)
    print(f"mu {mu:4.2f}: {100 * share:5.1f} % of the {len(clean)} images, {100 * kept:.1f} before")
    if share < least - 1e-9:
        break
    chosen = mu
by_package = [row["mu"] for row in rule(poisoned.model, clean).history if row["chosen"]]
assert by_package == ([chosen] if chosen < np.inf else [])
print("chosen:", chosen)

# %% [markdown]
# Beside the rule stand two fixed values and the *oracle*: the evaluator, who has the trigger, takes for each draw the
# `mu` with the best DER. No defender can do that.

# %%
both = []
for model in models:
    for draw in range(draws):
        row = run.defend(model, rule, samples_per_class, draw=draw, glance=True)
        both.append({"who": "the rule", **row})
fixed = rows[rows.mu.isin([defence.mu, 2.5])].assign(who=lambda table: table.mu.map("mu {:g}".format))
with_der = rows[rows.attack != "none"]
oracle = with_der.loc[with_der.groupby(["model", "draw"]).der.idxmax()].assign(who="oracle (best DER)")
compared = pd.concat([pd.DataFrame(both), fixed, oracle])
compared["ACC lost"] = compared.acc_before - compared.acc_after
table = compared.groupby(["model", "who"], sort=False)[["ACC lost", "asr_after", "der", "pruned"]].mean()
table.rename(columns={"asr_after": "ASR left", "der": "DER"}).round(1)

# %% tags=["hide-input"]
stopped = "at a higher one" if chosen > defence.mu else "at a lower one" if chosen < defence.mu else "at the default"
of = table.loc[poisoned.name]
rule_row, best_row = of.loc["the rule"], of.loc["oracle (best DER)"]
told = [f"the rule leaves an ASR of {rule_row.asr_after:.0f} for {rule_row['ACC lost']:.1f} points of ACC"]
said = ""
if f"mu {defence.mu:g}" in of.index:
    default_row = of.loc[f"mu {defence.mu:g}"]
    said = ", and yes" if rule_row.asr_after > default_row.asr_after + 1 else ", and no"
    told.append(f"the default leaves {default_row.asr_after:.0f} for {default_row['ACC lost']:.1f}")
told.append(f"the oracle leaves {best_row.asr_after:.0f} for {best_row['ACC lost']:.1f}")
place = "Even its highest `mu` costs too much" if chosen == np.inf else f"It stops at `mu` {chosen:g}"
answer(
    f"You were right if you said {stopped}{said}. {place}. Over the draws, {', '.join(told)}. On the clean "
    f"twin the rule costs {table.loc[(clean_twin.name, 'the rule'), 'ACC lost']:.1f} points. The rule knows when the "
    "accuracy goes. It can't know when the backdoor has gone, since no clean image shows that. So how close it comes "
    "to the oracle depends on the model."
)

# %% [markdown]
# ## 5. Four attacks and a clean network, two trainings of each
#
# From here on everything comes from the committed table of a sweep (`data/grids/mu.yaml`), not from this run. It is
# CIFAR-10, width 16, seeds 0 and 1 of data, initial weights and training (BadNets and Blended at 1 %: seed 0). Each
# model has three draws, and the first 2,000 test images. The score has the settings here that were its defaults
# before: the saliency of the margin instead of cross-entropy's, and, where it is tuned, a fine-tuning of the whole
# network with folds instead of the last stage. (Notebook [06](06_suspiciousness.ipynb) explains both.)
#
# > **Predict first.** Which of these attacks leave a road, so that every draw is left with an ASR of 20 at most, for
# > five points of ACC or less? A patch (BadNets), a picture mixed into the whole image (Blended), waves (SIG), a warp
# > (WaNet)?

# %%
sweep = published.results("mu_cifar10_width16_seeds")
sweep["ACC lost"] = sweep.acc_before - sweep.acc_pruned
learned = sweep[(sweep.asr_before >= 50) | (sweep.attack == "none")]
left_out = sorted(set(zip(sweep.model, sweep.seed, strict=True)) - set(zip(learned.model, learned.seed, strict=True)))
print("backdoor not learned, left out:", left_out or "none")
with_mu = learned[(learned.rounds == 1) & (learned.alive == 0)]
safe = with_mu.groupby(["model", "mu"]).agg(worst=("asr_pruned", "max"), lost=("ACC lost", "mean"))
roads = safe[(safe.worst <= 20) & (safe.lost <= 5)].drop(index="clean", errors="ignore")

# %% tags=["hide-input"]
plots.show(
    bands(with_mu, "CIFAR-10: ACC and ASR after pruning alone (bands: seeds and draws; dotted: before)", 3),
    "ACC and ASR against mu for each attack and the clean model: means and ranges over seeds and draws.",
)

# %% tags=["hide-input"]
wide_ones = {name: part.index.get_level_values("mu") for name, part in roads.groupby("model")}
without = [name for name in dict.fromkeys(with_mu.model) if name not in wide_ones and name != "clean"]
listed = [f"{name} (`mu` {min(values):g} to {max(values):g})" for name, values in wide_ones.items()]
lowest = [f"{name} {safe.loc[name].query('lost <= 5').worst.min():.0f}" for name in without]
answer(
    f"You were right if you said BadNets and SIG: {', '.join(listed)}. The others have none. For five points at most, "
    f"their worst draw keeps at least: {', '.join(lowest)}. Read the panels from right to left: it is the ASR of these "
    "attacks that falls late. You may have expected a road for the patch alone. But SIG covers the whole image as "
    "well, and leaves one. What counts is how far the trigger's filters stand out in their layers. How much of the "
    "image the trigger covers does not decide it."
)
assert {name.split()[0] for name in wide_ones} == {"badnets", "sig"}

# %% [markdown]
# Now the question of this notebook. The next table compares fixed values, two other ways to take the threshold [ours],
# and the rule with three allowances. Besides, there are two oracles that look at the trigger. One takes the best `mu`
# of each row. The other takes the best fixed `mu` over all attacks *but the one that it is judged on*, so that no model
# had a say in its own threshold.
#
# - *Twice*: the threshold is taken a second time over the filters that are left (`rounds=2`). What stands out far no
#   longer covers the rest.
# - *Living*: the threshold is taken without the filters that weight decay has all but killed, and without the first
#   convolution (`alive=0.25, first=False`). [Notebook 13](13_open_questions.ipynb) says why.
#
# > **Predict first.** In the figure, low and left is good. Will the rule lie below the line of the fixed values, on it
# > or above it? And *twice*?

# %%
poisoned_rows = with_mu[with_mu.attack != "none"].copy()


def rating(table):
    """DER in percent of pruning alone."""
    fallen = (table.asr_before - table.asr_pruned).clip(lower=0)
    return 50 * (fallen / 100 - table["ACC lost"].clip(lower=0) / 100 + 1)


poisoned_rows["der_pruned"] = rating(poisoned_rows)
others = {}
for one in poisoned_rows.attack.unique():
    rest = poisoned_rows[poisoned_rows.attack != one].groupby(["attack", "mu"]).der_pruned.mean()
    others[one] = float(rest.groupby("mu").mean().idxmax())
print("the best mu for the other attacks:", others)

ways = {f"mu {mu:g}": with_mu[with_mu.mu == mu] for mu in (1.5, 1.75, 2, 2.25, 2.5, 3)}
twice = learned[learned.rounds == 2]
ways |= {f"twice, mu {mu:g}": twice[twice.mu == mu] for mu in sorted(twice.mu.unique())}
living = learned[learned.alive > 0]
ways |= {f"living, mu {mu:g}": living[living.mu == mu] for mu in sorted(living.mu.unique())}
rules = learned[learned.defence == "ChosenMu"]
ways |= {f"rule, {100 * a:g} % allowed": rules[rules.allowed == a] for a in sorted(rules.allowed.unique())}
ways["best of the other attacks"] = with_mu[with_mu.mu == with_mu.attack.map(others)]
ways["oracle"] = poisoned_rows.loc[poisoned_rows.groupby(["model", "seed", "draw"]).der_pruned.idxmax()]


# %%
def judged(part):
    """Means over the poisoned models, each model once, and what the clean models lose."""
    bad = part[part.attack != "none"].groupby(["model", "seed"])[["ACC lost", "asr_pruned", "asr_before"]].mean()
    return {
        "ACC lost": bad["ACC lost"].mean(),
        "ASR left": bad.asr_pruned.mean(),
        "worst": part[part.attack != "none"].asr_pruned.max(),
        "DER": rating(bad).mean(),
        "clean: ACC lost": part[part.attack == "none"]["ACC lost"].mean(),
    }


verdict = pd.DataFrame({way: judged(part) for way, part in ways.items()}).T
verdict.round(1)

# %% tags=["hide-input"]
LINES = {"mu": ("o-", plots.BLUE, (4, 6)), "twice,": ("^-", plots.PURPLE, (-16, 5)),
         "living,": ("v-", plots.RED, (-4, -14)), "rule,": ("s--", plots.GREEN, (7, 2))}  # fmt: skip
figure, axis = plt.subplots(figsize=(8.5, 4.6))
for start, (mark, color, offset) in LINES.items():
    line = verdict[verdict.index.str.startswith(f"{start} ")]
    axis.plot(line["ACC lost"], line["ASR left"], mark, color=color, label=start.strip(","))
    for name, one in line.iterrows():
        short = name.removeprefix(f"{start} ").removeprefix("mu ").removesuffix(" allowed")
        place = (one["ACC lost"], one["ASR left"])
        axis.annotate(short, place, offset, textcoords="offset points", fontsize=8, color=color)
rest = verdict.loc[["best of the other attacks", "oracle"]]
axis.scatter(rest["ACC lost"], rest["ASR left"], marker="*", s=130, color="black", label="with the trigger")
for name, one in rest.iterrows():
    axis.annotate(name, (one["ACC lost"], one["ASR left"]), (7, 3), textcoords="offset points", fontsize=8)
axis.set_xscale("log")
axis.set_xticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
axis.minorticks_off()
axis.set(xlabel="ACC lost by pruning alone (points)", ylabel="ASR left (%)", ylim=(0, None))
axis.margins(x=0.08)
axis.set_title("The rule chooses no better than a fixed number does")
axis.legend(frameon=False, loc="lower left")
plots.show(
    figure,
    "ASR left against ACC lost: fixed mu as lines, in one round and in two, the rule as squares, oracles as stars.",
)

# %% tags=["hide-input"]
line = verdict[verdict.index.str.startswith("mu ")].sort_values("ACC lost")
over = verdict["ASR left"] - np.interp(verdict["ACC lost"], line["ACC lost"], line["ASR left"])
of_rule, of_twice, of_living = (over[over.index.str.startswith(name)] for name in ("rule", "twice", "living"))
deeper = of_twice.idxmin()
answer(
    "You were right if you said: the rule on the line or above it, *twice* below it at its cheap end. At the same "
    "loss of ACC as on the line of fixed values, the ASR differs so (a minus is better): "
    + ", ".join(f"{name} {value:+.1f}" for name, value in pd.concat([of_rule, of_twice, of_living]).items())
    + ". So clean images choose no better than a number does. A network that has lost its accuracy is easy to see; "
    "where the backdoor ends is not. And the rule can stop early by chance: its worst row keeps "
    f"{verdict.worst[of_rule.index].max():.0f} %. The best `mu` of the other attacks has DER "
    f"{verdict.DER['best of the other attacks']:.1f} on the attack left out, where fixed values from 1.5 to 2.25 have "
    f"{line.loc[['mu 1.5', 'mu 1.75', 'mu 2', 'mu 2.25'], 'DER'].min():.1f} or more."
)
assert of_rule.min() > -1 and over[["twice, mu 2.75", "twice, mu 3"]].max() < -3

# %% [markdown]
# *Twice* and *living* were put to a test in notebook 13, on networks that took no part in any choice. Neither passed
# it. The rule is offered (`defend --defence chosen_mu`), and it is not the default.
#
# Here are the same rows with the fine-tuning that follows, where it was measured:

# %%
tuned = learned[(learned.fine_tune == "FineTune") | (learned["like.fine_tune"] == "FineTune")].copy()
tuned["who"] = tuned.mu.map("mu {:g}".format).where(tuned.defence == "Suspiciousness", "rule, 3 % allowed")
tuned["who"] = tuned.who.where(tuned.rounds != 2, "twice, " + tuned.who)
tuned["who"] = tuned.who.where(~(tuned.alive > 0), "living, " + tuned.who)
tuned["ACC lost"] = tuned.acc_before - tuned.acc_after
per_model = tuned.groupby(["who", "model"])[["ACC lost", "asr_after"]].mean().unstack("who")
per_model.rename(columns={"asr_after": "ASR left"}).round(1)

# %% [markdown]
# These rows are why the default of `mu` is 2. The trainings with seed 0 had served development. So two more trainings
# were asked: those with seed 1, which nobody had looked at (exercise 2), and a third of each attack, seed 2, which was
# made after the choice (`held_out_width16.csv`).
#
# > **Predict first.** From 2.5 to 2, more filters fall. On the third training, how much of the remaining ASR goes, and
# > what does the clean network pay for it?

# %%
summary = tuned[tuned.attack != "none"].groupby("who")[["ACC lost", "asr_after", "der"]].mean()
summary["worst ASR"] = tuned[tuned.attack != "none"].groupby("who").asr_after.max()
summary["clean: ACC lost"] = tuned[tuned.attack == "none"].groupby("who")["ACC lost"].mean()
summary.rename(columns={"asr_after": "ASR left", "der": "DER"}).round(1)

# %%
third = published.results("held_out_width16").query("rounds == 1 and alive == 0 and epochs == 10")
third = third[(third.architecture == "resnet18") & (third.dataset == "cifar10")].copy()
third["ACC lost"] = third.acc_before - third.acc_after
later = third[third.attack != "none"].groupby("mu")[["ACC lost", "asr_after", "der"]].mean()
later["clean: ACC lost"] = third[third.attack == "none"].groupby("mu")["ACC lost"].mean()
later.rename(columns={"asr_after": "ASR left", "der": "DER"}).round(1)

# %% tags=["hide-input"]
two, more = later.loc[2], later.loc[2.5]
gone = 1 - two.asr_after / more.asr_after
answer(
    f"You were right if you said {'about half' if 0.4 <= gone <= 0.6 else f'{100 * gone:.0f} %'}, and about "
    f"{two['clean: ACC lost'] - more['clean: ACC lost']:.0f} points. Over its four attacks, 2.5 leaves "
    f"{more.asr_after:.0f} % of ASR and 2 leaves {two.asr_after:.0f} %, and DER goes from {more.der:.0f} to "
    f"{two.der:.0f}. The clean network has nothing to hide. At 2 it loses {two['clean: ACC lost']:.1f} points, where "
    f"the others lose {two['ACC lost']:.1f} (at 2.5: {more['clean: ACC lost']:.1f} and {more['ACC lost']:.1f}). And 2 "
    "is a compromise: judged by pruning alone, and whichever attack is left out, the other attacks ask for "
    f"{' or '.join(f'{mu:g}' for mu in sorted(set(others.values())))}. The rule costs a "
    f"clean network {summary.loc['rule, 3 % allowed', 'clean: ACC lost']:.1f} points (`mu` 2: "
    f"{summary.loc['mu 2', 'clean: ACC lost']:.1f}), but its worst row is the highest of the first table: "
    f"{summary.loc['rule, 3 % allowed', 'worst ASR']:.0f} %."
)
assert summary["worst ASR"].idxmax() == "rule, 3 % allowed"

# %% [markdown]
# **At full width.** The next figure, the last one, is of pruning alone on networks of width 64. These are committed
# rows again: a hundred images, three draws, the first 2,000 test images, and two forms of the saliency. A name such
# as `badnets_10` is BadNets at a poison rate of 10 %.
#
# > **Predict first.** What matters more for the ASR that is left of Blended and WaNet: the step from `mu` 2.5 to 2, or
# > the step from the margin's saliency to that of cross-entropy?

# %%
full = published.results("full_width_cifar10").query("kind == 'prune' and alive == 0 and n == 100")
left = full.pivot_table(index=["saliency", "model"], columns="mu", values="asr").drop(index="clean", level="model")
left.round(0)

# %% tags=["hide-input"]
figure, axes = plt.subplots(2, 2, figsize=(10.5, 6), sharex=True, sharey="row")
for column, (form, name) in enumerate({"margin": "the margin's saliency", "cross_entropy": "cross-entropy's"}.items()):
    part = full[full.saliency == form]
    for row, (value, label) in enumerate((("asr", "ASR (%)"), ("acc", "ACC (%)"))):
        axis = axes[row, column]
        shown = part[part.model != "clean"] if value == "asr" else part
        sns.lineplot(shown, x="mu", y=value, hue="model", style="model", hue_order=sorted(set(part.model)),
                     style_order=sorted(set(part.model)), markers=True, dashes=False, errorbar=("pi", 100),
                     err_kws={"alpha": 0.12}, ax=axis, legend=row == 1 and column == 0)  # fmt: skip
        axis.set(ylabel=label, xlabel="mu", title=name if not row else "")
axes[1, 0].legend(frameon=False, fontsize=8)
axes[0, 0].set_ylim(-3, 103)
axes[1, 0].set_ylim(60, 95)
figure.suptitle("Width 64, pruned alone (lines: means; bands: three draws)", x=0.01, ha="left")
plots.show(figure, "ASR and ACC against mu at full width, a line for each network, for two forms of the saliency.")

# %% tags=["hide-input"]
hard = ("blended_10", "wanet_10")
forms = ("margin", "cross_entropy")
by_mu = {name: [left.loc[(form, name), 2.5] - left.loc[(form, name), 2] for form in forms] for name in hard}
by_form = {name: [left.loc[("margin", name), mu] - left.loc[("cross_entropy", name), mu] for mu in (2.5, 2)]
           for name in hard}  # fmt: skip
form_wins = all(min(by_form[name]) > max(by_mu[name]) for name in hard)
accuracy_of = full[full.mu == 2].groupby(["saliency", "model"]).acc.mean()
answer(
    f"You were right if you said {'the form' if form_wins else 'it depends on the attack'}. In points of ASR: "
    + ". ".join(
        f"{name}: the step to 2 takes away {by_mu[name][0]:.0f} with the margin and {by_mu[name][1]:.0f} with "
        f"cross-entropy, the step to cross-entropy {by_form[name][0]:.0f} at 2.5 and {by_form[name][1]:.0f} at 2"
        for name in hard
    )
    + ". The patch of BadNets 10 % goes with either form: at 2 both leave at most "
    f"{left.loc[(slice(None), 'badnets_10'), 2].max():.0f} %. Pruned at 2, the clean network has an ACC of "
    f"{accuracy_of['margin', 'clean']:.1f} with the margin and "
    f"{accuracy_of['cross_entropy', 'clean']:.1f} with cross-entropy."
)

# %% [markdown]
# So the form was settled at full width, by a rule that was written first, and with it what follows the pruning. The
# outcome is the default: cross-entropy, a tuning of the last stage alone, and again 2
# ([lab notes](../data/lab_notes.md#full-width)).

# %% [markdown]
# ## 6. Exercises
#
# **Exercise 1** (easy, 5 minutes). How many filters would `mu = 2` prune if every layer's score were normally
# distributed? Use the number of filters of this network, `len(d)`, and the tail of the normal distribution.

# %%
expected = ...  # your answer, a number of filters

exercises.normal_count(expected, len(d))

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Does the verdict hold on the trainings that nobody had looked at? Take the
# poisoned models of seed 1 from `tuned`: the mean DER (column `der`) at `mu` 2 minus that at `mu` 2.5.

# %%
gain = ...  # your answer, points of DER

exercises.gain_unseen(gain, tuned)

# %% [markdown]
# **Exercise 3** (hard, 15 minutes). A hundred images show accuracy in steps of one point. The model got 85 of a
# hundred images right. A pruned copy has truly lost three points: each image is right with probability 0.82,
# independently. The rule allows a loss of three points against the 85. In what share of draws of a hundred images
# does the copy pass? Give a number between 0 and 1.

# %%
passes = ...  # your answer, a share in [0, 1]

exercises.passing_share(passes)

# %% [markdown]
# ## 7. What we saw, and what this does not show
#
# - `mu` cuts one order of all filters. What makes it hard to choose is not the order but where the road ends.
# - The road differs from attack to attack, and from training to training of the same attack. A fixed `mu` is a bet on
#   the attacks that one has seen.
# - Clean images can tell when the accuracy goes. They can't tell when the backdoor has gone.
# - It does **not** show the best `mu` for another network or data set, nor for a defender with other images. Most rows
#   are of one narrow width, ten epochs, and two or three trainings.
#
# **For the reading group**
# 1. A rule that stops when clean accuracy falls prunes more from a redundant network. Is that what one wants?
# 2. What could a defender measure on clean images that moves when the *backdoor* goes?
# 3. Our default was settled while looking at ASR on models like these. What would a blind choice have looked like?
#
# **Further reading**: Zheng et al., CLP ([2208.03111](https://arxiv.org/abs/2208.03111)), with the same kind of
# threshold, set to 3, and a figure over it. Wu and Wang, ANP ([2110.14430](https://arxiv.org/abs/2110.14430)), who show
# both accuracies over the threshold.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
from scipy.stats import binom, norm

expected = len(d) * norm.sf(2)
exercises.normal_count(expected, len(d))
print(f"normal scores: {expected:.0f} filters; here {int((d > 2).sum())}")

mine = tuned[(tuned.seed == 1) & (tuned.attack != "none")]
gain = float(mine[mine.who == "mu 2"].der.mean() - mine[mine.who == "mu 2.5"].der.mean())
exercises.gain_unseen(gain, tuned)
print(f"on the trainings with seed 1: {gain:+.1f} points of DER")

passes = binom.sf(81, 100, 0.82)
exercises.passing_share(passes)
print(f"{100 * passes:.0f} % of the draws")

# %% [markdown]
# Previous: [11 · Sample count](11_sample_count.ipynb) · Next: [13 · Open questions](13_open_questions.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
at = rows.groupby(["model", "mu"])[["acc_after", "asr_after"]].mean()
few, all_of_it = at.loc[poisoned.name, max(mus)], at.loc[poisoned.name, min(mus)]
assert few.acc_after > poisoned.before.acc - 3, "the highest mu should cost next to nothing"
assert all_of_it.asr_after < 40 < poisoned.before.asr, "the lowest mu should take the backdoor away"
assert at.loc["clean", min(mus)].acc_after < clean_twin.before.acc - 5, "and the clean network with it"
