# %% [markdown]
# # 11 · Sample count
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/11_sample_count.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/11_sample_count.ipynb)
#
# At the end of this notebook you know how many clean images the suspiciousness score needs, which of its four terms is
# hurt first when they grow few, and whether ten images are enough, as its paper says.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417): "ten clean samples for the CIFAR-10 dataset". Ten in all,
# or ten a class? Both are tried here. **The formula of the score is reconstructed from the paper's summary.**

# %% [markdown]
# > **You will learn**
# > - which measurements of a filter need many images, and which need none
# > - how far the result hangs on *which* images the defender happens to own
# > - what the rivals do with as few
# >
# > **Read before**: [06 · Suspiciousness](06_suspiciousness.ipynb), [10 · Comparison](10_comparison.ipynb) ·
# > **minutes to read**: 15 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model and 10 to 500 clean images with their labels | scores, prunes, tunes |
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
counts = [1, 2, 5, 10, 25, 50]  # clean images of each class
n_total = 10  # the other setting: so many clean images in all
many = 0  # images a class that a term's truth is measured with; 0 is what the defender's pool holds
draws = 10  # draws of the clean images in sections 1 and 2
whole_draws = 0  # draws for the whole defence and its rivals, section 3; 0 is what the profile says

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from scipy.stats import spearmanr

import nbtools
from nbtools.data.images import draw_clean
from nbtools.defender import Suspiciousness
from nbtools.lab import tables as published
from nbtools.lab.comparison import contenders
from nbtools.series import checks, plots

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
whole_draws = whole_draws or run.profile.draws
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
defence = Suspiciousness()
prune_only = replace(defence, fine_tune=None)
many = many or int(torch.bincount(run.splits.reserved.labels).min())
pd.DataFrame({model.name: model.before.row() for model in (poisoned, clean_twin)}).T.round(1)

# %% [markdown]
# | in the paper | here |
# |---|---|
# | ten clean samples | `samples_per_class`, or `n_total` in all: `nbtools.data.images.draw_clean` |
# | the four terms | `nbtools.defender.components.components` |
# | the defence | `nbtools.defender.Suspiciousness` |
# | many runs of it | `python -m nbtools sweep data/grids/sample_count.yaml` |

# %% [markdown]
# ## 1. Which term is hurt first?
#
# Three of the four terms are means over the clean images, so they are *estimates*; the spectral norm reads weights
# alone and stays as it is. How good an estimate is, a rank correlation tells: over the filters of a layer, between what
# a few images say and what all images of the defender's pool say. By hand, for one layer and ten images:
#
# > **Predict first.** Saliency comes from gradients, activation norm from the size of maps, correlation from pairs of
# > maps. Which needs the most images?

# %%
TERMS = ("saliency", "activation", "correlation")
pool = draw_clean(run.splits.reserved, many, seed=seed)
truth = defence.components(poisoned.model, pool)
ten = defence.components(poisoned.model, run.draw(n_total=n_total))
layer = "layer3.0.conv2"


def ranks(values):
    """0 for the smallest, and so on."""
    return values.argsort().argsort().double()


for term in TERMS:
    few, all_of_them = ranks(ten.of(term)[layer]), ranks(truth.of(term)[layer])
    by_hand = float(torch.corrcoef(torch.stack([few, all_of_them]))[0, 1])
    by_scipy = float(spearmanr(ten.of(term)[layer].cpu(), truth.of(term)[layer].cpu()).statistic)
    assert abs(by_hand - by_scipy) < 1e-6
    print(f"{term:<12} {n_total} images against {len(pool):,}, {len(few)} filters of {layer}: {by_hand:.2f}")

# %%
settings = {f"{n_total}\nin all": {"n_total": n_total}} | {f"{n}\na class": {"samples_per_class": n} for n in counts}
true_score = defence.scores(truth)
rows = []
for name, amount in settings.items():
    for draw in range(draws):
        parts = defence.components(poisoned.model, run.draw(**amount, draw=draw))
        found = {term: parts.of(term) for term in TERMS} | {"the score": defence.scores(parts)}
        wanted = {term: truth.of(term) for term in TERMS} | {"the score": true_score}
        for term, values in found.items():
            each = [spearmanr(values[n].cpu(), wanted[term][n].cpu()).statistic for n in values]
            rows.append({"images": name, "draw": draw, "term": term, "rank correlation": pd.Series(each).mean()})
stability = pd.DataFrame(rows)
saved = run.save_rows(stability, "11_stability")
figure, axis = plt.subplots(figsize=(8, 3.6))
sns.lineplot(stability, x="images", y="rank correlation", hue="term", style="term", markers=True, dashes=False,
             errorbar=("pi", 100), ax=axis)  # fmt: skip
axis.set(xlabel="clean images", ylim=(None, 1.01))
axis.set_title(f"Agreement with {len(pool):,} images, mean over the layers (bands: {draws} draws)")
axis.legend(frameon=False, fontsize=9)
plots.show(figure, "Rank correlation of each term with its value on the whole pool against the number of clean images.")
agreement = stability.pivot_table(index="term", columns="images", values="rank correlation", sort=False)
agreement.rename(columns=lambda name: name.replace("\n", " ")).round(2)

# %% [markdown]
# The lowest line is the term that is hurt first. Whether that hurts the *defence* is another question: the score needs
# the few filters that stand out, not the order of the many that do not.

# %% [markdown]
# ## 2. Pruning alone
#
# Ten draws of each amount, a mask from each, and what it leaves, on the first test images.
#
# > **Predict first.** Will fewer images prune too little, too much, or the wrong filters?

# %%
rows = []
for name, amount in settings.items():
    for draw in range(draws):
        row = run.defend(poisoned, prune_only, **amount, draw=draw, glance=True)
        rows.append({"images": name, **row})
alone = pd.DataFrame(rows)
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.5))
for axis, column, label in zip(axes, ("acc_after", "asr_after"), ("ACC (%)", "ASR (%)"), strict=True):
    sns.stripplot(alone, x="images", y=column, ax=axis, color=plots.BLUE, alpha=0.6, size=5, jitter=0.15)
    sns.pointplot(alone, x="images", y=column, ax=axis, color=plots.RED, errorbar=None, markers="_", linestyles="none",
                  markersize=22)  # fmt: skip
    axis.axhline(alone[column.replace("after", "before")].iloc[0], color=plots.GREY, ls=":", lw=1)
    axis.set(xlabel="clean images", ylabel=f"{label} after pruning")
axes[1].set_ylim(-3, 103)
figure.suptitle(f"{poisoned.name}: pruning at mu {defence.mu:g} (dots: {draws} draws; bars: means; dotted: before)",
                x=0.01, ha="left")  # fmt: skip
plots.show(figure, "ACC and ASR after pruning for each amount of clean images, a dot for each draw.")
by_amount = alone.groupby("images", sort=False)[["acc_after", "asr_after", "pruned"]].agg(["mean", "min", "max"])
by_amount.rename(index=lambda name: name.replace("\n", " ")).round(1)

# %% [markdown]
# Look at the spread before you look at the means: a defender owns *one* draw. And look at `pruned`: the threshold
# counts standard deviations of the layer, so poorer estimates hardly change how many filters fall, but *which*.

# %% [markdown]
# ## 3. The whole defence, and rivals that can run with as few
#
# Now the tuning of the last stage that follows the pruning joins in; beside it the rivals of notebook 10 that learn in
# seconds. (AWM is in section 4; ANP and FMP, which take minutes a row, stand in notebook 10 with a hundred images.) CLP
# needs no image: one row for all amounts.

# %%
line_up = contenders(run.profile)
names = ["suspiciousness", "CLP", "RNP", "MNP", "NAD", "fine-tuning"]
rows = []
for name in names:
    for images, amount in settings.items():
        for draw in range(whole_draws if name != "CLP" else 1):
            row = run.defend(poisoned, line_up[name].defence, **amount, draw=draw, glance=True)
            rows.append({"name": name, "images": images, **row})
whole = pd.DataFrame(rows)
saved = run.save_rows(pd.concat([alone.assign(part="pruning alone"), whole.assign(part="whole")]), "11_sample_count")
colors = dict(zip(names, (plots.RED, plots.GREY, plots.PINK, plots.PURPLE, plots.BLUE, "black"), strict=True))


def against_images(table, title):
    """ACC and ASR of each defence against the amount of clean images, means and the range over the draws."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for axis, column, label in zip(axes, ("acc_after", "asr_after"), ("ACC (%)", "ASR (%)"), strict=True):
        sns.lineplot(table, x="images", y=column, hue="name", style="name", palette=colors, markers=True, dashes=False,
                     errorbar=("pi", 100), err_kws={"alpha": 0.1}, ax=axis, legend=axis is axes[1])  # fmt: skip
        axis.axhline(table[column.replace("after", "before")].iloc[0], color=plots.GREY, ls=":", lw=1)
        axis.set(xlabel="clean images", ylabel=label)
    axes[1].set_ylim(-3, 103)
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.suptitle(title, x=0.01, ha="left")
    return figure


plots.show(
    against_images(whole, f"{poisoned.name}: after the repair (draws: {whole_draws}; dotted: before)"),
    "ACC and ASR after the repair against the amount of clean images, a line for each defence.",
)
table = whole.pivot_table(index="name", columns="images", values=["acc_after", "asr_after"], sort=False)
table.rename(columns=lambda name: name.replace("\n", " ")).round(1)

# %% [markdown]
# A flat red line in the right panel would mean that images hardly matter to the ranking; what they matter to, the left
# panel tells. Rivals that *learn* which filters to prune, or learn the weights anew, have more to ask of an image.

# %% [markdown]
# ## 4. Three attacks on CIFAR-10, ten draws
#
# What follows does not come from this run. It is the committed table of a sweep (`data/grids/sample_count.yaml`) over
# the models that come with the checkout: real CIFAR-10, width 16, ten draws of each amount, the first 2,000 test
# images. The same command on your machine writes the same rows.

# %%
sweep = published.results("sample_count_cifar10_width16")
in_all, a_class = sweep.n_total.map("{} in all".format), sweep.samples_per_class.map("{} a class".format)
sweep["images"] = in_all.where(sweep.n_total > 0, a_class)
order = ["10 in all", *(f"{n} a class" for n in sorted(sweep.samples_per_class.unique()) if n)]
score = sweep[(sweep.defence == "Suspiciousness") & (sweep.fine_tune == "FineTune")]
figure, axes = plt.subplots(2, 2, figsize=(11, 6), sharex=True, sharey="row")
for column, (stage, name) in enumerate({"pruned": "pruning alone", "after": "pruning and fine-tuning"}.items()):
    for row, value in enumerate(("asr", "acc")):
        axis = axes[row, column]
        sns.lineplot(score.assign(images=pd.Categorical(score.images, order)), x="images", y=f"{value}_{stage}",
                     hue="model", style="model", markers=True, dashes=False, errorbar=("pi", 100),
                     err_kws={"alpha": 0.12}, ax=axis, legend=row == column == 0)  # fmt: skip
        axis.set(xlabel="", ylabel=f"{value.upper()} (%)", title=name if not row else "")
        axis.tick_params(axis="x", rotation=30)
axes[0, 0].legend(frameon=False, fontsize=8)
figure.suptitle(f"CIFAR-10, mu {score.mu.iloc[0]:g} (lines: means; bands: ten draws)", x=0.01, ha="left")
plots.show(figure, "ASR and ACC against the number of clean images for three attacks, pruned alone and fine-tuned too.")

# %% [markdown]
# Its rivals with the same images, means over ten draws (five for AWM, which was made for one image a class, and for all
# on WaNet; three for FMP; two for ANP, with 500 of its 2,000 iterations):

# %%
rivals = sweep[(sweep.defence != "Suspiciousness") | (sweep.fine_tune == "FineTune")]
means = rivals.pivot_table(index=["model", "defence"], columns="images", values=["asr_after", "acc_after"])
means = means.reindex(columns=order, level="images")
means.map(lambda mean: "" if pd.isna(mean) else f"{mean:.0f}")

# %% [markdown]
# An ASR that is low because nothing works any more is no repair: read both halves of a row. So read, two of them live
# with ten images: the score, whose accuracy hardly moves, and AWM, which removes more of Blended and pays with a
# sixth to a fifth of the accuracy. MNP, RNP, NAD and ANP destroy the network where images are few (ANP's two draws of
# five a class are one network destroyed and one left as it was). Fine-tuning removes nothing before there are
# hundreds, and FMP hardly anything even then.

# %% [markdown]
# ## 5. The paper's two claims
#
# **"ASR falls by more than half with ten clean samples."** Ten in all, or ten of each class? In how many of the ten
# draws is at least half of the ASR gone, with the whole defence (left) and with pruning alone (right):

# %%
ten = score[score.images.isin(["10 in all", "10 a class"])]
halved = ten.assign(
    **{"whole": ten.asr_after < ten.asr_before / 2, "pruning alone": ten.asr_pruned < ten.asr_before / 2}
)
verdict = halved.pivot_table(index="model", columns="images", values=["whole", "pruning alone"], aggfunc="sum")
verdict[["whole", "pruning alone"]].astype(int)

# %% [markdown]
# **"About three times faster than the baselines."** Median seconds of each defence with a hundred images, one thread,
# the rows of notebook 10's committed table, and how many times the whole of suspiciousness and its pruning alone fit
# into them (pruning alone: a hundred images, the sweep's rows):

# %%
table = published.results("comparison_cifar10_width16").query("samples_per_class == 10")
seconds = table.groupby("name").seconds.median().sort_values()
untuned = sweep[(sweep.defence == "Suspiciousness") & sweep.fine_tune.isna()]  # None is read as missing
alone_seconds = untuned[untuned.images == "10 a class"].seconds.median()
speed = pd.DataFrame(
    {
        "seconds": seconds,
        "times as long as the whole": seconds / seconds["suspiciousness"],
        "times as long as pruning alone": seconds / alone_seconds,
    }
)
print(f"suspiciousness, pruning alone: {alone_seconds:.2f} s")
speed.round(2)

# %% [markdown]
# So the first claim holds with ten images of each class, in every draw and on all three attacks. With ten in all it
# holds for the patch, and is a matter of luck for the other two. The second: against the paper's own four baselines
# (NAD, ANP, CLP, AWM) the sentence holds for two of them, ANP and AWM, and for the whole defence; NAD with so few
# images takes less, and CLP, which looks at no image, a hundredth. Scoring and pruning alone take less than half the
# time of fine-tuning or fine-pruning, and a sixth or less of the others that look at images. Most of the whole's time
# is the fine-tuning with folds that these rows were measured with.
#
# **At full width** (committed rows again: networks of width 64, means over the draws, the first 2,000 test images; of
# shift unlearning with a hundred images all 10,000), for the score with its defaults of now, and for *shift
# unlearning*, our own repair, which section 7 of [notebook 13](13_open_questions.ipynb) explains:

# %%
score64 = published.results("score_defaults_cifar10").query("width == 64 and tuning == 'last' and mu == 2")
score64 = score64[score64.saliency == "cross_entropy"].assign(defence="suspiciousness")
score64["images"] = score64.n_total.replace(0, 100)
shift64 = published.results("shift_unlearning_cifar10").query("width == 64").assign(defence="shift unlearning")
wide = pd.concat([score64, shift64])
wide["ACC lost"], wide["ASR left"] = wide.acc_before - wide.acc, wide.asr.where(wide.model != "clean")
by_images = wide.pivot_table(index=["defence", "model"], columns="images", values=["ASR left", "ACC lost"], sort=False)
by_images.map(lambda mean: "" if pd.isna(mean) else f"{mean:.1f}")

# %% [markdown]
# So at full width the score's first claim holds for three of four attacks: with ten images in all (two draws) more than
# half of the ASR goes, but not of Blended. Shift unlearning removes Blended as well, with ten images in eleven of
# twelve rows; in the twelfth, one draw of WaNet, it suspects nobody and leaves 97 %. (Most of its rows with ten images
# are of an earlier rule for who is suspected, see `data/lab_notes.md`.)
#
# The second claim holds for all that were timed there: with a hundred images, on two cores, the whole takes 10 s, where
# RNP takes 45 in the same run, and in another MNP takes 61, NAD 66 and AWM some 450. (CLP was not timed; nor was a GPU
# at hand.)

# %% [markdown]
# ## 6. Exercises
#
# **Exercise 1** (easy, 5 minutes). What does an average draw hide? From `alone`: for each amount of images, the
# difference between the highest and the lowest ASR over the draws, a list in the order of `settings`.

# %%
spread = ...  # your answer

groups = alone.groupby("images", sort=False).asr_after
checks.same(
    spread if spread is ... else torch.as_tensor(spread).double(),
    torch.tensor((groups.max() - groups.min()).to_numpy()),
    "one number an amount: groupby without sorting, then max - min",
)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). The mean saliency over 50 images has, over random draws, a standard error. By how
# much should it fall when the images become four times as many, if the draws were independent?

# %%
factor = ...  # your answer

checks.same(factor, 2, "the standard error of a mean of n independent numbers goes with 1 / sqrt(n)")

# %% [markdown]
# **Exercise 3** (hard, 15 minutes). Which *filters* does a small sample lose? For draws of the smallest amount:
# the share of filters that a mask from the whole pool prunes and that the mask of draw 0 prunes too. (Use
# `prune_only.mask(parts)`; `mask.pruned` maps each convolution to its booleans.)

# %%
recall = ...  # your answer, a share in [0, 1]


def found_again(amount):
    """Of the filters that the whole pool's mask prunes, the share that this draw's prunes too."""
    mask, wanted = prune_only.mask(defence.components(poisoned.model, run.draw(**amount))), prune_only.mask(truth)
    both = sum(int((mask.pruned[n] & wanted.pruned[n]).sum()) for n in mask.pruned)
    return both / max(wanted.count, 1)


smallest = {"samples_per_class": min(counts)}
checks.same(recall, found_again(smallest), "count over all layers, then divide by what the whole pool's mask prunes")

# %% [markdown]
# ## 7. What we saw, and what this does not show
#
# - The spectral norm needs no image; of the other three the one with the lowest line in section 1 is hurt first.
# - Poor estimates prune about as many filters as good ones, and partly others: that costs ACC, and on the harder
#   attacks it leaves ASR.
# - With ten images in all the defence can still work, but a single draw may miss; means over draws hide that.
# - It does **not** show what happens with a hundred classes, where ten in all leave ninety classes unseen; nor with
#   images of another source than the training set's.
#
# **For the reading group**
# 1. A defender owns ten images. Is it better to have one of each class, or ten that the model is least sure of?
# 2. Why does the spread between draws matter more to a defender than the mean?
# 3. Would you trust a repair that was checked on the same hundred images that chose the filters?
#
# **Further reading**: Li et al., NAD ([2101.05930](https://arxiv.org/abs/2101.05930)), which starts from 5 % of the
# training set. Chai and Chen, AWM ([2207.04497](https://arxiv.org/abs/2207.04497)), made for one image a class.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
spread = [float(group.max() - group.min()) for _, group in alone.groupby("images", sort=False).asr_after]
checks.same(torch.tensor(spread).double(), torch.tensor((groups.max() - groups.min()).to_numpy()), "max - min")

factor = 4**0.5
checks.same(factor, 2, "sqrt(4)")

few = prune_only.mask(defence.components(poisoned.model, run.draw(min(counts)))).pruned
all_of_it = prune_only.mask(truth).pruned
recall = float(sum((few[n] & all_of_it[n]).sum() for n in few) / sum(m.sum() for m in all_of_it.values()))
checks.same(recall, found_again(smallest), "both / wanted")
print(f"{min(counts)} a class finds {100 * recall:.0f} % of the filters that {len(pool):,} images find")

# %% [markdown]
# Previous: [10 · Comparison](10_comparison.ipynb) · Next: [12 · Mu](12_mu.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
first, last = agreement.columns[0], agreement.columns[-1]
assert (agreement[last] > agreement[first]).all(), "more images should agree better"
assert agreement.loc["the score", last] > 0.8, "the score of many images should be that of all"
most = whole[(whole.name == "suspiciousness") & (whole.images == whole.images.iloc[-1])]
assert most.asr_after.mean() < most.asr_before.mean() / 2, "with the most images at least half of the ASR should go"
