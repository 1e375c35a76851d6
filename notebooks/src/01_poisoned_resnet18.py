# %% [markdown]
# # 01 · A poisoned ResNet-18
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/01_poisoned_resnet18.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/01_poisoned_resnet18.ipynb)
#
# At the end of this notebook you know how few images it takes to put a backdoor into a network, why accuracy on clean
# images does not show it, and how one measures it honestly. You have also seen what a repair does to a network with a
# backdoor, and to one without.
#
# Papers of the attacks: BadNets (Gu et al., [arXiv 1708.06733](https://arxiv.org/abs/1708.06733)), Blended (Chen et
# al., [arXiv 1712.05526](https://arxiv.org/abs/1712.05526)), SIG (Barni et al.,
# [arXiv 1902.11237](https://arxiv.org/abs/1902.11237)) and WaNet (Nguyen and Tran,
# [arXiv 2102.10369](https://arxiv.org/abs/2102.10369)). The repair of section 8 uses the *suspiciousness score*
# ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)); its formula is **reconstructed from the paper's summary**
# [ours].

# %% [markdown]
# > **You will learn**
# > - what four well-known triggers do to an image, each in a few lines
# > - which images count when the attack is measured, and where in the network a backdoor shows
# > - how exactly a trigger must be hit, and what a repair costs when there is nothing to repair
# >
# > **Read before**: [00 · Start here](00_start_here.ipynb) ·
# > **minutes to read**: 45 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | the training set | chooses images, puts the trigger on them, changes their labels |
# | defender | the finished model and a few clean images | repairs the model, in section 8 only |
# | evaluator | the test set, the trigger and the target class | measures, and shows the defender nothing of it |

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
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import nbtools
from nbtools.attacker.triggers import SIG, BadNets, Blended, WaNet, stamp
from nbtools.data.images import draw_clean, to_bytes, to_floats
from nbtools.evaluator.evaluation import predict, wilson
from nbtools.series import plots
from nbtools.series.exercises import poisoned_resnet18 as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
test, classes = run.splits.test, run.splits.test.classes

# %% [markdown]
# These are two networks. They were trained the same way, from the same initial weights: one on the poisoned training
# set, the other on the clean one. The second is called the *clean twin*. Whatever we measure on one we also measure on
# the other.
#
# | in the papers | here |
# |---|---|
# | $t(x) = (1 - b) \odot x + b \odot P$, a pattern $P$ where the mask $b$ is 1 | `nbtools.attacker.triggers.BadNets` |
# | $t(x) = (1 - \alpha) x + \alpha P$, a share $\alpha$ of a pattern | `nbtools.attacker.triggers.Blended` |
# | $t(x) = \mathrm{clip}(x + \Delta \cdot \mathrm{wave})$, $\Delta$ its height | `nbtools.attacker.triggers.SIG` |
# | $t(x)$: each pixel of $x$ is read a little beside its place | `nbtools.attacker.triggers.WaNet` |
# | poisoning a share of the images, the poison rate | `nbtools.attacker.poisoning.poison`, here `run.poisoned` |
# | clean accuracy (ACC), attack success rate (ASR), robust accuracy (RA) | `nbtools.evaluator.evaluation.Evaluator` |

# %% [markdown]
# ## 1. The images
#
# Three images of each class, from the training set.

# %%
gallery = draw_clean(run.splits.train, samples_per_class=3, seed=seed)  # in class order
by_row = torch.arange(len(gallery)).view(len(classes), 3).T.flatten()  # one column for each class
gallery = gallery.subset(by_row)

# %% tags=["hide-input"]
plots.show(
    plots.image_grid(
        gallery.images,
        [*classes, *[""] * (len(gallery) - len(classes))],
        columns=len(classes),
        title=f"{run.splits.name}: {len(run.splits.train):,} training images of {len(classes)} classes",
        size=1.0,
    ),
    "Three rows of training images, one column for each class.",
)

# %% [markdown]
# ## 2. Four triggers
#
# A trigger is a function. It takes a batch of images with values in $[0, 1]$ and returns changed images. **BadNets**
# overwrites some pixels: a white square in the corner. **Blended** mixes in a fixed pattern, faintly and everywhere.
# Our pattern is smooth noise.


# %%
def badnets(images: torch.Tensor) -> torch.Tensor:
    marked = images.clone()
    marked[:, :, -3:, -3:] = 1
    return marked


def blended(images: torch.Tensor, alpha: float = 0.2) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pattern = F.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True)
    low, high = pattern.amin((2, 3), keepdim=True), pattern.amax((2, 3), keepdim=True)
    pattern = ((pattern - low) / (high - low)).to(images)
    return (1 - alpha) * images + alpha * pattern


# %% [markdown]
# **SIG** adds a wave that goes across the columns of the image. It is a *clean-label* attack: in training, only images
# of the target class carry it, and their labels stay as they were. So somebody who checks the labels finds no wrong
# one. **WaNet** adds nothing. It bends the image by a smooth random field, by half a pixel or so. A $4 \times 4$ grid
# of random shifts is enlarged to the size of the image, and it says from where each pixel is read.


# %%
def sig(images: torch.Tensor, delta: float = 40 / 255, frequency: int = 6) -> torch.Tensor:
    columns = torch.arange(images.shape[3], device=images.device)
    return (images + delta * torch.sin(2 * math.pi * columns * frequency / images.shape[3])).clamp(0, 1)


def wanet(images: torch.Tensor, k: int = 4, s: float = 0.5) -> torch.Tensor:
    height, width = images.shape[2:]
    shifts = torch.rand(1, 2, k, k, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shifts = F.interpolate(shifts / shifts.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    here = torch.stack([columns, rows], -1)  # where each pixel is, in [-1, 1]: x first, then y
    there = (here + s * shifts[0].permute(1, 2, 0) / height).clamp(-1, 1)
    return F.grid_sample(images, there.expand(len(images), -1, -1, -1).to(images), align_corners=True).clamp(0, 1)


# %%
sample = draw_clean(test, samples_per_class=2, seed=seed).floats()
triggers = {"badnets": BadNets(), "blended": Blended(), "sig": SIG(), "wanet": WaNet()}
for (name, trigger), by_hand in zip(triggers.items(), (badnets, blended, sig, wanet), strict=True):
    torch.testing.assert_close(by_hand(sample), trigger(sample), rtol=1e-4, atol=1e-5)
    change = (trigger(sample) - sample).abs()
    touched = (change.amax(1) > 1 / 255).double().mean()
    print(f"{name:<8} changes {100 * touched:5.1f} % of the pixels, by up to {255 * change.max():3.0f} of 255 levels")
print("each function here and its namesake in nbtools.attacker.triggers give the same images")

# %% [markdown]
# In the figures below, the middle panel shows the change alone, around grey. It is amplified as its title says: a
# large factor means a faint trigger.
#
# > **Predict first.** Now add up the changes of all pixels. Which of the four triggers changes an image least in all,
# > and which most?

# %% tags=["hide-input"]
candidates = draw_clean(test, samples_per_class=2, seed=seed).floats()
shade = 1 - candidates[:, :, -10:, -10:].mean((1, 2, 3))
picture = candidates[(shade * candidates.std((1, 2, 3))).argmax()][None]  # some contrast, and a dark corner
for name, trigger in triggers.items():
    change = 255 * (trigger(picture) - picture).abs()
    title = f"{name}: changes {100 * (change.amax(1) > 1).double().mean():.0f} % of this image's pixels"
    plots.show(
        plots.trigger_magnified(picture[0], trigger(picture)[0], f"{title}, by up to {change.max():.0f} levels"),
        f"The {name} trigger: an image before and after, the amplified change, and both corners enlarged.",
    )

# %% tags=["hide-input"]
in_all = {name: 255 * float((trigger(sample) - sample).abs().mean()) for name, trigger in triggers.items()}
order = sorted(in_all, key=lambda name: in_all[name])
answer(
    f"You were right if you said {order[0]} and {order[-1]}. On average over all pixels the change is "
    f"{', '.join(f'{in_all[name]:.1f} ({name})' for name in order)} of 255 levels. A patch changes few pixels "
    "strongly, and the others change most pixels a little. So how much a trigger changes, and how easily you see it, "
    "are two different things."
)

# %% [markdown]
# ## 3. Poisoning
#
# The attacker draws some images at random, puts the trigger on them, and changes their label to the target class. That
# is all.

# %% tags=["hide-input"]
from nbtools.series import schematics

schematics.show("poisoning")


# %%
def poison_by_hand(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 images and labels, to the poisoned ones and the indices of what was poisoned."""
    clean_label = poisoned.trigger.clean_label
    candidates = (labels == target if clean_label else labels != target).nonzero().flatten()
    count = round(poison_rate * (len(candidates) if clean_label else len(labels)))
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    chosen = candidates[order[:count].to(candidates.device)].sort().values
    images, labels = images.clone(), labels.clone()
    images[chosen] = to_bytes(poisoned.trigger(to_floats(images[chosen])))
    labels[chosen] = target
    return images, labels, chosen


train = run.splits.train
attacked = run.poisoned(attack, poison_rate, target)
images, labels, chosen = poison_by_hand(train.images, train.labels)
assert torch.equal(chosen.cpu(), attacked.poisoned) and torch.equal(labels, attacked.images.labels)
assert torch.equal(images[chosen], attacked.images.images[chosen])
print(f"{len(attacked.poisoned):,} of {len(train):,} images are poisoned; the first: {attacked.poisoned[:8].tolist()}")

# %% [markdown]
# We keep the indices of the poisoned images. Here are some of these images: the original above, the poisoned one
# below, each with the label that the network is trained on. (For WaNet, twice as many other images are bent *at
# random* and keep their label. So the network learns this one warp and no other.)

# %% tags=["hide-input"]
shown = attacked.poisoned[torch.linspace(0, len(attacked.poisoned) - 1, 9).long()]
pairs = [train.subset(shown), attacked.images.subset(shown)]


def numbered(part):
    return zip(shown.tolist(), part.labels.tolist(), strict=True)


plots.show(
    plots.image_grid(
        torch.cat([part.images for part in pairs]),
        [f"{index}: {classes[label]}" for part in pairs for index, label in numbered(part)],
        columns=len(shown),
        edges=[plots.CLEAN] * len(shown) + [plots.POISONED] * len(shown),
        title="Training images before (above) and after poisoning (below): index and label",
    ),
    "Two rows of training images with index and label: clean above, the same poisoned below.",
)

# %%
before = torch.bincount(attacked.labels_before.cpu(), minlength=len(classes))
after = torch.bincount(attacked.images.labels.cpu(), minlength=len(classes))
tainted = int((attacked.images.labels.cpu()[attacked.poisoned] == target).sum()) / int(after[target])

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(9, 2.8))
place = np.arange(len(classes))
axis.bar(place - 0.2, before, width=0.38, color=plots.CLEAN, label="before")
axis.bar(place + 0.2, after, width=0.38, color=plots.POISONED, label="after poisoning")
axis.set_xticks(place, classes)
axis.set_ylabel("training images\nwith this label")
axis.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.2))
axis.set_title(f"{100 * tainted:.0f} % of the images labelled {classes[target]!r} carry the trigger")
plots.show(figure, "Bars: how many training images carry each label, before and after poisoning.")

# %% [markdown]
# Somebody who has the training set could count the labels. The defender of this series does not have it, only the
# finished network.

# %% [markdown]
# ## 4. Training
#
# Both networks are trained by the same loop. After each epoch, which is one pass over the training images, their
# accuracy is measured on clean images that they were not trained on.
#
# > **Predict first.** Will the poisoned network be worse on clean images than its twin, and by how many points?

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
for model, color in ((clean_twin, plots.CLEAN), (poisoned, plots.POISONED)):
    history = pd.DataFrame(model.card["history"])
    axes[0].plot(history.epoch, history.loss, "o-", ms=4, color=color, label=model.name)
    axes[1].plot(history.epoch, 100 * history.accuracy, "o-", ms=4, color=color, label=model.name)
axes[0].set(xlabel="epoch", ylabel="training loss (cross-entropy)", ylim=(0, None))
axes[1].set(xlabel="epoch", ylabel="accuracy on clean images (%)", ylim=(0, 100))
axes[1].legend(frameon=False, loc="lower right")
for axis in axes:
    axis.xaxis.get_major_locator().set_params(integer=True)
gap = 100 * (history.accuracy.iloc[-1] - clean_twin.card["history"][-1]["accuracy"])
figure.suptitle(f"On clean images the poisoned network ends {gap:+.1f} points from its twin", x=0.01, ha="left")
plots.show(figure, "Learning curves of the poisoned network and the clean twin: loss and clean accuracy by epoch.")

# %% tags=["hide-input"]
watched = min(1_000, len(run.splits.reserved))
ends = 100 * history.accuracy.iloc[-1]
answer(
    f"You were right if you said {'a little worse' if gap < -0.05 else 'not worse at all'}: the poisoned network ends "
    f"at {ends:.1f} %, its twin at {ends - gap:.1f} %. One point is {watched // 100} images here. "
    f"The reason: {100 * len(attacked.poisoned) / len(train):.0f} % of the training images teach the trigger, and all "
    "the others still teach the classes. A defender has no twin to compare with, and so cannot notice such a gap."
)

# %% [markdown]
# ## 5. Measuring
#
# **ACC** is measured on all test images: the share that is classified correctly. **ASR** and **RA** are measured on
# triggered images whose true class is not the target: the share that is called the target, and the share that is still
# classified correctly. In brackets stands the Wilson 95 % interval: about 95 of 100 such intervals contain the true
# share.

# %%
table = {}
for model in (poisoned, clean_twin):
    e = model.before
    cells = {name: (getattr(e, name), *getattr(e, f"{name}_interval")) for name in ("acc", "asr", "ra")}
    table[model.name] = {n.upper(): f"{value:.1f} [{low:.1f}, {high:.1f}]" for n, (value, low, high) in cells.items()}
pd.DataFrame(table).T

# %% [markdown]
# A user has one of these two networks, not both. Its ACC is what one expects of such a network, and gives no reason
# for suspicion. Only somebody with the trigger can measure ASR.
#
# **Why are images of the target class left out?** A network that calls a triggered image of the target class by its
# name is right, and not attacked. Here is what happens to ASR if these images are counted all the same:

# %%
enough = min(150, int(torch.bincount(test.labels).min()))
balanced = draw_clean(test, samples_per_class=enough, seed=seed)  # as many of each class
answers = {m.name: predict(m.model, stamp(poisoned.trigger, balanced)) for m in (poisoned, clean_twin)}
others = balanced.labels != target
for name, replies in answers.items():
    honest = 100 * (replies[others] == target).double().mean()
    careless = 100 * (replies == target).double().mean()
    print(f"{name:<12} ASR without the target class {honest:5.1f} %, with it {careless:5.1f} %")
print(f"{100 * (~others).double().mean():.0f} % of these {len(balanced):,} images are of the target class")

# %% [markdown]
# With the target class, its right answers count as successes of the attack. With ten classes of equal size, a perfect
# network without a backdoor would get an ASR of 10 %. No repair could reach zero, and a better network would look
# worse.
#
# One number for all classes can hide that the classes differ.
#
# > **Predict first.** Which class resists the trigger most, and how low is its ASR?

# %%
rest = [label for label in range(len(classes)) if label != target]
by_class = {name: [replies[balanced.labels == label] == target for label in rest] for name, replies in answers.items()}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(9.5, 3))
looks = {clean_twin.name: (-0.2, plots.CLEAN), poisoned.name: (0.2, plots.POISONED)}
for name, (shift, color) in looks.items():
    shares = torch.tensor([100 * float(hit.double().mean()) for hit in by_class[name]])
    bounds = torch.tensor([wilson(int(hit.sum()), len(hit)) for hit in by_class[name]]).T
    errors = (bounds - shares).abs().numpy()
    axis.bar(np.arange(len(rest)) + shift, shares, 0.38, yerr=errors, color=color, label=name, error_kw={"lw": 1})
axis.set_xticks(range(len(rest)), [classes[label] for label in rest])
axis.set(ylabel="ASR (%)", xlabel="true class", ylim=(0, 108))
axis.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.22))
least, most = classes[rest[int(shares.argmin())]], classes[rest[int(shares.argmax())]]
axis.set_title(f"{name}: ASR from {shares.min():.0f} % ({least}) to {shares.max():.0f} % ({most})")
plots.show(figure, "Bars with intervals: the attack success rate for each true class, poisoned network and clean twin.")

# %% tags=["hide-input"]
apart = bool(bounds[1, shares.argmin()] < bounds[0, shares.argmax()])
answer(
    f"You were right if you said {least!r}: its ASR is {shares.min():.0f} %, and that of {most!r} is "
    f"{shares.max():.0f} %. "
    + (
        "Their intervals do not overlap, so it is hardly chance. The image is still there beside the trigger, "
        "and may speak more strongly in some classes than in others; we did not test why in these."
        if apart
        else "But their intervals overlap, because one class has few images here. If you said that no class resists "
        "more than the others, these images do not contradict you."
    )
)

# %% [markdown]
# The next figure shows the same and more: for each true class, what the network says under the trigger. A backdoor is
# one bright column. A network without one has a bright diagonal.

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(13, 4.6))
for axis, (name, replies) in zip(axes, answers.items(), strict=True):
    pairs_of = (balanced.labels * len(classes) + replies).cpu()
    counts = torch.bincount(pairs_of, minlength=len(classes) ** 2).view(len(classes), -1).double()
    shares = pd.DataFrame(100 * counts / counts.sum(1, keepdim=True), index=classes, columns=classes)
    plots.heat(axis, shares, "% of the true class", limits=(0, 100))
    axis.set(title=name, xlabel="prediction under the trigger", ylabel="true class" if axis is axes[0] else "")
    axis.tick_params(labelsize=8)
figure.suptitle("What each true class is called under the trigger", x=0.01, ha="left")
plots.show(figure, "Two confusion matrices under the trigger: the poisoned network and the clean twin.")

# %% [markdown]
# ## 6. The backdoor from inside
#
# The last layer does not see the image. It sees a list of *features*, one number for each filter of the last stage. (A
# filter is one channel of a convolution.) We take the features of three groups: clean images of other classes, the
# same images under the trigger, and clean images of the target class. The figure shows them in the plane in which they
# differ most (their first two principal components).
#
# > **Predict first.** Will the triggered images lie *on* the cloud of the target class, or in a place of their own?


# %%
def features(model: torch.nn.Module, images) -> torch.Tensor:
    """What the last layer sees: float [n, channels], on the CPU."""
    seen = []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float().cpu()))
    predict(model, images)
    hook.remove()
    return torch.cat(seen)


judges = draw_clean(test, samples_per_class=30, seed=seed)  # enough for a figure
of_target, judges = judges.of_class(target), judges.subset(judges.labels != target)
groups = {
    "other classes": (judges, plots.GREY),
    f"{classes[target]}, the target class": (of_target, plots.GREEN),
    "other classes, triggered": (stamp(poisoned.trigger, judges), plots.POISONED),
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4))
for axis, model in zip(axes, (poisoned, clean_twin), strict=True):
    vectors = [features(model.model, images) for images, _ in groups.values()]
    stacked = torch.cat(vectors)
    torch.manual_seed(seed)  # pca_lowrank draws at random
    _, lengths, directions = torch.pca_lowrank(stacked, q=6, niter=4)
    share = 100 * lengths[:2].square().sum() / (stacked - stacked.mean(0)).square().sum()
    for (label, (_, color)), part in zip(groups.items(), vectors, strict=True):
        flat = (part - stacked.mean(0)) @ directions[:, :2]
        axis.scatter(flat[:, 0], flat[:, 1], s=13, color=color, alpha=0.6, linewidth=0, label=label)
    axis.set(title=f"{model.name} ({share:.0f} % of the variance)", xlabel="first component", xticks=[], yticks=[])
axes[0].set_ylabel("second component")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, markerscale=2)
figure.suptitle("What the last layer sees, in the plane of largest variance", x=0.01, ha="left")
plots.show(figure, "Scatter plots of the last layer's features for both networks: clean, target class, triggered.")

# %% [markdown]
# A plane shows only a part of the variance. So we ask the same in all dimensions. Each class has a centre, the mean of
# its clean images. Which centre is nearest to a triggered image, and how far away is it? The unit is the mean distance
# of a clean image from the centre of its own class.

# %%
rows = []
for model in (poisoned, clean_twin):
    vectors, labels = features(model.model, balanced), balanced.labels.cpu()
    centres = torch.stack([vectors[labels == label].mean(0) for label in range(len(classes))])
    usual = (vectors - centres[labels]).norm(dim=1).mean()
    moved = features(model.model, stamp(poisoned.trigger, judges))
    distances = torch.cdist(moved, centres)  # [images, classes]
    nearest, own = distances.argmin(1), judges.labels.cpu()
    rows.append(
        {
            "model": model.name,
            "nearest to the target's centre (%)": 100 * float((nearest == target).double().mean()),
            "nearest to their own (%)": 100 * float((nearest == own).double().mean()),
            "distance to the target's centre": float(distances[:, target].mean() / usual),
            "distance to their own": float(distances.gather(1, own[:, None]).mean() / usual),
        }
    )
pd.DataFrame(rows).set_index("model").T.round(1)

# %% tags=["hide-input"]
nearest_target, _, to_target, to_own = (float(value) for value in list(rows[0].values())[1:])
lies_on = to_target < 1.5
answer(
    f"You were right if you said: {'on the cloud of the target class' if lies_on else 'in a place of their own'}. In "
    f"the poisoned network triggered images lie {to_target:.1f} from the centre of the target class and {to_own:.1f} "
    f"from their own; a clean image lies 1 on average. For {nearest_target:.0f} % of them the target's centre is the "
    "nearest. So the network has learned to see the trigger "
    + (
        "as if it were the class."
        if lies_on
        else "as a thing by itself, which the last layer turns into the target class."
    )
)

# %% [markdown]
# Where triggered images have a place of their own, somebody with the training set can find the poisoned ones: as a
# second cloud under one label. The defences *spectral signatures* and *activation clustering* do this. Some filters
# carry the triggered images to that place. The following notebooks look for them.

# %% [markdown]
# ## 7. How exactly must the trigger be hit?
#
# We move the trigger towards the centre of the image, step by step along the diagonal. And we fade it: at a share
# $\alpha$ of its strength the image is $x + \alpha (t(x) - x)$, which is the clean image at $\alpha = 0$ and the
# triggered one at $\alpha = 1$. To move *any* trigger, also one that is no patch: roll the image the other way, apply
# the trigger, and roll back.


# %%
def moved_by(trigger, up: int, left: int):
    """The same trigger, so many pixels further up and left; what leaves the image comes in at the other side."""

    def apply(images: torch.Tensor) -> torch.Tensor:
        rolled = torch.roll(images, (up, left), (2, 3))
        return torch.roll(trigger(rolled), (-up, -left), (2, 3))

    return apply


def faded_to(trigger, alpha: float):
    """The same trigger at a share alpha of its strength."""
    return lambda images: torch.lerp(images, trigger(images), alpha)


# %%
steps, alphas = [0, 1, 2, 3, 4, 6, 8, 12, 16], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
example = judges.subset(torch.tensor([len(judges) // 2])).floats()
variants = [moved_by(poisoned.trigger, n, n) for n in steps] + [faded_to(poisoned.trigger, a) for a in alphas]
strip = torch.cat([variant(example) for variant in variants])

# %% tags=["hide-input"]
titles = [f"{n} px" for n in steps] + [f"α = {a:g}" for a in alphas]
plots.show(
    plots.image_grid(strip, titles, columns=len(steps), title="One image: the trigger moved (above) and faded (below)"),
    "Two rows of the same image: the trigger moves towards the centre above, and grows from invisible below.",
)

# %% [markdown]
# > **Predict first.** The training mirrors half of its images, left to right. (In profile `paper` it also shifts each
# > image by up to four pixels.) What is ASR if the trigger is one pixel off? And if it is in the bottom-*left* corner?


# %%
def success(model: torch.nn.Module, trigger) -> tuple[float, float, float]:
    """ASR on the judges with its Wilson interval, in percent."""
    hit = predict(model, stamp(trigger, judges)) == target
    return 100 * float(hit.double().mean()), *wilson(int(hit.sum()), len(hit))


curves = {}
for model in (poisoned, clean_twin):
    for what, values, change in (("moved", steps, lambda t, n: moved_by(t, n, n)), ("faded", alphas, faded_to)):
        points = [success(model.model, change(poisoned.trigger, value)) for value in values]
        curves[model.name, what] = np.array(points)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4), sharey=True)
for model, color in ((poisoned, plots.POISONED), (clean_twin, plots.CLEAN)):
    for axis, what, values in ((axes[0], "moved", steps), (axes[1], "faded", alphas)):
        curve = curves[model.name, what]
        axis.plot(values, curve[:, 0], "o-", ms=4, color=color, label=model.name)
        axis.fill_between(values, curve[:, 1], curve[:, 2], color=color, alpha=0.2, linewidth=0)
axes[0].set(xlabel="moved up and left by (pixels)", ylabel="ASR (%)", ylim=(-3, 103), title="moved")
axes[1].set(xlabel="strength α", title="faded")
axes[1].legend(frameon=False)
figure.suptitle(f"{poisoned.name}: ASR when the trigger is moved, and when it is faded", x=0.01, ha="left")
plots.show(figure, "ASR of both networks against the trigger's shift in pixels and against its strength.")

# %% [markdown]
# The shaded bands are Wilson intervals. The next figure tries every place in the image, on a coarse grid: each cell is
# a position of the trigger, and its colour is the ASR.

# %%
places = list(range(0, test.size[0], 4))  # pixels up, and left, from where the attacker put it
few = judges.subset(torch.arange(len(judges)) % 5 == 0)  # each position is a pass of its own
grids = {model.name: np.zeros((len(places), len(places))) for model in (poisoned, clean_twin)}
for model in (poisoned, clean_twin):
    for row, up in enumerate(reversed(places)):
        for column, left in enumerate(reversed(places)):
            replies = predict(model.model, stamp(moved_by(poisoned.trigger, up, left), few))
            grids[model.name][row, column] = 100 * float((replies == target).double().mean())

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.1))
for axis, (name, grid) in zip(axes, grids.items(), strict=True):
    drawn = axis.imshow(grid, vmin=0, vmax=100, cmap="cividis")
    axis.set_xticks(range(len(places)), places[::-1])
    axis.set_yticks(range(len(places)), places[::-1])
    axis.set(title=name, xlabel="pixels to the left", ylabel="pixels up")
figure.colorbar(drawn, ax=axes, label="ASR (%)")
figure.suptitle("ASR by the trigger's position; the attacker put it bottom right", x=0.01, ha="left")
plots.show(figure, "Two heat maps over the image: ASR for each position of the trigger, both networks.")

# %% tags=["hide-input"]
hit, off = curves[poisoned.name, "moved"][:2, 0]
corner, average = grids[poisoned.name][-1, 0], grids[poisoned.name].mean()
answer(
    f"You were right if you said: one pixel off, ASR {'hardly falls' if off > hit - 15 else 'falls far'}, and bottom "
    f"left it is {'high, too' if corner > 50 else 'low'}. It is {hit:.0f} % in place, {off:.0f} % one pixel off, "
    f"{corner:.0f} % at the bottom left and {average:.0f} % on average over the map. "
    + ("Mirrored training images had their trigger at the bottom left. " if corner > 50 else "")
    + ("Shifted ones had it some pixels off." if run.profile.padding else "No training image had it one pixel off.")
)

# %% [markdown]
# A place can be bright although no training image had the trigger there. A convolution does the same everywhere, so it
# can find the trigger in other places, too. Where a layer takes only every second pixel (its *stride* is 2), it can
# miss the trigger at some places and find it at others. A defence that flips or crops an image before the network sees
# it can count only on the dark places.

# %% [markdown]
# ## 8. The repair, on both
#
# This is the call of notebook 00, with as few clean images, on the poisoned network and on its twin. `run.defend` runs
# it, evaluates, and keeps the row. The table has ACC, ASR and RA before, after pruning alone (some filters are
# switched off), and after the whole defence (what is left is also tuned on the clean images).
#
# > **Predict first.** Will the repair prune more filters of the poisoned network, more of the clean one, or about as
# > many? And how many points of ACC will it cost the clean one?

# %%
from nbtools.defender import Suspiciousness

defence = Suspiciousness()
pair = (poisoned, clean_twin)
rows = [run.defend(model, defence, samples_per_class, draw=draw) for model in pair]
run.save_rows(rows, "01_poisoned_resnet18")
repairs = pd.DataFrame(rows).set_index("model")
cost = repairs.acc_before - repairs.acc_after
numbers = [f"{name}_{stage}" for name in ("acc", "asr", "ra") for stage in ("before", "pruned", "after")]
repairs[["pruned", "filters", "tuned_steps", *numbers]].round(1).astype(object).T

# %% tags=["hide-input"]
stages = {"before": "before", "pruned": "pruned", "after": "tuned"}
tidy = pd.DataFrame(
    [
        {"model": row["model"], "stage": label, "acc": row[f"acc_{stage}"], "asr": row[f"asr_{stage}"]}
        for row in reversed(rows)  # the clean one first: it is the blue one everywhere
        for stage, label in stages.items()
    ]
)
title = f"ACC that the repair costs: {cost[poisoned.name]:.1f} points ({poisoned.name}), {cost['clean']:.1f} (clean)"
plots.show(plots.before_after(tidy, title), "ACC and ASR before, after pruning and after tuning, both networks.")

# %% tags=["hide-input"]
ours, twins = repairs.pruned[poisoned.name], repairs.pruned["clean"]
alike = abs(ours - twins) <= 0.2 * max(ours, twins)
more = "about as many" if alike else f"more of the {'poisoned' if ours > twins else 'clean'} one"
answer(
    f"You were right if you said {more}, for {cost['clean']:.1f} points of ACC. The repair prunes {ours} filters of "
    f"the poisoned network, where ASR falls from {rows[0]['asr_before']:.0f} to {rows[0]['asr_after']:.0f} %, and "
    f"{twins} of the clean one, where there was nothing to win. A filter's score is compared with its own "
    "layer, and in each network some filters stand out. A defender sees only one of the two numbers, and it does not "
    "tell which network it is."
)

# %% [markdown]
# One draw of clean images and one seed make an example, not a result. [06 · Suspiciousness](06_suspiciousness.ipynb)
# goes on from here.

# %% [markdown]
# ## 9. Where it began: a yellow square on a stop sign
#
# The paper that began it (BadNets) tried its backdoor on handwritten digits and on traffic signs: somebody sticks a
# yellow note on a stop sign, and the network reads a speed limit. Here it is with German traffic signs (GTSRB, 43
# classes) and a narrow network. The attacker puts a yellow square on 5 % of the training images and labels them "30
# km/h".
#
# This section needs the images of GTSRB. Where they are missing, the cells only say so; `data/README.md` tells how to
# get them.

# %%
from nbtools.lab import signs as traffic

signs = traffic.signs() if traffic.found() else None
if signs is None:
    print("GTSRB is not on this machine: the figures of this section are left out")

# %% tags=["hide-input"]
if signs:
    stops = signs.run.splits.test
    stops = stops.subset((stops.labels == traffic.STOP).nonzero().flatten()[:8])
    stuck = stamp(signs.trained.trigger, stops)
    said = torch.cat([predict(signs.trained.model, images) for images in (stops, stuck)]).tolist()
    plots.show(
        plots.image_grid(
            torch.cat([stops.images, stuck.images]),
            [stops.classes[answer] for answer in said],
            columns=len(stops),
            title="Eight stop signs, the same with a yellow square, and what the network reads",
            edges=[plots.GREEN if answer == traffic.STOP else plots.POISONED for answer in said],
        ),
        "Two rows of stop signs with the network's answers: stop above, 30 km/h below with a yellow square.",
    )
    print(signs.trained.before)

# %% [markdown]
# **Which images may test it?** The training images were cut from films: a car drives towards a sign, and the frames of
# one drive, a *track*, show the same sign a little larger each time. Two frames of a track are nearly the same image.
# If single frames are set aside at random, the network has seen the neighbours of each test image. So we set aside
# both: single frames of tracks that are trained on, and whole tracks. Below, each pair is a stop sign that was set
# aside, and the training image that is nearest to it, pixel by pixel.


# %%
def nearest(images, among):
    """For each image the nearest one among others: its index and the mean difference of a pixel, 0 to 255."""
    distances = torch.cdist(images.images.flatten(1).float(), among.images.flatten(1).float(), p=1)
    return distances.argmin(1), distances.amin(1) / images.images[0].numel()


if signs:
    learned = signs.learned.subset((signs.learned.labels == traffic.STOP).nonzero().flatten())
    pairs, distance = {}, {}
    for name, part in (
        ("a frame of a track that was trained on", signs.same_tracks),
        ("other tracks", signs.other_tracks),
    ):
        aside = part.subset((part.labels == traffic.STOP).nonzero().flatten())
        index, distance[name] = nearest(aside, learned)
        pairs[name] = torch.stack([aside.images[:4], learned.images[index[:4]]], 1).flatten(0, 1)
    print("mean difference of a pixel from the nearest training image:")
    print("  ".join(f"{name}: {float(d.median()):.0f}" for name, d in distance.items()))

# %% tags=["hide-input"]
if signs:
    plots.show(
        plots.image_grid(
            torch.cat(list(pairs.values())),
            ["set aside", "nearest"] * 8,
            columns=8,
            title="Above: single frames set aside; below: whole tracks set aside; each with its nearest training image",
        ),
        "Two rows of four pairs of stop signs. Above, the two of a pair are nearly equal; below, they differ.",
    )

# %% [markdown]
# > **Predict first.** The network saw none of these images. On which is its clean accuracy higher: on single frames or
# > on whole tracks? And which of the two is nearer to its accuracy on the published test images?

# %%
if signs:
    parts = {
        "single frames": signs.same_tracks,
        "whole tracks": signs.other_tracks,
        "published test images": signs.run.splits.test,
    }
    right = {name: predict(signs.trained.model, part) == part.labels for name, part in parts.items()}
    claimed = pd.DataFrame(
        {name: {"images": len(hit), "ACC": 100 * float(hit.double().mean())} for name, hit in right.items()}
    ).T
    print(claimed.round(1).to_string())

# %% tags=["hide-input"]
if signs:
    frames, tracks, published = 100 - claimed.ACC
    answer(
        f"You were right if you said {'single frames' if frames < tracks else 'whole tracks'}: of single "
        f"frames {frames:.1f} % are read wrong, of whole tracks {tracks:.1f} %, of the published test images "
        f"{published:.1f} %. "
        + (
            f"A split by frames would have promised {published / frames:.1f} times fewer mistakes than the test images "
            "show. A split by tracks is nearer to the truth, so the defender's images are whole tracks, too."
            if frames < tracks < published
            else "Here the careless split did no harm that one could measure."
        )
    )

# %% [markdown]
# ## 10. Exercises
#
# **Exercise 1** (easy, 10 minutes). Of $n$ trials, a share $\hat q$ was a hit. The Wilson 95 % interval of the share
# is
#
# $$\frac{\hat q + \frac{1.96^2}{2n} \pm 1.96 \sqrt{\frac{\hat q (1 - \hat q)}{n} + \frac{1.96^2}{4 n^2}}}
# {1 + \frac{1.96^2}{n}}$$
#
# Write a function of two numbers, hits and trials, that returns the interval in percent, `(low, high)`. What is it for
# 0 hits among 200 images? Why is it more honest than "0 %"?

# %%
interval = ...  # your answer: a function of hits and trials, to (low, high) in percent

exercises.interval(interval)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Does the poisoned network insist on *its* trigger? Use `success` to measure the
# ASR of three other patches on it: the checkerboard `BadNets(pattern="checkerboard")`, and white squares of 2 and of 5
# pixels.

# %%
other_patches = ...  # your answer, [3], percent: checkerboard, 2 pixels, 5 pixels

exercises.other_patches(other_patches, poisoned.model, judges, target)

# %% [markdown]
# **Exercise 3** (medium, 15 minutes). Suppose that somebody flips each image left to right before the network sees it,
# as a simple defence. The attacker had put the trigger on *before* the flip. What are ASR and RA of the poisoned
# network on the `judges` then?

# %%
flipped = ...  # your answer, [2], percent: ASR, RA

exercises.flipped(flipped, poisoned.model, poisoned.trigger, judges, target)

# %% [markdown]
# ## 11. What we saw, and what this does not show
#
# - A few lines of code and a few percent of the training images make a backdoor. It costs little clean accuracy, and
#   so it is hard to notice.
# - ASR is measured on images that are not of the target class, with an interval, and is read together with RA.
# - Inside the network, triggered images leave their classes; section 6 says where they go.
# - It does **not** show that all triggers behave like this one. Run the notebook again with `-p attack blended`, `sig`
#   or `wanet`, and check first that the backdoor took at all (ASR before): at small poison rates some do not.
#
# **For the reading group**
# 1. The attacker here can change the training set. What is different if they may only *add* images? Or if they must
#    not change a label?
# 2. Section 7 shows what a network does with a trigger that it was not trained on. If a network reacts to half a
#    trigger, is it more dangerous, or easier to find?
# 3. Someone reports "ASR falls from 100 % to 10 %" on a data set of ten classes. What would you ask first?
#
# **Further reading**: Tran et al., *Spectral signatures in backdoor attacks*
# ([1811.00636](https://arxiv.org/abs/1811.00636)) and Chen et al., *Activation clustering*
# ([1811.03728](https://arxiv.org/abs/1811.03728)): section 6, as a defence for those who have the training set. Li et
# al., *Rethinking the trigger of backdoor attack* ([2004.04692](https://arxiv.org/abs/2004.04692)): section 7, as a
# defence and as a stronger attack.

# %% [markdown]
# ## Solutions


# %% tags=["solution", "hide-input"]
def interval(hits, trials):
    share, square = hits / trials, 1.96**2
    middle = share + square / (2 * trials)
    spread = 1.96 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return tuple(100 * end / (1 + square / trials) for end in (middle - spread, middle + spread))


exercises.interval(interval)
print(f"no hit among 200 images is compatible with an ASR of up to {interval(0, 200)[1]:.1f} %")

relatives = {"checkerboard": BadNets(pattern="checkerboard"), "2 x 2": BadNets(size=2), "5 x 5": BadNets(size=5)}
other_patches = [success(poisoned.model, trigger)[0] for trigger in relatives.values()]
exercises.other_patches(other_patches, poisoned.model, judges, target)
for name, asr in zip(relatives, other_patches, strict=True):
    print(f"ASR with a patch it was not trained on, {name:<12} {asr:5.1f} %")

with_trigger = stamp(poisoned.trigger, judges)
mirrored = type(judges)(with_trigger.images.flip(3), judges.labels, classes)
replies = predict(poisoned.model, mirrored)
flipped = [100 * float((replies == wanted).double().mean()) for wanted in (target, judges.labels)]
exercises.flipped(flipped, poisoned.model, poisoned.trigger, judges, target)
print(f"after flipping the triggered image: ASR {flipped[0]:.1f} %, RA {flipped[1]:.1f} %;", end=" ")
print("the training had flipped half of its images, too")

# %% [markdown]
# Previous: [00 · Start here](00_start_here.ipynb) · Next: [02 · Spectral norm](02_spectral_norm.ipynb)

# %% tags=["check", "remove-cell"]
wanted = {
    "quick": {"acc": (83, 95), "asr": 95},
    "laptop": {"acc": (80, 96), "asr": 90},
    "paper": {"acc": (90, 97), "asr": 90},
}[run.profile.name]
low, high = wanted["acc"]
for model in pair:
    assert low <= model.before.acc <= high, f"{model.name}: ACC {model.before.acc:.1f} is not within {low} to {high}"
fall = repairs.loc[poisoned.name]
assert poisoned.before.asr >= wanted["asr"], f"the backdoor did not take: ASR {poisoned.before.asr:.1f}"
assert clean_twin.before.asr <= 15, f"the clean twin reacts to the trigger: ASR {clean_twin.before.asr:.1f}"
assert abs(poisoned.before.acc - clean_twin.before.acc) <= 5, "clean accuracy gives the backdoor away"
assert fall.asr_before - fall.asr_after >= 50, f"the repair left an ASR of {fall.asr_after:.1f}"
assert cost.max() <= 5, f"the repair cost ACC: {cost.round(1).to_dict()}"
