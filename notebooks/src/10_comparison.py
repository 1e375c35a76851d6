# %% [markdown]
# # 10 · Comparison
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/10_comparison.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/10_comparison.ipynb)
#
# At the end of this notebook all defences have met the same models, with the same clean images, under the same rules,
# and you know what each left of the attack, what it cost, and how much of a published number can come from *who chose
# the threshold*.
#
# Papers: [2311.07417](https://arxiv.org/abs/2311.07417) (suspiciousness),
# [2307.11565](https://arxiv.org/abs/2307.11565) (FMP), [2405.17750](https://arxiv.org/abs/2405.17750) (MNP), and the
# baselines of notebook 09. **The formulas of suspiciousness and of MNP are reconstructed from the papers' summaries**;
# the others follow their papers and public code. Nothing on this page reproduces a table of any of them.

# %% [markdown]
# > **You will learn**
# > - what "the same terms" means for methods that were never tried on the same terms, and how to read such a table
# > - what each defence costs: clean images, seconds, memory, and accuracy where there is nothing to repair
# > - how far a threshold chosen with the test set differs from one that a defender can choose
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb); 07 to 09 for the rivals ·
# > **minutes to read**: 25 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons one model for each attack |
# | defender | the model and clean images with their labels | repairs it in fifteen ways; chooses by held-back images |
# | evaluator | test set and triggers | reports ACC, ASR, RA and DER; in section 6 it also *chooses*, as a warning |

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
import torch
from IPython.display import clear_output

import nbtools
from nbtools.attacker.triggers import TRIGGERS
from nbtools.evaluator.evaluation import predict
from nbtools.lab import tables as published
from nbtools.lab.comparison import compare, contenders, cuts, summary
from nbtools.lab.leakage import TOLERANCE, WAYS, threshold_choices
from nbtools.series import checks, plots

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
# Profile `laptop` takes narrow networks here (`Profile.narrowed`): half a dozen models under all defences at width 32
# would keep a laptop busy for days. The last model is clean; its ASR is what the trigger does where nobody planted it.
# A model whose ASR is below 50 % did not learn its backdoor; nothing can be said about its removal, and the means below
# leave it out.
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
# - **The same model** for all, and **the same clean images**: draw $k$ is the same draw for every defence.
# - **The same rules**: one setting for all attacks, the paper's where it states one. What is left open, above all the
#   threshold of ANP, RNP and MNP, is chosen by clean images that the defender holds back from those it owns.
# - **The same evaluation**, on test images that no defence sees; ASR counts only images whose true class is not the
#   target. Seconds are the defence's own, evaluation apart, one after the other on the same machine.
# - **Two amounts of clean images.** Every defence gets the same few of each class (`samples_per_class`). Where its
#   paper gives it more, a second row does so too, marked *the paper's*, or *of the paper's* where the profile cuts it.
#
# A baseline that is starved proves nothing, hence the second rows; and a defence that needs a tenth of the training set
# is not the same remedy as one that needs a hundred images, hence the first. The line-up, and what in it is ours:

# %%
line_up = contenders(run.profile)
print("defence         images a class   source, and what in it is ours")
for name, one in line_up.items():
    print(f"{name:<15} {one.per_class or 'none':>14}   {one.source}")
cut_short = cuts(line_up)
print(f"\ncut short by this profile: {cut_short or 'nothing'}")

# %% [markdown]
# One number for both sides of a repair, 50 for a defence that does nothing and 100 for one that removes a perfect
# attack for free, is the defence effectiveness rating, with $\Delta$ = before minus after, as shares:
#
# $$\mathrm{DER} = \tfrac12 \big( \max(0, \Delta\mathrm{ASR}) - \max(0, \Delta\mathrm{ACC}) + 1 \big)$$
#
# One row by hand, with the cheapest defence of all, before a loop fills the table:


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
rating = 50 * (max(0, asr_before - asr) / 100 - max(0, acc_before - acc) / 100 + 1)
print(f"{poisoned.name}, CLP: ACC {acc_before:.1f} -> {acc:.1f}, ASR {asr_before:.1f} -> {asr:.1f}, DER {rating:.1f}")
row = run.defend(poisoned, clp, samples_per_class)
assert [row["acc_after"], row["asr_after"], row["ra_after"]] == [acc, asr, ra] and abs(row["der"] - rating) < 1e-9

# %% [markdown]
# ## 2. Attacks × defences
#
# > **Predict first.** Which defence leaves the least of the attack? Which one costs the most accuracy? Is any of them
# > better than plain fine-tuning on every attack?


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
panels = {"acc": "ACC (%)", "asr": "ASR (%), low is good", "ra": "RA (%)", "der": "DER (%)"}
labels, names = list(dict.fromkeys(rows.label)), [model.name for model in models]
across = 4 if len(names) < 3 else 2
size = ((1.5 + len(names)) * across * 0.62 + 2.6, (1.6 + 0.3 * len(labels)) * 4 / across)
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
# Read a row from left to right: a good one is bright in ACC and RA, dark in ASR, on *every* attack. RA tells a repair
# from a mere wound: where ASR has fallen and RA stayed low, the triggered images still go wrong, only elsewhere. In the
# column of the clean model ASR and DER have no backdoor to speak of; its ACC is what section 5 is about. A blank is a
# defence whose training diverged: that is reported, not handed out as a repair.
#
# The same as means over the attacks whose backdoor took (± is the s.d. over the models, or over the draws where there
# is one model; – where there is one of either):

# %%
totals = summary(rows)
if "backdoored" not in set(totals.kind):
    raise ValueError(f"no model learned its backdoor: {start.asr.round(1).to_dict()}; give it more epochs or poison")
attacked = totals[totals.kind == "backdoored"].set_index("name")


def with_sd(table, column):
    """The mean, and its standard deviation where there is one."""
    pairs = zip(table[column], table[f"{column}_sd"], strict=True)
    return [f"{mean:.1f} ± {sd:.1f}" if sd == sd else f"{mean:.1f} –" for mean, sd in pairs]


shown = attacked[["amount"]].assign(**{f"{c.upper()} (%)": with_sd(attacked, c) for c in ("acc", "asr", "ra", "der")})
shown["worst ASR"], shown["clean images"] = attacked.worst_asr.round(1), attacked.images.astype(int)
shown["seconds"], shown["peak MB"] = attacked.seconds.round(1), attacked.peak_mb.round(0)
shown["models × draws"] = attacked.models.astype(str) + " × " + attacked.draws.astype(str)
shown.assign(failed=attacked.failed)

# %% [markdown]
# ## 3. The trade
#
# ACC lost against ASR left: the lower left corner is where a repair wants to be, and *doing nothing* sits at the right
# edge at height zero. Large marks are means, the small ones single models and draws; filled marks had the same few
# clean images, open ones their paper's amount (where the profile allows it).

# %%
hues = [plots.RED, plots.GREY, plots.GREEN, plots.PURPLE, plots.PINK, plots.BLUE, plots.SKY, plots.BROWN, plots.ORANGE]
colors, markers = [*hues, "black"], "osD^vPX<>*p"
looks = {name: (colors[n % len(colors)], markers[n % len(markers)]) for n, name in enumerate(line_up)}
took = rows[(rows.attack != "none") & (rows.asr_before >= 50)]
figure, axis = plt.subplots(figsize=(8.4, 4.6))
for name, (color, marker) in looks.items():
    for few, part in took[took.name == name].groupby(took.samples_per_class == samples_per_class):
        fill = {"facecolor": color if few else "none", "edgecolor": color, "marker": marker}
        axis.scatter(part.asr_after, part.acc_before - part.acc_after, s=12, alpha=0.5, linewidth=0.6, **fill)
    for one in attacked[attacked.index == name].itertuples():
        few = one.images in (0, samples_per_class * run.splits.reserved.num_classes)
        fill = {"facecolor": color if few else "none", "edgecolor": color, "marker": marker}
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
# A mark that is alone on its lower left is beaten by nobody; one with another mark below *and* to the left of it is
# beaten on both counts (exercise 2). Where the small marks of one colour lie far apart, its mean is the mean of a
# success and a failure, and the column *worst ASR* above is the one to believe.

# %% [markdown]
# ## 4. The price in seconds and memory
#
# The suspiciousness paper says that its defence is about three times as fast as its rivals. Here are all, on one
# model, with the same clean images.
#
# > **Predict first.** Which is the slowest, and why? (Count the passes: one over the images, one a filter, or two
# > thousand.)

# %%
alike = rows[(rows.model == poisoned.name) & (rows.samples_per_class == samples_per_class) & (rows.draw == 0)]
alike = alike.set_index("name").sort_values("seconds")
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

scoring = run.defend(poisoned, replace(line_up["suspiciousness"].defence, fine_tune=None), samples_per_class)
whole = alike.seconds["suspiciousness"]
claimed = [name for name in ("NAD", "ANP", "AWM", "RNP", "FMP", "MNP") if name in alike.index]
print(f"suspiciousness: {whole:.2f} s, of which scoring and pruning alone {scoring['seconds']:.2f} s")
ratios = pd.DataFrame({
    "times suspiciousness": alike.seconds / whole,
    "times its scoring and pruning alone": alike.seconds / scoring["seconds"],
}).loc[claimed]  # fmt: skip
print(f"at least three times: {(ratios >= 3).sum().to_dict()} of {len(claimed)}")
ratios.assign(**{"cut short": [name in cut_short for name in claimed]}).round(2)

# %% [markdown]
# The claim holds for those above 3 and for no others; what is cut short by the profile would take longer than it did.
# Two things to know before quoting such a ratio. Suspiciousness *scores* with a single pass over the images; the rest
# of its seconds goes into the tuning that follows, and that is ours, so both ratios stand in the table.
# And seconds with few images flatter whatever trains for epochs: its time grows with the images, that of ANP hardly
# does. Memory is what the defence took at its highest; on a CPU it is a lower bound, and who comes first finds no block
# to use again. (A row that was found again in the cache carries the seconds of the run that measured it: they compare
# only as far as the machine was as idle then. On the committed page the rivals were measured two at a time.)

# %% [markdown]
# ## 5. Where there is nothing to repair
#
# A defender does not know whether a model carries a backdoor. Most models do not; what a defence does to *them* is a
# price that every user pays.

# %%
innocent = rows[rows.attack == "none"].assign(acc_lost=lambda table: table.acc_before - table.acc_after)
groups = innocent.groupby("label", sort=False)
lost, pruned, tuned = groups.acc_lost.mean().reindex(labels), groups.pruned.mean(), groups.tuned_steps.mean()
figure, axis = plt.subplots(figsize=(8.5, 0.3 * len(labels) + 1.1))
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
# A defence with a threshold *relative to the layer* prunes here as it did before: it can't know that nobody is there.
# One that lets held-back images choose may do nothing at all, which costs nothing, and is worth as much where there
# *is* a backdoor. So read this figure and that of section 3 together: caution is cheap on a clean model and dear on a
# poisoned one.

# %% [markdown]
# ## 6. The leakage lesson
#
# ANP and RNP end in the same way: each filter has a mask $m_i \in [0, 1]$, and what lies at or below a threshold is
# pruned. Which threshold? Three ways to choose, from the *same masks*:
#
# 1. **oracle**: the lowest ASR on the test set among those that keep clean test accuracy above nine tenths of what it
#    was. This is how BackdoorBench's code chooses ANP's: the trigger itself is used to choose.
# 2. **test accuracy**: as strong as clean *test* accuracy allows (a fall of two points). No trigger, but thousands of
#    labelled images that no defender has, and the number that is reported afterwards is the one that was tuned on.
# 3. **held-back clean images**: the same rule on the fifth of its own images that the defender did not learn from; of
#    few images one may always go wrong. This is what the rows of section 2 do.
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

# %%
colors = dict(zip(WAYS, (plots.RED, plots.PURPLE, plots.GREEN), strict=True))
shapes = dict(zip(WAYS, (":", "--", "-"), strict=True))
figure, axes = plt.subplots(
    -(-len(sweeps) // 2), 2, figsize=(10.5, 3.1 * -(-len(sweeps) // 2)), sharey=True, squeeze=False
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
left = pd.DataFrame({f"ASR, chosen by {text}": one.asr for text, one in choices.items()})
kept = pd.DataFrame({f"ACC, chosen by {text}": one.acc for text, one in choices.items()})
gap = choices[WAYS["by_validation"]].asr - choices[WAYS["oracle"]].asr
left.join(kept).assign(**{"gap in ASR": gap}).round(1).T

# %% [markdown]
# The last line is the lesson: points of ASR between what a benchmark with an oracle would print and what a defender
# gets, from the very same masks. Where it is large, look at the black crosses. The held-back images are few, so their
# accuracy moves in steps of several points, and two images that go wrong by chance end the walk, before the threshold
# that would have cut the backdoor. More held-back images make finer steps; they still do not show the orange line. And
# where even the second choice stops early, no number of clean images helps: clean accuracy falls before ASR does, and
# the trade itself is the trouble. Where the gap is near zero or negative, the defender's rule went as far as the
# oracle, or further, and paid for it in ACC.
#
# It works the other way, too: a threshold is one number, but an *oracle over settings* (learning rates, epochs, seeds)
# leaks in the same manner, and does not show in any table.

# %% [markdown]
# ## 7. Beside the leaderboard
#
# BackdoorBench's leaderboard for CIFAR-10 (June 2025), means over its attacks, beside our means. **This is not a
# ranking.** Another recipe, PreAct-ResNet-18 at full width, 10 % poison, other attacks, its own amount of clean images;
# ANP's threshold chosen by test ASR; and CLP on wrongly paired batch norms. Ours is this run: see the profile above.

# %%
leaders = published.leaderboard()
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
leaders.round(1)

# %% [markdown]
# Look at one pair, *ANP, published* and our ANP. How much of the distance between them is recipe and how much is
# section 6 can't be told from this figure; that the first was chosen by an oracle can be read in the code that made it.
# Without an oracle the best published DER is that of Neural Cleanse (NC), which searches for the trigger.

# %% [markdown]
# ## 8. At full width
#
# What follows does not come from this run. These are committed rows of networks of width 64 (profile `paper`), with a
# hundred clean images: those of the rivals were measured on an H100 (one draw, all test images; a blank was not run),
# the others on two cores (the first 2,000 test images, three draws; the newer rivals one; shift unlearning all test
# images). A mean is over the networks that were run. `data/lab_notes.md` says more, also that the settings of
# *suspiciousness* and of *shift unlearning* were found on these very networks.
#
# > **Predict first.** Which defences change places when the network is four times as wide?

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
wide["ACC lost"], wide["ASR left"] = acc0 - wide.acc, wide.asr
falls = wide.asr_before.fillna(wide.model.map(before64.asr)) - wide.asr
falls = falls.clip(lower=0) - wide["ACC lost"].clip(lower=0)
wide["DER"] = 50 + falls / 2
each = wide.groupby(["kind", "model"])[["ACC lost", "ASR left", "DER"]].mean()
bad = each.drop("clean", level="model")
order = bad.DER.groupby("kind").mean().sort_values(ascending=False).index
table = bad.apply(lambda one: f"{one['ACC lost']:.1f} / {one['ASR left']:.0f}", axis=1).unstack("model")
table["clean"] = each["ACC lost"].xs("clean", level="model").map("{:.1f}".format)
table["worst ASR"] = wide[wide.model != "clean"].groupby("kind").asr.max().map("{:.0f}".format)
table["mean DER"] = bad.DER.groupby("kind").mean().map("{:.0f}".format)
print("points of ACC lost / ASR left; the clean network: points of ACC lost")
table.loc[order].fillna("")

# %% [markdown]
# A network of full width keeps more accuracy. Fine-tuning, fine-pruning and LMR leave every backdoor that they met. RNP
# and MNP remove two of four, CLP three. AWM, NAD, ANP and D3 remove most of what they met, for 4 to 34 points of ACC.
# Our own two rows are development results; section 7 of [notebook 13](13_open_questions.ipynb) tries shift unlearning
# on networks that took no part, and tells what it does.

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 5 minutes). DER by hand: for every row of `rows`, from `acc_before`, `acc_after`, `asr_before`
# and `asr_after`, as a tensor or array in the order of the rows.

# %%
ratings = ...  # your answer

checks.same(
    ratings if ratings is ... else torch.as_tensor(ratings).nan_to_num(),
    torch.tensor(rows.der.to_numpy()).nan_to_num(),
    "clip the falls at zero before you subtract, and mind percent and shares",
)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). The front: which rows of `attacked` are beaten by no other? A row is beaten where
# another leaves no more ASR *and* loses no more ACC, and is better in one of the two. A list of booleans in the order
# of the rows.

# %%
unbeaten = ...  # your answer


def front(table):
    """Whether no other row is as good in both and better in one."""
    a, b = table.asr.to_numpy(), table.acc_lost.to_numpy()
    beats = (a[:, None] <= a) & (b[:, None] <= b) & ((a[:, None] < a) | (b[:, None] < b))  # [by, row]
    return ~beats.any(0)


checks.same(
    unbeaten if unbeaten is ... else torch.as_tensor(unbeaten).double(),
    torch.tensor(front(attacked)).double(),
    "a row does not beat itself; compare each with all others in both numbers",
)

# %% [markdown]
# **Exercise 3** (medium, 10 minutes). A fifth of the defender's images is held back. A fall of two points is forgiven,
# or one image where that is more. From how many images a class on, of ten classes, is it the two points that count?

# %%
needed = ...  # your answer, images a class

checks.same(needed, 25, "one of n held-back images weighs 100 / n points; how many classes share them?")

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - On the same terms the order of the defences is not the order of their papers; each was tuned by its authors on its
#   own amount of clean images, on its own models, and some with an eye on the test set.
# - A mean over attacks hides a defence that fails on one of them; the worst ASR and the single marks do not.
# - A threshold chosen by test ASR can turn a defence that does nothing into one that seems to remove the attack; the
#   masks were the same.
# - It does **not** show that a defence is bad: one seed, one architecture, short trainings, and our reading of each
#   paper, with its settings and none of its authors' care. Where a paper's method is reconstructed, its row is ours.
# - Our own default, suspiciousness, was developed while looking at ASR on models of this kind, and its `mu` settled on
#   these very ones (`data/claims.md` says how), so its rows are not as blind as the others'. The fairer tests are
#   second and third trainings, which took no part: [notebook 12](12_mu.ipynb).
# - D3, LMR, FT-SAM and NFT are written from summaries of their papers, and *shift unlearning* is our own: its settings,
#   too, were found on models of this kind. What it does on others stands in section 7 of
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
asr_fall, acc_fall = (rows.asr_before - rows.asr_after).clip(lower=0), (rows.acc_before - rows.acc_after).clip(lower=0)
ratings = 50 * (asr_fall / 100 - acc_fall / 100 + 1)
checks.same(
    torch.tensor(ratings.to_numpy()).nan_to_num(), torch.tensor(rows.der.to_numpy()).nan_to_num(), "the formula above"
)

points = list(zip(attacked.asr, attacked.acc_lost, strict=True))
unbeaten = [not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points) for p in points]
checks.same(torch.tensor(unbeaten).double(), torch.tensor(front(attacked)).double(), "the definition, word by word")
print("beaten by nobody:", ", ".join(name for name, kept in zip(attacked.index, unbeaten, strict=True) if kept))

needed = 100 / 2 / 0.2 / 10  # 50 held-back images, a fifth of 250, over ten classes
checks.same(needed, 25, "100 / n <= 2")

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
