# %% [markdown]
# # 03 · Saliency
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/03_saliency.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/03_saliency.ipynb)
#
# At the end of this notebook you can say, after one backward pass, how much the clean images depend on each filter of
# a network, and why the filters that they hardly depend on are the suspects.
#
# Paper: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose second term this is.
# **The formula is reconstructed from the paper's summary**, which names the gradient's magnitude and no more. Three
# choices are ours: the norm over a filter's weights, image by image; that *low* is suspicious; and the three losses
# below. Sections 2, 4, 5, 6 and 8 test them.

# %% [markdown]
# > **You will learn**
# > - what the gradient of the clean loss says about a filter, and how to get it for all filters and images at once
# > - what is lost when the gradients of many images are averaged before their length is taken
# > - why an image that the network is sure of adds nothing to that gradient, and two losses that change this
# > - how well low saliency finds the filters that a trigger moves, and what pruning by it alone costs
# >
# > **Read before**: [02 · Spectral norm](02_spectral_norm.ipynb) ·
# > **minutes to read**: 34 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts the trigger on a few training images |
# | defender | the model and a few **clean images with their labels** | computes the gradients, prunes |
# | evaluator | test set and trigger | measures the effect, and what the trigger really moves |
#
# As in notebook 02 the evaluator measures clean accuracy (ACC), attack success rate (ASR) and robust accuracy (RA),
# and *trigger-activated change* (TAC): how far the trigger moves each filter's map.

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
draw = 0  # which draw of the clean images
draws = 0  # draws to compare in section 8, at least 2; 0 is what the profile says
mu = 2.0  # threshold of section 6, standard deviations above the layer's mean
mus = [1.0, 2.0, 3.0]  # thresholds to try in section 7, the same

# %%
import copy

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import spearmanr

import nbtools
from nbtools.evaluator.agreement import agreement, stability
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots, terms
from nbtools.series.exercises import saliency as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed)
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
both = (poisoned, clean_twin)
clean = run.draw(samples_per_class, draw=draw)
print(f"the defender holds {len(clean)} clean images")
pd.DataFrame({model.name: model.before_at_a_glance.row() for model in both}).T.round(1)

# %% [markdown]
# | in the paper, and on this page | here |
# |---|---|
# | $\ell(F(x), y)$, the loss of one clean image | `nbtools.defender.saliency.saliency_loss`, in three forms |
# | $s_i$, the mean length of the images' gradients | `nbtools.defender.components.components(...).saliency` |
# | $1 / (\tilde s_i + \varepsilon)$, $\tilde s = s / \mathrm{mean}_l(s)$ | `nbtools.series.terms.low_is_suspicious` |
# | $\tilde\sigma_i \sqrt{1 / (\tilde s_i + \varepsilon)}$, behind the norm | `nbtools.series.terms.behind_norm` |
# | $\mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ of a layer $l$ | `nbtools.defender.pruning.threshold` |
# | TAC | `nbtools.evaluator.agreement.tac`, only for the evaluator |

# %% [markdown]
# ## 1. The steepest way up
#
# The spectral norm looked at the weights alone. Now we have a few clean images, and can ask how much they depend on a
# filter: how fast does their loss change when the filter's weights move? The gradient $\partial L / \partial W_i$
# points in the direction in which the mean loss $L$ grows fastest. Its length is the slope in that direction:
#
# $$\left\lVert \frac{\partial L}{\partial W_i} \right\rVert_F , \qquad
# L = \frac{1}{n} \sum_{(x, y)} \ell\big(F(x), y\big) \quad \text{over the defender's } n \text{ images}$$
#
# PyTorch's automatic differentiation (*autograd*) gives it for one layer:

# %%
layer = "layer3.1.conv1"  # the layer that we look at closely
model = copy.deepcopy(poisoned.model)  # a copy, so that gradients may be asked for
conv = model.get_submodule(layer)
conv.weight.requires_grad_(True)
x, y = clean.floats(), clean.labels

loss = F.cross_entropy(model(x), y)
(gradient,) = torch.autograd.grad(loss, conv.weight)  # [filters, c_in, k, k], like the weights
slopes = gradient.flatten(1).norm(dim=1)  # [filters]
print(f"clean loss {loss:.3f}; {layer}: slopes from {slopes.min():.1e} to {slopes.max():.1e}")

# %% [markdown]
# To see what the number means, we take three filters of this layer and move the weights of each along its own
# gradient. At step 0 the slope of the loss must be the gradient's length, the dashed line. Farther away it need not:
# the gradient is a *local* statement. A filter with a small slope may still matter when it is removed altogether.


# %%
@torch.no_grad()
def loss_along(number: int, steps: torch.Tensor) -> list[float]:
    """The clean loss when one filter's weights take a step of the given length along its gradient."""
    start, losses = conv.weight[number].clone(), []
    for step in steps:
        conv.weight[number] = start + step * gradient[number] / gradient[number].norm().clamp_min(1e-30)
        losses.append(float(F.cross_entropy(model(x), y)))
    conv.weight[number] = start
    return losses


order = slopes.argsort(descending=True)
chosen = {"steepest": order[0], "median": order[len(order) // 2], "flattest": order[-1]}
steps = torch.linspace(-0.25, 0.25, 9, device=x.device) * float(conv.weight.detach().flatten(1).norm(dim=1).median())

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(7, 3.6))
for (name, number), color in zip(chosen.items(), (plots.RED, plots.PURPLE, plots.GREEN), strict=True):
    slope = float(slopes[number])
    axis.plot(steps.cpu(), loss_along(int(number), steps), "o-", ms=4, color=color, label=f"{name}, {slope:.1e}")
    axis.plot(steps.cpu(), float(loss.detach()) + slope * steps.cpu(), "--", lw=1, color=color)
axis.set(xlabel="step along the filter's own gradient (length in weight space)", ylabel="clean loss")
axis.legend(frameon=False, fontsize=9, title="filter, length of its gradient")
axis.set_title(f"The gradient's length is the slope of the clean loss ({layer})")
plots.show(figure, "Clean loss against a step along the gradient for three filters, with the tangents at step zero.")

# %% [markdown]
# ## 2. Which images have a long gradient, and do they agree?
#
# The gradient of the mean loss is the mean of the images' own gradients, since no image influences another one while
# the batch norm is in evaluation mode. So we can take each image alone, and ask how long its gradient is and where it
# points.
#
# > **Predict first.** Sort the images by the length of their gradient. How many of them does it take to hold half of
# > the total length?

# %%
# in float64: in float32 a unit that sits on a ReLU's kink may fall to either side, and its image's gradient with it
exact = copy.deepcopy(poisoned.model).double()
weight = exact.get_submodule(layer).weight.requires_grad_(True)
total, lengths, losses, of_filters = torch.zeros_like(weight), [], [], []
for image, label in zip(x.double(), y, strict=True):
    loss_of_one = F.cross_entropy(exact(image[None]), label[None])
    (of_one,) = torch.autograd.grad(loss_of_one, weight)
    total += of_one / len(x)
    lengths.append(of_one.norm())
    of_filters.append(of_one.flatten(1).norm(dim=1))
    losses.append(loss_of_one.detach())
lengths, losses = torch.stack(lengths).cpu(), torch.stack(losses).cpu()

(at_once,) = torch.autograd.grad(F.cross_entropy(exact(x.double()), y), weight)
torch.testing.assert_close(total, at_once, rtol=1e-6, atol=1e-9 * float(at_once.abs().max()))
print("the images one by one, averaged, and all at once give the same gradient")
share = lengths.sort(descending=True).values.cumsum(0) / lengths.sum()

# %% tags=["hide-input"]
by_length = lengths.argsort(descending=True)
shown = torch.cat([by_length[:8], by_length[-8:]])
plots.show(
    plots.image_grid(
        clean.images[shown.to(clean.images.device)],
        [f"{clean.classes[int(clean.labels[i])]}\n{losses[i]:.2g} | {lengths[i]:.1e}" for i in shown],
        title="The images that speak most (top) and least (bottom): loss | length of the gradient",
    ),
    "Sixteen clean images with class, loss and gradient length: the eight longest gradients, the eight shortest.",
)

# %% tags=["hide-input"]
half = int((share < 0.5).sum()) + 1
answer(
    f"You were right if you said {'few' if half <= len(x) / 5 else 'many'}: {half} of {len(x)} images hold half of the "
    f"total length. The network is least sure of these: their median loss is {losses[by_length[:half]].median():.2g}, "
    f"that of the others {losses[by_length[half:]].median():.2g}. An image that the network classifies right, and is "
    "sure of, has next to no gradient, whichever filter it needs. Section 4 comes back to that."
)

# %% [markdown]
# Now the directions. Where the images pull a filter's weights in different directions, their gradients cancel in the
# mean. Then a filter may look as if no image depended on it, although *every* image does. We compare with random
# directions: there the length of the mean is about the root of the sum of the squared lengths, divided by $n$.
#
# > **Predict first.** How much of the length of the images' gradients is left after averaging: nearly all, about
# > half, or less?

# %%
of_filters = torch.stack(of_filters).cpu()  # [images, filters]
mean_length, by_chance = of_filters.mean(0), of_filters.norm(dim=0) / len(x)
of_mean = total.flatten(1).norm(dim=1).cpu()  # [filters], the length of the mean
left, left_by_chance = (100 * part / mean_length.clamp_min(1e-30) for part in (of_mean, by_chance))

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(5.4, 4))
ends = torch.stack([mean_length[mean_length > 0].min(), mean_length.max()])
axis.plot(ends, ends, color="black", lw=1, label="all images agree")
axis.scatter(mean_length, of_mean, s=14, color=plots.POISONED, linewidth=0, label="a filter")
axis.scatter(mean_length, by_chance, s=14, color=plots.GREY, linewidth=0, label="the same, in random directions")
axis.set(xscale="log", yscale="log", xlabel="mean length of the images' gradients", ylabel="length of their mean")
axis.legend(frameon=False, fontsize=9)
axis.set_title(f"What averaging leaves of each filter's gradient ({layer})")
plots.show(figure, "Length of the mean gradient against the mean length, one point a filter, with two references.")

# %% tags=["hide-input"]
middle, random = float(left.median()), float(left_by_chance.median())
said = "nearly all" if middle >= 80 else "about half" if middle >= 40 else "less"
answer(
    f"You were right if you said {said}: in the median filter {middle:.0f} % is left, in all filters "
    f"{float(left.min()):.0f} to {float(left.max()):.0f} %. In random directions it would be {random:.0f} %. "
    + ("So the images hardly agree" if middle < 1.5 * random else "So the images agree in part")
    + ". The nearer a filter lies to its grey point, the more its height depends on which images were drawn."
)

# %% [markdown]
# For this reason our saliency takes the length first and the mean afterwards:
#
# $$s_i = \frac{1}{n} \sum_{(x, y)} \left\lVert \frac{\partial\, \ell(F(x), y)}{\partial W_i} \right\rVert_F$$
#
# This is our choice. It was made on CIFAR-10, where the score with the length of the mean gradient missed backdoors
# that the score with the mean length removes ([notes](../data/lab_notes.md) has the table). Section 8 compares how
# steady the two are.

# %% [markdown]
# ## 3. All filters, all images, one backward pass
#
# One backward pass for each image is slow. If we ask autograd for the gradient of the weights, we get only its sum
# over the images. But the gradient $g(x)$ at a convolution's *output* is there for each image $x$. A convolution
# multiplies its weights with the patches of its input; let the columns of $U(x)$ be these patches, one for each
# position of the output. Then an image's weight gradient is the product of the two:
#
# $$\frac{\partial\, \ell(F(x), y)}{\partial W} = g(x)\, U(x)^\top , \qquad
# g: [\text{filters} \times \text{positions}], \quad U: [C_\mathrm{in} k^2 \times \text{positions}] .$$


# %%
def saliency_of(model: torch.nn.Module, kind: str = "cross_entropy") -> dict[str, torch.Tensor]:
    """Every filter's saliency: mean length of the clean images' gradients."""
    layers, total = layers_of(model, units), {}
    for images, labels in zip(clean.floats().split(20), clean.labels.split(20), strict=True):
        with passing(conv for _, conv, _ in layers) as passed:
            loss = saliency_loss(model(images.requires_grad_()), labels, kind)
        at_outputs = torch.autograd.grad(loss, [passed[conv][1] for _, conv, _ in layers])
        for (unit, conv, _), g in zip(layers, at_outputs, strict=True):
            patches = F.unfold(passed[conv][0].detach(), conv.kernel_size, 1, conv.padding, conv.stride)
            of_each = g.flatten(2) @ patches.transpose(1, 2)  # [images, filters, c_in * k * k]
            total[unit.conv] = total.get(unit.conv, 0) + of_each.norm(dim=2).double().sum(0) / len(clean)
    return total


from nbtools.defender.components import components
from nbtools.defender.saliency import SALIENCY_LOSSES, saliency_loss
from nbtools.networks.maps import passing

units = prunable_units(poisoned.model)
mine = saliency_of(poisoned.model)
parts = {model.name: components(model.model, clean) for model in both}
saliency = {name: part.saliency for name, part in parts.items()}
for name, value in saliency[poisoned.name].items():
    torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-4 * float(value.mean()))
off = float((mean_length - saliency[poisoned.name][layer].cpu()).norm() / mean_length.norm())
print(f"nbtools.defender.components.components gives the same numbers on {len(units)} layers")
print(f"{layer}: one backward pass in float32 and {len(x)} in float64 differ by {off:.0e}")

# %% [markdown]
# Here is every filter's saliency, divided by its layer's mean. The evaluator marks the filters that the trigger
# really moves: in each layer the three with the highest TAC are ringed. On the clean twin the same trigger moves
# filters too, only less; the twin is our control. Filters at the lower edge are dead, or nearly.
#
# > **Predict first.** On the left, will the rings lie high, low, or anywhere?

# %%
_, truth = terms.ground_truth(both, run.splits.test, seed)  # TAC on 20 test images of each class but the target

# %% tags=["hide-input"]


def few_ticks(axis) -> None:
    """Ticks at 1 and 3 of each decade of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharey=True)
for axis, trained, color in zip(axes, both, (plots.POISONED, plots.CLEAN), strict=True):
    relative = {name: (value / value.mean()).clamp_min(0.03) for name, value in saliency[trained.name].items()}
    terms.strip_with_rings(axis, relative, truth[trained.name], color)
    axis.axhline(1, color=plots.GREY, lw=1)
    axis.set(yscale="log", title=trained.name, xlabel="layer (ringed: the three highest TACs)")
    few_ticks(axis.yaxis)
axes[0].set_ylabel("saliency / the layer's mean")
figure.suptitle("Every filter's saliency, and where the trigger's filters lie", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Saliency of every filter by layer on a log scale, poisoned model and clean twin, top TACs ringed.")

# %% tags=["hide-input"]
high = pd.DataFrame({
    name: {n: float((s > s.mean())[truth[name][n].topk(3).indices].double().mean()) for n, s in of_layers.items()}
    for name, of_layers in saliency.items()
})  # fmt: skip
deep = high.index.str.startswith(("layer3", "layer4"))
early, late = (100 * high[rows].mean() for rows in (~deep, deep))
mine, twins = ([part[trained.name] for part in (early, late)] for trained in both)
said = ["high" if part >= 70 else "low" if part <= 30 else "anywhere" for part in mine]
answer(
    f"You were right if you said {said[0] if said[0] == said[1] else f'{said[0]} up to stage 2, {said[1]} behind it'}. "
    f"Above their layer's mean lie {mine[0]:.0f} % of the rings up to stage 2 and {mine[1]:.0f} % of the later ones, "
    f"on the clean twin {twins[0]:.0f} and {twins[1]:.0f} %. The clean images depend on a filter above "
    "the line: low saliency will not find it."
)

# %% [markdown]
# ## 4. When the loss is saturated
#
# The gradient of an image's loss reaches the filters through the logits $z$. For the cross-entropy it starts as
#
# $$\frac{\partial \ell}{\partial z} = p - \mathrm{onehot}(y), \qquad p = \mathrm{softmax}(z).$$
#
# Where the network is sure and right, $p$ *is* the one-hot vector, and nothing is left to send back: the loss is
# *saturated*. The better the model fits, the fewer images have a gradient, until the saliency shows only the few
# images that the network gets wrong. Then low saliency may mark *well fitted* filters, and no longer suspicious ones.
# Two other losses leave every image a gradient [ours]:
#
# | form | $\ell$ | gradient at the logits |
# |---|---|---|
# | `cross_entropy` | $-\log p_y$ | vanishes where the model is sure and right |
# | `softened` | cross-entropy of $z / \tau$, $\tau = 4$ | vanishes later: the softmax is flatter |
# | `margin` | $z_y - \max_{j \neq y} z_j$ | $+1$ and $-1$, always |
#
# > **Predict first.** How much of all gradient does the loudest tenth of the images hold, with each of the three? And
# > do the three put the filters in the same order?

# %%
logits = {trained.name: trained.model(x) for trained in both}
spoken, tenth = {}, max(len(y) // 10, 1)
for kind in SALIENCY_LOSSES:
    z = logits[poisoned.name].clone().requires_grad_(True)
    (at_logits,) = torch.autograd.grad(saliency_loss(z, y, kind), z)
    length = at_logits.norm(dim=1).sort(descending=True).values
    spoken[kind] = (100 * length.cumsum(0) / length.sum()).cpu()

forms = {
    trained.name: {kind: components(trained.model, clean, kind).saliency for kind in SALIENCY_LOSSES}
    for trained in both
}


def mean_rank_correlation(first: dict, second: dict) -> float:
    """Spearman's rank correlation of two scores within a layer, averaged over the layers."""
    return sum(spearmanr(first[n].cpu(), second[n].cpu()).statistic for n in first) / len(first)


likeness = {
    name: pd.DataFrame({a: {b: mean_rank_correlation(of_model[a], of_model[b]) for b in of_model} for a in of_model})
    for name, of_model in forms.items()
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6))
colors = dict(zip(SALIENCY_LOSSES, (plots.BLUE, plots.GREEN, plots.PURPLE), strict=True))
for trained, color in zip(both, (plots.POISONED, plots.CLEAN), strict=True):
    of_each = F.cross_entropy(logits[trained.name], y, reduction="none").clamp_min(1e-6).sort().values.cpu()
    axes[0].plot(of_each, torch.linspace(0, 100, len(of_each)), color=color, label=trained.name)
    print(f"{trained.name}: {100 * float((of_each < 0.01).float().mean()):.0f} % of the images have a loss below 0.01")
axes[0].axvline(0.01, color=plots.GREY, ls=":")
axes[0].set(xscale="log", xlabel="cross-entropy of an image", ylabel="images with at most this loss (%)")
axes[0].set_title("How much loss is left")
for kind, part in spoken.items():
    axes[1].plot(torch.linspace(0, 100, len(y)), part, color=colors[kind], label=kind)
axes[1].set(xlabel="images, loudest first (%)", ylabel="share of all gradient (%)")
axes[1].set_title(f"Who holds the gradient at the logits ({poisoned.name})")
for axis in axes:
    axis.legend(frameon=False, fontsize=9)
plots.show(figure, "Left: cumulative distribution of the clean loss. Right: share of the gradient held by the loudest.")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.1))
for axis, (name, table) in zip(axes, likeness.items(), strict=True):
    plots.heat(axis, table, "rank correlation", form=".2f", limits=(0, 1))
    axis.set_title(name)
    axis.tick_params(axis="y", labelrotation=0)
figure.suptitle("How alike the three forms rank the filters", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Two 3 x 3 heat maps: rank correlation between the three forms of saliency.")

# %% tags=["hide-input"]
held = {kind: float(part[tenth - 1]) for kind, part in spoken.items()}
least = min(float(table.min().min()) for table in likeness.values())
answer(
    f"You were right if you said the most with `{max(held, key=lambda kind: held[kind])}`, and "
    f"{'much the same order' if least >= 0.8 else 'not quite the same order'}. The loudest tenth holds "
    + ", ".join(f"{part:.0f} % with `{kind}`" for kind, part in held.items())
    + f". With gradients of equal length it would be {100 * tenth / len(y):.0f} %. The two forms that differ "
    f"most have a rank correlation of {least:.2f}."
)

# %% [markdown]
# ## 5. Is low saliency suspicious?
#
# The argument: a filter that serves the backdoor has learned to answer to the trigger. Clean images do not carry the
# trigger, so the clean loss hardly depends on that filter: its saliency is low. A filter that clean images need has a
# slope. So the term grows where saliency falls [ours]:
#
# $$\frac{1}{\tilde s_i + \varepsilon}, \qquad \tilde s_i = \frac{s_i}{\mathrm{mean}_l(s)}, \quad \varepsilon = 0.01$$
#
# The argument may be wrong. One could as well argue that a backdoor filter is strong, and so has a strong gradient.
# So we ask TAC, by the rank correlation of notebook 02. Above zero it speaks for our sign, below zero for the other
# one.
#
# > **Predict first.** For which sign will TAC speak: is low saliency suspicious, or high saliency?

# %%
from nbtools.defender.score import EPSILON, suspiciousness


def low_is_suspicious(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """1 / (s over its layer's mean + epsilon): high where the clean images hardly depend on a filter."""
    return {name: 1 / (value / value.mean() + EPSILON) for name, value in values.items()}


scores = {trained.name: low_is_suspicious(saliency[trained.name]) for trained in both}
by_package = terms.low_is_suspicious(saliency[poisoned.name])
for name, value in suspiciousness(parts[poisoned.name], {"saliency": -1}).items():
    torch.testing.assert_close(scores[poisoned.name][name], value)
    torch.testing.assert_close(by_package[name], value)

last = terms.deep_layers(units)
lines = {
    f"low, {kind}": agreement(low_is_suspicious(forms[poisoned.name][kind]), truth[poisoned.name])
    for kind in forms[poisoned.name]
}
lines["the clean twin: low, cross_entropy"] = agreement(scores[clean_twin.name], truth[clean_twin.name])
each_form = terms.mean_agreement(lines, last)
each_form.round(2)

# %% tags=["hide-input"]
title = f"{poisoned.name}: the filters that the trigger moves, and how little the clean loss needs them"
terms.show_against_tac(scores[poisoned.name], truth[poisoned.name], last, "saliency", title)

# %% tags=["hide-input"]
terms.show_agreement(lines, "Agreement of low saliency with TAC, layer by layer")

# %% tags=["hide-input"]
*of_forms, of_twin = each_form.spearman
below = pd.DataFrame(lines["low, cross_entropy"]).T.spearman < 0
said = "low" if min(of_forms) > 0.1 else "high" if max(of_forms) < -0.1 else "neither clearly"
answer(
    f"You were right if you said {said}. In stages 3 and 4 the mean rank correlation of low saliency with TAC is "
    + ", ".join(f"{value:+.2f} with `{kind}`" for value, kind in zip(of_forms, SALIENCY_LOSSES, strict=True))
    + f", and {of_twin:+.2f} on the clean twin, which has no backdoor. With `cross_entropy` it is below zero in "
    f"{below.sum()} of all {len(below)} layers. Of TAC's top ten the best form finds "
    f"{10 * each_form.precision.iloc[:3].max():.1f}, a random choice {10 * each_form.chance.iloc[0]:.1f}."
)

# %% [markdown]
# ## 6. Behind the norm
#
# Alone, the term has to find the trigger's filters in the whole layer. In the score its task is smaller. It
# multiplies the spectral norm $\sigma_i$, and only has to say which of the *loud* filters the clean images need:
#
# $$\tilde\sigma_i \sqrt{\frac{1}{\tilde s_i + \varepsilon}} \; > \; \mathrm{mean}_l + \mu \cdot \mathrm{std}_l .$$
#
# The figure shows four layers with both numbers. The norm alone prunes above the dotted line, norm and saliency
# together above the solid line. To the right of the crossing, between the lines, lie loud filters that the clean
# images need: the term spares them. To the left lie quieter filters that the clean images do not need: the term adds
# them. The darker a point, the more the trigger moves that filter.

# %%
names = ("norm, low saliency suspicious (ours)", "norm, high saliency suspicious")
tried = terms.behind_norm(parts[poisoned.name], "saliency", *names)
alone, with_saliency, _ = tried.values()
for name, sigma in parts[poisoned.name].sigma.items():
    s = saliency[poisoned.name][name]
    by_hand = sigma / sigma.mean() * torch.sqrt(1 / (s / s.mean() + EPSILON))
    torch.testing.assert_close(by_hand, with_saliency[name])

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), sharey=True)
for axis, name in zip(axes, last[1::2], strict=True):
    across = (saliency[poisoned.name][name] / saliency[poisoned.name][name].mean()).cpu()
    rank = truth[poisoned.name][name].argsort().argsort().cpu() / len(across)
    points = axis.scatter(across, alone[name].cpu(), c=rank, cmap="viridis_r", s=14, vmin=0, vmax=1)
    limits = [float(s[name].mean() + mu * s[name].std()) for s in (alone, with_saliency)]
    line = torch.logspace(float(across.clamp_min(1e-2).log10().min()), float(across.log10().max()), 50)
    axis.axhline(limits[0], color="black", ls=":", lw=1.2, label="norm alone")
    axis.plot(line, limits[1] * (line + EPSILON).sqrt(), color="black", lw=1.2, label="norm and low saliency")
    axis.set(xscale="log", yscale="log")
    few_ticks(axis.xaxis)
    few_ticks(axis.yaxis)
    axis.set_title(name, fontsize=10)
axes[0].set_ylabel("spectral norm / the layer's mean")
lines_of = axes[0].get_legend_handles_labels()
figure.legend(*lines_of, loc="outside lower right", ncols=2, frameon=False, fontsize=9, title="prunes above the line")
figure.supxlabel("saliency / the layer's mean", fontsize=10)
figure.colorbar(points, ax=axes, label="rank of TAC in the layer")
figure.suptitle(f"{poisoned.name}, mu = {mu:g}: what each rule prunes", x=0.01, ha="left", fontweight="bold")
plots.show(
    figure, "Scatter plots of four layers: saliency across, spectral norm upwards, coloured by TAC, two thresholds."
)

# %% [markdown]
# Now we judge the sign twice: by agreement with TAC in stages 3 and 4, and by pruning the poisoned model with each
# rule.
#
# > **Predict first.** With the sign turned, the rule prunes what is loud *and* what the clean images need. What will
# > that do to ACC, and to ASR?

# %%
ablation = terms.prune_by_each(poisoned, tried, mu)
deep = terms.mean_agreement({name: agreement(score, truth[poisoned.name]) for name, score in tried.items()}, last)
ablation.insert(0, "rank corr.", deep.spearman)
ablation.insert(1, "top ten", deep.precision)
ablation.round({"rank corr.": 2, "top ten": 2, "acc": 1, "asr": 1, "ra": 1})

# %% tags=["hide-input"]
before, (norm, ours, turned) = poisoned.before_at_a_glance, [row for _, row in ablation.iterrows()]
fall = before.acc - turned.acc
mostly_norm = fall > 5 and before.acc - norm.acc > fall / 2 and ours.acc > norm.acc + 1
against = (turned["rank corr."] > ours["rank corr."]) == (ours.acc > turned.acc)
answer(
    f"You were right if you said that ACC {'suffers' if fall > 5 else 'hardly changes'} and that ASR "
    f"{'falls far' if turned.asr < before.asr / 2 else 'stays'}. ACC goes from {before.acc:.1f} to {turned.acc:.1f} % "
    f"with the sign turned, to {ours.acc:.1f} with ours and to {norm.acc:.1f} with the norm alone. ASR goes from "
    f"{before.asr:.1f} to {turned.asr:.1f}, {ours.asr:.1f} and {norm.asr:.1f} %. "
    + ("Most of that loss of ACC is the norm's own; our sign spares a part of it. " if mostly_norm else "")
    + f"The rank correlation with TAC speaks {'against' if against else 'for'} the sign that is better in pruning: it "
    f"is {turned['rank corr.']:+.2f} with the sign turned and {ours['rank corr.']:+.2f} with ours. It looks at the "
    "whole layer, but pruning looks only above the threshold. And TAC does not know which filters the clean images "
    "need."
)

# %% [markdown]
# ## 7. Pruning by saliency alone
#
# We prune where $1 / (\tilde s_i + \varepsilon)$ exceeds its layer's $\mathrm{mean} + \mu \cdot \mathrm{std}$.
#
# > **Predict first.** This rule prunes what the clean loss hardly depends on. Will ACC stay, and will the backdoor
# > go?

# %%
sweep = pd.DataFrame(trained.pruned(scores[trained.name], level) for trained in both for level in mus)
run.save_rows(sweep, "03_saliency")
terms.show_sweep(sweep, both, "Pruning by low saliency alone: what it breaks, and what it costs")

# %% tags=["hide-input"]
ours, twin = (sweep[sweep.model == trained.name].set_index("mu") for trained in both)
fall, fall_twin = before.acc - ours.acc, clean_twin.before_at_a_glance.acc - twin.acc
stays = fall <= 5
both_hold = bool((stays & (ours.asr <= 10)).any())
answer(
    "You were right if you said that "
    + (
        "ACC stays and the backdoor goes, at one threshold at least"
        if both_hold
        else "you cannot have both: where ACC stays, the backdoor does not go"
        if stays.any()
        else "ACC does not stay"
    )
    + f". (To stay means here: to fall by at most 5 points, as at {stays.sum()} of {len(mus)} thresholds. The backdoor "
    "is gone where ASR is at most 10 %.) "
    + " ".join(f"At `mu = {m:g}` ACC falls by {fall[m]:.1f} points, and ASR is {ours.asr[m]:.1f} %." for m in mus)
    + f" The clean twin loses up to {fall_twin.max():.1f} points, though it needs no repair. "
    + ("" if both_hold else "So saliency alone is no defence here; its use is beside the norm, as in section 6.")
)

# %% [markdown]
# ## 8. Another draw of clean images
#
# The defender's images are few, and only a part of them has a long gradient. So the ranking of the filters may be a
# matter of chance. We draw other images and compare: 1 means that the draw does not matter, and what is missing to 1
# is noise that goes into the score. The grey line takes the mean of the margin's gradients first, as section 2 did.
#
# > **Predict first.** Which line will be the highest, and how far below it will the grey one lie?

# %%
count = max(draws or run.profile.draws, 2)
drawn = [run.draw(samples_per_class, draw=d) for d in range(count)]
lines = {
    kind: stability([components(poisoned.model, images, kind).saliency for images in drawn]) for kind in SALIENCY_LOSSES
}
lines["margin, of the mean gradient"] = stability(
    [components(poisoned.model, images, "margin", per_image=False).saliency for images in drawn]
)

# %% tags=["hide-input"]
title = f"The ranking from {count} draws of {samples_per_class} images a class ({poisoned.name})"
alt = "Line chart over the layers: rank correlation of saliency between draws, one line a form, mean gradient in grey."
terms.show_redrawn(lines, title, alt, [*colors.values(), plots.GREY])

# %% tags=["hide-input"]
steadiness = pd.DataFrame(lines).mean()
of_losses = steadiness[list(SALIENCY_LOSSES)]
best = " or ".join(f"`{kind}`" for kind in of_losses.index[of_losses > of_losses.max() - 0.02])
below_best = of_losses.max() - steadiness.iloc[-1]
answer(
    f"You were right if you said {best}, and about {below_best:.1f} for the grey line, on average over the layers. The "
    "orders from two draws have a mean rank correlation of "
    + ", ".join(f"{steadiness[kind]:.2f} with `{kind}`" for kind in SALIENCY_LOSSES)
    + f". The grey line lies at {steadiness.iloc[-1]:.2f}"
    + (": the gradients of the images cancel, as in section 2. " if below_best > 0.1 else ". ")
    + "A steady order is not yet a right one; that was the question of sections 5 and 6."
)

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 5 minutes). Section 4 gives the gradient of the cross-entropy at the logits as a formula.
# Compute its length for each clean image from `z` and `y`, without autograd.

# %%
z = logits[poisoned.name]  # [images, classes]
length_at_logits = ...  # your answer, [images]

exercises.length_at_logits(length_at_logits, z, y)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). Molchanov et al. rank a filter by
# $|\langle W_i, \partial L / \partial W_i \rangle|$. To first order this is the change of the loss if the filter is
# *removed* instead of moved the steepest way. Compute it for `layer` from `conv.weight` and `gradient`.

# %%
removal = ...  # your answer, [filters]

exercises.removal(removal, conv.weight, gradient)

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - One backward pass over a few clean images gives every filter a number: how steeply the images' losses depend on
#   it, on average. If the mean over the images is taken before the length, a large part of it cancels.
# - The cross-entropy gives few images a long gradient, the fewer the better the model is. The margin and the softened
#   loss give one to all of them. Whether that ranks the filters better may differ from one model and attack to the
#   next.
# - The order of a whole layer and the result of pruning are two things. The sign of the term was settled by pruning.
# - It does **not** show that a filter with a small gradient can be removed for free: the slope is local. And it does
#   **not** show that a suspicious filter serves the backdoor: a filter that never learned anything has no slope
#   either.
#
# **For the reading group**
# 1. A filter serves the backdoor *and* the clean task. What is its saliency, and what should a defender do with it?
# 2. The defender's labels are wrong for one image in ten. Which of the three forms suffers most?
# 3. How could an attacker raise the clean saliency of the filters that the backdoor uses?
#
# **Further reading**: Simonyan et al., *Deep inside convolutional networks* (1312.6034): the gradient as saliency,
# for pixels. Molchanov et al., *Pruning convolutional neural networks for resource efficient inference* (1611.06440):
# the gradient times the value, to make networks small. Lee et al., *SNIP* (1810.02340): the same for single weights,
# before any training. [04 · Activation norm](04_activation_norm.ipynb) asks the clean images another question.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
length_at_logits = (z.softmax(1) - F.one_hot(y, z.shape[1])).norm(dim=1)
exercises.length_at_logits(length_at_logits, z, y)

removal = (conv.weight.detach() * gradient).flatten(1).sum(1).abs()
exercises.removal(removal, conv.weight, gradient)
alike = spearmanr(removal.cpu(), slopes.cpu()).statistic
print(f"{layer}: rank correlation {alike:+.2f} between the slope and the first-order cost of removal")

# %% [markdown]
# Previous: [02 · Spectral norm](02_spectral_norm.ipynb) · Next: [04 · Activation norm](04_activation_norm.ipynb)

# %% tags=["check", "remove-cell"]
limits = {
    "quick": {"loudest_tenth": 30, "sign": 3},
    "laptop": {"loudest_tenth": 20, "sign": 5},
    "paper": {"loudest_tenth": 20, "sign": 0},
}[run.profile.name]
checks.backdoor_took(poisoned, clean_twin)
for model in both:
    assert all(bool(torch.isfinite(score).all()) for score in scores[model.name].values()), "every score is finite"
steady, unsteady = (pd.Series(lines[name]).mean() for name in ("margin", "margin, of the mean gradient"))
assert steady >= unsteady + 0.1, f"lengths before the mean should rank more steadily: {steady:.2f}, {unsteady:.2f}"
loudest = float(spoken["cross_entropy"][tenth - 1])
assert loudest >= limits["loudest_tenth"], (
    f"few images should hold the gradient, the loudest tenth holds {loudest:.0f} %"
)
_, low, high = ablation.acc
assert low >= high + limits["sign"], f"with the sign turned ACC should be worse: {low:.1f} and {high:.1f}"
