# %% [markdown]
# # 03 · Saliency
#
# At the end of this notebook you can say, after one backward pass, how much the clean images care about each filter of
# a network, and why the filters that they do not care about are the suspects.
#
# Paper: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose second term this is.
# **The formula is reconstructed from the paper's summary**, which names the gradient's magnitude and no more. That it
# is the norm over a filter's weights, image by image, that *low* is suspicious, and the three losses below are our
# choices; sections 2, 4, 5, 6 and 8 test them.

# %% [markdown]
# > **You will learn**
# > - what the gradient of the clean loss says about a filter, and how to get it for all filters and images at once
# > - what is lost when the gradients of many images are averaged before their length is taken
# > - why an image that the network is sure of has no voice in that gradient, and two losses that give it back
# > - how well low saliency finds the filters that a trigger moves, and what pruning by it alone costs
# >
# > **Read before**: [02 · Spectral norm](02_spectral_norm.ipynb) ·
# > **minutes to read**: 15 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | put the trigger on a few training images |
# | defender | the model and a few **clean images with their labels** | computes the gradients, prunes |
# | evaluator | test set and trigger | reports ACC and ASR, and TAC, the ground truth |

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
# | $\ell(F(x), y)$, the loss of a clean image | `nbtools.defender.saliency.saliency_loss`, in three forms |
# | $s_i$, the mean length of the images' gradients | `nbtools.defender.components.components(...).saliency` |
# | $1 / (\tilde s_i + e)$, $\tilde s = s / \mathrm{mean}_l(s)$ | `nbtools.series.terms.low_is_suspicious` |
# | $\tilde\sigma_i \sqrt{1 / (\tilde s_i + e)}$, the term behind the norm | `nbtools.series.terms.behind_norm` |
# | $\mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ | `nbtools.defender.pruning.threshold` |
# | TAC, trigger-activated change | `nbtools.evaluator.agreement.tac`, the evaluator's |

# %% [markdown]
# ## 1. The steepest way up
#
# The spectral norm looked at the weights alone. Now we have a few clean images, and can ask what they think of a
# filter: how fast does the loss on them change when its weights move? The gradient $\partial L / \partial W_i$ points
# into the direction in which the loss climbs fastest, and its length is the slope in that direction:
#
# $$\left\lVert \frac{\partial L}{\partial W_i} \right\rVert_F , \qquad
# L = \frac{1}{n} \sum_{(x, y) \in D} \ell\big(F(x), y\big)$$
#
# One layer, by plain autograd:

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
# To see what the number means, take three filters of this layer, move each one's weights along its own gradient, and
# watch the loss. Its slope at step 0 must be the gradient's length, the dashed line.


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
# Near the middle each curve should lie on its dashed line. Away from it, it need not: the gradient is a *local*
# statement, and a filter with a small slope may still matter when it is removed altogether.

# %% [markdown]
# ## 2. Which images speak, and do they agree?
#
# The gradient of the mean loss is the mean of the images' own gradients (with the batch norm in evaluation mode no
# image knows of the others). So we can ask each image alone, and see how long its gradient is, and where it points.
#
# > **Predict first.** Sort the images by the length of their gradient. How many of them does it take to hold half of
# > the total?

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
print(f"{int((share < 0.5).sum()) + 1} of {len(x)} images hold half of the total length")
print(f"{100 * float((losses < 0.01).double().mean()):.0f} % of the images have a loss below 0.01")

# %%
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

# %% [markdown]
# Compare the two rows by their losses, and by how hard you find the images. An image that the network is sure of, and
# right about, has next to no gradient, whichever filter it needs. Keep that in mind for section 4.
#
# And do those that speak agree? If the images pull a filter's weights in different directions, their gradients cancel
# in the mean, and a filter that *every* image wants to move may look as if none cared. Compare with random directions:
# of gradients with lengths $l_x$, the mean would keep about $\frac{1}{n}\sqrt{\sum_x l_x^2}$.
#
# > **Predict first.** How much of the images' gradients survives the averaging?

# %%
of_filters = torch.stack(of_filters).cpu()  # [images, filters]
mean_length, by_chance = of_filters.mean(0), of_filters.norm(dim=0) / len(x)
of_mean = total.flatten(1).norm(dim=1).cpu()  # [filters], the length of the mean
figure, axis = plt.subplots(figsize=(5.4, 4))
ends = torch.stack([mean_length[mean_length > 0].min(), mean_length.max()])
axis.plot(ends, ends, color="black", lw=1, label="all images agree")
axis.scatter(mean_length, of_mean, s=14, color=plots.POISONED, linewidth=0, label="a filter")
axis.scatter(mean_length, by_chance, s=14, color=plots.GREY, linewidth=0, label="the same, in random directions")
axis.set(xscale="log", yscale="log", xlabel="mean length of the images' gradients", ylabel="length of their mean")
axis.legend(frameon=False, fontsize=9)
axis.set_title(f"What averaging leaves of each filter's gradient ({layer})")
plots.show(figure, "Length of the mean gradient against the mean length, one point a filter, with two references.")
left = of_mean / mean_length.clamp_min(1e-30)
print(f"of the mean length, {100 * float(left.median()):.0f} % is left in the median filter, "
      f"{100 * float(left.min()):.0f} to {100 * float(left.max()):.0f} % in all")  # fmt: skip

# %% [markdown]
# The nearer a filter lies to its grey point, the more its height is an accident of which images were drawn. So our
# saliency takes the length first and the mean afterwards:
#
# $$s_i = \frac{1}{n} \sum_{(x, y) \in D} \left\lVert \frac{\partial\, \ell(F(x), y)}{\partial W_i} \right\rVert_F$$
#
# This is ours. It was chosen on CIFAR-10, where the score with the length of the mean gradient missed backdoors that
# the score with the mean length removes ([data/README](../data/README.md) has the table); section 8 compares how steady
# the two are.

# %% [markdown]
# ## 3. All filters, all images, one backward pass
#
# One backward pass an image is slow, and autograd, asked for the weights, hands out only their sum over the batch. But
# it will hand out the gradient $g$ at a convolution's *output*, which is each image's own. Since a convolution
# multiplies its weights with the patches $U$ of its input, an image's weight gradient is a product of the two:
#
# $$\frac{\partial\, \ell(F(x), y)}{\partial W} = g(x)\, U(x)^\top , \qquad
# g: [\text{filters} \times \text{positions}], \quad U: [c_\text{in} k^2 \times \text{positions}] .$$


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
# Here is every filter's saliency, over its layer's mean. The evaluator marks the filters that the trigger really moves,
# by *trigger-activated change* as in notebook 02: in each layer the three highest TACs are ringed. On the clean twin
# the same trigger moves filters too, only less; it is our control. What lies at the lower edge is dead, or nearly.
#
# > **Predict first.** On the left, will the rings lie high, low, or anywhere?

# %%
_, truth = terms.ground_truth(both, run.splits.test, seed)  # TAC on 20 test images of each class but the target


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

# %% [markdown]
# ## 4. When the loss is saturated
#
# The gradient of an image's loss reaches the filters through the logits $z$. For the cross-entropy it starts as
#
# $$\frac{\partial \ell}{\partial z} = p - \mathrm{onehot}(y), \qquad p = \mathrm{softmax}(z),$$
#
# and where the network is sure and right, $p$ *is* the one-hot vector: nothing is left to send back. The better the
# model fits, the fewer images are left to speak, until the saliency is the opinion of the few that it gets wrong. On a
# task that the network has solved, low saliency may then mark *well fitted* filters, and no longer suspicious ones.
# Two losses keep every image's voice [ours]:
#
# | form | $\ell$ | gradient at the logits |
# |---|---|---|
# | `cross_entropy` | $-\log p_y$ | vanishes where the model is sure and right |
# | `softened` | cross-entropy of $z / T$, $T = 4$ | vanishes later: the softmax is flatter |
# | `margin` | $z_y - \max_{j \neq y} z_j$ | $+1$ and $-1$, always |

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6))
colors = dict(zip(SALIENCY_LOSSES, (plots.BLUE, plots.GREEN, plots.PURPLE), strict=True))
logits = {trained.name: trained.model(x) for trained in both}
for trained, color in zip(both, (plots.POISONED, plots.CLEAN), strict=True):
    of_each = F.cross_entropy(logits[trained.name], y, reduction="none").clamp_min(1e-6).sort().values.cpu()
    axes[0].plot(of_each, torch.linspace(0, 100, len(of_each)), color=color, label=trained.name)
    print(f"{trained.name}: {100 * float((of_each < 0.01).float().mean()):.0f} % of the images have a loss below 0.01")
axes[0].axvline(0.01, color=plots.GREY, ls=":")
axes[0].set(xscale="log", xlabel="cross-entropy of an image", ylabel="images with at most this loss (%)")
axes[0].set_title("How much loss is left")

spoken = {}
for kind in SALIENCY_LOSSES:
    z = logits[poisoned.name].clone().requires_grad_(True)
    (at_logits,) = torch.autograd.grad(saliency_loss(z, y, kind), z)
    length = at_logits.norm(dim=1).sort(descending=True).values
    spoken[kind] = (100 * length.cumsum(0) / length.sum()).cpu()
    axes[1].plot(torch.linspace(0, 100, len(y)), spoken[kind], color=colors[kind], label=kind)
axes[1].set(xlabel="images, loudest first (%)", ylabel="share of all gradient (%)")
axes[1].set_title(f"Who holds the gradient at the logits ({poisoned.name})")
for axis in axes:
    axis.legend(frameon=False, fontsize=9)
plots.show(figure, "Left: cumulative distribution of the clean loss. Right: share of the gradient held by the loudest.")
print("share of the gradient that the loudest tenth of the images holds, in percent:")
tenth = max(len(y) // 10, 1)
print("  ".join(f"{kind} {float(share[tenth - 1]):.0f}" for kind, share in spoken.items()))

# %% [markdown]
# A curve that shoots up at once means that few images decide; the diagonal means that all have the same say. Does that
# change the *ranking* of the filters? Here is the rank correlation between the three forms, averaged over the layers.

# %%
forms = {
    trained.name: {kind: components(trained.model, clean, kind).saliency for kind in SALIENCY_LOSSES}
    for trained in both
}


def mean_rank_correlation(first: dict, second: dict) -> float:
    """Spearman's rank correlation of two scores within a layer, averaged over the layers."""
    return sum(spearmanr(first[n].cpu(), second[n].cpu()).statistic for n in first) / len(first)


figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.1))
for axis, trained in zip(axes, both, strict=True):
    of_model = forms[trained.name]
    table = pd.DataFrame({a: {b: mean_rank_correlation(of_model[a], of_model[b]) for b in of_model} for a in of_model})
    plots.heat(axis, table, "rank correlation", form=".2f", limits=(0, 1))
    axis.set_title(trained.name)
    axis.tick_params(axis="y", labelrotation=0)
figure.suptitle("How alike the three forms rank the filters", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Two 3 x 3 heat maps: rank correlation between the three forms of saliency.")

# %% [markdown]
# ## 5. Is low saliency suspicious?
#
# The argument: a filter that serves the backdoor has learned to answer to the trigger. Clean images do not carry it,
# so the clean loss hardly depends on that filter: low saliency. A filter that clean images need has a slope. Hence the
# sign of the term is *minus* [ours]:
#
# $$\frac{1}{\tilde s_i + e}, \qquad \tilde s_i = \frac{s_i}{\mathrm{mean}_l(s)}, \quad e = 0.01$$
#
# The argument may be wrong. Other gradient-based pruning calls high gradients the ones to *keep*, for the same reason,
# but one could as well argue that a backdoor filter, being strong, has a strong gradient. So we let TAC decide.

# %%
from nbtools.defender.score import EPSILON, suspiciousness


def low_is_suspicious(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """1 / (s over its layer's mean + e): high where the clean images do not care."""
    return {name: 1 / (value / value.mean() + EPSILON) for name, value in values.items()}


scores = {trained.name: low_is_suspicious(saliency[trained.name]) for trained in both}
by_package = terms.low_is_suspicious(saliency[poisoned.name])
for name, value in suspiciousness(parts[poisoned.name], {"saliency": -1}).items():
    torch.testing.assert_close(scores[poisoned.name][name], value)
    torch.testing.assert_close(by_package[name], value)

last = terms.deep_layers(units)
title = f"{poisoned.name}: the filters that the trigger moves, and how little the clean loss needs them"
terms.show_against_tac(scores[poisoned.name], truth[poisoned.name], last, "saliency", title)

# %%
lines = {
    f"low, {kind}": agreement(low_is_suspicious(forms[poisoned.name][kind]), truth[poisoned.name])
    for kind in forms[poisoned.name]
}
lines["the clean twin: low, cross_entropy"] = agreement(scores[clean_twin.name], truth[clean_twin.name])
terms.show_agreement(lines, "Agreement of low saliency with TAC, layer by layer")

# %% [markdown]
# Above zero, low saliency goes with what the trigger moves; below zero, the other sign would have done better in that
# layer. A difference between the poisoned model's lines and the twin's is what a defender could use.
#
# ## 6. Behind the norm
#
# Alone, the term has to find the trigger's filters in the whole layer. In the score its task is smaller: it multiplies
# the spectral norm, and only has to say which of the *loud* filters the clean images need,
#
# $$\tilde\sigma_i \sqrt{\frac{1}{\tilde s_i + e}} \; > \; \mathrm{mean}_l + \mu \cdot \mathrm{std}_l .$$
#
# Here are four layers with both numbers. Above the dotted line the norm alone prunes, above the solid line norm and
# saliency together. Right of the crossing, between the lines, lie loud filters that the clean images need, and that the
# term rescues; left of it are quieter ones that nobody clean needs, and that it adds. The darker a point, the more the
# trigger moves that filter.

# %%
names = ("norm, low saliency suspicious (ours)", "norm, high saliency suspicious")
tried = terms.behind_norm(parts[poisoned.name], "saliency", *names)
alone, with_saliency, _ = tried.values()
for name, sigma in parts[poisoned.name].sigma.items():
    s = saliency[poisoned.name][name]
    by_hand = sigma / sigma.mean() * torch.sqrt(1 / (s / s.mean() + EPSILON))
    torch.testing.assert_close(by_hand, with_saliency[name])

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
# The sign can now be judged twice: by agreement with TAC in stages 3 and 4, and by pruning the poisoned model with
# each rule.
#
# > **Predict first.** With the sign turned, the rule prunes what is loud *and* what the clean images need. What will
# > that do to ACC, and to ASR?

# %%
ablation = terms.prune_by_each(poisoned, tried, mu)
deep = terms.mean_agreement({name: agreement(score, truth[poisoned.name]) for name, score in tried.items()}, last)
ablation.insert(0, "rank corr.", deep.spearman)
ablation.insert(1, "top ten", deep.precision)
ablation.round({"rank corr.": 2, "top ten": 2, "acc": 1, "asr": 1, "ra": 1})

# %% [markdown]
# The two judges need not agree: the rank correlation looks at the whole layer, pruning only at its top end, and what
# pruning breaks is not in TAC at all. If the sign is right, it shows in `acc` and `asr` together.
#
# ## 7. Pruning by saliency alone
#
# We prune where $1 / (\tilde s_i + e)$ exceeds its layer's $\mathrm{mean} + \mu \cdot \mathrm{std}$.
#
# > **Predict first.** By its making, this prunes what the clean loss hardly depends on. Will the clean accuracy stay?

# %%
sweep = pd.DataFrame(trained.pruned(scores[trained.name], level) for trained in both for level in mus)
run.save_rows(sweep, "03_saliency")
terms.show_sweep(sweep, both, "Pruning by low saliency alone: what it breaks, and what it costs")

# %% [markdown]
# Read the two panels together, as in notebook 02: the left for a threshold at which orange is down and blue still up,
# the right for what is paid where nothing needs repair. If the left shows no such threshold, saliency alone is no
# defence; its use, if any, is as a factor beside the others.

# %% [markdown]
# ## 8. Another draw of clean images
#
# The defender's images are few, and the gradient is the word of a part of them. How much of the ranking survives when
# other images are drawn?

# %%
count = max(draws or run.profile.draws, 2)
drawn = [run.draw(samples_per_class, draw=d) for d in range(count)]
lines = {
    kind: stability([components(poisoned.model, images, kind).saliency for images in drawn]) for kind in SALIENCY_LOSSES
}
lines["margin, of the mean gradient"] = stability(
    [components(poisoned.model, images, "margin", per_image=False).saliency for images in drawn]
)
title = f"The ranking from {count} draws of {samples_per_class} images a class ({poisoned.name})"
alt = "Line chart over the layers: rank correlation of saliency between draws, one line a form, mean gradient in grey."
terms.show_redrawn(lines, title, alt, [*colors.values(), plots.GREY])

# %% [markdown]
# One means that the draw does not matter; what is missing to one is noise that goes straight into the score. The grey
# line is the margin's with the mean taken first: the price of letting images cancel, as section 2 saw it in one layer.

# %% [markdown]
# ## 9. Exercises
#
# **Exercise 1** (easy, 5 minutes). Section 4 says that the cross-entropy's gradient at the logits is
# $p - \mathrm{onehot}(y)$. Compute its length for each clean image from `z` and `y`, without autograd.

# %%
z = logits[poisoned.name]  # [images, classes]
length_at_logits = ...  # your answer, [images]

z_again = z.clone().requires_grad_(True)
(by_autograd,) = torch.autograd.grad(F.cross_entropy(z_again, y, reduction="sum"), z_again)
checks.same(
    length_at_logits,
    by_autograd.norm(dim=1),
    "softmax over the classes, minus F.one_hot(y, classes), then the norm of each row",
)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). Molchanov et al. rank a filter by
# $|\langle W_i, \partial L / \partial W_i \rangle|$, the change of the loss, to first order, if the filter were
# *removed* instead of moved the steepest way. Compute it for `layer` from `conv.weight` and `gradient`.

# %%
removal = ...  # your answer, [filters]

checks.same(
    removal,
    (conv.weight.detach() * gradient).flatten(1).sum(1).abs(),
    "multiply weight and gradient element by element, sum over each filter, and take the absolute value last",
)

# %% [markdown]
# ## 10. What we saw, and what this does not show
#
# - One backward pass over a few clean images gives every filter a number: how steeply each image's loss depends on it,
#   on average. The figures above say how well a low slope goes with what the trigger moves, and the sweep what pruning
#   by it costs.
# - Taken over the mean loss instead, most of what the images say about a filter cancels.
# - The cross-entropy lets few images speak, the fewer the better the model is. The margin and the softened loss let all
#   of them speak; whether that ranks the filters better is an empirical question, and the answer may differ from one
#   model and attack to the next.
# - It does **not** show that a filter with a small gradient can be removed for free: the slope is local. And it does
#   **not** show that a suspicious filter is guilty: filters that never learned anything have no slope either.
#
# **For the reading group**
# 1. A filter serves the backdoor *and* the clean task. What is its saliency, and what should a defender do with it?
# 2. The defender's labels are wrong for one image in ten. Which of the three forms suffers most?
# 3. How could an attacker raise the clean saliency of the filters that he uses?
#
# **Further reading**: Simonyan et al., *Deep inside convolutional networks* (1312.6034): the gradient as saliency, for
# pixels. Molchanov et al., *Pruning convolutional neural networks for resource efficient inference* (1611.06440): the
# gradient times the value, to make networks small. Lee et al., *SNIP* (1810.02340): the same for single weights, before
# any training. [04 · Activation norm](04_activation_norm.ipynb) asks the clean images another question.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
length_at_logits = (z.softmax(1) - F.one_hot(y, z.shape[1])).norm(dim=1)
checks.same(length_at_logits, by_autograd.norm(dim=1), "see section 4")

removal = (conv.weight.detach() * gradient).flatten(1).sum(1).abs()
checks.true((removal <= slopes * conv.weight.detach().flatten(1).norm(dim=1) * 1.0001).all(), "Cauchy-Schwarz")
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
