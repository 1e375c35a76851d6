# %% [markdown]
# # 04 · Activation norm
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/04_activation_norm.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/04_activation_norm.ipynb)
#
# At the end of this notebook you have seen what filters answer to clean images, and to the trigger. And you can say how
# far silence on clean images gives a backdoor away.
#
# Papers: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose third term this is;
# fine-pruning (Liu et al., RAID 2018, [arXiv 1805.12185](https://arxiv.org/abs/1805.12185)), which pruned silent
# (*dormant*) filters before. **The formula is reconstructed from the first paper's summary.** The summary names
# "activation values" and no more. That we take the map's norm, behind the ReLU, and call *low* suspicious, are our
# choices.

# %% [markdown]
# > **You will learn**
# > - how to look into a network: the maps of its filters, caught by a hook (a function that PyTorch calls)
# > - what the mean norm of a map says, and which filters are dormant
# > - which filters a trigger lights up, and whether they are the dormant ones
# >
# > **Read before**: [03 · Saliency](03_saliency.ipynb) ·
# > **minutes to read**: 29 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | put the trigger on a few training images |
# | defender | the model and a few **clean images**, no label needed | measures the maps, prunes |
# | evaluator | test set and trigger | shows what the trigger lights up; reports ACC, ASR and TAC |
#
# *ACC* is the accuracy on clean test images. *ASR*, the attack success rate, is the share of triggered images that the
# network takes for the target class. *RA*, robust accuracy, is the share of them that it takes for what they
# are. *TAC*, the trigger-activated change, says how much the trigger changes a filter's map: the mean norm of the
# difference.

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
draws = 0  # draws to compare in section 7, at least 2; 0 is what the profile says
mu = 2.0  # threshold of the comparison with the norm, standard deviations above the layer's mean
mus = [1.0, 2.0, 3.0]  # thresholds to try for the term alone, the same

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import nbtools
from nbtools.data.images import Images
from nbtools.evaluator.agreement import agreement
from nbtools.networks.units import prunable_units
from nbtools.series import checks, plots, terms
from nbtools.series.exercises import activation_norm as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed)
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
both = (poisoned, clean_twin)
clean = run.draw(samples_per_class, draw=draw)
units = prunable_units(poisoned.model)
print(f"the defender holds {len(clean)} clean images")
pd.DataFrame({model.name: model.before_at_a_glance.row() for model in both}).T.round(1)

# %% [markdown]
# | in the papers, and on this page | here |
# |---|---|
# | $A_i(x)$, the map of filter $i$, behind batch norm and ReLU | `nbtools.networks.maps.watch` |
# | $a_i$, the mean norm of the map | `nbtools.defender.components.components(...).activation` |
# | $1 / (\tilde a_i + \varepsilon)$, the term (see section 5) | `nbtools.series.terms.low_is_suspicious` |
# | $\tilde\sigma_i \sqrt{1 / (\tilde a_i + \varepsilon)}$, behind the norm (02) | `nbtools.series.terms.behind_norm` |
# | the threshold $\mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ | `nbtools.defender.pruning.threshold` |
# | TAC, trigger-activated change | `nbtools.evaluator.agreement.tac`, the evaluator's |

# %% [markdown]
# ## 1. What a filter answers
#
# A filter slides over its input and leaves a *map*. The map says, at each position, how strongly the filter found there
# what it looks for. PyTorch lets us see it: a *forward hook* is a function that gets a layer's output at every call. We
# hang one on the batch norm. The ReLU comes after it, so we apply it ourselves.


# %%
@torch.no_grad()
def maps_of(model: torch.nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """The maps of one layer's filters, behind batch norm and ReLU: [images, filters, h, w]."""
    caught = []
    bn = model.get_submodule(bn_of[layer])
    handle = bn.register_forward_hook(lambda module, inputs, output: caught.append(output.relu()))
    try:
        model(images)
    finally:
        handle.remove()
    return caught[0]


bn_of = {unit.conv: unit.bn for unit in units}
early, late = "layer1.0.conv1", "layer4.0.conv1"  # the layers that we look at closely
few = clean.subset(torch.arange(0, len(clean), max(len(clean) // 3, 1))[:3])
for layer in (early, late):
    print(f"{layer}: {few.floats().shape} -> {maps_of(poisoned.model, layer, few.floats()).shape}")


# %% tags=["hide-input"]
def bare(axes) -> None:
    """Pictures need no ticks, only a thin frame: a white trigger would be lost on a white page."""
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color=plots.GREY, linewidth=0.6)


def draw_maps(images: Images, maps: torch.Tensor, filters: list[int], title: str) -> plt.Figure:
    """One row for each image: it, then the maps of the given filters; each filter has one colour scale."""
    figure, axes = plt.subplots(len(images), 1 + len(filters), figsize=(1.05 * (1 + len(filters)), 1.12 * len(images)))
    for row, axis_row in enumerate(axes):
        axis_row[0].imshow(plots.pixels(images.images[row]))
        for axis, number in zip(axis_row[1:], filters, strict=True):
            brightest = float(maps[:, number].amax().clamp_min(1e-6))
            axis.imshow(maps[row, number].cpu(), cmap="magma", vmin=0, vmax=brightest, interpolation="nearest")
            if row == 0:
                axis.set_title(f"filter {number}", fontsize=8, fontweight="normal", loc="center")
    bare(axes)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


for layer, what in ((early, "edges and colours, where they are"), (late, "few positions, found or not found")):
    maps = maps_of(poisoned.model, layer, few.floats())
    order = maps_of(poisoned.model, layer, clean.floats()).flatten(2).norm(dim=2).mean(0).argsort(descending=True)
    filters = [int(order[place]) for place in torch.linspace(0, len(order) - 1, 6).long()]
    plots.show(
        draw_maps(few, maps, filters, f"{layer}, from the loudest filter to the quietest: {what}"),
        f"Three clean images, each with the maps of six filters of {layer} beside it.",
    )

# %% [markdown]
# Each filter has its own colour scale; black is zero. A column shows one filter's answers to three images. A filter
# that stays black on the clean images does nothing for them.

# %% [markdown]
# ## 2. One number for each filter
#
# A map's Frobenius norm is the square root of the sum of its squared values. It says how loudly the filter answered one
# image. The mean over the $n$ clean images says how loudly it answers in general:
#
# $$a_i = \frac{1}{n} \sum_x \lVert A_i(x) \rVert_F$$
#
# Here is one layer, image by image. The images are sorted by class, the filters by their mean norm. A row that is
# bright in the columns of one class only is a filter that answers to that class.

# %%
maps = maps_of(poisoned.model, late, clean.floats())
loudness = maps.flatten(2).norm(dim=2)  # [images, filters]
norm_of_layer = loudness.mean(0)  # [filters]
print(f"{late}: {len(norm_of_layer)} filters, mean norm from {norm_of_layer.min():.2f} to {norm_of_layer.max():.2f}")

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(9, 3.6))
order = norm_of_layer.argsort(descending=True)
shown = order[:: -(-len(order) // 128)]  # of a wide layer every second filter, or every fourth
whole = (-0.5, len(clean) - 0.5, len(order), 0)
picture = axis.imshow(loudness[:, shown].T.cpu(), aspect="auto", cmap="magma", interpolation="nearest", extent=whole)
ends = torch.bincount(clean.labels.cpu(), minlength=clean.num_classes).cumsum(0)
starts = [0, *ends[:-1].tolist()]
axis.set_xticks([(a + b) / 2 - 0.5 for a, b in zip(starts, ends.tolist(), strict=True)], clean.classes, fontsize=8)
for start in starts[1:]:
    axis.axvline(start - 0.5, color="white", lw=0.6)
axis.set(ylabel="filters, loudest first", xlabel="clean images, by class")
axis.set_title(f"How loudly each filter of {late} answers each clean image")
figure.colorbar(picture, label="norm of the map")
plots.show(figure, "Heat map: norm of each filter's map for each clean image, images sorted by class.")

# %% [markdown]
# Now all layers, in one forward pass. `watch` hangs a hook like ours on every batch norm. We keep nothing but running
# sums, so there may be any number of images.

# %%
from nbtools.networks.maps import watch


@torch.no_grad()
def activation_norms(model: torch.nn.Module, images: Images) -> dict[str, torch.Tensor]:
    """The mean norm of every filter's map, from one pass over the images."""
    total = dict.fromkeys(bn_of, 0.0)

    def see(name: str, maps: torch.Tensor) -> None:
        total[name] = total[name] + maps.flatten(2).norm(dim=2).sum(0, dtype=torch.float64)

    with watch(model, units, see):
        for batch in images.floats().split(100):
            model(batch)
    return {name: value / len(images) for name, value in total.items()}


from nbtools.defender.components import components

parts = {model.name: components(model.model, clean) for model in both}
activation = {name: part.activation for name, part in parts.items()}
for model in both:
    for name, value in activation_norms(model.model, clean).items():
        torch.testing.assert_close(value, activation[model.name][name], rtol=1e-4, atol=1e-6)
torch.testing.assert_close(norm_of_layer.double(), activation[poisoned.name][late], rtol=1e-4, atol=1e-6)
print(f"one layer, one pass over the network and nbtools.defender.components.components agree on {len(units)} layers")

# %% [markdown]
# ## 3. Dormant filters
#
# Fine-pruning starts from an observation: on clean images, part of a network's filters hardly answers at all. Its
# authors argue that a backdoor lives there, because training finds free room for it in filters that the clean task does
# not use. How many such filters are there? We call a filter *dormant* if its norm is below half of its layer's mean.
#
# > **Predict first.** Does the poisoned model have clearly more dormant filters than its clean twin?

# %%
half = 0.5
relative, dormant, silent = {}, {}, {}
for model in both:
    relative[model.name] = {name: value / value.mean() for name, value in activation[model.name].items()}
    shares = {name: float((value < half).double().mean()) for name, value in relative[model.name].items()}
    dormant[model.name] = {name: 100 * share for name, share in shares.items()}
    everything = torch.cat(list(relative[model.name].values()))
    silent[model.name] = int((everything < half).sum())
    print(f"{model.name}: {silent[model.name]} of {len(everything)} filters are dormant")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2))
for model, color in zip(both, (plots.POISONED, plots.CLEAN), strict=True):
    axes[0].plot(
        list(dormant[model.name]), list(dormant[model.name].values()), "o-", ms=4, color=color, label=model.name
    )
    ranked = relative[model.name][late].sort(descending=True).values.cpu()
    axes[1].plot(torch.linspace(0, 100, len(ranked)), ranked, color=color, label=model.name)
axes[0].set(ylabel="dormant filters (%)", title="Dormant filters, layer by layer")
axes[0].tick_params(axis="x", labelrotation=90, labelsize=8)
axes[1].axhline(half, color=plots.GREY, ls=":")
axes[1].set(xlabel="filters, loudest first (%)", ylabel="norm / the layer's mean", ylim=(0, None))
axes[1].set_title(f"All filters of {late}")
for axis in axes:
    axis.legend(frameon=False, fontsize=9)
plots.show(figure, "Left: share of dormant filters by layer. Right: sorted norms of one layer. Poisoned and twin.")

# %% tags=["hide-input"]
mine, twins = silent[poisoned.name], silent[clean_twin.name]
said = "hardly" if abs(mine - twins) <= 0.2 * max(mine, twins) else "yes" if mine > twins else "no"
answer(
    f"You were right if you said {said}: {mine} of {len(everything)} filters are dormant in the poisoned model, and "
    f"{twins} in its clean twin. "
    + (
        "The twin has no backdoor, and most of the silence is there as well: a filter can be dormant for other "
        "reasons. To count dormant filters does not tell whether a network is poisoned."
        if twins > mine / 2
        else "Two networks are too few to say that the backdoor made the difference."
    )
)

# %% [markdown]
# ## 4. The filters that the trigger lights up
#
# So far we were the defender. Now the evaluator puts the trigger on test images and shows the three filters of a layer
# with the highest TAC: their maps before and after, and under each map its norm. Before and after share one colour
# scale.

# %%
others, truth = terms.ground_truth(both, run.splits.test, seed)  # TAC on 20 test images of each class but the target


# %% tags=["hide-input"]
def light_up(trained: object, layer: str, images: Images, top: int = 3) -> plt.Figure:
    """Image and triggered image, then the maps of the filters that the trigger moves most, before and after."""
    pairs = [images.floats(), trained.trigger(images.floats())]
    maps = [maps_of(trained.model, layer, pictures) for pictures in pairs]
    columns = 2 + 2 * top
    figure, axes = plt.subplots(len(images), columns, figsize=(1.2 * columns, 1.42 * len(images) + 0.5))
    for row, axis_row in enumerate(axes):
        for axis, pictures, name in zip(axis_row, pairs, ("image", "with trigger"), strict=False):
            axis.imshow(plots.pixels(pictures[row]))
            axis.set_title(name if row == 0 else "", fontsize=9, fontweight="normal", loc="center")
        for place, number in enumerate(truth[trained.name][layer].topk(top).indices.tolist()):
            brightest = max(float(m[:, number].amax()) for m in maps)
            for axis, m, name in zip(axis_row[2 + 2 * place :], maps, ("before", "after"), strict=False):
                axis.imshow(m[row, number].cpu(), cmap="magma", vmin=0, vmax=max(brightest, 1e-6))
                axis.set_title(
                    f"filter {number}\n{name}" if row == 0 else "", fontsize=9, fontweight="normal", loc="center"
                )
                axis.set_xlabel(f"{float(m[row, number].norm()):.1f}", fontsize=8, labelpad=1)
    bare(axes)
    figure.suptitle(
        f"{trained.name} model, {layer}: what the trigger changes most", x=0.01, ha="left", fontweight="bold"
    )
    return figure


seen = others.subset(torch.arange(0, len(others), max(len(others) // 4, 1))[:4])
for trained, layer in ((poisoned, "layer2.1.conv1"), (poisoned, late), (clean_twin, late)):
    plots.show(
        light_up(trained, layer, seen),
        f"Four test images without and with the trigger, and three filters' maps of {layer} before and after.",
    )

# %% [markdown]
# In the middle layer a map still shows *where* something is: compare the place of the change with the place of the
# trigger. In the late layer a map has only a few positions left. In the last figure, the twin's, compare the norms
# under the maps: each filter has its own colour scale, so the colours do not tell how loud it is.
#
# Now all filters of one layer at once. Across: a filter's norm on clean test images. Upwards: its norm on the same
# images with the trigger. On the diagonal nothing changes. TAC counts a change in either direction, so a filter with a
# high TAC can also lie below the diagonal.
#
# > **Predict first.** Will the filters far above the diagonal start from the left edge (dormant, below 0.5), or from
# > the middle?

# %%
from nbtools.attacker.triggers import stamp

rise, places = {}, {}
for trained in both:
    quiet = activation_norms(trained.model, others)[late].cpu()
    lit = activation_norms(trained.model, stamp(trained.trigger, others))[late].cpu()
    places[trained.name] = quiet / quiet.mean(), lit / quiet.mean()
    rise[trained.name] = float(truth[trained.name][late].topk(3).values.mean() / quiet.mean())
    print(f"{trained.name}: the three ringed filters' TAC is {rise[trained.name]:.2f} times their layer's mean norm")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.4), sharex=True, sharey=True)
for axis, trained, color in zip(axes, both, (plots.POISONED, plots.CLEAN), strict=True):
    top = truth[trained.name][late].topk(3).indices.cpu()
    across, upwards = places[trained.name]
    axis.scatter(across, upwards, s=14, color=color, alpha=0.6, linewidth=0)
    axis.scatter(across[top], upwards[top], s=70, facecolor="none", edgecolor="black", linewidth=0.9)
    axis.axline((0, 0), slope=1, color=plots.GREY, lw=1)
    axis.set(title=trained.name, xlabel="norm on clean images / the layer's mean")
axes[0].set_ylabel("norm on triggered images / the same mean")
figure.suptitle(
    f"{late}: what the trigger lights up (ringed: the three highest TACs)", x=0.01, ha="left", fontweight="bold"
)
plots.show(
    figure, "Scatter: norm with the trigger against norm without, one point for each filter, poisoned model and twin."
)

# %% tags=["hide-input"]
across, upwards = places[poisoned.name]
risen = across[upwards - across > 1]  # where those start that rise by more than the layer's mean
share = float((risen < half).double().mean()) if len(risen) else 0.5
where = "the left edge" if share > 2 / 3 else "the middle" if share < 1 / 3 else "both" if len(risen) else "neither"
answer(
    f"You were right if you said {where}: {len(risen)} of {len(across)} filters rise by more than the layer's mean. "
    + (f"On clean images their norm is {risen.mean():.1f} times that mean, " if len(risen) else "")
    + f"and the number of dormant ones among them is {int((risen < half).sum())}. "
    + (
        "So in this layer the trigger lights up filters that the clean images use. Section 6 asks about all layers."
        if share < 1 / 3
        else "So here the backdoor does use filters that the clean images leave silent."
        if len(risen)
        else "The trigger changes this layer in smaller steps."
    )
)

# %% [markdown]
# ## 5. Is silence suspicious?
#
# The term of the score follows fine-pruning. Low is suspicious, so the norm is divided by [ours]:
#
# $$\frac{1}{\tilde a_i + \varepsilon}, \qquad \tilde a_i = \frac{a_i}{\mathrm{mean}_l(a)}, \quad \varepsilon = 0.01$$
#
# Now layer by layer, against TAC, with two variants: the maps before the ReLU, and the mean of the map instead of its
# norm, which is what fine-pruning measures. The *rank correlation* is 1 where two measures put the filters in the same
# order, 0 where the orders have nothing in common, and -1 where one is the reverse of the other. The *precision* is the
# share of TAC's ten highest filters that are among the term's ten highest.
#
# > **Predict first.** Will silence agree with TAC: is the rank correlation above zero, near zero or below?

# %%
from nbtools.defender.score import EPSILON, suspiciousness

scores = {model.name: terms.low_is_suspicious(activation[model.name]) for model in both}
of_term_alone = suspiciousness(parts[poisoned.name], {"activation": -1})
for name, a in activation[poisoned.name].items():
    torch.testing.assert_close(1 / (a / a.mean() + EPSILON), scores[poisoned.name][name])
    torch.testing.assert_close(of_term_alone[name], scores[poisoned.name][name])

last = terms.deep_layers(units)
title = f"{poisoned.name}: the filters that the trigger moves, and how silent they were"
terms.show_against_tac(scores[poisoned.name], truth[poisoned.name], last, "norm", title)

# %%
means = dict.fromkeys(bn_of, 0.0)


def add_means(name: str, maps: torch.Tensor) -> None:
    """Sum up the mean of every map, fine-pruning's measure."""
    means[name] = means[name] + maps.double().mean((2, 3)).sum(0) / len(clean)


with torch.no_grad(), watch(poisoned.model, units, add_means):
    for batch in clean.floats().split(100):
        poisoned.model(batch)
before_relu = components(poisoned.model, clean, after_relu=False).activation
lines = {
    "low norm (the score's term)": agreement(scores[poisoned.name], truth[poisoned.name]),
    "low norm, before the ReLU": agreement(terms.low_is_suspicious(before_relu), truth[poisoned.name]),
    "low mean (fine-pruning)": agreement(terms.low_is_suspicious(means), truth[poisoned.name]),
    "the clean twin: low norm": agreement(scores[clean_twin.name], truth[clean_twin.name]),
}
terms.show_agreement(lines, "Agreement of silence with TAC, layer by layer")
terms.mean_agreement(lines, last).round(2)

# %% tags=["hide-input"]
agreed = terms.mean_agreement(lines, last)
term, twin = agreed.loc["low norm (the score's term)"], agreed.loc["the clean twin: low norm"]
sign = "above" if term.spearman > 0.1 else "below" if term.spearman < -0.1 else "near"
answer(
    f"You were right if you said {sign} zero: in stages 3 and 4 (without the shortcuts) the mean "
    f"rank correlation is {term.spearman:+.2f}, and in the twin {twin.spearman:+.2f}. "
    + (
        "TAC is a *change*: a filter that is loud anyway has more to change, backdoor or not. That pulls the rank "
        "correlation of silence down, as the twin shows. "
        if max(term.spearman, twin.spearman) < 0
        else ""
    )
    + f"Of TAC's ten highest filters, the term's ten highest hold {10 * term.precision:.1f}, "
    f"and a random order {10 * term.chance:.1f}."
)

# %% [markdown]
# ## 6. Pruning by silence alone
#
# The rank correlation judges the order of *all* filters. A threshold prunes only those at the top of the order. So a
# low rank correlation does not settle what pruning does.
#
# > **Predict first.** A dormant filter does little for clean images. Is it free to prune? And, after that rank
# > correlation, will ASR fall?

# %%
sweep = pd.DataFrame(trained.pruned(scores[trained.name], level) for trained in both for level in mus)
run.save_rows(sweep, "04_activation_norm")
terms.show_sweep(sweep, both, "Pruning by silence alone: what it breaks, and what it costs")

# %% [markdown]
# Which of the pruned filters do the work? The evaluator takes the threshold with the lowest ASR for at most two points
# of ACC, and divides the filters above it. The first part are those that the trigger moves: they are among the quarter
# of their layer with the highest TAC. The second part are all the others. Each part is pruned alone.

# %%
from nbtools.defender.pruning import threshold

had = {model.name: model.before_at_a_glance.row() for model in both}
mine, twin = poisoned.name, clean_twin.name
swept = {model.name: sweep[sweep.model == model.name].set_index("mu") for model in both}
lost = pd.DataFrame({name: had[name]["acc"] - rows.acc for name, rows in swept.items()})
after, most = swept[mine], min(mus)
level = (after.asr + 1000 * (lost[mine] > 2)).idxmin()
took = threshold(scores[mine], level)
halves = terms.prune_in_parts(poisoned, took, truth[mine])
halves.round(1)

# %% tags=["hide-input"]
worst, asr = lost.loc[level].max(), after.asr[level]
worked = asr < had[mine]["asr"] / 2
answer(
    f"You were right if you said {'yes' if worst < 0.5 else 'nearly' if worst < 3 else 'no'} for ACC, and "
    f"{'yes' if worked else 'no'} for ASR. Pruning {took.count} "
    f"filters at $\\mu$ = {level:g} takes ACC from {had[mine]['acc']:.1f} to {after.acc[level]:.1f}, in the twin from "
    f"{had[twin]['acc']:.1f} to {swept[twin].acc[level]:.1f}. With {int(after.pruned[most])} filters, at $\\mu$ = "
    f"{most:g}, it is {after.acc[most]:.1f} and {swept[twin].acc[most]:.1f}. At $\\mu$ = {level:g} ASR goes from "
    f"{had[mine]['asr']:.1f} to {asr:.1f}"
    + (
        f", although the rank correlation with TAC is {term.spearman:+.2f}. "
        if worked and term.spearman < 0.2
        else ". "
    )
    + terms.who_does_the_work(halves, had[mine]["asr"])
)

# %% [markdown]
# Two differences from fine-pruning: the threshold prunes in every layer at once, and it looks at no accuracy.
# Fine-pruning takes the last convolution only, one filter after the other, and stops when the accuracy on its clean
# images falls.
#
# In the score the term does not work alone. It multiplies the spectral norm of notebook 02, and only has to say which
# of the filters that *can* be loud are used by the clean images. A filter that can be loud and stays silent may wait
# for a trigger. So once more, with the norm: without the term, with our sign, and with the sign turned.
#
# > **Predict first.** At the same threshold, what will the term add to the norm: a higher ACC, a lower ASR or both?

# %%
names = ("norm, silence suspicious (ours)", "norm, loudness suspicious")
ablation = terms.prune_by_each(poisoned, terms.behind_norm(parts[poisoned.name], "activation", *names), mu)
ablation.round(1)

# %% tags=["hide-input"]
alone, low, high = (row for _, row in ablation.iterrows())
saves, lowers = low.acc > alone.acc + 1, low.asr < alone.asr - 1
gain = "both" if saves and lowers else "a higher ACC" if saves else "a lower ASR" if lowers else "neither"
answer(
    f"You were right if you said {gain}: ACC goes from {alone.acc:.1f} (norm alone) to {low.acc:.1f}, ASR from "
    f"{alone.asr:.1f} to {low.asr:.1f}. With the sign turned, ACC is {high.acc:.1f} and ASR {high.asr:.1f}. "
    + (
        f"But silence without the norm left an ACC of {after.acc[level]:.1f} (and an ASR of {asr:.1f}) at $\\mu$ = "
        f"{level:g}: the accuracy that is lost here is lost through the norm."
        if low.acc < after.acc[level] - 2
        else ""
    )
)

# %% [markdown]
# ## 7. Another draw of clean images
#
# The number also depends on which images were drawn. How much of the ranking is left with other images, and with one
# image of each class instead of many?

# %%
count = max(draws or run.profile.draws, 2)
lines = terms.redrawn(run, lambda images: activation_norms(poisoned.model, images), (1, samples_per_class), count)
title = f"The ranking by activation norm, from {count} draws ({poisoned.name})"
alt = "Line chart over the layers: rank correlation of the activation norm between draws."
terms.show_redrawn(lines, title, alt, legend="clean images")

# %% [markdown]
# ## 8. Exercises
#
# **Exercise 1** (easy, 5 minutes). On what share of the images does a filter answer nothing at all, that is, with a map
# of zeros? Write a function that takes maps `[images, filters, h, w]` and returns this share for each filter. It is
# tried on `maps` and on maps that were made up.

# %%
silent_share = ...  # your answer, a function that returns [filters]

exercises.silent_share(silent_share, maps)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). Take the filter of `late` that the trigger moves most. Which class is it loudest
# for on clean images? Compute the mean norm of every filter for each class, from `loudness` `[images, filters]` and
# `clean.labels`; then look at the column `moved_most`.

# %%
moved_most = int(truth[poisoned.name][late].argmax())
norm_by_class = ...  # your answer, [classes, filters]

exercises.norm_by_class(norm_by_class, loudness, clean.labels, clean.num_classes)

# %% [markdown]
# ## 9. What we saw, and what this does not show
#
# - Hooks turn a network into pictures. The trigger's filters can be *seen*, by the evaluator, who holds the trigger.
# - The defender sees clean images only. The mean norm tells which filters those images leave silent.
# - How well the order of all filters agrees with TAC does **not** tell what pruning the top of it does.
# - It does **not** show that a backdoor must be dormant: nothing keeps it from using filters that also answer to clean
#   images. And it does **not** show that every dormant filter belongs to a backdoor: the clean twin has them too.
#
# **For the reading group**
# 1. The authors of fine-pruning also describe an attacker who prunes first and poisons afterwards. What is gained?
# 2. Batch norm gives every filter the same spread before the ReLU (up to its scale $\gamma_i$ and shift $\beta_i$). How
#    can a filter be dormant at all?
# 3. Would you measure the norm on images of all classes, or on one class at a time? What would the second tell you?
#
# **Further reading**: Liu et al., *Fine-pruning* (1805.12185): dormant filters, pruning, and why fine-tuning has to
# follow. Zheng et al., *Data-free backdoor removal based on channel Lipschitzness* (2208.03111): trigger-activated
# change, the measure that we compare every score with. Zeiler and Fergus, *Visualizing and understanding convolutional
# networks* (1311.2901): many pictures of maps.

# %% [markdown]
# ## Solutions


# %% tags=["solution", "hide-input"]
def silent_share(maps):
    return (maps.amax((2, 3)) == 0).double().mean(0)


exercises.silent_share(silent_share, maps)
print(f"{late}: a filter is silent on {100 * float(silent_share(maps).mean()):.0f} % of the clean images, on average")

norm_by_class = torch.stack([loudness[clean.labels == label].mean(0) for label in range(clean.num_classes)])
exercises.norm_by_class(norm_by_class, loudness, clean.labels, clean.num_classes)
ranked = norm_by_class[:, moved_most].argsort(descending=True).tolist()
print(f"filter {moved_most}: loudest for class {clean.classes[ranked[0]]!r}; the target is {clean.classes[target]!r},")
print(f"number {ranked.index(target) + 1} of {len(ranked)} by this filter's norm on clean images")

# %% [markdown]
# Previous: [03 · Saliency](03_saliency.ipynb) · Next: [05 · Correlation](05_correlation.ipynb)

# %% tags=["check", "remove-cell"]
limits = {
    "quick": {"rise": 5, "sign": 3},
    "laptop": {"rise": 5, "sign": 5},
    "paper": {"rise": 3, "sign": 0},
}[run.profile.name]
checks.backdoor_took(poisoned, clean_twin)
for model in both:
    assert all(bool(torch.isfinite(score).all()) for score in scores[model.name].values()), "every score is finite"
assert rise[poisoned.name] >= limits["rise"] * rise[clean_twin.name], (
    f"the trigger should light up the poisoned: {rise}"
)
_, low, high = ablation.acc
assert low >= high + limits["sign"], f"with the sign turned ACC should be worse: {low:.1f} and {high:.1f}"
