# %% [markdown]
# # 12 · Mu
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/12_mu.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/12_mu.ipynb)
#
# At the end of this notebook you know what the threshold `mu` costs and buys on every attack of the series, and whether
# clean images alone can choose it.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417) prunes where the score lies above mean + `mu` standard
# deviations of its layer. **The formula of the score is reconstructed from the paper's summary.**

# %% [markdown]
# > **You will learn**
# > - why one number orders all filters of a network, and what `mu` cuts from that order
# > - how wide the road is between "the backdoor stays" and "the accuracy goes"
# > - whether a rule that sees clean images only finds it
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb) · **minutes to read**: 15 · **to run**: printed at
# > the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model and a hundred clean images with their labels | chooses `mu`, prunes |
# | evaluator | test set and trigger | reports ACC and ASR; plays the oracle of section 4 |

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
# | prune where $S_i > \overline{S} + \mu \, \mathrm{std}(S)$, per layer | `nbtools.defender.pruning.threshold` |
# | (not there) a rule for $\mu$ | `nbtools.defender.ChosenMu` |
# | many values of it on many models | `python -m nbtools sweep data/grids/mu.yaml` |

# %% [markdown]
# ## 1. One number for every filter
#
# Write the rule the other way round: a filter falls as soon as `mu` is below
#
# $$z_i = \frac{S_i - \overline{S}}{\mathrm{std}(S)}$$
#
# with mean and standard deviation of its own layer. So $z$ puts all filters of the network into *one* order, and `mu`
# is where that order is cut. (A narrow layer has a low ceiling: of $n$ numbers none lies further than
# $(n - 1) / \sqrt n$ above the mean, 3.75 for sixteen filters, 7.9 for 64.)


# %%
def standardised(scores):
    """z of every filter, one vector over the layers, and the name of each filter's layer."""
    z = torch.cat([(values - values.mean()) / values.std() for values in scores.values()])
    return z.cpu(), [layer for layer, values in scores.items() for _ in values]


parts = {model.name: defence.components(model.model, clean) for model in models}
scores = {name: defence.scores(of_model) for name, of_model in parts.items()}
z, layers = standardised(scores[poisoned.name])
for mu in mus:
    assert int((z > mu).sum()) == threshold(scores[poisoned.name], mu).count
counts = pd.DataFrame({model.name: [threshold(scores[model.name], mu).count for mu in mus] for model in models}, mus)
counts.rename_axis("mu").T

# %% [markdown]
# > **Predict first.** Of normally distributed scores 2.3 % lie above two standard deviations, whatever the layer. Will
# > the poisoned model's layers lose equal shares?

# %%
per_layer = pd.DataFrame({mu: threshold(scores[poisoned.name], mu).by_layer() for mu in mus if mu <= 4})
sizes = pd.Series(layers).value_counts()
shares = 100 * per_layer.div(sizes.reindex(per_layer.index), axis=0)
figure, axis = plt.subplots(figsize=(8, 0.24 * len(shares) + 1.2))
plots.heat(axis, shares, "share of the layer's filters (%)", ".1f", (0, 20))
axis.set(xlabel="mu", ylabel="")
axis.set_title(f"{poisoned.name}: where the filters fall")
plots.show(figure, "Heat map of the share of each layer's filters that each mu prunes.")

# %% [markdown]
# ## 2. What it costs, what it buys
#
# > **Predict first.** ASR falls as `mu` falls, and so does ACC. Which falls first on the way down, and is there a
# > stretch where only one of them has?

# %%
rows = []
for model in models:
    for draw in range(draws):
        for mu in mus:
            row = run.defend(model, replace(defence, mu=mu), samples_per_class, draw=draw, glance=True)
            rows.append({"mu": mu, **row})
rows = pd.DataFrame(rows)
saved = run.save_rows(rows, "12_mu")


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
    axes[0, 0].legend(frameon=False, fontsize=9, loc="center right")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


plots.show(
    bands(rows, f"ACC and ASR after pruning (bands: draws, {draws}; dotted: before)"),
    "ACC and ASR against mu for the poisoned model and for its clean twin.",
)
rows.pivot_table(index="model", columns="mu", values=["acc_after", "asr_after"], sort=False).round(1)

# %% [markdown]
# Right of the cliff of ASR the backdoor stays; left of the cliff of ACC the model goes. The road lies between them. On
# the clean twin there is no first cliff, and every filter that falls is a price.

# %% [markdown]
# ## 3. One filter after the other
#
# The order of $z$, walked down filter by filter. Marked on top: where each `mu` would stop.

# %%
order = z.argsort(descending=True)
names = list(dict.fromkeys(layers))
starts = {name: layers.index(name) for name in names}


def first(k):
    """The mask of the k filters with the highest z."""
    gone = torch.zeros(len(z), dtype=torch.bool)
    gone[order[:k]] = True
    return Mask({n: gone[starts[n] : starts[n] + len(s)].to(s.device) for n, s in scores[poisoned.name].items()})


above_three = threshold(scores[poisoned.name], 3).pruned
assert all(torch.equal(mask, above_three[n]) for n, mask in first(int((z > 3).sum())).pruned.items())
steps = sorted({*range(11), *range(12, most + 1, 4)})
walk = []
for k in steps:
    after = poisoned.glance(pruned_copy(poisoned.model, first(k)))
    walk.append({"pruned": k, "acc": after.acc, "asr": after.asr})
walk = pd.DataFrame(walk)
moved = tac(poisoned.model, draw_clean(run.splits.test, 20, seed=seed), poisoned.trigger)
shown = [(layers[i], int(i) - starts[layers[i]]) for i in order[:10].tolist()]
where = {name: values.argsort(descending=True).argsort() for name, values in moved.items()}
pd.DataFrame(
    {
        "layer": [name for name, _ in shown],
        "filter": [number for _, number in shown],
        "z": z[order[:10]].round(decimals=1),
        "rank by TAC in its layer": [f"{int(where[name][number]) + 1} of {len(where[name])}" for name, number in shown],
    },
    index=range(1, 11),
)


# %%
def curve(k=None):
    """ACC and ASR against the number of pruned filters, with a mark at k, the last filter's name on top."""
    figure, axis = plt.subplots(figsize=(8.5, 3.6))
    axis.plot(walk.pruned, walk.acc, "o-", ms=4, color=plots.CLEAN, label="ACC")
    axis.plot(walk.pruned, walk.asr, "s-", ms=4, color=plots.POISONED, label="ASR")
    last = np.inf
    for mu in sorted(mus):  # the marks come from the right
        count = int((z > mu).sum())
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
    axis.set(xlabel="filters pruned, the highest z first", ylabel="percent", ylim=(-3, 103))
    axis.set_title(title, pad=18)
    axis.legend(frameon=False, loc="center right")
    return figure


if slider:
    import ipywidgets

    alt = "ACC and ASR against the number of pruned filters; the slider's line marks one number."
    ipywidgets.interact(lambda k: plots.show(curve(k), alt), k=ipywidgets.IntSlider(0, 0, most))
else:
    plots.show(curve(), "ACC and ASR against the number of filters pruned, the most suspicious first.")

# %% [markdown]
# The table above the curve is the evaluator's: how far each of the first ten filters is moved by the trigger, ranked
# within its layer. A score that is right prunes low ranks first. (On the committed page three of the ten are. Most of
# the rest are hardly moved by the trigger, and cost next to nothing: the blue line does not fall where they go.)

# %% [markdown]
# ## 4. Can clean images choose?
#
# The defender sees the blue line alone, and of it only what a hundred images show, in steps of one point. The plainest
# rule: walk `mu` down and stop before the accuracy on the clean images falls by more than `allowed`.

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

# %%
both = []
for model in models:
    for draw in range(draws):
        row = run.defend(model, rule, samples_per_class, draw=draw, glance=True)
        both.append({"who": "the rule", **row})
fixed = rows[rows.mu.isin([2.0, 2.5])].assign(who=lambda table: table.mu.map("mu {:g}".format))
with_der = rows[rows.attack != "none"]
oracle = with_der.loc[with_der.groupby(["model", "draw"]).der.idxmax()].assign(who="oracle (best DER)")
compared = pd.concat([pd.DataFrame(both), fixed, oracle])
compared["ACC lost"] = compared.acc_before - compared.acc_after
table = compared.groupby(["model", "who"], sort=False)[["ACC lost", "asr_after", "der", "pruned"]].mean()
table.rename(columns={"asr_after": "ASR left", "der": "DER"}).round(1)

# %% [markdown]
# ## 5. Four attacks and a clean network, two trainings of each
#
# From here on the committed table of a sweep (`data/grids/mu.yaml`): CIFAR-10, width 16, seeds 0 and 1 of data, initial
# weights and training (BadNets and Blended at 1 %: seed 0), three draws each, the first 2,000 test images.

# %%
sweep = published.results("mu_cifar10_width16_seeds")
sweep["ACC lost"] = sweep.acc_before - sweep.acc_pruned
learned = sweep[(sweep.asr_before >= 50) | (sweep.attack == "none")]
left_out = sorted(set(zip(sweep.model, sweep.seed, strict=True)) - set(zip(learned.model, learned.seed, strict=True)))
print("backdoor not learned, left out:", left_out or "none")
with_mu = learned[(learned.rounds == 1) & (learned.alive == 0)]
plots.show(
    bands(with_mu, "CIFAR-10: ACC and ASR after pruning alone (bands: seeds and draws; dotted: before)", 3),
    "ACC and ASR against mu for each attack and the clean model: means and ranges over seeds and draws.",
)

# %% [markdown]
# Read the panels from right to left. A patch (BadNets) leaves a wide road; a trigger that is blended into the whole
# image leaves none that is wide enough for every draw.
#
# Now the question of this notebook. Fixed values; two other ways to take the threshold [ours]; the rule with three
# allowances; and two oracles that look at the trigger: one that takes the best `mu` of each row, and one that takes the
# best fixed `mu` over all attacks *but the one that it is judged on*, so that no model had a say in its own threshold.
#
# - *twice*: a second time over the filters that are left (`rounds=2`): what stands out far no longer covers the rest.
# - *living*: without the filters that weight decay has all but killed, and without the first convolution
#   (`alive=0.25, first=False`). [Notebook 13](13_open_questions.ipynb) is why.

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

# %%
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
axis.set_title("The rule chooses no better than a number; here twice and living are better lines")
axis.legend(frameon=False, loc="lower left")
plots.show(
    figure,
    "ASR left against ACC lost: fixed mu as lines, in one round and in two, the rule as squares, oracles as stars.",
)

# %% [markdown]
# And with the fine-tuning that follows, where it was measured:

# %%
tuned = learned[(learned.fine_tune == "FineTune") | (learned["like.fine_tune"] == "FineTune")].copy()
tuned["who"] = tuned.mu.map("mu {:g}".format).where(tuned.defence == "Suspiciousness", "rule, 3 % allowed")
tuned["who"] = tuned.who.where(tuned.rounds != 2, "twice, " + tuned.who)
tuned["who"] = tuned.who.where(~(tuned.alive > 0), "living, " + tuned.who)
tuned["ACC lost"] = tuned.acc_before - tuned.acc_after
per_model = tuned.groupby(["who", "model"])[["ACC lost", "asr_after"]].mean().unstack("who")
per_model.rename(columns={"asr_after": "ASR left"}).round(1)

# %%
summary = tuned[tuned.attack != "none"].groupby("who")[["ACC lost", "asr_after", "der"]].mean()
summary["worst ASR"] = tuned[tuned.attack != "none"].groupby("who").asr_after.max()
summary["clean: ACC lost"] = tuned[tuned.attack == "none"].groupby("who")["ACC lost"].mean()
summary.rename(columns={"asr_after": "ASR left", "der": "DER"}).round(1)

# %% [markdown]
# **The default.** It was 2.5 until these rows were there. At 2 the whole defence leaves a third less of the ASR for one
# more point of ACC, and its DER is four points higher. That holds for the trainings with seed 0, which had served
# development, and, by as much, for those with seed 1, which nobody had looked at (exercise 2 asks for it). So it is 2
# now, for every attack. A third training of each, made after that choice, says it louder: over the four attacks 2.5
# leaves 42 % of the ASR, 2 leaves 21, for a third of a point more, and DER 87 stands against 77 (seed 2 in the last
# table of notebook 13). Two things speak against it. The price stands in the last column: a network with nothing to
# hide loses twice as much, and the third training's clean one 3.6 points instead of 0.6. And 2 is a compromise, not a
# held-out choice: whichever attack is left out, the others ask for 1.75 or, without Blended, for 2.25; judged on the
# attack left out that choice is worse than 2, in ACC and in ASR. All of this is of narrow networks, with the margin's
# saliency and fine-tuning with folds; the last figure of this section is of wide ones.
#
# **The rule** lies on the line of the fixed thresholds, with 1 % allowed a little above it: clean images choose no
# better than a number does. On clean networks it costs half as much as `mu` 2. But what a defender would fear most is
# its worst row, and that is the highest of all: where the accuracy wavers early by chance, it stops early. So it is
# offered (`defend --defence chosen_mu`), and not the default.
#
# **Twice** has the cheaper end of the line: at 2.75 it leaves what one round leaves at 2.25, for half the ACC, and for
# half the price on a clean network; its DER is no higher than that of `mu` 2. **Living** does here what the plain
# threshold does. Notebook 13 puts both to a test, on networks that took no part in any choice: neither passed.

# %% [markdown]
# **At full width** it is not the threshold that matters most. Pruning alone on networks of width 64 (committed rows, a
# hundred images, three draws, the first 2,000 test images), with two forms of the saliency:

# %%
full = published.results("full_width_cifar10").query("kind == 'prune' and alive == 0 and n == 100")
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

# %% [markdown]
# A patch (`badnets`) goes at every threshold up to 3. Of Blended and WaNet the margin's saliency leaves far more than
# that of cross-entropy, for `mu` from 1.5 to 2.5 (WaNet: up to 4). So the form was settled anew at full width, by a
# rule that was written first, and with it what follows the pruning: cross-entropy, a tuning of the last stage alone,
# and again 2 ([lab notes](../data/lab_notes.md#full-width)). That is the default.

# %% [markdown]
# ## 6. Exercises
#
# **Exercise 1** (easy, 5 minutes). How many filters would `mu = 2` prune if every layer's score were normally
# distributed? Use the number of filters of this network, `len(z)`, and the normal distribution's tail.

# %%
expected = ...  # your answer, a number of filters

checks.same(expected, len(z) * 0.0227501, "the tail beyond two standard deviations, on one side", 0.02)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Does the verdict hold on the trainings that nobody had looked at? From `tuned`,
# the poisoned models of seed 1: the mean DER (column `der`) at `mu` 2 minus that at `mu` 2.5.

# %%
gain = ...  # your answer, points of DER

unseen = tuned[(tuned.seed == 1) & (tuned.attack != "none")].groupby("who").der.mean()
difference = float(unseen["mu 2"] - unseen["mu 2.5"])
checks.same(gain, difference, "seed 1 only, no clean models, the two fixed thresholds", 0.01)

# %% [markdown]
# **Exercise 3** (hard, 15 minutes). A hundred images show accuracy in steps of one point. If a copy has truly lost
# three points, from 85 % to 82 %, in what share of draws of a hundred images does it still pass a rule that allows
# three points against the 85 images that the model got right? (Each image is right with probability 0.82,
# independently.)

# %%
passes = ...  # your answer, a share

checks.same(passes, 0.5626, "at least 82 of 100: the binomial distribution's upper tail", 0.02)

# %% [markdown]
# ## 7. What we saw, and what this does not show
#
# - `mu` cuts one order of all filters; what makes it hard to choose is not the order but where the road ends.
# - The road differs from attack to attack, and from training to training of the same attack. A fixed `mu` is a bet on
#   the attacks that one has seen.
# - Clean images can tell when the model goes. They can't tell when the backdoor has gone.
# - It does **not** show the best `mu` for another network or data set, nor for a defender with other images. One width,
#   ten epochs, two seeds.
#
# **For the reading group**
# 1. A rule that stops when clean accuracy falls prunes more from a redundant network. Is that what one wants?
# 2. What could a defender measure on clean images that moves when the *backdoor* goes?
# 3. Our default was settled while looking at ASR on models like these. What would a blind choice have looked like?
#
# **Further reading**: Zheng et al., CLP ([2208.03111](https://arxiv.org/abs/2208.03111)), with the same kind of
# threshold, u = 3, and a figure over it. Wu and Wang, ANP ([2110.14430](https://arxiv.org/abs/2110.14430)), who show
# both accuracies over the threshold.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
from scipy.stats import binom, norm

expected = len(z) * norm.sf(2)
checks.same(expected, len(z) * 0.0227501, "norm.sf(2)", 0.02)
print(f"normal scores: {expected:.0f} filters; here {int((z > 2).sum())}")

mine = tuned[(tuned.seed == 1) & (tuned.attack != "none")]
gain = float(mine[mine.who == "mu 2"].der.mean() - mine[mine.who == "mu 2.5"].der.mean())
checks.same(gain, difference, "the difference of two means", 0.01)
print(f"on the trainings with seed 1: {gain:+.1f} points of DER")

passes = binom.sf(81, 100, 0.82)
checks.same(passes, 0.5626, "P(at least 82)", 0.02)
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
