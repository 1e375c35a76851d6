# %% [markdown]
# # 02 · Spectral norm
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/02_spectral_norm.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/02_spectral_norm.ipynb)
#
# At the end of this notebook you can say how strongly each filter of a network *could* answer, from its weights
# alone, and how much of a backdoor you can find with this one number.
#
# Papers: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose first term this is;
# CLP, which prunes by this term alone (Zheng et al., ECCV 2022,
# [arXiv 2208.03111](https://arxiv.org/abs/2208.03111)).

# %% [markdown]
# > **You will learn**
# > - what the spectral norm of a filter bounds, and why the batch norm belongs to it
# > - how to get all of a network's norms from one call instead of thousands
# > - how well the norm finds the filters that a trigger moves, and what pruning by it alone costs
# >
# > **Read before**: [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb) ·
# > **minutes to read**: 18 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts the trigger on a few training images |
# | defender | the model's weights, **no image at all** | computes the norms, prunes |
# | evaluator | test set and trigger | measures the three numbers below, and what the trigger really moves |
#
# The three numbers are those of notebook 00. *Clean accuracy* (ACC) is the share of the test images that are
# classified right. *Attack success rate* (ASR) is the share of the triggered images, of all other classes, that go to
# the target class. *Robust accuracy* (RA) is the share of the triggered images that are classified right all the
# same.

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
mus = [1.5, 2.0, 2.5, 3.0, 4.0]  # thresholds to try, standard deviations above the layer's mean

# %%
import pandas as pd
import torch

import nbtools
from nbtools.data.images import draw_clean
from nbtools.evaluator.agreement import agreement, tac
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots
from nbtools.series.exercises import spectral_norm as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed)
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
pd.DataFrame({model.name: model.before.row() for model in (poisoned, clean_twin)}).T.round(1)

# %% [markdown]
# The clean twin was trained in the same way, on clean images only. What we measure on the poisoned model we also
# measure on the twin: a score that is high on both says nothing about the backdoor.
#
# | in the papers | here |
# |---|---|
# | $W_i$, the weights of filter $i$, $C_\mathrm{in} \times k \times k$ | `conv.weight[i]` |
# | $\gamma_i$ and $v_i$: scale and running variance of its batch norm | `bn.weight[i]`, `bn.running_var[i]` |
# | $\sigma_i$, the spectral norm | `nbtools.defender.components.spectral_norms` |
# | $\mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ of a layer $l$ | `nbtools.defender.pruning.threshold` |
# | TAC, trigger-activated change | `nbtools.evaluator.agreement.tac`, only for the evaluator |

# %% [markdown]
# ## 1. The loudest answer that a filter can give
#
# A filter looks at a small piece of its input: $C_\mathrm{in}$ channels of $k \times k$ pixels. Write its weights as
# a matrix with one row for each channel and one column for each pixel. Now show the same patch $u$ of $k \times k$
# pixels to every channel. Then $W_i u$ holds one number for each channel: how strongly the weights of this channel
# answer. The largest singular value of the matrix, its *spectral norm*, bounds this answer:
# $\lVert W_i u \rVert \le \lVert W_i \rVert_2 \lVert u \rVert$. We call a filter *loud* where the bound is high. A
# small trigger must win against everything else in the image. So the filters that carry it may be loud.
#
# The *batch norm* behind the convolution multiplies each filter's map by
# $\gamma_i / \sqrt{v_i + \epsilon_\mathrm{bn}}$, where $\epsilon_\mathrm{bn}$ is a small constant. This factor makes
# a filter louder or quieter, so it belongs to the norm:
#
# $$\sigma_i = \lVert \mathrm{reshape}(W_i, [C_\mathrm{in}, k^2]) \rVert_2 \cdot
# \frac{|\gamma_i|}{\sqrt{v_i + \epsilon_\mathrm{bn}}}$$


# %%
def spectral_norms_of_layer(conv: torch.nn.Conv2d, bn: torch.nn.BatchNorm2d) -> torch.Tensor:
    """The formula, with one singular value decomposition (SVD) for each filter."""
    norms = []
    for weight in conv.weight.detach().double():  # [c_in, k, k]
        norms.append(torch.linalg.svdvals(weight.flatten(1))[0])
    factor = bn.weight.double().abs() / (bn.running_var.double() + bn.eps).sqrt()
    return torch.stack(norms) * factor


units = prunable_units(poisoned.model)
first, conv, bn = layers_of(poisoned.model, units)[0]
sigma_first = spectral_norms_of_layer(conv, bn)
print(f"{first.conv}: {first.filters} filters, sigma from {sigma_first.min():.2f} to {sigma_first.max():.2f}")

# %% [markdown]
# The filters of the first layer look at colours, so we can draw them. Here are up to sixteen, the loudest first.

# %% tags=["hide-input"]
order = sigma_first.argsort(descending=True)[:16]
kernels = conv.weight.detach()[order]  # [16, 3, k, k]
pictures = 0.5 + 0.5 * kernels / kernels.abs().amax((1, 2, 3), keepdim=True)
plots.show(
    plots.image_grid(
        pictures,
        [f"{sigma_first[i]:.2f}" for i in order],
        title="The first layer's filters, loudest first, each with its spectral norm",
    ),
    "Sixteen small colour patches, the kernels of the first convolution, sorted by spectral norm.",
)

# %% [markdown]
# ## 2. All filters at once
#
# ResNet-18 at its full width has 4,800 filters, and one SVD for each of them is slow. There is a shorter way. The
# largest singular value of $W_i$, squared, is the largest eigenvalue of its *Gram matrix* $W_i^\top W_i$. This matrix
# has $k^2 \times k^2$ entries, however many channels come in: for a 3x3 kernel it is 9x9. All of a network's 9x9
# matrices fit into one batched call.


# %%
def spectral_norms_batched(conv: torch.nn.Conv2d, bn: torch.nn.BatchNorm2d) -> torch.Tensor:
    """The same numbers from one batched eigenvalue call."""
    weight = conv.weight.detach().flatten(2)  # [filters, c_in, k*k]
    gram = weight.transpose(1, 2) @ weight  # [filters, k*k, k*k]
    factor = bn.weight.abs() / (bn.running_var + bn.eps).sqrt()
    return torch.linalg.eigvalsh(gram)[:, -1].sqrt() * factor


from nbtools.defender.components import spectral_norms

sigma = {model.name: spectral_norms(model.model) for model in (poisoned, clean_twin)}
for unit, conv, bn in layers_of(poisoned.model, units):
    if unit.kernel == (3, 3):
        torch.testing.assert_close(
            spectral_norms_batched(conv, bn).double(), sigma[poisoned.name][unit.conv], rtol=1e-4, atol=1e-6
        )
torch.testing.assert_close(sigma_first, sigma[poisoned.name][first.conv], rtol=1e-5, atol=1e-7)
print(f"the loop, the batched call and nbtools.defender.components.spectral_norms agree on {len(units)} layers")

# %% [markdown]
# ## 3. Do the loud filters carry the backdoor?
#
# The evaluator can measure what the trigger really moves. *Trigger-activated change* (TAC) compares a filter's map on
# an image $x$ with its map on $t(x)$, the same image under the trigger, and takes the mean over $n$ images:
#
# $$\mathrm{TAC}_i = \frac{1}{n} \sum_x \lVert A_i(t(x)) - A_i(x) \rVert_F$$
#
# *Spearman's rank correlation* says how alike two numbers put the filters of a layer in order: +1 is the same order,
# 0 is no relation, -1 is the reverse order. A second measure counts how many of the ten filters with the highest TAC
# are among the ten with the highest score. We look most closely at stages 3 and 4, the deep half of ResNet-18's four
# stages.
#
# Mind what the rank correlation can and cannot tell. It looks at the order of *all* filters, and most of them are
# never pruned. So a low value does not mean that pruning fails, and a high one does not mean that it works. What
# counts is whether enough of the trigger's filters lie above the threshold; [notebook 06](06_suspiciousness.ipynb)
# takes such a case apart. For this reason we also prune, in section 4.
#
# > **Predict first.** In which layers will the norm agree best with TAC: in the first, which sees the trigger itself,
# > or in the last ones, which decide?

# %%
others = draw_clean(run.splits.test, samples_per_class=20, seed=seed)
others = others.subset(others.labels != target)
truth = tac(poisoned.model, others, poisoned.trigger)
table = agreement(sigma[poisoned.name], truth)
last = [unit.conv for unit in units if unit.conv.startswith(("layer3", "layer4")) and not unit.shortcut]
deep = pd.DataFrame(table).T.loc[last]
deep.round(2)

# %% tags=["hide-input"]
plots.show(
    plots.score_against_tac(
        sigma[poisoned.name],
        truth,
        last,
        "spectral norm, BN folded",
        f"{poisoned.name}: the filters that the trigger moves, and how loud they could be",
    ),
    "Scatter plots, one a layer of stages three and four: TAC across, spectral norm upwards.",
)

# %% tags=["hide-input"]
plots.show(
    plots.agreement_by_layer({"spectral norm": table}, "Agreement of the norm with TAC, layer by layer"),
    "Two line charts over the layers: rank correlation with TAC, and precision among the top ten.",
)

# %% tags=["hide-input"]
early, late = table[first.conv]["spearman"], deep.spearman.mean()
answer(
    f"You were right if you said {'the first' if early > late else 'the last'}. The rank correlation with TAC is "
    f"{early:+.2f} in the first layer and {late:+.2f} in the mean over stages 3 and 4. "
    + (
        "The first layer sees the trigger itself. The deep ones see what the layers before have made of it."
        if early > late
        else "That the first layer sees the trigger itself does not help the norm there."
    )
    + f" In a deep layer the ten loudest filters hold {10 * deep.precision.mean():.1f} of TAC's top ten, "
    f"and ten filters chosen at random would hold {10 * deep.chance.mean():.1f}."
)

# %% [markdown]
# ## 4. Pruning by the norm alone
#
# CLP prunes where $\sigma_i > \mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ and needs no image. Its paper calls the
# threshold $u$ and sets it to 3. To prune a filter we set $\gamma_i = \beta_i = 0$, the scale and the shift of its
# batch norm: its map becomes zero everywhere.
#
# > **Predict first.** What happens to ACC at the lowest threshold, `mu = 1.5`: nothing, a few points, or a collapse?
# > And will any threshold bring ASR to 10 % or less for at most 5 points of ACC?

# %%
from nbtools.defender.pruning import Mask, pruned_copy, threshold

rows = []
for model in (poisoned, clean_twin):
    for mu in mus:
        mask = threshold(sigma[model.name], mu)
        after = model.glance(pruned_copy(model.model, mask))  # on the first of the test images: enough for a sweep
        rows.append({"model": model.name, "mu": mu, "pruned": mask.count, **after.row()})
sweep = pd.DataFrame(rows)
run.save_rows(sweep, "02_spectral_norm")
sweep.pivot(index="mu", columns="model", values=["acc", "asr", "pruned"]).round(1)

# %% tags=["hide-input"]
plots.show(
    plots.pruning_sweep(
        sweep,
        {model.name: model.before_at_a_glance.row() for model in (poisoned, clean_twin)},
        "Pruning by the spectral norm alone: what it breaks, and what it costs",
    ),
    "ACC and ASR against mu for the poisoned model and the clean twin; dotted lines mark both before pruning.",
)

# %% [markdown]
# At the threshold that leaves ACC the farthest above ASR, which of the pruned filters do the work? We prune them in
# two parts.

# %%
ours, twin = (sweep[sweep.model == model.name].set_index("mu") for model in (poisoned, clean_twin))
best = (ours.acc - ours.asr).idxmax()
pruned = threshold(sigma[poisoned.name], best).pruned
deep_ones = {name: mask & name.startswith(("layer3", "layer4")) for name, mask in pruned.items()}
others_alone = {name: mask & ~deep_ones[name] for name, mask in pruned.items()}
halves = {"all": pruned, "those up to stage 2": others_alone, "those in stages 3 and 4": deep_ones}
halves = {name: poisoned.glance(pruned_copy(poisoned.model, Mask(part))).row() | {"pruned": Mask(part).count}
          for name, part in halves.items()}  # fmt: skip
halves = pd.DataFrame(halves).T.rename_axis(f"pruned at mu = {best:g}").astype({"pruned": int})
halves.round(1)

# %% tags=["hide-input"]
before, twin_before = (model.before_at_a_glance.row() for model in (poisoned, clean_twin))
fall, cost = before["acc"] - ours.acc[min(mus)], before["acc"] - ours.acc[best]
cheap = ours.asr[best] <= 10 and cost <= 5
contradicts = max(early, late) < 0.4 if cheap else min(early, late) >= 0.4
answer(
    f"You were right if you said {'a collapse' if fall >= 20 else 'a few points' if fall >= 2 else 'nothing'}, and "
    f"{'yes' if cheap else 'no'}. At `mu = {min(mus):g}` ACC falls by {fall:.1f} points (on the clean twin, for "
    f"nothing, by {twin_before['acc'] - twin.acc[min(mus)]:.1f}). At `mu = {best:g}` ASR falls from "
    f"{before['asr']:.1f} to {ours.asr[best]:.1f} %, for {cost:.1f} points of ACC. The filters up to stage 2 "
    f"alone leave {halves.asr.iloc[1]:.1f} %, those of stages 3 and 4 alone {halves.asr.iloc[2]:.1f} %. The rank "
    f"correlation ({early:+.2f} in the first layer, {late:+.2f} in stages 3 and 4) "
    f"{'contradicts the sweep' if contradicts else 'alone does not tell you that'}: it does not see the threshold."
)

# %% [markdown]
# ## 5. Exercises
#
# **Exercise 1** (easy, 5 minutes). The spectral norm is a bound. No patch $u$ can make $\lVert W_i u \rVert$ larger
# than $\lVert W_i \rVert_2 \lVert u \rVert$. How near do random patches come? Take filter 0 of the first layer,
# without its batch norm, and compute the largest ratio $\lVert W_i u \rVert / \lVert u \rVert$ over the columns of
# `patches`.

# %%
patches = torch.randn(9, 10_000, generator=torch.Generator().manual_seed(0))  # [k*k, patches]
weight = layers_of(poisoned.model, units)[0][1].weight.detach()[0].flatten(1).cpu()  # [c_in, k*k]
largest_ratio = ...  # your answer, a number

exercises.largest_ratio(largest_ratio, weight, patches)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Is the batch norm needed? Compute the norms without it
# (`spectral_norms(model, fold_bn=False)`). What is their mean rank correlation with TAC over the layers in `last`?

# %%
bare_correlation = ...  # your answer, in [-1, 1]

exercises.bare_correlation(bare_correlation, poisoned.model, truth, last)

# %% [markdown]
# ## 6. What we saw, and what this does not show
#
# - One number for each filter, from the weights alone, says how loud the filter could be.
# - Two questions have two answers: how far the norm's order is the order of TAC, and whether pruning by the norm
#   removes the backdoor. The rank correlation answers the first one only.
# - It does **not** show that a quiet filter is harmless: a backdoor that is spread over many filters needs no loud
#   one. And a loud filter may serve the clean images. For this reason the score has three more terms.
#
# **For the reading group**
# 1. An attacker adds a penalty on $\sigma_i$ to the training loss. What does this cost the attacker?
# 2. Why is the norm compared within a layer and not across the network?
# 3. CLP pairs convolutions with batch norms by the order of the modules. On which networks does that go wrong?
#
# **Further reading**: Zheng et al., *Data-free backdoor removal based on channel Lipschitzness* (2208.03111): the
# bound, and the threshold in each layer. Yoshida and Miyato, *Spectral norm regularization* (1705.10941): the same
# number as a penalty during training.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
largest_ratio = ((weight @ patches).norm(dim=0) / patches.norm(dim=0)).max()
exercises.largest_ratio(largest_ratio, weight, patches)
print(f"largest ratio {largest_ratio:.3f}, the bound {torch.linalg.svdvals(weight)[0]:.3f}")

bare_table = agreement(spectral_norms(poisoned.model, fold_bn=False), truth)
bare_correlation = pd.DataFrame(bare_table).T.loc[last].spearman.mean()
exercises.bare_correlation(bare_correlation, poisoned.model, truth, last)
print(f"rank correlation with TAC: {bare_correlation:+.2f} without the batch norm, {deep.spearman.mean():+.2f} with it")

# %% [markdown]
# Previous: [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb) · Next: [03 · Saliency](03_saliency.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
assert sweep.groupby("model").pruned.apply(lambda n: n.is_monotonic_decreasing).all(), "a higher mu must prune less"
