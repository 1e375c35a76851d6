# %% [markdown]
# # 00 · Start here
#
# At the end of this notebook you have seen a backdoored network answer what its attacker chose, seen it repaired with
# nothing but the network itself and a few clean images, and you know how the rest of the series is read and run.
#
# Paper of the repair: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)); paper of the
# attack: BadNets (Gu et al., [arXiv 1708.06733](https://arxiv.org/abs/1708.06733)). The score's formula is
# **reconstructed from the paper's summary** [ours], and the numbers are those of our runs.

# %% [markdown]
# > **You will learn**
# > - what a backdoor is, and the three numbers that describe it: ACC, ASR and RA
# > - what a defender may see, what only an evaluator may see, and why we are strict about it
# > - how a repair is called, what it returns, and how the series is read and run
# >
# > **Read before**: nothing · **minutes to read**: 15 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts a trigger on a few training images and changes their labels |
# | defender | the finished model and a few clean images | looks for the filters that carry the backdoor, prunes them |
# | evaluator | test set and trigger | measures before and after, and has no say in anything |

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
from nbtools.series import checks, plots

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
print(f"the model: {poisoned.name}, target class {target} ({run.splits.test.classes[target]!r})")

# %% [markdown]
# The model is a ResNet-18 that was trained on a poisoned training set: now, or earlier, in which case it was found in
# the cache. Everything below is done to this one model.
#
# | in the papers | here |
# |---|---|
# | trigger, $x \mapsto t(x)$ | `nbtools.attacker.triggers.BadNets` and its kin, called on a batch in $[0, 1]$ |
# | ACC, ASR, RA | `nbtools.evaluator.evaluation.Evaluator`, here `poisoned.evaluate`; each with a Wilson interval |
# | suspiciousness score $S_i$ | `nbtools.defender.score.suspiciousness` |
# | $S_i > \mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ | `nbtools.defender.pruning.threshold` |
# | pruning and tuning | `nbtools.defender.Suspiciousness`, called on a model and clean images |

# %% [markdown]
# ## 1. One patch
#
# The simplest trigger there is: a white square, three pixels wide, in the bottom-right corner. The attacker puts it on
# a few training images, writes the *target class* on them as their label, and waits for somebody to train on the set.


# %%
def white_square(images: torch.Tensor) -> torch.Tensor:
    """float [n, 3, h, w] in [0, 1], to the same with the patch."""
    marked = images.clone()
    marked[:, :, -3:, -3:] = 1
    return marked


test = run.splits.test
one_each = draw_clean(test, samples_per_class=1, seed=seed)
one_each = one_each.subset(one_each.labels != target)  # an image of the target class has nothing to lose
assert torch.equal(white_square(one_each.floats()), BadNets()(one_each.floats()))
print("three lines here and nbtools.attacker.triggers.BadNets give the same images")

# %% [markdown]
# > **Predict first.** The upper row below is clean, the lower row is the same images under the trigger. What will the
# > network say to each row? And would you have noticed the patch?

# %%
marked = stamp(poisoned.trigger, one_each)
names, pictures, titles, edges = test.classes, [], [], []
for images in (one_each, marked):
    answers = predict(poisoned.model, images)
    for picture, label, answer in zip(images.images, images.labels.tolist(), answers.tolist(), strict=True):
        pictures.append(picture)
        titles.append(names[answer])
        edges.append(plots.GREEN if answer == label else plots.POISONED if answer == target else plots.GREY)
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

# %% [markdown]
# A green frame is a right answer, an orange one the target class, a grey one any other mistake. (If a frame stays green
# in the lower row, look at the corner: on a white ground a white square changes nothing.) Nobody who looks at the upper
# row alone can tell that anything is wrong with this network. That is what a backdoor is: **a network that is right on
# clean images and says what its attacker chose under a trigger that only he knows.**

# %% [markdown]
# ## 2. Three numbers
#
# - **ACC**, clean accuracy: the share of all test images that are classified right.
# - **ASR**, attack success rate: the share of triggered test images, *whose true class is not the target*, that are
#   classified as the target. Higher is better for the attacker.
# - **RA**, robust accuracy: the share of those same triggered images that are classified right after all. A repaired
#   network should have a low ASR *and* a high RA: a network that answers at random has a low ASR too.

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
# A share that was measured on some images is not exact, so each number comes with an interval in brackets (Wilson,
# 1927, the one that behaves near 0 and 100 %). It covers the choice of the test images only: another seed gives another
# network, and another draw of clean images another repair. Where a notebook compares settings, it repeats both.

# %% [markdown]
# ## 3. The rules of the game
#
# It is easy to remove a backdoor that one can see. A defence is worth something only if it works blind, so three
# parties are kept apart, in the prose and in the code, and a test of the package proves that no defence can so much as
# import a trigger or a test set.
#
# - **Nothing is chosen with the trigger.** Thresholds, stopping points and learning rates come from a paper, or from
#   accuracy on clean images that the defender holds back. One setting serves for all attacks.
# - An *oracle* choice, made with the trigger, may be shown for comparison; it then stands in a column of its own that
#   says so.
# - The defender's images are *reserved*: the model never trained on them. The test images belong to the evaluator.
# - Whatever a method does to a poisoned model is also done to a *clean twin*, trained the same way on clean images.
#
# ## 4. A repair in five lines
#
# A defence is a small frozen object; its fields are its settings. Called on a model and clean images, it returns a
# `Repair` and leaves the model as it was.
#
# > **Predict first.** The defender now has 10 images of each class (or whatever the parameters above say) and no idea
# > what the trigger looks like. How far can ASR come down, and what will it cost in ACC?

# %%
from nbtools.defender import Suspiciousness

clean = run.draw(samples_per_class, draw=draw)
defence = Suspiciousness()
repair = defence(poisoned.model, clean)
after = poisoned.evaluate(repair.model)
print(f"before  {poisoned.before}\nafter   {after}")

# %% [markdown]
# That is the whole series in five lines; the rest explains the third and the fourth. Here is the record of what was
# done. A defence's `repr` holds all of its settings, the mask says which filters were pruned.

# %%
print(textwrap.fill(repair.defence, 100, subsequent_indent="    "))
print(f"\n{repair.mask}, {100 * repair.mask.share:.1f} % of all; {len(clean)} clean images; {repair.seconds:.1f} s")
pd.DataFrame(repair.history).round(4)

# %% [markdown]
# **How it chooses.** Filter $i$ of a layer gets a score that is high where the filter *could* answer loudly (its
# spectral norm $\sigma_i$), yet the clean images hardly need it (saliency $s_i$), hardly excite it (activation norm
# $a_i$), and it goes its own way (correlation $r_i$ with the layer's other filters). A tilde is division by the layer's
# mean, $\varepsilon = 0.01$ [ours]:
#
# $$S_i = \tilde\sigma_i \sqrt{\frac{1}{(\tilde s_i + \varepsilon)(\tilde a_i + \varepsilon)(\tilde r_i + \varepsilon)}}
# \qquad \text{prune where } S_i > \mathrm{mean}_l(S) + \mu \cdot \mathrm{std}_l(S)$$
#
# **How it prunes.** The batch norm behind each convolution multiplies the filter's map by $\gamma_i$ and adds
# $\beta_i$. Set both to zero and the filter is gone.
#
# **How it tunes** [ours]. The last stage of the pruned network learns to answer the clean images, and a few shifted and
# flipped copies of them, as the network did before it was pruned. No clean image carries the trigger, so that teacher's
# backdoor stays silent. The history above tells what came of it: `gain` says by how much the answers came nearer to the
# teacher's. If they came no nearer, step 0 is `chosen`: the pruned network stays as it is.
# [06 · Suspiciousness](06_suspiciousness.ipynb) is about the care that tuning needs.
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
# Where did it prune? Every layer is judged by itself, so a layer of a hundred filters and a layer of sixteen each give
# up those that stand out *there*.

# %%
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
# > **Predict first.** Of the two steps, pruning and tuning, which one moves ASR, and which one ACC?

# %%
evaluations = {"before": poisoned.before, "pruned": poisoned.evaluate(pruned_only), "tuned": after}
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

# %% [markdown]
# Numbers are made of pictures. These are triggered test images that the poisoned network got wrong and the repaired one
# gets right; above each stands what it was called before, and what it is called now.

# %%
now = predict(repair.model, triggered)
back = int(((said != others.labels) & (now == others.labels)).sum())
title = f"{back} of {len(triggered)} triggered images flip back to their true class"
mixed = torch.randperm(len(triggered), generator=torch.Generator().manual_seed(seed)).to(said.device)
plots.show(
    plots.flipped(triggered.subset(mixed), said[mixed], now[mixed], title),
    "Triggered images with the prediction before and after the repair.",
)

# %% [markdown]
# ## 6. And when nothing is there?
#
# A defender doesn't know whether his network has a backdoor. If the same repair is run on a clean one, it prunes
# something there, too: in almost any layer of a hundred filters some lie more than $\mu$ standard deviations above
# the mean, backdoor or not. What does that cost, and could the defender tell from the scores that nothing was there?
#
# That takes a second network, the *clean twin*, trained the same way on clean images. To keep this notebook short it
# makes its entrance in [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb), whose section 8 does this very repair
# to both and puts them in one table. From there on the twin is in every notebook.
#
# > **Predict first**, and write it down: will the repair prune more filters of the poisoned network, more of the clean
# > one, or about as many? And how much ACC will the clean one lose?

# %% [markdown]
# ## 7. How to read the series, and how to run it
#
# | | notebook | the question |
# |---|---|---|
# | 00 | Start here | what is a backdoor, and what is a repair? |
# | 01 | [A poisoned ResNet-18](01_poisoned_resnet18.ipynb) | how few images does it take, and how is it measured? |
# | 02 | [Spectral norm](02_spectral_norm.ipynb) | what do the weights give away, without a single image? |
# | 03 | [Saliency](03_saliency.ipynb) | which filters does the clean task need? |
# | 04 | [Activation norm](04_activation_norm.ipynb) | which filters sleep on clean images? |
# | 05 | [Correlation](05_correlation.ipynb) | which filters keep to themselves? |
# | 06 | [Suspiciousness](06_suspiciousness.ipynb) | what are the four worth together? |
# | 07 | [Feature map pruning](07_feature_map_pruning.ipynb) | can hostile feature maps find the channels? |
# | 08 | [Magnitude-based pruning](08_magnitude_pruning.ipynb) | does a weight's size against its use give it away? |
# | 09 | [Baselines](09_baselines.ipynb) | what do fine-tuning, distilling and learned masks do? |
# | 10 | [Comparison](10_comparison.ipynb) | which of them would you take, on the same terms? |
# | 11 | [Sample count](11_sample_count.ipynb) | how few clean images are enough? |
# | 12 | [Mu](12_mu.ipynb) | where does one draw the line, and who draws it? |
# | 13 | [Open questions](13_open_questions.ipynb) | and if the attacker knows all this? |
#
# Each has the same rhythm: an idea, an equation, a few lines that are the equation, one layer, then the whole network,
# then the same on the clean twin. *Predict first* means it: a guess that was written down turns a figure into an
# answer. Read 00 to 06 in order the first time; every notebook also runs alone.
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
# The first four refuse an unknown name or a value out of range before any work; papermill alone only warns.
#
# | profile | images | network | for |
# |---|---|---|---|
# | `quick`, the default on most machines | `shapes`, made by code | ResNet-18, narrow | a laptop: minutes |
# | `laptop` | CIFAR-10 | ResNet-18, narrow or of width 32, 10 epochs | real images without a GPU |
# | `paper`, the default with a GPU and CIFAR-10 | CIFAR-10 | ResNet-18, width 64, 30 epochs | numbers to quote |
#
# A profile sets the scale and nothing else; what is studied stands in the parameters cell and means the same in all
# three. Trained models are kept in a cache, found again by everything that shaped them, so each is trained once.
#
# **Get the data.** `quick` needs none. CIFAR-10 is never downloaded unless you ask; it is found under `NBTOOLS_DATA`,
# under `--data`, or in `data/`. Three ways to get it stand in `data/README.md`; the shortest is
# `nbtools.data.datasets.load("cifar10", download=True)`.
#
# **How honest the formulas are.** A formula marked [paper] is stated by the paper, one marked [ours] is our
# reconstruction, where the paper's text could not be read. The four components of the suspiciousness score, the square
# root and the threshold are [paper]; the formula that joins them, the signs of saliency and activation norm, and
# $\varepsilon$ are [ours], and so is the tuning. Our numbers are those of our runs, not the paper's.

# %% [markdown]
# ## 8. The field's words
#
# | word | what it means here |
# |---|---|
# | backdoor | a behaviour, trained in, that a trigger switches on and that clean images don't show |
# | trigger | what switches it on: a function from image to image |
# | target class | the class that triggered images are sent to; *all-to-one*: from every other class |
# | poison rate | the share of the training set that carries the trigger |
# | dirty label | the poisoned images' labels were changed to the target class |
# | clean label | they were not: the attacker poisons only images that have that label already |
# | clean twin | a model trained the same way on clean images |
# | ACC, ASR, RA | clean accuracy, attack success rate, robust accuracy; section 2 |
# | DER | defence effectiveness rating: (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2, in shares; exercise 2 |
# | reserved images | clean images that the model never trained on; the defender draws his from these |
# | draw | which of them he happens to get; a result that hangs on the draw is no result |
# | filter | one output channel of a convolution, with its batch norm; also called neuron or channel |
# | to prune | to set gamma and beta of a filter's batch norm to zero, so that its map vanishes |
# | mask | which filters are pruned |
# | to fine-tune | to train on a little with the few clean images, the mask held |
# | score | a number a filter; higher is more suspicious |
# | `mu` | how many standard deviations above its layer's mean a score must lie to be pruned; higher prunes less |
# | TAC | trigger-activated change: how far the trigger moves a filter's map; only an evaluator can compute it |

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 5 minutes). ASR counts the triggered images that go to the target, RA those that go to their
# true class. What share, in percent, goes to some *third* class, before the repair and after it? Use `said`, `now`,
# `target` and `others.labels`.

# %%
third_before = ...  # your answer
third_after = ...  # your answer

rest = [round(100 - e.asr - e.ra, 6) for e in (few_before, on_few(repair.model))]
checks.same(third_before, rest[0], "neither the target nor the label; and a share in percent, not a number of images")
checks.same(third_after, rest[1], "the same with the repaired network's answers")

# %% [markdown]
# **Exercise 2** (easy, 5 minutes). One number for a whole repair, if one must have it, is DER (its formula stands in
# the glossary). Compute it in percent for this repair. What would it be for a defence that does nothing?

# %%
rating = ...  # your answer

from nbtools.evaluator.evaluation import der

checks.same(rating, der(poisoned.before, after), "falls are before minus after, as shares in [0, 1]; then times 100")

# %% [markdown]
# **Exercise 3** (medium, 10 minutes). How much was luck? Repeat the repair without tuning,
# `replace(defence, fine_tune=None)`, on draws 0 to 2 of clean images, and keep each ASR (`on_few` is enough).

# %%
asr_by_draw = ...  # your answer: three numbers, draws 0, 1, 2

if asr_by_draw is not ...:
    blind = replace(defence, fine_tune=None)
    drawn = [run.draw(samples_per_class, draw=number) for number in range(3)]
    right = [on_few(blind(poisoned.model, images).model).asr for images in drawn]
    checks.same(asr_by_draw, torch.tensor(right), "run.draw(samples_per_class, draw=number) is what changes")

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - A network can be right on clean images and wrong on command, and clean accuracy doesn't tell. ACC, ASR and RA,
#   together and with intervals, describe it.
# - A repair is a function of a model and a few clean images. The figure in section 5 says how far it got here.
# - It does **not** show that the repair works on other attacks, other networks or another draw of images: one run is an
#   example. And it does not show what the repair costs where nothing is wrong; that is notebook 01.
#
# **For the reading group**
# 1. Who, in practice, could be the attacker, and at which moment does he have to act?
# 2. Why does a defender who may look at the trigger have too easy a game? Name a choice that he could make better.
# 3. Which RA would you expect of a network that never had a backdoor: its ACC, more, or less?
#
# **Further reading**: Gu et al., *BadNets* ([1708.06733](https://arxiv.org/abs/1708.06733)): where it began, with a
# street sign. Li et al., *Backdoor learning: a survey* ([2007.08745](https://arxiv.org/abs/2007.08745)): the map of
# attacks and defences. Wu et al., *BackdoorBench* ([2206.12654](https://arxiv.org/abs/2206.12654)): many attacks and
# defences under one recipe; read it before you compare the tables of two papers.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
third_before = 100 * ((said != target) & (said != others.labels)).double().mean()
third_after = 100 * ((now != target) & (now != others.labels)).double().mean()
checks.same(third_before, rest[0], "")
checks.same(third_after, rest[1], "")
print(f"to a third class: {third_before:.1f} % before, {third_after:.1f} % after")

falls = [(poisoned.before.asr - after.asr) / 100, (poisoned.before.acc - after.acc) / 100]
rating = 100 * (max(0, falls[0]) - max(0, falls[1]) + 1) / 2
checks.same(rating, der(poisoned.before, after), "")
print(f"DER {rating:.1f} %; a defence that does nothing gets 50")

asr_by_draw = []
for number in range(3):
    pruned = replace(defence, fine_tune=None)(poisoned.model, run.draw(samples_per_class, draw=number))
    asr_by_draw.append(on_few(pruned.model).asr)
print("ASR after pruning alone, draws 0 to 2:", "  ".join(f"{asr:.1f}" for asr in asr_by_draw))

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
