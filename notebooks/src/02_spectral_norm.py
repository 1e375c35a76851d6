# %% [markdown]
# # 02 · Spectral norm
#
# At the end of this notebook you can say how strongly each filter of a network *could* answer, from its weights alone,
# and how much of a backdoor that already finds.
#
# Papers: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose first term this is;
# CLP, which prunes by this term alone (Zheng et al., ECCV 2022,
# [arXiv 2208.03111](https://arxiv.org/abs/2208.03111)).

# %% [markdown]
# > **You will learn**
# > - what the spectral norm of a filter bounds, and why the batch norm belongs to it
# > - how to get all of a network's norms in one call instead of thousands
# > - how well the norm finds the filters that a trigger moves, and what pruning by it alone costs
# >
# > **Read before**: [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb) ·
# > **minutes to read**: 15 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | put the trigger on a few training images |
# | defender | the model's weights, **no image at all** | computes the norms, prunes |
# | evaluator | test set and trigger | reports ACC and ASR, and TAC, the ground truth |

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

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed)
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
pd.DataFrame({model.name: model.before.row() for model in (poisoned, clean_twin)}).T.round(1)

# %% [markdown]
# The clean twin was trained the same way on clean images. Whatever we measure on the poisoned model, we measure on the
# twin too: a score that shouts at both says nothing.
#
# | in the papers | here |
# |---|---|
# | $W_i$, filter $i$ of a layer, $C_{in} \times k \times k$ | `conv.weight[i]` |
# | $\gamma_i, \sigma^2_i$ of the batch norm behind it | `bn.weight[i]`, `bn.running_var[i]` |
# | $\sigma_i$, the spectral norm | `nbtools.defender.components.spectral_norms` |
# | $\mathrm{mean}_l + \mu \cdot \mathrm{std}_l$ | `nbtools.defender.pruning.threshold` |
# | TAC, trigger-activated change | `nbtools.evaluator.agreement.tac`, the evaluator's |

# %% [markdown]
# ## 1. The loudest answer that a filter can give
#
# A filter looks at a patch $p$ of its input, $C_{in}$ channels of $k \times k$ pixels. Write its weights as a matrix,
# $C_{in}$ rows and $k^2$ columns. The largest singular value of that matrix, its *spectral norm*, says how far the
# filter can stretch any input. A backdoor needs a small trigger to shout down a whole image, so the filters that carry
# it tend to have room for a loud answer.
#
# The batch norm behind the convolution multiplies the answer by $\gamma_i / \sqrt{\sigma_i^2 + \epsilon}$, so that
# factor belongs to the norm:
#
# $$\sigma_i = \lVert \mathrm{reshape}(W_i, [C_{in}, k^2]) \rVert_2 \cdot
# \frac{|\gamma_i|}{\sqrt{\sigma_i^2 + \epsilon}}$$


# %%
def spectral_norms_of_layer(conv: torch.nn.Conv2d, bn: torch.nn.BatchNorm2d) -> torch.Tensor:
    """One SVD a filter, as the formula says."""
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
# In the first layer the filters look at colours, so we can draw them. From left to right: all of them, the loudest
# first.

# %%
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
# ResNet-18 at its full width has 4,800 filters, and one SVD each is slow. The square of the largest singular value of a
# $C_{in} \times k^2$ matrix is the largest eigenvalue of its $k^2 \times k^2$ *Gram matrix* $W_i^\top W_i$: for a
# 3x3 kernel a 9x9 matrix, however many channels come in. All of a network's 9x9 matrices go into one batched call.


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
# The evaluator can measure what the trigger really moves. *Trigger-activated change* compares every filter's map on an
# image with its map on the same image under the trigger:
#
# $$\mathrm{TAC}_i = \frac{1}{n} \sum_x \lVert A_i(\mathrm{trigger}(x)) - A_i(x) \rVert_F$$
#
# > **Predict first.** In which layers will the norm agree best with TAC: the first, which see the patch itself, or the
# > last, which decide?

# %%
others = draw_clean(run.splits.test, samples_per_class=20, seed=seed)
others = others.subset(others.labels != target)
truth = tac(poisoned.model, others, poisoned.trigger)
table = agreement(sigma[poisoned.name], truth)
last = [unit.conv for unit in units if unit.conv.startswith(("layer3", "layer4")) and not unit.shortcut]
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

# %%
plots.show(
    plots.agreement_by_layer({"spectral norm": table}, "Agreement of the norm with TAC, layer by layer"),
    "Two line charts over the layers: rank correlation with TAC, and precision among the top ten.",
)

# %%
deep = pd.DataFrame(table).T.loc[last]
print(f"mean rank correlation in stages 3 and 4: {deep.spearman.mean():+.2f}")
print(f"of TAC's top ten filters a layer, the norm's top ten holds {10 * deep.precision.mean():.1f}")
print(f"a random ranking would hold {10 * deep.chance.mean():.1f}")

# %% [markdown]
# ## 4. Pruning by the norm alone
#
# CLP prunes where $\sigma_i > \mathrm{mean}_l + u \cdot \mathrm{std}_l$, with $u = 3$ in its paper, and needs no image.
# To prune a filter we set $\gamma_i = \beta_i = 0$ in its batch norm: its map becomes zero everywhere.
#
# > **Predict first.** What happens to the clean accuracy at `mu = 1.5`: nothing, a few points, or a wreck?

# %%
from nbtools.defender.pruning import pruned_copy, threshold

rows = []
for model in (poisoned, clean_twin):
    for mu in mus:
        mask = threshold(sigma[model.name], mu)
        after = model.glance(pruned_copy(model.model, mask))  # on the first of the test images: enough for a sweep
        rows.append({"model": model.name, "mu": mu, "pruned": mask.count, **after.row()})
sweep = pd.DataFrame(rows)
run.save_rows(sweep, "02_spectral_norm")
sweep.pivot(index="mu", columns="model", values=["acc", "asr", "pruned"]).round(1)

# %%
plots.show(
    plots.pruning_sweep(
        sweep,
        {model.name: model.before_at_a_glance.row() for model in (poisoned, clean_twin)},
        "Pruning by the spectral norm alone: what it breaks, and what it costs",
    ),
    "ACC and ASR against mu for the poisoned model and the clean twin; dotted lines mark both before pruning.",
)

# %% [markdown]
# Read the two panels together. On the left, look for a threshold at which the orange line is down and the blue one is
# still up; if there is none, the norm alone can't separate the backdoor from what the network needs. On the right
# nothing needs repair, and every point that the blue line falls is a price paid for nothing.

# %% [markdown]
# ## 5. Exercises
#
# **Exercise 1** (easy, 5 minutes). The norm is a bound: no $p$ of $k^2$ values can make $\lVert W_i p \rVert$ larger
# than $\sigma_i \lVert p \rVert$. Compute the largest ratio
# $\lVert W_i p \rVert / \lVert p \rVert$ over the columns of `patches` for filter 0 of the first layer (without the
# batch norm).

# %%
patches = torch.randn(9, 10_000, generator=torch.Generator().manual_seed(0))  # [k*k, patches]
weight = layers_of(poisoned.model, units)[0][1].weight.detach()[0].flatten(1).cpu()  # [c_in, k*k]
largest_ratio = ...  # your answer

checks.same(
    largest_ratio,
    ((weight @ patches).norm(dim=0) / patches.norm(dim=0)).max(),
    "divide the norm of each column of weight @ patches by the norm of the same column of patches",
)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Is the batch norm needed? Compute the norms without it
# (`spectral_norms(model, fold_bn=False)`) and the mean rank correlation with TAC over the layers in `last`.

# %%
bare_correlation = ...  # your answer

bare_table = agreement(spectral_norms(poisoned.model, fold_bn=False), truth)
checks.same(
    bare_correlation,
    pd.DataFrame(bare_table).T.loc[last].spearman.mean(),
    "agreement(scores, truth) gives one row a layer; take the mean of 'spearman' over `last` only",
)

# %% [markdown]
# ## 6. What we saw, and what this does not show
#
# - One number a filter, from the weights alone, already ranks filters by how loud they could be; the table above says
#   how far that agrees with what the trigger really moves, and the sweep what pruning by it costs.
# - It does **not** show that a quiet filter is harmless: a backdoor that is spread over many filters needs none of them
#   to be loud. And a loud filter may be doing honest work, which is why the score has three more terms.
#
# **For the reading group**
# 1. An attacker adds a penalty on $\sigma$ to the training loss. What does that cost him?
# 2. Why is the norm compared within a layer and not across the network?
# 3. CLP pairs convolutions with batch norms by the order of the modules. On which networks does that go wrong?
#
# **Further reading**: Zheng et al., *Data-free backdoor removal based on channel Lipschitzness* (2208.03111): the
# bound, and the layer-wise threshold. Yoshida and Miyato, *Spectral norm regularization* (1705.10941): the same number
# as a regulariser of training.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
largest_ratio = ((weight @ patches).norm(dim=0) / patches.norm(dim=0)).max()
checks.true(largest_ratio <= torch.linalg.svdvals(weight)[0], "no patch may exceed the bound")

bare_correlation = pd.DataFrame(bare_table).T.loc[last].spearman.mean()
print(f"rank correlation with TAC: {bare_correlation:+.2f} without the batch norm, {deep.spearman.mean():+.2f} with it")

# %% [markdown]
# Previous: [01 · A poisoned ResNet-18](01_poisoned_resnet18.ipynb) · Next: [03 · Saliency](03_saliency.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
assert sweep.groupby("model").pruned.apply(lambda n: n.is_monotonic_decreasing).all(), "a higher mu must prune less"
