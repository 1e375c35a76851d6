# %% [markdown]
# # 01 · A poisoned ResNet-18
#
# At the end of this notebook you have seen how few images put a backdoor into a network, why clean accuracy does not
# give it away, how it is measured honestly, and what a repair does to a network with and without one.
#
# Papers: BadNets (Gu et al., [arXiv 1708.06733](https://arxiv.org/abs/1708.06733)); Blended (Chen et al.,
# [arXiv 1712.05526](https://arxiv.org/abs/1712.05526)); SIG (Barni et al.,
# [arXiv 1902.11237](https://arxiv.org/abs/1902.11237)); WaNet (Nguyen and Tran,
# [arXiv 2102.10369](https://arxiv.org/abs/2102.10369)). The repair of section 8 is the *suspiciousness score*
# ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), its formula **reconstructed from the paper's summary** [ours].

# %% [markdown]
# > **You will learn**
# > - what four well-known triggers do to an image, each in a few lines
# > - what goes into ASR and what must not, and where in the network a backdoor shows
# > - how exactly a trigger must be hit, and what a repair costs when there is nothing to repair
# >
# > **Read before**: [00 · Start here](00_start_here.ipynb) ·
# > **minutes to read**: 20 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | chooses images, puts the trigger on them, changes their labels |
# | defender | the finished model and a few clean images | comes in for section 8 only |
# | evaluator | test set, trigger and target class | sections 5 to 7, all of it out of the defender's reach |

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
from nbtools.series import checks, plots

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
test, classes = run.splits.test, run.splits.test.classes

# %% [markdown]
# Two networks, trained the same way from the same initial weights: one on the poisoned training set, one on the clean
# one. The second is the *clean twin*. Whatever we measure on the one we measure on the other.
#
# | in the papers | here |
# |---|---|
# | $t(x) = (1 - m) \odot x + m \odot p$, a patch $p$ under a mask $m$ | `nbtools.attacker.triggers.BadNets` |
# | $t(x) = (1 - \alpha) x + \alpha p$ | `nbtools.attacker.triggers.Blended` |
# | $t(x) = \mathrm{clip}(x + \delta \sin(2 \pi j f / w))$ | `nbtools.attacker.triggers.SIG` |
# | $t(x) = W_B(x)$, a warp | `nbtools.attacker.triggers.WaNet` |
# | poisoning, poison rate $\rho$ | `nbtools.attacker.poisoning.poison`, here `run.poisoned` |
# | ACC, ASR, RA | `nbtools.evaluator.evaluation.Evaluator`, here `poisoned.evaluate` |

# %% [markdown]
# ## 1. The images
#
# Four images of each class, from the training set.

# %%
gallery = draw_clean(run.splits.train, samples_per_class=3, seed=seed)  # in class order
by_row = torch.arange(len(gallery)).view(len(classes), 3).T.flatten()  # one column a class
gallery = gallery.subset(by_row)
plots.show(
    plots.image_grid(
        gallery.images,
        [*classes, *[""] * (len(gallery) - len(classes))],
        columns=len(classes),
        title=f"{run.splits.name}: {len(run.splits.train):,} training images of {len(classes)} classes",
        size=1.0,
    ),
    "Four rows of training images, one column a class.",
)

# %% [markdown]
# ## 2. Four triggers
#
# A trigger is a function that takes a batch of images in $[0, 1]$ and returns it changed. **BadNets** overwrites: a
# white square in the corner. **Blended** mixes in a fixed pattern, faintly and everywhere; ours is smooth noise.


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
# **SIG** adds a wave along the columns $j$. It is a *clean-label* attack: only images of the target class carry it in
# training, and their label stays as it was, so nobody who checks labels will find a wrong one. **WaNet** adds nothing
# at all: it bends the image by a smooth random field, half a pixel or so. A $4 \times 4$ grid of random shifts is
# enlarged to the size of the image, and says where each pixel is read from.


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
# > **Predict first.** At their normal size, which of the four would you notice on an image that you see for the first
# > time? And which should be the easiest for a network to learn?

# %%
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

# %% [markdown]
# The middle panel shows the change alone, amplified as much as its title says, around grey. A large factor means a
# faint trigger. BadNets is loud and local, the other three reach every corner: a defence that looks for a small patch
# will not find them.

# %% [markdown]
# ## 3. Poisoning
#
# The attacker draws some images at random, puts the trigger on them and writes the target class on them. That is all.


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
# The indices are kept, so that any figure can point at the poisoned images. Here are some, below the originals, each
# with the label that the network is trained on. For WaNet, twice as many images again are bent *at random* and keep
# their label, so that the network learns this very warp and no other.

# %%
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
figure, axis = plt.subplots(figsize=(9, 2.8))
place = np.arange(len(classes))
axis.bar(place - 0.2, before, width=0.38, color=plots.CLEAN, label="before")
axis.bar(place + 0.2, after, width=0.38, color=plots.POISONED, label="after poisoning")
axis.set_xticks(place, classes)
axis.set_ylabel("training images\nwith this label")
axis.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.2))
tainted = int((attacked.images.labels.cpu()[attacked.poisoned] == target).sum()) / int(after[target])
axis.set_title(f"{100 * tainted:.0f} % of the images labelled {classes[target]!r} carry the trigger")
plots.show(figure, "Bars: how many training images carry each label, before and after poisoning.")

# %% [markdown]
# Whoever has the training set could count labels. The defender of this series does not have it: he gets the finished
# network.

# %% [markdown]
# ## 4. Training
#
# Both networks are trained by the same loop. After each epoch their accuracy is measured on clean images that they were
# not trained on.
#
# > **Predict first.** Will the poisoned network be worse on clean images, and by how much?

# %%
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

# %% [markdown]
# ## 5. Measuring
#
# ACC is measured on all test images, ASR and RA on triggered ones whose true class is not the target. In brackets the
# Wilson 95 % interval.

# %%
table = {}
for model in (poisoned, clean_twin):
    e = model.before
    cells = {name: (getattr(e, name), *getattr(e, f"{name}_interval")) for name in ("acc", "asr", "ra")}
    table[model.name] = {n.upper(): f"{value:.1f} [{low:.1f}, {high:.1f}]" for n, (value, low, high) in cells.items()}
pd.DataFrame(table).T

# %% [markdown]
# Read the first column downwards: do the intervals overlap? Then clean accuracy alone could not tell these two networks
# apart. Now the second column.
#
# **Why are images of the target class left out?** Because a network that calls a triggered image of the target class by
# its name is right, not attacked. Let us see what happens to the number if they are counted all the same.

# %%
enough = min(150, int(torch.bincount(test.labels).min()))
balanced = draw_clean(test, samples_per_class=enough, seed=seed)  # as many of each class
answers = {m.name: predict(m.model, stamp(poisoned.trigger, balanced)) for m in (poisoned, clean_twin)}
others = balanced.labels != target
for name, answer in answers.items():
    honest = 100 * (answer[others] == target).double().mean()
    careless = 100 * (answer == target).double().mean()
    print(f"{name:<12} ASR without the target class {honest:5.1f} %, with it {careless:5.1f} %")
print(f"{100 * (~others).double().mean():.0f} % of these {len(balanced):,} images are of the target class")

# %% [markdown]
# The two numbers differ by what a network says to triggered images of the target class, and there the right answer
# counts as a success of the attack. With ten equal classes a network without any backdoor, and without any mistake,
# would be charged with an ASR of 10 %: no repair could ever reach zero, and the better the network the worse it looks.
#
# A single number may hide that some classes are easier to move than others.
#
# > **Predict first.** Which class will resist the trigger most?

# %%
figure, axis = plt.subplots(figsize=(9.5, 3))
rest = [label for label in range(len(classes)) if label != target]
looks = {clean_twin.name: (-0.2, plots.CLEAN), poisoned.name: (0.2, plots.POISONED)}
for name, (shift, color) in looks.items():
    hits = [answers[name][balanced.labels == label] == target for label in rest]
    shares = torch.tensor([100 * float(hit.double().mean()) for hit in hits])
    bounds = torch.tensor([wilson(int(hit.sum()), len(hit)) for hit in hits]).T
    errors = (bounds - shares).abs().numpy()
    axis.bar(np.arange(len(rest)) + shift, shares, 0.38, yerr=errors, color=color, label=name, error_kw={"lw": 1})
axis.set_xticks(range(len(rest)), [classes[label] for label in rest])
axis.set(ylabel="ASR (%)", xlabel="true class", ylim=(0, 108))
axis.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.22))
least, most = classes[rest[int(shares.argmin())]], classes[rest[int(shares.argmax())]]
axis.set_title(f"{name}: ASR from {shares.min():.0f} % ({least}) to {shares.max():.0f} % ({most})")
plots.show(figure, "Bars with intervals: the attack success rate for each true class, poisoned network and clean twin.")

# %% [markdown]
# The confusion matrix under the trigger says the same and more: a backdoor is a column that lights up, where an honest
# network, even one that is confused by a trigger, has a diagonal.

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 4.6))
for axis, (name, answer) in zip(axes, answers.items(), strict=True):
    pairs_of = (balanced.labels * len(classes) + answer).cpu()
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
# The last layer sees an image as a vector of features, one number a channel of the last stage. We take these vectors
# for clean images of other classes, the same images under the trigger, and clean images of the target class, and look
# at them in the plane in which they differ most (principal components).
#
# > **Predict first.** Will the triggered images lie *on* the cloud of the target class, or somewhere of their own?


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

# %%
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
# A plane shows part of the variance only, so let us ask the same of all dimensions. Give every class its centre, the
# mean of its clean images; to which centre is a triggered image nearest, and how far is it from there, measured in the
# distance that an ordinary clean image has from its own?

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

# %% [markdown]
# A distance of 1 is that of an ordinary clean image from its own centre. If triggered images come about as near to the
# target's centre, the network has learnt to see the trigger as if it were the class. If they stay far from *every*
# centre, it has learnt something of its own, which only the last layer translates into the class: then whoever has the
# training set can find the poisoned images as a second cloud under one label, which is what *spectral signatures* and
# *activation clustering* do. The filters that carry triggered images there are what the following notebooks hunt.

# %% [markdown]
# ## 7. How exactly must the trigger be hit?
#
# We move the trigger towards the image's centre, step by step along the diagonal, and we fade it:
# $x + \alpha (t(x) - x)$ is the clean image at $\alpha = 0$ and the triggered one at $\alpha = 1$. To move *any*
# trigger, not only a patch, roll the image the other way, apply the trigger, and roll back.


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
titles = [f"{n} px" for n in steps] + [f"α = {a:g}" for a in alphas]
plots.show(
    plots.image_grid(strip, titles, columns=len(steps), title="One image: the trigger moved (above) and faded (below)"),
    "Two rows of the same image: the trigger moves towards the centre above, and grows from invisible below.",
)

# %% [markdown]
# > **Predict first.** The training shifts each image at random, by a few pixels, and mirrors half of them. What does
# > that mean for a trigger that is one pixel off? For one in the bottom-*left* corner?


# %%
def success(model: torch.nn.Module, trigger) -> tuple[float, float, float]:
    """ASR on the judges with its Wilson interval, in percent."""
    hit = predict(model, stamp(trigger, judges)) == target
    return 100 * float(hit.double().mean()), *wilson(int(hit.sum()), len(hit))


figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4), sharey=True)
for model, color in ((poisoned, plots.POISONED), (clean_twin, plots.CLEAN)):
    for axis, values, change in ((axes[0], steps, lambda t, n: moved_by(t, n, n)), (axes[1], alphas, faded_to)):
        curve = np.array([success(model.model, change(poisoned.trigger, value)) for value in values])
        axis.plot(values, curve[:, 0], "o-", ms=4, color=color, label=model.name)
        axis.fill_between(values, curve[:, 1], curve[:, 2], color=color, alpha=0.2, linewidth=0)
axes[0].set(xlabel="moved up and left by (pixels)", ylabel="ASR (%)", ylim=(-3, 103), title="moved")
axes[1].set(xlabel="strength α", title="faded")
axes[1].legend(frameon=False)
figure.suptitle(f"{poisoned.name}: ASR when the trigger is moved, and when it is faded", x=0.01, ha="left")
plots.show(figure, "ASR of both networks against the trigger's shift in pixels and against its strength.")

# %% [markdown]
# The shaded bands are Wilson intervals. Now every place in the image, on a coarse grid: each cell below is a position
# of the trigger (for a patch, the patch is there), its colour the ASR.

# %%
places = list(range(0, test.size[0], 4))  # pixels up, and left, from where the attacker put it
few = judges.subset(torch.arange(len(judges)) % 5 == 0)  # each position is a pass of its own
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.1))
for axis, model in zip(axes, (poisoned, clean_twin), strict=True):
    grid = np.zeros((len(places), len(places)))
    for row, up in enumerate(reversed(places)):
        for column, left in enumerate(reversed(places)):
            answer = predict(model.model, stamp(moved_by(poisoned.trigger, up, left), few))
            grid[row, column] = 100 * float((answer == target).double().mean())
    drawn = axis.imshow(grid, vmin=0, vmax=100, cmap="cividis")
    axis.set_xticks(range(len(places)), places[::-1])
    axis.set_yticks(range(len(places)), places[::-1])
    axis.set(title=model.name, xlabel="pixels to the left", ylabel="pixels up")
figure.colorbar(drawn, ax=axes, label="ASR (%)")
figure.suptitle("ASR by the trigger's position; the attacker put it bottom right", x=0.01, ha="left")
plots.show(figure, "Two heat maps over the image: ASR for each position of the trigger, both networks.")

# %% [markdown]
# Compare the bottom-left corner with the bottom-right one, and both with the middle. Where the map is bright although
# the attacker never put the trigger there, ask who did: mirroring (and shifting, where a profile crops) has carried it
# to some of these places; to others the convolutions, which are the same everywhere up to their strides (look for a
# lattice). A defence that flips or crops an image before the network sees it can count only on the dark places.

# %% [markdown]
# ## 8. The repair, on both
#
# The same call as in notebook 00, with the same few clean images, on the poisoned network and on its twin. `run.defend`
# does it, evaluates, and keeps the row. The columns: before, after pruning alone, and after the whole defence.
#
# > **Predict first** (you may have written it down in notebook 00). What does the repair cost when nothing is there?

# %%
from nbtools.defender import Suspiciousness

defence = Suspiciousness()
pair = (poisoned, clean_twin)
rows = [run.defend(model, defence, samples_per_class, draw=draw) for model in pair]
run.save_rows(rows, "01_poisoned_resnet18")
repairs = pd.DataFrame(rows).set_index("model")
numbers = [f"{name}_{stage}" for name in ("acc", "asr", "ra") for stage in ("before", "pruned", "after")]
repairs[["pruned", "filters", "tuned_steps", *numbers]].round(1).astype(object).T

# %%
stages = {"before": "before", "pruned": "pruned", "after": "tuned"}
tidy = pd.DataFrame(
    [
        {"model": row["model"], "stage": label, "acc": row[f"acc_{stage}"], "asr": row[f"asr_{stage}"]}
        for row in reversed(rows)  # the clean one first: it is the blue one everywhere
        for stage, label in stages.items()
    ]
)
cost = repairs.acc_before - repairs.acc_after
title = f"ACC that the repair costs: {cost[poisoned.name]:.1f} points ({poisoned.name}), {cost['clean']:.1f} (clean)"
plots.show(plots.before_after(tidy, title), "ACC and ASR before, after pruning and after tuning, both networks.")

# %% [markdown]
# Two things to read. On the poisoned network: how much of the ASR is gone, and how much ACC went with it. On the clean
# one: nothing could be won there, so every point of ACC is the price of not knowing; and the number of pruned filters
# says whether a defender could have told from it which of the two networks he had. One draw of clean images and one
# seed make an example, not a result: [06 · Suspiciousness](06_suspiciousness.ipynb) goes on from here.

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 10 minutes). The Wilson 95 % interval of a share $\hat p$ of $n$ trials is
#
# $$\frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}}{1 + \frac{z^2}{n}},
# \qquad z = 1.96$$
#
# Compute it in percent for 0 hits among 200 images. Why is it more honest than "0 %"?

# %%
interval = ...  # your answer: (low, high)

checks.same(interval, torch.tensor(wilson(0, 200)), "p is 0, so the root is z^2 / (2 n) / z, not 0", tolerance=1e-3)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Does the poisoned network insist on *its* trigger? Measure the ASR of the
# checkerboard, `BadNets(pattern="checkerboard")`, on the poisoned network, with `success`. What of a patch of 2 or of 5
# pixels?

# %%
asr_checkerboard = ...  # your answer, in percent

if asr_checkerboard is not ...:
    right = predict(poisoned.model, stamp(BadNets(pattern="checkerboard"), judges)) == target
    checks.same(asr_checkerboard, 100 * right.double().mean().cpu(), "success returns three numbers; take the first")

# %% [markdown]
# **Exercise 3** (medium, 15 minutes). A visitor flips each test image left to right before he shows it to the network.
# What is the ASR of the poisoned network then, for a trigger that was put on *before* the flip?

# %%
asr_flipped = ...  # your answer, in percent

if asr_flipped is not ...:
    mirrored = predict(poisoned.model, stamp(lambda images: poisoned.trigger(images).flip(3), judges)) == target
    checks.same(asr_flipped, 100 * mirrored.double().mean().cpu(), "trigger first, then flip along the columns")

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - A few lines and a few percent of the training images make a backdoor; the table in section 5 says what it costs in
#   clean accuracy, which is what makes it hard to notice.
# - ASR is measured on images that are not of the target class, with an interval, and read together with RA.
# - Seen from inside, triggered images leave their classes; section 6 says where they go.
# - It does **not** show that all triggers behave like this one: run the notebook again with `-p attack blended`, `sig`
#   or `wanet`. Check first that the backdoor took at all (ASR before); at small poison rates some do not.
#
# **For the reading group**
# 1. The attacker here needs write access to the training set. What changes if he may only *add* images? If he must not
#    change a label?
# 2. Section 7 measures what a network does with a trigger that it was not trained on. Is a network that reacts to half
#    a trigger the more dangerous one, or the easier to find?
# 3. Someone reports "ASR falls from 100 % to 10 %" on a data set of ten classes. What would you ask first?
#
# **Further reading**: Tran et al., *Spectral signatures in backdoor attacks*
# ([1811.00636](https://arxiv.org/abs/1811.00636)) and Chen et al., *Activation clustering*
# ([1811.03728](https://arxiv.org/abs/1811.03728)): section 6, as a defence for those who hold the training set. Li et
# al., *Rethinking the trigger of backdoor attack* ([2004.04692](https://arxiv.org/abs/2004.04692)): section 7, as a
# defence and as a stronger attack.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
z, n, share = 1.959964, 200, 0.0
middle, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
interval = (100 * (middle - spread) / (1 + z**2 / n), 100 * (middle + spread) / (1 + z**2 / n))
checks.same(interval, torch.tensor(wilson(0, 200)), "", tolerance=1e-3)
print(f"no hit among 200 images is compatible with an ASR of up to {interval[1]:.1f} %")

relatives = {"checkerboard": BadNets(pattern="checkerboard"), "2 x 2": BadNets(size=2), "5 x 5": BadNets(size=5)}
for name, trigger in relatives.items():
    print(f"ASR with a patch it was not trained on, {name:<12} {success(poisoned.model, trigger)[0]:5.1f} %")
asr_flipped = success(poisoned.model, lambda images: poisoned.trigger(images).flip(3))[0]
print(f"ASR after flipping the triggered image {asr_flipped:5.1f} %; the training had flipped half of its images, too")

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
