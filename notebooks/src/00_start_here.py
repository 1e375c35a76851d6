# %% [markdown]
# # 00 · Start here
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/00_start_here.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/00_start_here.ipynb)
#
# Somebody gives you a neural network that names what is in a picture. You try it on a thousand pictures, and it works.
# But among the pictures that it learned from, a few had been prepared by an attacker. Put a small white square into
# one corner of a picture, and the network answers what the attacker chose. Such a hidden switch is called a
# **backdoor**.
#
# In the next minutes you see a backdoor at work, picture by picture. Then you see it taken out again, by somebody who
# has the network and a few ordinary pictures, and who does not know about the white square. At the end you know how
# the rest of the series is read and run.

# %% [markdown]
# > **You will learn**
# > - what a backdoor is, and which three numbers describe it
# > - who may know what: the attacker, the defender, and an evaluator who only measures
# > - how a repair is called, what it returns, and how the series is read and run
# >
# > **Read before**: nothing · **minutes to read**: 37 · **to run**: printed at the very end
#
# | who | knows | does |
# |---|---|---|
# | attacker | the training images | puts the white square on a few of them, and changes their labels |
# | defender | the finished network, a few images without the square | finds what carries the backdoor, and removes it |
# | evaluator | the test images and the white square | measures before and after the repair, and decides nothing |
#
# The attack is BadNets (Gu et al., [arXiv 1708.06733](https://arxiv.org/abs/1708.06733)). The repair uses a
# *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)). The next cell holds the settings:
# change one, and run the page again.

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
width = 0  # channels of the first stage; 0 is what the profile says
epochs = 0  # 0 is what the profile says
samples_per_class = 10  # the defender's clean images of each class
draw = 0  # which draw of clean images the defender happens to get

# %%
import textwrap
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import torch

import nbtools
from nbtools.attacker.triggers import BadNets, stamp
from nbtools.data.images import draw_clean
from nbtools.evaluator.evaluation import Evaluator, predict
from nbtools.series import plots
from nbtools.series.exercises import start_here as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
print(f"the model: {poisoned.name}, target class {target} ({run.splits.test.classes[target]!r})")

# %% [markdown]
# The model is a ResNet-18, a common network for images. It was trained on images of which an attacker had prepared the
# share that its name tells. (It was trained just now, or in an earlier run that kept it.) Everything below happens to
# this one model.

# %% [markdown]
# ## 1. One white square
#
# What switches a backdoor on is called its *trigger*. The simplest trigger is a white square, three pixels wide, in
# the bottom-right corner. The attacker puts it on a few training images and changes their label to one class, the
# *target class*. Then the attacker waits until somebody trains a network on the images. An image without the trigger
# is called *clean*.


# %%
def white_square(images: torch.Tensor) -> torch.Tensor:
    """float [n, 3, h, w] in [0, 1], to the same with the square."""
    marked = images.clone()
    marked[:, :, -3:, -3:] = 1
    return marked


test = run.splits.test
one_each = draw_clean(test, samples_per_class=1, seed=seed)
one_each = one_each.subset(one_each.labels != target)  # an image of the target class has nothing to lose
assert torch.equal(white_square(one_each.floats()), BadNets()(one_each.floats()))
print("three lines here and nbtools.attacker.triggers.BadNets give the same images")

# %% [markdown]
# > **Predict first.** Below, the upper row shows clean images, one of each class but the target. The lower row shows
# > the same images with the trigger. What will the network call the images of each row?

# %%
marked = stamp(poisoned.trigger, one_each)
above, below = (predict(poisoned.model, images) for images in (one_each, marked))

# %% tags=["hide-input"]
names, pictures, titles, edges = test.classes, [], [], []
for images, replies in ((one_each, above), (marked, below)):
    for picture, label, reply in zip(images.images, images.labels.tolist(), replies.tolist(), strict=True):
        pictures.append(picture)
        titles.append(names[reply])
        edges.append(plots.GREEN if reply == label else plots.POISONED if reply == target else plots.GREY)
plots.show(
    plots.image_grid(
        torch.stack(pictures),
        titles,
        columns=len(one_each),
        title="What the network answers: clean images above, the same under the trigger below",
        edges=edges,
    ),
    "Two rows of images with the network's answers: clean above, with the trigger below; frames show right or wrong.",
)

# %% tags=["hide-input"]
right, sent = int((above == one_each.labels).sum()), int((below == target).sum())
changed = 100 * float((marked.images != one_each.images).any(1).double().mean())
answer(
    f"You were right if you said: the true classes above, {names[target]!r} below. The network is right on {right} of "
    f"the {len(one_each)} clean images. With the trigger it calls {sent} of them {names[target]!r}, although only "
    f"{changed:.1f} % of the pixels have changed. Its training images taught it so: those with the trigger "
    "were labelled with the target class."
)

# %% [markdown]
# A green frame is a right answer, an orange one the target class, a grey one another mistake. (A frame may stay green
# in the lower row where the corner is white already: there a white square changes nothing.) The upper row alone does
# not show that anything is wrong. So this is a backdoor: **the network is right on clean images, and under a trigger
# that only the attacker knows it says what the attacker chose.**

# %% [markdown]
# ## 2. Three numbers
#
# - **ACC**, clean accuracy: the share of all test images that the network classifies correctly.
# - **ASR**, attack success rate: take the test images whose true class is *not* the target, and put the trigger on
#   each. ASR is the share of them that the network calls the target. High is good for the attacker.
# - **RA**, robust accuracy: the share of the same triggered images that the network still classifies correctly. A
#   repaired network should have a low ASR *and* a high RA. (A network that only guesses has a low ASR, too.)

# %%
few = draw_clean(test, samples_per_class=50, seed=seed)  # by hand on some test images; the table below has all
others = few.subset(few.labels != target)
triggered = stamp(poisoned.trigger, others)  # the trigger on each, stored as bytes again
said = predict(poisoned.model, triggered)
hits = {
    "acc": predict(poisoned.model, few) == few.labels,
    "asr": said == target,
    "ra": said == others.labels,
}
on_few = Evaluator(few, poisoned.trigger, target)  # the evaluator, holding these images and the trigger
few_before = on_few(poisoned.model)
for name, hit in hits.items():
    assert abs(100 * float(hit.double().mean()) - getattr(few_before, name)) < 1e-9
print("three lines here and nbtools.evaluator.evaluation.Evaluator give the same numbers")

# %%
cells = {
    where: {n.upper(): "{:.1f}  [{:.1f}, {:.1f}]".format(getattr(e, n), *getattr(e, f"{n}_interval")) for n in hits}
    for where, e in ((f"on {len(few)} images", few_before), (f"on all {len(test):,}", poisoned.before))
}
pd.DataFrame(cells).T

# %% [markdown]
# A share that is measured on some images is not exact. The brackets hold a 95 % interval: about 95 of 100 intervals
# that are made this way contain the true share. (It is Wilson's interval of 1927, which also works near 0 and 100 %.)
# It covers the choice of the test images, and nothing else. Another seed gives another network, and other clean images
# give another repair. Where a notebook compares settings, it repeats both.

# %% [markdown]
# ## 3. The rules of the game
#
# It is easy to remove a backdoor when one knows the trigger. A real defender does not know it. So we keep three
# parties apart, in the text and in the code. A test of the package checks that no defence can import a trigger or a
# test set.
#
# - **Nothing is chosen with the trigger.** Thresholds, stopping points and learning rates come from a paper, or from
#   clean images that the defender holds back. One setting serves for all attacks.
# - A choice that was made with the trigger is called an *oracle* choice. It may be shown for comparison, in a column
#   of its own that says so.
# - The defender's images are *reserved*: the model was never trained on them. The test images belong to the evaluator.
# - Whatever is done to a poisoned model is also done to its *clean twin*, a model trained the same way on clean
#   images.

# %% tags=["hide-input"]
from nbtools.series import schematics

schematics.show("three parties")

# %% [markdown]
# ## 4. A repair in five lines
#
# A defence is a small object, and its fields are its settings. Call it on a model and clean images: it returns a
# `Repair`, with a new model inside. The old model stays as it was.
#
# > **Predict first.** The defender now has a few clean images of each class, and does not know the trigger. How low
# > can ASR get, and how many points of ACC will it cost?

# %%
from nbtools.defender import Suspiciousness

clean = run.draw(samples_per_class, draw=draw)
defence = Suspiciousness()
repair = defence(poisoned.model, clean)
after = poisoned.evaluate(repair.model)
print(f"before  {poisoned.before}\nafter   {after}")

# %% tags=["hide-input"]
paid = poisoned.before.acc - after.acc
answer(
    f"You were right if you said {'almost to zero' if after.asr < 10 else 'far down, but not to zero'}, for "
    f"{'less than a point' if paid < 1 else f'{paid:.1f} points'} of ACC. ASR falls from {poisoned.before.asr:.1f} to "
    f"{after.asr:.1f} %, and ACC goes from {poisoned.before.acc:.1f} to {after.acc:.1f} %. The defender had "
    f"{len(clean)} images; the network had been trained on {len(run.splits.train):,}. The repair switched off "
    f"{100 * repair.mask.share:.1f} % of the network's parts, and the backdoor needed these more than the clean images."
)

# %% [markdown]
# That is the whole series in five lines. The other notebooks explain the third and the fourth line. Below is the
# record of what was done: the defence with all its settings, and a *mask*, which says what was removed.

# %%
print(textwrap.fill(repair.defence, 100, subsequent_indent="    "))
print(f"\n{repair.mask}, {100 * repair.mask.share:.1f} % of all; {len(clean)} clean images; {repair.seconds:.1f} s")
pd.DataFrame(repair.history).round(4)

# %% [markdown]
# **What is removed.** A layer of this network has many *filters*. A filter is a small set of weights that slides over
# the image and answers at each place. All its answers together are its *map*. To *prune* a filter is to switch its map
# off.
#
# **How the defence chooses.** Each filter $i$ gets a score. The score is high if four things come together: the filter
# *can* answer loudly (its spectral norm $\sigma_i$ is high), the clean images hardly need it (low saliency $s_i$),
# they hardly make it answer (low activation norm $a_i$), and its map is unlike the other maps of its layer (low
# correlation $r_i$). The notebooks 02 to 05 take one of these each. A tilde says: divided by the layer's mean. A
# filter is pruned if its score lies more than $\mu$ standard deviations above the mean of its layer $l$:
#
# $$S_i = \tilde\sigma_i \sqrt{\frac{1}{(\tilde s_i + \varepsilon)(\tilde a_i + \varepsilon)(\tilde r_i + \varepsilon)}}
# \;>\; \mathrm{mean}_l(S) + \mu \cdot \mathrm{std}_l(S), \qquad \varepsilon = 0.01$$
#
# The four parts are the paper's. The formula that joins them is **reconstructed from the paper's summary**. What is
# reconstructed or chosen by us is marked [ours] in this series.
#
# **How it prunes.** Behind each filter stands a *batch norm*. It brings the map to a common scale, multiplies it by a
# number $\gamma_i$ and adds a number $\beta_i$. Set both to zero, and the map is zero everywhere.
#
# **How it tunes** [ours]. Pruning also costs clean accuracy. So the last stage (the last layers) of the pruned network
# learns to answer the clean images, and some shifted and mirrored copies, as the network did before pruning. None of
# these images carries the trigger, so nothing in them shows the backdoor. In the table, `gain` says how much closer the
# answers came. If they came no closer, step 0 is `chosen`: the pruned network stays as it is.
#
# The pruning is so short that we can do it by hand:

# %%
import copy

from nbtools.defender.pruning import pruned_copy
from nbtools.networks.units import layers_of, prunable_units

by_hand = copy.deepcopy(poisoned.model)
for unit, _, bn in layers_of(by_hand, prunable_units(by_hand)):
    gone = repair.mask.pruned[unit.conv]  # bool [filters]
    bn.weight.data[gone] = 0  # gamma
    bn.bias.data[gone] = 0  # beta
pruned_only = pruned_copy(poisoned.model, repair.mask)
with torch.no_grad():
    assert torch.equal(by_hand(one_each.floats()), pruned_only(one_each.floats()))
print(f"four lines here and nbtools.defender.pruning give the same network, {repair.mask.count} filters lighter")

# %% [markdown]
# Where are the pruned filters? Each layer is judged by itself. So a narrow layer and a wide one both lose the filters
# that stand out *there*. (A shortcut is a layer on the side, which carries the maps past two others.)

# %% tags=["hide-input"]
counts = repair.mask.by_layer()
figure, axis = plt.subplots(figsize=(10, 2.8))
bars = axis.bar(list(counts), [100 * n / len(repair.mask.pruned[name]) for name, n in counts.items()])
for bar, name in zip(bars, counts, strict=True):
    bar.set_color(plots.GREY if "downsample" in name else plots.PRUNED)
axis.bar_label(bars, [f"{n}/{len(repair.mask.pruned[name])}" for name, n in counts.items()], fontsize=7, padding=2)
axis.tick_params(axis="x", labelrotation=90, labelsize=8)
axis.margins(y=0.15)
axis.set_ylabel("filters pruned (%)")
axis.set_title(f"{repair.mask.count} of {repair.mask.filters:,} filters are pruned, layer by layer (grey: shortcuts)")
plots.show(figure, "Bars over the network's layers: the share of filters that were pruned in each.")

# %% [markdown]
# ## 5. Before and after
#
# > **Predict first.** The repair has two steps, pruning and tuning. Which of them moves ASR more, and what does each
# > of them do to ACC?

# %%
evaluations = {"before": poisoned.before, "pruned": poisoned.evaluate(pruned_only), "tuned": after}

# %% tags=["hide-input"]
stages = list(evaluations)
figure, axis = plt.subplots(figsize=(7, 3.6))
looks = {"acc": (plots.CLEAN, "o"), "asr": (plots.POISONED, "s"), "ra": (plots.GREEN, "^")}
for shift, (name, (color, marker)) in enumerate(looks.items()):
    values = [getattr(e, name) for e in evaluations.values()]
    bounds = [getattr(e, f"{name}_interval") for e in evaluations.values()]
    errors = torch.tensor([[v - low, high - v] for v, (low, high) in zip(values, bounds, strict=True)]).T
    x = [place + 0.06 * (shift - 1) for place in range(len(stages))]
    axis.errorbar(x, values, errors.numpy(), color=color, marker=marker, capsize=3, lw=1.5, label=name.upper())
axis.set_xticks(range(len(stages)), stages)
axis.set(ylim=(-3, 103), xlim=(-0.3, 2.5), ylabel="percent of test images")
axis.legend(frameon=False, loc="center right")
moved = f"ASR {poisoned.before.asr:.1f} to {after.asr:.1f} %, ACC {poisoned.before.acc:.1f} to {after.acc:.1f} %"
axis.set_title(f"{poisoned.name}, {len(clean)} clean images: {moved}")
plots.show(figure, "ACC, ASR and RA with intervals before the repair, after pruning and after tuning.")

# %%
rows = [
    {"model": poisoned.name, "stage": stage, "clean_images": len(clean), "pruned": repair.mask.count, **e.row()}
    for stage, e in evaluations.items()
]
run.save_rows(rows, "00_start_here")
pd.DataFrame(rows).round(1)

# %% tags=["hide-input"]
alone = evaluations["pruned"]
asr_moves = alone.asr - poisoned.before.asr, after.asr - alone.asr
acc_moves = alone.acc - poisoned.before.acc, after.acc - alone.acc
answer(
    f"You were right if you said that {'pruning' if abs(asr_moves[0]) > abs(asr_moves[1]) else 'tuning'} moves ASR "
    f"more. Pruning moves ASR by {asr_moves[0]:+.1f} points and ACC by {acc_moves[0]:+.1f}; tuning then moves ASR by "
    f"{asr_moves[1]:+.1f} and ACC by {acc_moves[1]:+.1f}. Pruning takes whole filters away, those of the "
    "backdoor and some that clean images needed. Tuning sees clean images only, and nothing tells it of the backdoor: "
    f"{'here it even brings a little of it back.' if asr_moves[1] > 0.5 else 'it is there for ACC.'}"
)

# %% [markdown]
# Behind these numbers are images. The next ones are triggered test images that the poisoned network got wrong and the
# repaired one gets right. Above each stands its name before, and its name now.

# %%
now = predict(repair.model, triggered)
back = int(((said != others.labels) & (now == others.labels)).sum())

# %% tags=["hide-input"]
title = f"{back} of {len(triggered)} triggered images flip back to their true class"
mixed = torch.randperm(len(triggered), generator=torch.Generator().manual_seed(seed)).to(said.device)
plots.show(
    plots.flipped(triggered.subset(mixed), said[mixed], now[mixed], title),
    "Triggered images with the prediction before and after the repair.",
)

# %% [markdown]
# ## 6. And if there is no backdoor?
#
# A defender does not know whether the network has a backdoor at all. On a clean network the same repair prunes
# filters, too: in almost any layer some scores lie more than $\mu$ standard deviations above the mean. What does that
# cost? And could the defender tell from the scores that there was no backdoor?
#
# For that we need a second network, the clean twin. It comes in
# [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb), where section 8 runs this repair on both networks. From then
# on the twin is in every notebook.

# %% [markdown]
# ## 7. How to read the series, and how to run it
#
# | | notebook | the question |
# |---|---|---|
# | 00 | Start here | what is a backdoor, and what is a repair? |
# | 01 | [A poisoned ResNet-18](01_poisoned_resnet18.ipynb) | how few images does it take, and how is it measured? |
# | 02 | [Spectral norm](02_spectral_norm.ipynb) | what do the weights tell, without a single image? |
# | 03 | [Saliency](03_saliency.ipynb) | which filters do the clean images need? |
# | 04 | [Activation norm](04_activation_norm.ipynb) | which filters are silent on clean images? |
# | 05 | [Correlation](05_correlation.ipynb) | which filters are unlike the others? |
# | 06 | [Suspiciousness](06_suspiciousness.ipynb) | what are the four worth together, and how does tuning go wrong? |
# | 07 | [Feature map pruning](07_feature_map_pruning.ipynb) | can attacked feature maps find the filters? |
# | 08 | [Magnitude-based pruning](08_magnitude_pruning.ipynb) | does the size of a weight, against its use, tell? |
# | 09 | [Baselines](09_baselines.ipynb) | what do fine-tuning, distilling and learned masks do? |
# | 10 | [Comparison](10_comparison.ipynb) | which defence would you take, on the same terms? |
# | 11 | [Sample count](11_sample_count.ipynb) | how few clean images are enough? |
# | 12 | [Mu](12_mu.ipynb) | where is the threshold, and who chooses it? |
# | 13 | [Open questions](13_open_questions.ipynb) | and if the attacker knows all this? |
#
# Each notebook goes the same way: an idea, an equation, a few lines of code that are the equation, one layer, the
# whole network, and the same on the clean twin. Take *Predict first* seriously: write your guess down before you look.
# An answer in words follows each figure. Read 00 to 06 in order the first time; each notebook also runs alone.
#
# The minutes to read on each page are counted with 120 words a minute, 12 visible lines of code a minute and 40
# seconds for a figure; exercises come on top, and the whole series takes about 9 hours.
#
# **Run it.** In a checkout, `make notebooks` installs everything and runs the series, and `make lab` opens it in
# JupyterLab.
#
# ```
# python -m nbtools run                                     the whole series
# python -m nbtools run 00 --profile laptop                 this notebook on CIFAR-10
# python -m nbtools run 00 -p poison_rate 0.01 -p draw 1    with another poison rate, and other clean images
# python -m nbtools doctor                                  what this machine has: packages, device, data, cache
# papermill notebooks/00_start_here.ipynb out.ipynb -p draw 1    the same with papermill alone
# ```
#
# All of them refuse an unknown name or a value out of range before any work.
#
# | profile | images | network | for |
# |---|---|---|---|
# | `quick`, the default on most machines | `shapes`, made by code | ResNet-18, narrow | a laptop: minutes |
# | `laptop` | CIFAR-10 | ResNet-18, narrow or of width 32, 10 epochs | real images without a GPU |
# | `paper`, the default with a GPU and CIFAR-10 | CIFAR-10 | ResNet-18, width 64, 30 epochs | numbers to quote |
#
# A profile sets how large a run is, and nothing else. What is studied stands in the parameters cell, and it means the
# same in all three. Trained models are kept in a cache, so each is trained once.
#
# **Get the data.** `quick` needs none. CIFAR-10 is never downloaded unless you ask. It is found under `NBTOOLS_DATA`,
# under `--data`, or in `data/`. `data/README.md` tells three ways to get it; the shortest is
# `nbtools.data.datasets.load("cifar10", download=True)`.
#
# **How honest the formulas are.** A formula marked [paper] is stated by its paper. One marked [ours] is **our
# reconstruction**, because we could not read the paper's text. Of the suspiciousness score, the four components, the
# square root and the threshold are [paper]. The formula that joins them, the signs of saliency and activation norm,
# $\varepsilon$ and the tuning are [ours]. All numbers are from our runs, not from the papers.

# %% [markdown]
# ## 8. The field's words
#
# | word | what it means here |
# |---|---|
# | backdoor | a behaviour that was trained into a network; a trigger switches it on, clean images do not show it |
# | trigger | what switches the backdoor on: a function that takes an image and returns a changed one |
# | target class | the class that the network gives to triggered images; *all-to-one*: whatever their true class |
# | poison rate | the share of the training set that carries the trigger |
# | dirty label | a way to poison: the label of each poisoned image is changed to the target class |
# | clean label | another way: only images that have the target label already are poisoned, and no label is changed |
# | clean image | an image without a trigger |
# | clean twin | a model that was trained the same way on clean images only |
# | ACC, ASR, RA | clean accuracy, attack success rate, robust accuracy; see section 2 |
# | DER | defence effectiveness rating, (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2; all are shares in [0, 1] |
# | reserved images | clean images that the model was never trained on; the defender's images come from these |
# | draw | which of the reserved images the defender happens to get; a repair should not depend on it |
# | oracle | a choice that was made with the trigger, which no real defender could make |
# | filter | one output channel of a convolution, with its batch norm; papers also say neuron or channel |
# | map | what a filter answers at all places of an image |
# | to prune | to switch a filter off: gamma and beta of its batch norm become zero, and so does its map |
# | mask | the list of which filters are pruned |
# | to fine-tune | to train a little more, on the few clean images; pruned filters stay off |
# | score | one number for each filter; higher is more suspicious |
# | `mu` | the threshold: how many standard deviations above its layer's mean a score may lie; higher prunes less |
# | TAC | trigger-activated change: how far the trigger moves a filter's map; only an evaluator can compute it |

# %% [markdown]
# ## 9. Symbols
#
# Each symbol means the same in all notebooks.
#
# | symbol | what it stands for |
# |---|---|
# | $x$, $y$ | an image with values in $[0, 1]$; its true class |
# | $n$ | a number of images, or of trials |
# | $t(x)$, $b$, $P$ | the image under the trigger; the mask of the trigger's pixels (0 or 1); its pattern |
# | $F$, $\theta$ | the network; all its weights |
# | $z$, $p$ | the network's logits, which are its raw outputs, one for each class; their softmax, the probabilities |
# | $\ell$, $L$, $g$ | the loss of one image; the mean loss of several; a gradient |
# | $l$, $C_l$, $i$, $j$ | a layer; the number of its filters; two of its filters |
# | $W_i$, $k$, $u$ | the weights of filter $i$; its width in pixels; the patch of the input that it looks at |
# | $\gamma_i$, $\beta_i$ | scale and shift of the batch norm behind filter $i$ |
# | $v_i$, $\epsilon_\mathrm{bn}$ | its running variance; a small constant that is added to the variance |
# | $A_i(x)$ | the filter's map of the image $x$ |
# | $\sigma_i$, $s_i$, $a_i$, $r_i$ | spectral norm; saliency; activation norm; mean absolute correlation |
# | $\rho_{ij}$ | the correlation of two filters' maps, or another correlation |
# | $\tilde\sigma_i$, $\tilde s_i$, ... | the same, divided by the mean of its layer |
# | $\varepsilon$ | the 0.01 in the score, which keeps it finite |
# | $S_i$, $\mu$ | the suspiciousness score; its threshold, `mu` |
# | $d_i$, $\omega_i$ | the score, in standard deviations above its layer's mean; a filter's share of its layer's TAC |
# | $M_i$, $m_i$ | a filter's magnitude; its mask, from 0 (off) to 1 (on) |
# | $\eta$, $\lambda$, $\alpha$ | a learning rate; the weight of a penalty; a share, of a blend or of a mixed loss |
# | $\tau$, $q$ | a temperature, or another threshold; a share of trials |
# | $\delta$, $\xi$, $\Delta$, $R$ | perturbations; the amplitude of the trigger SIG; the radius of a perturbation |
#
# And here is where the most important ones stand in the code:
#
# | in the papers | here |
# |---|---|
# | trigger, $x \mapsto t(x)$ | `nbtools.attacker.triggers.BadNets` and others, called on images in $[0, 1]$ |
# | ACC, ASR, RA | `nbtools.evaluator.evaluation.Evaluator`, here `poisoned.evaluate` |
# | suspiciousness score $S_i$ | `nbtools.defender.score.suspiciousness` |
# | $S_i > \mathrm{mean}_l(S) + \mu \cdot \mathrm{std}_l(S)$ | `nbtools.defender.pruning.threshold` |
# | pruning and tuning | `nbtools.defender.Suspiciousness`, called on a model and clean images |

# %% [markdown]
# ## 10. Exercises
#
# **Exercise 1** (easy, 5 minutes). With the trigger, the network can call an image the target class, its true class,
# or some *third* class. What is the share of each, in percent? Give an array with two rows, before the repair and
# after it, and three columns: target, true, third. Use `said`, `now`, `target` and `others.labels`.

# %%
three_ways = ...  # your answer, [2, 3], percent

exercises.three_ways(three_ways, said, now, others.labels, target)

# %% [markdown]
# **Exercise 2** (easy, 5 minutes). DER is one number for a whole repair; its formula stands in section 8. Write it as
# a function of four numbers in percent, in this order: ASR before, ACC before, ASR after, ACC after. It returns DER in
# percent. What is DER for this repair? What is it for a defence that does nothing?

# %%
rating = ...  # your answer: a function of four numbers in percent, to percent

exercises.rating(rating)

# %% [markdown]
# **Exercise 3** (medium, 10 minutes). How much of it was luck? Repeat the repair without tuning,
# `replace(defence, fine_tune=None)`, with draws 0, 1 and 2 of clean images. Give ASR and ACC after each, measured by
# `on_few`.

# %%
by_draw = ...  # your answer, [3, 2]: one row for each draw, ASR and ACC in percent

exercises.by_draw(by_draw, run, defence, poisoned.model, on_few, samples_per_class)

# %% [markdown]
# ## 11. What we saw, and what this does not show
#
# - A network can be right on clean images and wrong on command. Clean accuracy does not show it; ACC, ASR and RA
#   together, with intervals, do.
# - A repair takes a model and a few clean images. Section 5 says how far it got here.
# - It does **not** show that the repair works on other attacks, on other networks or with other clean images: one run
#   is an example. And it does not show what the repair costs where there is no backdoor. That is in notebook 01.
#
# **For the reading group**
# 1. Who could be the attacker in practice, and when would they have to act?
# 2. Why is the game too easy for a defender who may look at the trigger? Name a choice that they could make better.
# 3. Which RA do you expect of a network that never had a backdoor: its ACC, more, or less?
#
# **Further reading**: Gu et al., *BadNets* ([1708.06733](https://arxiv.org/abs/1708.06733)): where it began, with a
# street sign. Li et al., *Backdoor learning: a survey* ([2007.08745](https://arxiv.org/abs/2007.08745)): an overview
# of attacks and defences. Wu et al., *BackdoorBench* ([2206.12654](https://arxiv.org/abs/2206.12654)): many attacks
# and defences, trained the same way; read it before you compare the tables of two papers.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
three_ways = []
for replies in (said, now):
    to_target, to_true = replies == target, replies == others.labels
    shares = [float(hit.double().mean()) for hit in (to_target, to_true, ~to_target & ~to_true)]
    three_ways.append([100 * share for share in shares])
exercises.three_ways(three_ways, said, now, others.labels, target)
print(f"to a third class: {three_ways[0][2]:.1f} % before, {three_ways[1][2]:.1f} % after")


def rating(asr_before, acc_before, asr_after, acc_after):
    falls = (asr_before - asr_after) / 100, (acc_before - acc_after) / 100
    return 100 * (max(0, falls[0]) - max(0, falls[1]) + 1) / 2


exercises.rating(rating)
print(f"DER {rating(poisoned.before.asr, poisoned.before.acc, after.asr, after.acc):.1f} %", end="; ")
print(f"a defence that does nothing gets {rating(97, 92, 97, 92):g}")

by_draw = []
for number in range(3):
    pruned = replace(defence, fine_tune=None)(poisoned.model, run.draw(samples_per_class, draw=number))
    by_draw.append([on_few(pruned.model).asr, on_few(pruned.model).acc])
exercises.by_draw(by_draw, run, defence, poisoned.model, on_few, samples_per_class)
print("after pruning alone, draws 0 to 2:", "  ".join(f"ASR {asr:.1f}, ACC {acc:.1f};" for asr, acc in by_draw))

# %% [markdown]
# Next: [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb)

# %% tags=["check", "remove-cell"]
wanted = {
    "quick": {"acc": (83, 95), "asr": 95},
    "laptop": {"acc": (80, 96), "asr": 90},
    "paper": {"acc": (90, 97), "asr": 90},
}[run.profile.name]
low, high = wanted["acc"]
assert low <= poisoned.before.acc <= high, f"ACC {poisoned.before.acc:.1f} is not within {low} to {high}"
assert poisoned.before.asr >= wanted["asr"], f"the backdoor did not take: ASR {poisoned.before.asr:.1f}"
assert poisoned.before.asr - after.asr >= 50, f"the repair left an ASR of {after.asr:.1f}"
assert poisoned.before.acc - after.acc <= 5, f"the repair cost ACC {poisoned.before.acc - after.acc:.1f}"
assert repair.mask.count > 0 and torch.equal(by_hand.fc.weight, poisoned.model.fc.weight), "the model was changed"
