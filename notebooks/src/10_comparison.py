# %% [markdown]
# # 10 · Comparison
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/10_comparison.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/10_comparison.ipynb)
#
# At the end of this notebook fifteen defences have met the same models, with the same clean images, under the same
# rules. You know what each of them left of the attack and what it cost. And you know how much of a published number
# can come from one question: *who chose the threshold?*
#
# Papers: [2311.07417](https://arxiv.org/abs/2311.07417) (suspiciousness),
# [2307.11565](https://arxiv.org/abs/2307.11565) (FMP), [2405.17750](https://arxiv.org/abs/2405.17750) (MNP), and the
# baselines of notebook 09. **The formulas of suspiciousness and of MNP are reconstructed from the papers' summaries**.
# The others follow their papers and public code, or, where section 1 says so, summaries of them. Nothing on this page
# reproduces a table of any of these papers.

# %% [markdown]
# > **You will learn**
# > - how to read a table of methods that their authors tried on different models and with different images
# > - what each defence costs: clean images, seconds, memory, and accuracy where there is nothing to repair
# > - how far a threshold that was chosen with the test set differs from one that a defender can choose
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb). 07 to 09 explain the other defences; section 1 has
# > one line for each. · **minutes to read**: 41 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons one model for each attack |
# | defender | the model and clean images with their labels | repairs it in fifteen ways; chooses by held-back images |
# | evaluator | test set and triggers | reports the scores below; in section 6 it also *chooses*, as a warning |
#
# The scores are the accuracy on clean images (ACC), the attack success rate (ASR: the share of triggered images that
# the network takes for the target class), the robust accuracy (RA: the share of them that it classifies right after
# all), and the defence effectiveness rating (DER), which joins ACC and ASR in one number. Section 1 has its formula.
# *Held-back* images are some of the defender's own: the defence does not learn from them, it only looks at how many of
# them the repaired network gets right.

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
attacks = []  # of badnets, blended, sig, wanet; [] is what the profile says
poison_rate = 0.05  # share of the training set that carries the trigger
clean_label_rate = 0.5  # SIG instead takes this share of the target class
low_rate = 0.0  # a second rate for badnets and blended, say 0.01; 0 leaves it out
target = 0  # the class that the trigger leads to
seed = 0  # of data, initial weights and training
samples_per_class = 10  # the clean images of each class that every defence gets
most_per_class = 0  # the papers' own amounts are cut to so many a class; 0 is what the profile says, -1 leaves them out
draws = 0  # draws of the clean images; 0 is what the profile says
patience = 120.0  # seconds; a defence that took longer on a model gets one draw there

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import clear_output

import nbtools
from nbtools.attacker.triggers import TRIGGERS
from nbtools.evaluator.evaluation import Evaluation, der, predict
from nbtools.lab import tables as published
from nbtools.lab.comparison import compare, contenders, cuts, summary
from nbtools.lab.leakage import TOLERANCE, WAYS, threshold_choices
from nbtools.series import checks, plots
from nbtools.series.exercises import comparison as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, seed=seed, small=True)  # in laptop a narrow network
draws, attacks = draws or run.profile.draws, attacks or list(run.profile.attacks)
models = []
for attack in attacks:
    clean_label = getattr(TRIGGERS[attack], "clean_label", False)
    models.append(run.model(attack, clean_label_rate if clean_label else poison_rate, target))
    if low_rate and attack in ("badnets", "blended"):
        models.append(run.model(attack, low_rate, target))
models.append(run.clean_model(attacks[0], target))
pd.DataFrame({model.name: model.before.row() for model in models}).T.round(1)

# %% [markdown]
# The attacks are those of notebook 01. BadNets puts a white square into a corner, Blended lays a faint picture over the
# whole image, SIG adds faint stripes and changes no label, WaNet bends the image a little. The number in a name is the
# share of the training set that carries the trigger (for SIG the share of the target class). The last model is clean:
# its ASR is what the trigger does where nobody planted a backdoor. A model whose ASR is below 50 % did not learn its
# backdoor. Nothing can be said about its removal, so the means below leave it out.
#
# Profile `laptop` takes narrow networks here (`Profile.narrowed`). Half a dozen models under all defences at width 32
# would keep a laptop busy for days.
#
# | in the papers | here |
# |---|---|
# | ACC, ASR, RA, DER | `nbtools.evaluator.evaluation` |
# | each defence, as its paper sets it | `nbtools.lab.comparison.contenders` |
# | the table | `nbtools.lab.comparison.compare`, `summary` |
# | the choice of a threshold | `nbtools.lab.leakage.threshold_choices` |
# | BackdoorBench's leaderboard | `nbtools.lab.tables.leaderboard` |

# %% [markdown]
# ## 1. The terms
#
# - **The same model and the same clean images** for all. Which clean images a defender happens to get is drawn at
#   random. Every defence gets the same draws.
# - **The same rules.** A defence has one setting for all attacks, its paper's where the paper states one. What is left
#   open is chosen by clean images that the defender holds back. This concerns above all the threshold of ANP, RNP and
#   MNP.
# - **The same evaluation**, on test images that no defence sees. ASR counts only images whose true class is not the
#   target. Seconds are those of the defence alone, without the evaluation, on the same machine.
# - **Two amounts of clean images.** Every defence gets the same few of each class (`samples_per_class`). Where its
#   paper gives it more, a second row does so too. It is marked *the paper's*, or *of the paper's* where the profile
#   cuts it.
#
# Why two amounts? A rival that gets too few images proves nothing, so there are second rows. But a defence that needs a
# tenth of the training set is not the same remedy as one that needs a hundred images, so there are first rows.
#
# The fifteen, each in a line:
#
# | defence | its idea | notebook |
# |---|---|---|
# | suspiciousness | four measurements make a score; prune what stands out in its layer; tune the last stage | 06 |
# | shift unlearning | find a small shift that moves all images to one class; train the network to ignore it | 09, 13 |
# | CLP | prune filters of a large spectral norm; it looks at no image | 02, 09 |
# | FMP | disturb each map, prune the filters where the network then answers wrong; fine-tune | 07 |
# | MNP | like RNP (the next line), but large filters pay for staying | 08 |
# | RNP | let the network forget the clean task, learn masks that bring it back, prune what they close | 09 |
# | ANP | disturb the batch norms, learn masks that keep the answers right, prune what they close | 09 |
# | AWM | learn a mask for every single weight, against one disturbance that is added to all images | 09 |
# | NAD | fine-tune a copy, then teach the network to look where the copy looks | 09 |
# | D3 | train the weights far away from where they were | 09 |
# | LMR | find the class that the network falls back on, and push it down in the last layer | 09 |
# | FT-SAM | fine-tune towards a place where the loss is low all around | 09 |
# | NFT | learn one factor for each filter, on blends of two images | 09 |
# | fine-pruning | prune channels of the last convolution that clean images leave silent; fine-tune | 09 |
# | fine-tuning | train on with clean images: what every other defence must beat | 09 |
#
# The next table says how many images each paper gives to its defence, and what in the defence is ours. (A percentage
# of images is a share of the training set.)

# %%
line_up = contenders(run.profile)
print("defence         images a class   source, and what in it is ours")
for name, one in line_up.items():
    print(f"{name:<15} {one.per_class or 'none':>14}   {one.source}")
cut_short = cuts(line_up)
print(f"\ncut short by this profile: {cut_short or 'nothing'}")

# %% [markdown]
# The defence effectiveness rating is one number for both sides of a repair. It is 50 for a defence that does nothing,
# and 100 for one that removes a perfect attack and costs no accuracy. With ACC and ASR as shares between 0 and 1,
#
# $$\mathrm{DER} = \tfrac12 \big( \max(0, \mathrm{ASR}_\text{before} - \mathrm{ASR}_\text{after}) -
# \max(0, \mathrm{ACC}_\text{before} - \mathrm{ACC}_\text{after}) + 1 \big)$$
#
# Before a loop fills the table, here is one row by hand, with the cheapest defence of all:


# %%
def measure(model, trained):
    """ACC, ASR and RA in percent: the evaluator's three questions."""
    test, triggered = trained.evaluate.test, trained.evaluate.triggered  # the latter: other classes, with the trigger
    answers, tricked = predict(model, test), predict(model, triggered)
    hits = (answers == test.labels, tricked == trained.target, tricked == triggered.labels)
    return [100 * float(hit.double().mean()) for hit in hits]


poisoned, clp = models[0], line_up["CLP"].defence
acc_before, asr_before, _ = measure(poisoned.model, poisoned)
acc, asr, ra = measure(clp(poisoned.model, run.draw(samples_per_class)).model, poisoned)
row = run.defend(poisoned, clp, samples_per_class)
assert [row["acc_after"], row["asr_after"], row["ra_after"]] == [acc, asr, ra]
print(f"{poisoned.name}, CLP: ACC {acc_before:.1f} -> {acc:.1f}, ASR {asr_before:.1f} -> {asr:.1f}, RA {ra:.1f}")
print(f"by hand and by nbtools the same; DER {row['der']:.1f}")

# %% [markdown]
# ## 2. Attacks × defences
#
# > **Predict first.** All get the same few images. Which defence leaves the least of the attack? Which one costs the
# > most accuracy? Does any of them beat plain fine-tuning, by DER, on every model with a
# > backdoor?


# %%
def progress(line):
    """The row that was measured last, with the time left, in place of the one before it."""
    clear_output(wait=True)
    print(line)


rows = compare(run, models, line_up, samples_per_class, most_per_class, draws, patience, progress)
rows["label"] = rows.name + rows.images.map(" ({:,})".format)  # the number of clean images, in all
saved = run.save_rows(rows, "10_comparison")
progress(f"{len(rows)} rows for {len(models)} models, {(rows.error != '').sum()} of them without a result")

# %%
start = pd.DataFrame({model.name: model.before.row() for model in models}).T  # before any repair
means = rows.groupby(["label", "model"], sort=False)[["acc_after", "asr_after", "ra_after", "der"]].mean()
labels, names = list(dict.fromkeys(rows.label)), [model.name for model in models]

# %% tags=["hide-input"]
panels = {"acc": "ACC (%)", "asr": "ASR (%), low is good", "ra": "RA (%)", "der": "DER (%)"}
across = 4 if len(names) < 3 else 2
size = ((1.5 + len(names)) * across * 0.58 + 2.6, (1.6 + 0.27 * len(labels)) * 4 / across)
figure, axes = plt.subplots(4 // across, across, figsize=size, sharey=True, squeeze=False)
for axis, (column, title) in zip(axes.flat, panels.items(), strict=True):
    table = means[column if column == "der" else f"{column}_after"].unstack("model").reindex(labels)[names]
    first = pd.DataFrame({"before any repair": start.get(column, 50.0)}, index=names).T
    plots.heat(axis, pd.concat([first, table]), "", limits=(0, 100))
    axis.collections[0].colorbar.remove()
    axis.set(title=title, xlabel="", ylabel="")
    axis.tick_params(axis="x", labelrotation=30)
    axis.tick_params(length=0)
figure.suptitle("After the repair (in brackets: clean images in all; means over the draws)", x=0.01, ha="left")
plots.show(figure, "Heat tables of ACC, ASR, RA and DER: a row for each defence and amount, a column for each model.")

# %% [markdown]
# Read a row from left to right. A good one is bright in ACC and RA, and dark in ASR, on *every* attack. RA tells a
# repair from mere damage: where ASR has fallen and RA stayed low, the triggered images still go wrong, only elsewhere.
# The clean model has no backdoor, so its ASR and DER say nothing. Its ACC is the subject of section 5. A blank is a
# defence whose training diverged. It is reported, and not handed out as a repair.
#
# The next table has the means over the models that learned their backdoor. Behind ± stands the standard deviation
# over the models, or over the draws where there is one model. A – stands where there is only one model and one draw.
# The last columns give the number of models and of draws. A defence that took longer than `patience` on a model got a
# single draw there; the column has the largest number of draws.

# %%
totals = summary(rows)
if "backdoored" not in set(totals.kind):
    raise ValueError(f"no model learned its backdoor: {start.asr.round(1).to_dict()}; give it more epochs or poison")
attacked = totals[totals.kind == "backdoored"].set_index("name")
few = attacked[attacked.amount == f"{samples_per_class} a class"]  # the same images for all
more = attacked[attacked.amount != f"{samples_per_class} a class"]  # the papers' amounts, where they are larger
took = rows[(rows.attack != "none") & (rows.asr_before >= 50)]


# %% tags=["hide-input"]
def with_sd(table, column):
    """The mean, and its standard deviation where there is one."""
    pairs = zip(table[column], table[f"{column}_sd"], strict=True)
    return [f"{mean:.1f} ± {sd:.1f}" if sd == sd else f"{mean:.1f} –" for mean, sd in pairs]


shown = attacked[["amount"]].assign(**{f"{c.upper()} (%)": with_sd(attacked, c) for c in ("acc", "asr", "ra", "der")})
shown["worst ASR"], shown["clean images"] = attacked.worst_asr.round(1), attacked.images.astype(int)
shown["seconds"], shown["peak MB"] = attacked.seconds.round(1), attacked.peak_mb.round(0)
shown["models × draws"] = attacked.models.astype(str) + " × " + attacked.draws.astype(str)
shown.assign(failed=attacked.failed)

# %% tags=["hide-input"]
least, dearest, best = few.asr.idxmin(), few.acc_lost.idxmax(), few.der.idxmax()
rated = took[took.samples_per_class == samples_per_class].groupby(["name", "model"]).der.mean().unstack("model")
beats = rated.gt(rated.loc["fine-tuning"]).all(axis=1)
better, not_better = ([n for n in few.index if n != "fine-tuning" and beats[n] == yes] for yes in (True, False))
tuned = few.loc["fine-tuning"]
answer(
    f"You were right if you said {least} (an ASR of {few.asr[least]:.1f} % is left, for {few.acc_lost[least]:.1f} "
    f"points of ACC), {dearest} ({few.acc_lost[dearest]:.1f} points of ACC), and {'yes' if better else 'no'}. "
    + f"On every model with a backdoor fine-tuning is beaten by {len(better)} of the other {len(few) - 1} defences"
    + (
        f": {', '.join(better)}. "
        if 0 < len(better) <= len(not_better)
        else f": all but {', '.join(not_better)}. "
        if better and not_better
        else ". "
    )
    + f"Fine-tuning itself leaves {tuned.asr:.1f} % of ASR. "
    + (
        "With so few images it is easy to beat: no clean image speaks against what only the trigger wakes. "
        if tuned.asr > 50
        else "It removes much here, although no clean image speaks against the trigger: its steps move all weights. "
    )
    + (
        f"The best mean DER, {few.der[best]:.1f}, is that of {best} as well."
        if best == least
        else f"The best mean DER is another's: {few.der[best]:.1f}, of {best}. It leaves {few.asr[best]:.1f} % of ASR "
        f"and costs {few.acc_lost[best]:.1f} points. So the least ASR alone is not the best repair."
    )
)

# %% [markdown]
# ## 3. The trade
#
# The next figure shows ACC lost against ASR left. A repair wants to be in the lower left corner. *Doing nothing* sits
# at the right edge, at height zero. Large marks are means, small ones are single models and draws. Filled marks had
# the same few clean images, open ones their paper's amount (where the profile allows it).
#
# > **Predict first.** Which defences will reach the corner, say with at most 10 % of ASR left for at most 5 points of
# > ACC? And when a defence gets more clean images, does its mark move down, to the left, or both ways?

# %% tags=["hide-input"]
hues = [plots.RED, plots.GREY, plots.GREEN, plots.PURPLE, plots.PINK, plots.BLUE, plots.SKY, plots.BROWN, plots.ORANGE]
colors, markers = [*hues, "black"], "osD^vPX<>*p"
looks = {name: (colors[n % len(colors)], markers[n % len(markers)]) for n, name in enumerate(line_up)}
figure, axis = plt.subplots(figsize=(8.4, 4.6))
for name, (color, marker) in looks.items():
    for alike, part in took[took.name == name].groupby(took.samples_per_class == samples_per_class):
        fill = {"facecolor": color if alike else "none", "edgecolor": color, "marker": marker}
        axis.scatter(part.asr_after, part.acc_before - part.acc_after, s=12, alpha=0.5, linewidth=0.6, **fill)
    for table, filled in ((few, True), (more, False)):
        for one in table[table.index == name].itertuples():
            fill = {"facecolor": color if filled else "none", "edgecolor": color, "marker": marker}
            label = f"{name} ({one.images:,.0f})"
            axis.scatter(one.asr, one.acc_lost, s=95, linewidth=1.4, label=label, zorder=3, **fill)
axis.axhline(0, color=plots.GREY, lw=1)
axis.set_yscale("symlog", linthresh=5)
lost = took.acc_before - took.acc_after
low_end, high_end = min(lost.min(), 0) - 0.5, 1.3 * max(lost.max(), 5)
ticks = [tick for tick in (-5, -2, 0, 2, 5, 10, 20, 50) if low_end <= tick <= high_end]
axis.set_yticks(ticks, [str(tick) for tick in ticks])
axis.set_yticks([], minor=True)
axis.set_ylim(low_end, high_end)
axis.set(xlim=(-3, 103), xlabel="ASR left (%)", ylabel="ACC lost (points)")
axis.set_title("What is left of the attack, and what its removal cost")
figure.legend(frameon=False, fontsize=8, loc="outside right center", title="defence (clean images)")
plots.show(figure, "ACC lost against ASR left: large marks are each defence's means, small ones single models.")

# %% [markdown]
# A mark is beaten on both counts where another one lies below *and* to the left of it (exercise 2).

# %% tags=["hide-input"]
corner = [f"{n} ({one.images:,.0f} images)" for n, one in attacked.iterrows() if one.asr <= 10 and one.acc_lost <= 5]
both = few.index.intersection(more.index)
moved = (more.loc[both, ["asr", "acc_lost"]] - few.loc[both, ["asr", "acc_lost"]]).astype(float)
left, down = moved.asr < -5, moved.acc_lost < -1
back = ", ".join(f"{n} ({moved.asr[n]:+.0f})" for n in moved.index[moved.asr > 5])
ends = took.groupby(["name", "amount", "model"]).asr_after.mean().groupby(["name", "amount"]).agg(["min", "max"])
split = list(dict.fromkeys(name for name, _ in ends.index[(ends["min"] < 20) & (ends["max"] > 50)]))
answer(
    f"You were right if you said: {', '.join(corner) or 'none of them'}. "
    + (
        f"{len(both)} defences have two amounts. With the larger one {int((left & down).sum())} move both ways by a "
        f"clear step (5 points of ASR, 1 point of ACC), {int((left & ~down).sum())} only to the left and "
        f"{int((down & ~left).sum())} only down. "
        + (
            f"More images do not always help: with the larger amount more of the attack is left by {back}. "
            + (
                "RNP, ANP and MNP choose a threshold by held-back images, and other images choose another threshold "
                "(section 6). "
                if set(moved.index[moved.asr > 5]) & {"RNP", "ANP", "MNP"}
                else ""
            )
            if back
            else "None leaves clearly more of the attack. "
        )
        if len(both)
        else "In this profile no defence gets a second amount. "
    )
    + (
        f"A mean can hide much. At one of the amounts at least, less than 20 % of ASR is left on one model and more "
        f"than half on another by {', '.join(split)}. There believe the column *worst ASR* and not the mean."
        if split
        else "No mean here hides a success on one model and a failure on another."
        if took.model.nunique() > 1
        else "With a single backdoored model, no mean can hide a failure on another one."
    )
)

# %% [markdown]
# ## 4. The price in seconds and memory
#
# The suspiciousness paper says that its defence is about three times as fast as its rivals, which are NAD, ANP, CLP
# and AWM. Here are all our defences, on one model, with the same clean images.
#
# > **Predict first.** Which is the slowest, and why? (Count the passes: one over all images, one for each filter, or
# > thousands.) And is suspiciousness three times as fast as those that learn or search: NAD, ANP, AWM, RNP, FMP and
# > MNP?

# %%
alike = rows[(rows.model == poisoned.name) & (rows.samples_per_class == samples_per_class) & (rows.draw == 0)]
alike = alike.set_index("name").sort_values("seconds")
scoring = run.defend(poisoned, replace(line_up["suspiciousness"].defence, fine_tune=None), samples_per_class)
whole = alike.seconds["suspiciousness"]
claimed = [name for name in ("NAD", "ANP", "AWM", "RNP", "FMP", "MNP") if name in alike.index]
print(f"suspiciousness: {whole:.2f} s, of which scoring and pruning alone {scoring['seconds']:.2f} s")
ratios = pd.DataFrame({
    "times suspiciousness": alike.seconds / whole,
    "times its scoring and pruning alone": alike.seconds / scoring["seconds"],
}).loc[claimed]  # fmt: skip

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10, 0.32 * len(alike) + 1.2), sharey=True)
columns = ("seconds", "seconds (log scale)"), ("peak_mb", "peak memory above what was in use (MB)")
for axis, (column, label) in zip(axes, columns, strict=True):
    bars = axis.barh(
        alike.index, alike[column], color=[plots.RED if n == "suspiciousness" else plots.BLUE for n in alike.index]
    )
    for name, bar in zip(alike.index, bars, strict=True):
        bar.set(hatch="///" if name in cut_short else "", edgecolor="white", linewidth=0)
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.set(xlabel=label)
    axis.margins(x=0.15)
axes[0].set_xscale("log")
hatched = "; hatched: cut short by the profile" if cut_short else ""
figure.suptitle(f"{poisoned.name}, {samples_per_class} images a class{hatched}", x=0.01, ha="left")
plots.show(figure, "Bars of seconds and of peak memory for each defence on one model with the same clean images.")

# %%
ratios.assign(**{"cut short": [name in cut_short for name in claimed]}).round(2)

# %% tags=["hide-input"]
slowest, fastest = alike.seconds.idxmax(), alike.seconds.idxmin()
reasons = {
    "ANP": f"each of its {line_up['ANP'].defence.iterations:,} iterations looks for the worst disturbance, and then "
    "moves the masks",
    "FMP": "it makes its own disturbed images for each filter, and runs the network on all of them",
    "FT-SAM": f"each of its {alike.tuned_steps['FT-SAM']:.0f} steps runs the network forward and back twice",
    "AWM": "each round looks for a new disturbance and trains a mask for every single weight",
}
steps = alike.tuned_steps[slowest]
why = reasons.get(
    slowest, f"it takes {steps:.0f} optimiser steps on the weights" if steps else "it learns its masks long"
)
exact = (ratios >= 3).sum()
answer(
    f"You were right if you said {slowest}: {alike.seconds[slowest]:.1f} s, because {why}. "
    + (f"(The profile even cuts it short: {cut_short[slowest]}.) " if slowest in cut_short else "")
    + f"The fastest is {fastest} with {alike.seconds[fastest]:.2g} s. Suspiciousness is three times as fast as "
    f"{exact['times suspiciousness']} of the {len(claimed)} when the tuning counts, and as "
    f"{exact['times its scoring and pruning alone']} of them when only scoring and pruning count. *Scoring* is a "
    "single pass over the images. The rest of the time goes into the tuning, and that is ours."
)

# %% [markdown]
# CLP, the paper's fourth rival, is not among the six. It looks at no image, so against it the claim does not hold.
#
# Some things to know before you quote such a ratio. Seconds with few images flatter whatever trains for epochs: its
# time grows with the images, and that of ANP hardly does. And memory is what the defence took at its highest. On a
# CPU it is a lower bound, and the first defence of a run finds no block of memory to use again. (A row that was found
# again in the cache carries the seconds of the run that measured it. On the committed page the rivals were measured
# two at a time, and the whole defence and its scoring alone may be of different runs. So their difference is not the
# time of the tuning. Section 5 of notebook 11 has another measurement of both.)

# %% [markdown]
# ## 5. Where there is nothing to repair
#
# A defender does not know whether a model carries a backdoor. Most models do not. What a defence does to *them* is a
# price that every user pays.
#
# > **Predict first.** Which defence costs a clean model most? And those that cost it next to nothing: do they remove
# > backdoors?

# %%
innocent = rows[rows.attack == "none"].assign(acc_lost=lambda table: table.acc_before - table.acc_after)
groups = innocent.groupby("label", sort=False)
lost, pruned, tuned = groups.acc_lost.mean().reindex(labels), groups.pruned.mean(), groups.tuned_steps.mean()

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(8.5, 0.26 * len(labels) + 1.1))
axis.barh(labels[::-1], lost[::-1], color=plots.CLEAN)
for n, most in groups.acc_lost.max().items():
    note = f"{lost[n]:.1f}  ({pruned[n]:.0f} pruned, {tuned[n]:.0f} steps)"
    axis.annotate(note, (max(most, 0), n), (6, 0), textcoords="offset points", fontsize=8, va="center")
axis.scatter(innocent.acc_lost, innocent.label, color="black", s=9, zorder=3)
axis.axvline(0, color=plots.GREY, lw=1)
axis.margins(x=0.4)
axis.set(xlabel="ACC lost (points; in brackets: filters pruned, optimiser steps on the weights)")
axis.set_title(f"What each defence costs a clean model (ACC {models[-1].before.acc:.1f} before; dots: draws)")
plots.show(figure, "Bars of the clean accuracy that each defence costs a clean model, with filters pruned and steps.")

# %% [markdown]
# Read the brackets, too. The masks of AWM lie on single weights, and NFT learns a factor for each filter. They count
# neither as pruned filters nor as steps on the weights. For the others, no filter and no step mean that nothing was
# done.

# %% tags=["hide-input"]
asr_left = attacked.assign(label=[f"{n} ({one.images:,.0f})" for n, one in attacked.iterrows()]).set_index("label").asr
cheap = [label for label in labels if lost[label] <= 1]
idle = [label for label in cheap if asr_left[label] > 50]
able = [label for label in cheap if asr_left[label] <= 20]
unasked = [
    f"{label} {pruned[label]:.0f} filters"
    for label in labels
    if label.startswith(("suspiciousness", "CLP", "FMP")) and pruned[label] > 0
]
answer(
    f"You were right if you said {lost.idxmax()}, in brackets its clean images: {lost.max():.1f} points of ACC. "
    f"{len(cheap)} of the {len(labels)} rows cost at most one point{': ' * (0 < len(cheap) < 9)}"
    f"{', '.join(cheap) * (len(cheap) < 9)}. "
    + (
        f"On the backdoored models more than half of the ASR is left by {len(idle)} of these {len(cheap)}, and at most "
        f"20 % by {', '.join(f'{label}: {asr_left[label]:.0f} %' for label in able) or 'none of them'}. "
        if cheap
        else ""
    )
    + (
        "So a low price here often means that little was done. "
        if len(idle) > len(cheap) / 2
        else "So a low price here does not mean that little was done. "
        if len(able) > len(cheap) / 2
        else "So a low price on a clean model says little about the repair of a poisoned one. "
    )
    + "A rule that compares the filters of a layer with each other cannot know that there is no backdoor, and some "
    f"filter always stands out. So it prunes here, too: {', '.join(unasked) or 'none does'}. "
    "A defence that lets held-back images choose may do nothing at all. That costs nothing, and it helps nobody who "
    "does have a backdoor."
)

# %% [markdown]
# ## 6. The leakage lesson
#
# ANP and RNP end in the same way. Each filter has a mask $m_i \in [0, 1]$, and filters whose mask lies at or below a
# threshold are pruned. Which threshold? Here are three ways to choose it, from the *same masks*:
#
# 1. **oracle**: the lowest ASR on the test set, among the thresholds that keep clean test accuracy above nine tenths of
#    what it was. This is how BackdoorBench's code chooses for ANP: the trigger itself is used to choose.
# 2. **test accuracy**: the strongest threshold that clean *test* accuracy allows (a fall of two points). It needs no
#    trigger, but thousands of labelled images that no defender has. And the number that is reported afterwards is the
#    one that was used to choose.
# 3. **held-back clean images**: the same rule on the fifth of its own images that the defender did not learn from. As
#    these are few, the loss of a single one is always forgiven. The rows of section 2 are chosen in this way.
#
# > **Predict first.** The defender holds back a fifth of its images. In steps of how many points can it see accuracy
# > fall? And will it stop before the oracle does, or after?

# %%
learned = [model for model in models[:-1] if model.before.asr >= 50 and model.poison_rate != low_rate][:2]
sweeps = []
for model in learned:
    for name in ("ANP", "RNP"):
        for amount in sorted(set(rows[rows.name == name].samples_per_class)):
            defence = line_up[name].defence
            table = threshold_choices(run, model, defence, amount)
            held = len(defence.validation.split(run.draw(amount))[1])  # images that it does not learn from
            sweeps.append(table.assign(model=model.name, name=name, samples_per_class=amount, held=held))
saved = run.save_rows(pd.concat(sweeps), "10_leakage")


def three_choices(table, tolerance=0.1, allowed=2.0):
    """Positions in the sweep; row 0 prunes nothing, the strongest comes last."""
    near = table.acc >= (1 - tolerance) * table.acc.iloc[0]
    choices = [int(table.asr.where(near).to_numpy().argsort(kind="stable")[0])]
    one_image = 100 / table.held.iloc[0]
    for column, forgiven in (("acc", allowed), ("held_back", max(allowed, one_image))):
        falls = table[column] < table[column].iloc[0] - forgiven - 1e-6
        choices.append(int(falls.argmax()) - 1 if falls.any() else len(table) - 1)  # the last before the first fall
    return choices


for table in sweeps:
    assert three_choices(table, TOLERANCE) == [int(table[way].argmax()) for way in WAYS]
print(f"three choices by hand and by nbtools agree in {len(sweeps)} sweeps")

# %% tags=["hide-input"]
colors = dict(zip(WAYS, (plots.RED, plots.PURPLE, plots.GREEN), strict=True))
shapes = dict(zip(WAYS, (":", "--", "-"), strict=True))
figure, axes = plt.subplots(
    -(-len(sweeps) // 2), 2, figsize=(10.5, 0.7 + 2.5 * -(-len(sweeps) // 2)), sharey=True, squeeze=False
)
for axis, table in zip(axes.flat, sweeps, strict=True):
    x = table.threshold.replace(-np.inf, -0.05)
    axis.plot(x, table.asr, "s-", ms=4, color=plots.POISONED, label="ASR, test")
    axis.plot(x, table.acc, "o-", ms=4, color=plots.CLEAN, label="ACC, test")
    axis.plot(x, table.held_back, "x-", ms=5, lw=1, color="black", label="accuracy, held-back images")
    for way, text in WAYS.items():
        axis.axvline(x[table[way]].iloc[0], color=colors[way], ls=shapes[way], lw=2, label=f"chosen by {text}")
    first = table.iloc[0]
    axis.set(title=f"{first['name']} on {first.model}, {first.samples_per_class} a class", ylim=(-3, 103))
    axis.set_xticks([-0.05, 0.2, 0.4, 0.6, 0.8], ["none", "0.2", "0.4", "0.6", "0.8"])
for axis in axes[-1]:
    axis.set_xlabel("threshold: masks at or below it are pruned")
for axis in axes[:, 0]:
    axis.set_ylabel("percent")
handles, texts = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, texts, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
figure.suptitle("The same masks, three ways to choose the threshold", x=0.01, ha="left")
plots.show(figure, "ASR, test and held-back accuracy against the threshold, with the three choices as vertical lines.")

# %%
index = ["model", "name", "samples_per_class"]
choices = {text: pd.concat([table[table[way]] for table in sweeps]).set_index(index) for way, text in WAYS.items()}
asrs = pd.DataFrame({f"ASR, chosen by {text}": one.asr for text, one in choices.items()})
kept = pd.DataFrame({f"ACC, chosen by {text}": one.acc for text, one in choices.items()})
gap = choices[WAYS["by_validation"]].asr - choices[WAYS["oracle"]].asr
asrs.join(kept).assign(**{"gap in ASR": gap}).round(1).T

# %% [markdown]
# All of this is one draw of the clean images, where the rows of section 2 are means over the draws. The *gap* is the
# ASR that the defender's choice leaves, minus that of the oracle's choice.

# %% tags=["hide-input"]
places = [[int(table[way].argmax()) for way in WAYS] for table in sweeps]  # oracle, test accuracy, held-back images
early, late = sum(own < oracle for oracle, _, own in places), sum(own > oracle for oracle, _, own in places)
order = "before it" if early > late else "after it" if late > early else "as often before it as after it"
worst = int(gap.to_numpy().argmax())
table, (oracle, by_test, own) = sweeps[worst], places[worst]
held, where = int(table.held.iloc[0]), f"{table.name.iloc[0]} on {table.model.iloc[0]}"
told = f"The largest gap is {gap.max():.1f} points of ASR"
if gap.max() < 10:
    told += ", so here the defender's rule did nearly as well as the oracle. "
else:
    told += f" ({where}, {table.samples_per_class.iloc[0]} images a class): from the very same masks a benchmark with "
    told += f"an oracle prints {table.asr[oracle]:.1f} %, and a defender gets {table.asr[own]:.1f} %. "
    if own + 1 < len(table):
        wrong = round((table.held_back[0] - table.held_back[own + 1]) * held / 100)
        told += f"At the next threshold {wrong} of the {held} held-back images were lost, and that ended the walk. "
    if table.asr[by_test] - table.asr[oracle] < gap.max() / 2:
        told += f"{len(learned[0].glance.test):,} clean test images would have let it go on, to an ASR of "
        told += f"{table.asr[by_test]:.1f} %. So the held-back images are too few, and the masks are not to blame. "
    else:
        told += (
            f"{len(learned[0].glance.test):,} clean test images stop early as well, at {table.asr[by_test]:.1f} %. So "
        )
        told += "more clean images would not help: clean accuracy falls before ASR does. "
if beyond := int((gap < -1).sum()):
    told += f"In {beyond} of the {len(sweeps)} the defender's choice leaves *less* ASR than the oracle's. It can do so "
    told += "only where more than a tenth of the accuracy is gone, which the oracle does not allow. "
steps = [f"{100 / n:g} point{'s' * (n != 100)} (of {n} images)" for n in sorted({int(one.held[0]) for one in sweeps})]
answer(
    f"You were right if you said {' and '.join(steps)}, and: {order}. The defender stops before the oracle in {early} "
    f"of {len(sweeps)} cases, after it in {late}, and at the same threshold in {len(sweeps) - early - late}. {told}"
    "The masks are the same each time, only who chooses differs."
)

# %% [markdown]
# It also works in another way. A threshold is one number. But somebody may choose learning rates, epochs or seeds by
# test ASR as well. This leaks in the same manner, and no table shows it.

# %% [markdown]
# ## 7. Beside the leaderboard
#
# Here is BackdoorBench's leaderboard for CIFAR-10 (June 2025), means over its attacks, beside our means. **This is not
# a ranking.** The leaderboard has another recipe, PreAct-ResNet-18 at full width, 10 % poison, other attacks, and its
# own amount of clean images. It chooses ANP's threshold by test ASR, and its CLP works on wrongly paired batch norms.
# Ours is this run; its profile stands at the top.
#
# > **Predict first.** Five of our defences stand in the leaderboard too: ANP, NAD, CLP, fine-tuning (FT) and
# > fine-pruning (FP). Is their DER higher there or here?

# %%
leaders = published.leaderboard()
leaders.round(1)

# %% tags=["hide-input"]
both = [
    *({"who": f"{n}, published", "DER": one.der, "mark": plots.GREY} for n, one in leaders.drop("none").iterrows()),
    *({"who": f"{one.Index} ({one.images:,.0f})", "DER": one.der, "mark": plots.BLUE} for one in attacked.itertuples()),
]
board = pd.DataFrame(both).sort_values("DER")
figure, axis = plt.subplots(figsize=(8.5, 0.23 * len(board) + 1))
axis.hlines(board.who, 0, board.DER, color=board.mark, lw=1)
axis.scatter(board.DER, board.who, color=board.mark, s=30, zorder=3)
axis.axvline(50, color="black", ls=":", lw=1)
axis.annotate("does nothing", (50, 0), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
axis.tick_params(axis="y", labelsize=8)
axis.set(xlabel="DER (%), mean over the attacks", xlim=(min(40, board.DER.min() - 2), 100))
axis.set_title("Ours (blue, clean images in brackets) beside the published (grey)")
plots.show(figure, "Dot plot of DER: the leaderboard's defences in grey, this run's in blue, sorted.")

# %% [markdown]
# The other published names, such as i-BAU, DDE or ABL, are defences that this series does not have. BackdoorBench's
# paper explains them. *None* in the table is the model before any repair.

# %% tags=["hide-input"]
pairs = {"ANP": "ANP", "NAD": "NAD", "CLP": "CLP", "FT": "fine-tuning", "FP": "fine-pruning"}
pairs = {there: attacked.der[[here]].tolist() for there, here in pairs.items()}  # with few images, then with more
above = [there for there, ours in pairs.items() if leaders.der[there] > max(ours)]
told = [f"{n} {leaders.der[n]:.1f} there, {' and '.join(f'{d:.1f}' for d in ours)} here" for n, ours in pairs.items()]
honest = leaders.drop(["none", "ANP"]).index[0]
amounts = " (with few images, then with more; the better one counts)" if len(more) else ""
answer(
    f"You were right if you said: higher there for {', '.join(above) or 'none'}, "
    f"{'and ' if above else ''}not higher for {', '.join(n for n in pairs if n not in above) or 'none'}. "
    f"In numbers{amounts}: {'; '.join(told)}. How much of such a distance is the recipe, the images or the network "
    "cannot be told from this figure. But ANP's published threshold was chosen by an oracle as in section 6: that can "
    "be read in the code that made the number. The best published DER besides is that of "
    f"{honest} ({leaders.der[honest]:.1f})"
    f"{', Neural Cleanse, which searches for the trigger' if honest == 'NC' else ''}."
)

# %% [markdown]
# ## 8. At full width
#
# What follows does not come from this run. These are committed rows of networks of width 64 (profile `paper`), with a
# hundred clean images. Those of the rivals were measured on an H100 (one draw, all test images). The others were
# measured on two cores, with three draws: suspiciousness on the first 2,000 test images, shift unlearning on all of
# them (BadNets 1 % and the clean network on 2,000). The newer rivals, D3 and LMR, were measured on two cores as well,
# with one draw and 2,000 test images. A blank was not run, and a mean is over the networks that were run. *Worst ASR*
# is that of a single row, one network and one draw. A name such as `badnets_10` is BadNets at a poison rate of 10 %.
# The [lab notes](../data/lab_notes.md#full-width) say more. They also say that the settings of *suspiciousness* and
# of *shift unlearning* were found on these very networks.
#
# > **Predict first.** Order the defences by their mean DER. Which of them change places between this run's networks
# > and those of width 64? And which leave more than 20 % of ASR on every backdoored network even there?

# %%
full = published.results("full_width_cifar10")
before64 = full[full.kind == "before"].set_index("model")[["acc", "asr"]]
clp64 = full[(full.kind == "clp") & (full.mu == 3)].assign(kind="CLP")
rivals64 = full[(full.n == 100) & ~full.kind.isin(["prune", "whole"])]
newer64 = published.results("newer_rivals_cifar10_width64").rename(columns={"defence": "kind"})
score64 = published.results("score_defaults_cifar10").query(
    "width == 64 and n_total == 0 and tuning == 'last' and saliency == 'cross_entropy' and mu == 2"
)
shift64 = published.results("shift_unlearning_cifar10").query("width == 64 and images == 100")
ours64 = [score64.assign(kind="suspiciousness"), shift64.assign(kind="shift unlearning")]
wide = pd.concat([*ours64, clp64, rivals64, newer64])
acc0 = wide.acc_before.fillna(wide.model.map(before64.acc))  # on the same test images as the row's own
asr0 = wide.asr_before.fillna(wide.model.map(before64.asr))
wide = wide.assign(acc_0=acc0, asr_0=asr0, acc_lost=acc0 - wide.acc)
unknown = 0.0, *3 * [(0.0, 100.0)]  # RA and three intervals: the rating does not need them
wide["der"] = [
    der(Evaluation(one.acc_0, one.asr_0, *unknown), Evaluation(one.acc, one.asr, *unknown)) for one in wide.itertuples()
]

# %%
each = wide.groupby(["kind", "model"])[["acc_lost", "asr", "der"]].mean()
bad = each.drop("clean", level="model")
wide_der = bad.der.groupby("kind").mean().sort_values(ascending=False)
table = bad.apply(lambda one: f"{one.acc_lost:.1f} / {one.asr:.0f}", axis=1).unstack("model")
table["clean"] = each.acc_lost.xs("clean", level="model").map("{:.1f}".format)
table["worst ASR"] = wide[wide.model != "clean"].groupby("kind").asr.max().map("{:.0f}".format)
table["mean DER"] = wide_der.map("{:.0f}".format)
print("points of ACC lost / ASR left; the clean network: points of ACC lost")
table.loc[wide_der.index].fillna("")

# %% tags=["hide-input"]
both = [name for name in wide_der.index if name in few.der.dropna().index]
here, there = (ders[both].rank(ascending=False, method="min").astype(int) for ders in (few.der, wide_der))
moved = (here - there).sort_values(ascending=False, kind="stable")
said = {n: f"{n} (from {here[n]} to {there[n]})" for n in both}
up, down = ([said[n] for n in moved.index if sign * moved[n] >= 3] for sign in (1, -1))
gone = ((bad.asr <= 20) & (bad.acc_lost <= 10)).groupby("kind").agg(["sum", "size"])
all_gone, none_gone = (gone.index[gone["sum"] == part] for part in (gone["size"], 0))
some = [f"{n} ({one['sum']} of {one['size']})" for n, one in gone.iterrows() if n not in {*all_gone, *none_gone}]
priced = [f"{n} ({bad.acc_lost[n].mean():.1f} points of ACC)" for n in all_gone]
answer(
    f"Of the {len(both)} defences that are in both, {int((moved != 0).sum())} have another place at width 64 than in "
    f"this run (width {run.profile.width}). You were right if you named those that move by three places or more. Up: "
    f"{', '.join(up) or 'none'}. Down: {', '.join(down) or 'none'}. The rank correlation of the two orders is "
    f"{here.corr(there):+.2f}. Not all of this is the width: the attacks are not all the same, and a mean at width 64 "
    "is over the networks that were run. Let repaired mean: at most 20 % of ASR are left, for at most ten points of "
    f"ACC. No network there is repaired by {', '.join(none_gone) or 'none'}. Some only are repaired by "
    f"{', '.join(some) or 'none'}. All are repaired by {', '.join(priced) or 'none'}."
)

# %% [markdown]
# Our own two rows are development results, since their settings were found on these networks. Section 7 of
# [notebook 13](13_open_questions.ipynb) tries shift unlearning on networks that took no part, and tells what it does.

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 5 minutes). DER by hand, from the formula of section 1: a function of `acc_before`, `acc_after`,
# `asr_before` and `asr_after`, in percent, that returns the DER, in percent.

# %%
rating = ...  # your answer, a function of acc_before, acc_after, asr_before, asr_after

exercises.rating(rating)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). The front: which rows of `attacked` are beaten by no other? A row is beaten
# where another one leaves no more ASR (`asr`) *and* loses no more ACC (`acc_lost`), and is better in one of the two.
# Give a boolean for each row, in the order of `attacked`: true where it is beaten by none.

# %%
unbeaten = ...  # your answer, a boolean for each row of `attacked`, in its order

exercises.unbeaten(unbeaten, attacked)

# %% [markdown]
# **Exercise 3** (medium, 10 minutes). A fifth of the defender's images is held back. A fall of two points is
# forgiven, or one image where that is more. From how many images of each class on, with ten classes, do the two
# points count and not the one image? The answer is one number.

# %%
needed = ...  # your answer, images of each class

exercises.images_needed(needed)

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - On the same terms the order of the defences is not the order of their papers. The authors tuned each on its own
#   amount of clean images and on its own models, and some of them looked at the test set.
# - A mean over attacks hides a defence that fails on one of them. The worst ASR and the single marks do not.
# - A threshold that was chosen by test ASR can turn a defence that does nothing into one that seems to remove the
#   attack. The answer of section 6 says how far that goes here, with the same masks.
# - It does **not** show that a defence is bad: one seed, one architecture, short trainings, and our reading of each
#   paper, without the care that its authors would take. Where a paper's method is reconstructed, its row is ours.
# - Our own default, suspiciousness, was developed while we looked at ASR on models of this kind, and its `mu` was
#   settled on these very ones (the [claims](../data/claims.md) say how). So its rows are not as blind as the others'.
#   The fairer tests are second and third trainings, which took no part: [notebook 12](12_mu.ipynb).
# - D3, LMR, FT-SAM and NFT are written from summaries of their papers. *Shift unlearning* is our own, and its settings
#   were found on models of this kind, too. What it does on others stands in section 7 of
#   [notebook 13](13_open_questions.ipynb).
#
# **For the reading group**
# 1. Which row would you trust on a model of unknown origin: the lowest mean ASR, the lowest worst ASR, or the least ACC
#    lost on the clean model?
# 2. What would a benchmark have to publish so that a leak as in section 6 can be seen from outside?
# 3. Is it fair to give every defence the same hundred images? Argue for both sides.
#
# **Further reading**: Wu et al., *BackdoorBench* ([2206.12654](https://arxiv.org/abs/2206.12654)), the largest table of
# this kind, with its code. Wu and Wang, ANP ([2110.14430](https://arxiv.org/abs/2110.14430)): its figures show both
# accuracies against the threshold, and leave the choice to you. Zhu et al., FT-SAM
# ([2304.11823](https://arxiv.org/abs/2304.11823)), a stronger fine-tuning than ours.

# %% [markdown]
# ## Solutions


# %% tags=["solution", "hide-input"]
def rating(acc_before, acc_after, asr_before, asr_after):
    """The defence effectiveness rating, in percent."""
    asr_fall, acc_fall = max(0, asr_before - asr_after), max(0, acc_before - acc_after)
    return 50 * (asr_fall / 100 - acc_fall / 100 + 1)


exercises.rating(rating)
by_hand = [rating(one.acc_before, one.acc_after, one.asr_before, one.asr_after) for one in rows.itertuples()]
worst_row = float(np.nanmax(np.abs(np.array(by_hand) - rows.der)))
print(f"on the {len(rows)} rows of section 2 it differs from nbtools by at most {worst_row:.1g}")

points = list(zip(attacked.asr, attacked.acc_lost, strict=True))
unbeaten = [not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points) for p in points]
exercises.unbeaten(unbeaten, attacked)
kept = [f"{n} ({one.images:,.0f})" for (n, one), free in zip(attacked.iterrows(), unbeaten, strict=True) if free]
print("beaten by no other:", ", ".join(kept))

needed = 100 / 2 / 0.2 / 10  # 50 held-back images, which are a fifth of 250, over ten classes
exercises.images_needed(needed)
print(f"from {needed:.0f} images of each class on: then one of the held-back images weighs two points or less")

# %% [markdown]
# Previous: [09 · Baselines](09_baselines.ipynb) · Next: [11 · Sample count](11_sample_count.ipynb)

# %% tags=["check", "remove-cell"]
same_images = rows[(rows.samples_per_class == samples_per_class) & (rows.model == poisoned.name)]
left = same_images.groupby("name").asr_after.mean()
checks.backdoor_took(poisoned, models[-1], at_least=80)
fall = {"quick": 50, "laptop": 40, "paper": 40}[run.profile.name]
assert poisoned.before.asr - left["suspiciousness"] >= fall, "suspiciousness left the backdoor in place"
assert left["fine-tuning"] > left["suspiciousness"] + 20, "plain fine-tuning should leave far more than suspiciousness"
widest = float(gap.max())
assert widest >= {"quick": 30, "laptop": 0, "paper": 0}[run.profile.name], f"the oracle gains only {widest:.1f} points"
assert set(rows.name) == set(line_up) and len(set(rows.model)) == len(models), "every defence met every model"
