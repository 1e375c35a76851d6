# %% [markdown]
# # 05 · Correlation
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/05_correlation.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/05_correlation.ipynb)
#
# At the end of this notebook you can say which filters of a layer say the same as others, which filters go their own
# way, and whether the trigger's filters go their own way.
#
# Paper: *suspiciousness score* ([arXiv 2311.07417](https://arxiv.org/abs/2311.07417)), whose fourth term this is.
# **The formula is reconstructed from the paper's summary.** The summary says that a filter's "relationship with other
# neurons in the same layer" counts, and that *low* correlation is suspicious. That we take the mean absolute Pearson
# correlation, over images and positions, is our choice.

# %% [markdown]
# > **You will learn**
# > - how to correlate two filters, and what a whole layer's correlations look like
# > - how to get them in one pass over any number of images, from sums that fit in a few matrices
# > - how well low correlation gives the trigger's filters away, and what pruning by it alone costs
# >
# > **Read before**: [04 · Activation norm](04_activation_norm.ipynb) ·
# > **minutes to read**: 30 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | put the trigger on a few training images |
# | defender | the model and a few **clean images**, no label needed | correlates the maps, prunes |
# | evaluator | test set and trigger | correlates the maps under the trigger; reports ACC, ASR and TAC |
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
draws = 0  # draws to compare in section 6, at least 2; 0 is what the profile says
mu = 2.0  # threshold of the comparison with the norm, standard deviations above the layer's mean
mus = [1.0, 2.0, 3.0]  # thresholds to try for the term alone, the same

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

import nbtools
from nbtools.data.images import Images
from nbtools.defender.components import MapStatistics
from nbtools.evaluator.agreement import agreement
from nbtools.networks.maps import watch
from nbtools.networks.units import prunable_units
from nbtools.series import checks, plots, terms
from nbtools.series.exercises import correlation as exercises
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
# | in the paper, and on this page | here |
# |---|---|
# | $A_i(x)$, the map of filter $i$, behind batch norm and ReLU | `nbtools.networks.maps.watch` |
# | $\rho_{ij}$, Pearson's correlation of two maps | `nbtools.defender.components.MapStatistics.correlation_matrix` |
# | $r_i$, the mean of $\lvert \rho_{ij} \rvert$ over the others | `components(...).correlation`, of the same file |
# | $1 / (\tilde r_i + \varepsilon)$, the term (see section 4) | `nbtools.series.terms.low_is_suspicious` |
# | $\tilde\sigma_i \sqrt{1 / (\tilde r_i + \varepsilon)}$, behind the norm (02) | `nbtools.series.terms.behind_norm` |
# | TAC, trigger-activated change | `nbtools.evaluator.agreement.tac`, the evaluator's |

# %% [markdown]
# ## 1. Two filters
#
# Two filters of a layer look at the same input. If both find the same thing, their maps rise and fall together, from
# position to position and from image to image. Pearson's correlation measures this. It does not depend on the maps'
# scale:
#
# $$\rho_{ij} = \frac{\mathrm{cov}(A_i, A_j)}{\sqrt{\mathrm{var}(A_i)\,\mathrm{var}(A_j)}},$$
#
# with covariance and variances over all images *and* positions. For one layer we can keep all maps: we write each
# filter's maps as one long row, and numpy correlates the rows.


# %%
@torch.no_grad()
def maps_of(model: torch.nn.Module, layer: str, images: Images) -> torch.Tensor:
    """The maps of one layer's filters, behind batch norm and ReLU: [images, filters, h, w]."""
    caught = []
    with watch(model, [unit for unit in units if unit.conv == layer], lambda name, maps: caught.append(maps)):
        for batch in images.floats().split(100):
            model(batch)
    return torch.cat(caught)


def matrix_of(maps: torch.Tensor) -> np.ndarray:
    """Correlation of each pair of filters over images and positions; a dead map correlates with nothing."""
    rows = maps.transpose(0, 1).flatten(1).double().cpu().numpy()  # [filters, images * h * w]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(rows))


layer = "layer3.0.conv1"  # the layer that we look at closely
maps = maps_of(poisoned.model, layer, clean)
matrix = matrix_of(maps)
apart = np.abs(matrix - np.diag(np.diag(matrix)))  # the diagonal says nothing
r_of_layer = apart.sum(1) / (len(matrix) - 1)
first, second = np.unravel_index(apart.argmax(), apart.shape)
alive = np.flatnonzero(np.diag(matrix) > 0.5)
loner = alive[r_of_layer[alive].argmin()]
print(f"{layer}: {len(matrix)} filters, {len(matrix) - len(alive)} of them dead on the clean images")
print(f"filters {first} and {second} are the most alike: {matrix[first, second]:+.2f}")
print(f"filter {loner} goes its own way: {r_of_layer[loner]:.2f} with the others, on average")

# %% [markdown]
# Here are these three on eight clean images. The first two are the pair that is most alike.

# %% tags=["hide-input"]
shown = torch.arange(0, len(clean), max(len(clean) // 8, 1))[:8]
figure, axes = plt.subplots(4, len(shown), figsize=(1.15 * len(shown) + 1, 4.9))
for column, index in enumerate(shown.tolist()):
    axes[0, column].imshow(plots.pixels(clean.images[index]))
    for row, number in enumerate((first, second, loner), start=1):
        brightest = float(maps[shown.to(maps.device), number].amax().clamp_min(1e-6))
        axes[row, column].imshow(maps[index, number].cpu(), cmap="magma", vmin=0, vmax=brightest)
for axis, label in zip(axes[:, 0], ("image", f"filter {first}", f"filter {second}", f"loner, {loner}"), strict=True):
    axis.set_ylabel(label, fontsize=9)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color=plots.GREY, linewidth=0.6)
figure.suptitle(f"{layer}: two filters that agree, and one that goes its own way", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Eight clean images and below each the maps of three filters: a correlated pair and a loner.")

# %% [markdown]
# ## 2. A whole layer
#
# The matrix of all pairs is easier to read when similar filters are neighbours. Hierarchical clustering joins the
# closest filters first, then the closest groups. Our distance is $1 - \lvert\rho_{ij}\rvert$. Blocks along the diagonal
# are groups of filters that say the same. Arrows mark the three filters that the trigger moves most. In their rows,
# red means that other filters agree with them, and blue that they say the opposite.
#
# > **Predict first.** Does the poisoned model's layer look different from its clean twin's? And do its three marked
# > filters agree with each other, on clean images?

# %%
others, truth = terms.ground_truth(both, run.splits.test, seed)  # TAC on 20 test images of each class but the target


def clustered(matrix: np.ndarray) -> np.ndarray:
    """The filters in an order in which correlated ones are neighbours."""
    distance = 1 - np.abs(matrix)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


def among(matrix: np.ndarray, filters: list[int]) -> float:
    """Mean |correlation| among these filters, each pair once."""
    return float(np.abs(matrix[np.ix_(filters, filters)])[np.triu_indices(len(filters), 1)].mean())


matrices = {model.name: matrix_of(maps_of(model.model, layer, clean)) for model in both}


# %% tags=["hide-input"]
def heat_map(axis: plt.Axes, matrix: np.ndarray, order: np.ndarray, top: list[int], title: str) -> object:
    """The matrix in this order, of a wide layer every second filter, with an arrow at the rows of those in `top`."""
    step = -(-len(order) // 128)
    shown = np.array([number for row, number in enumerate(order) if row % step == 0 or number in top])
    picture = axis.imshow(matrix[np.ix_(shown, shown)], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    rows = [int(np.flatnonzero(shown == number)[0]) for number in top]
    beside = axis.get_yaxis_transform()  # x in shares of the axis, y in rows
    axis.plot([1.025] * len(rows), rows, "<", ms=6, color="black", transform=beside, clip_on=False)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    return picture


figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), gridspec_kw={"wspace": 0.08})
for axis, model in zip(axes, both, strict=True):
    top = truth[model.name][layer].topk(3).indices.tolist()
    picture = heat_map(axis, matrices[model.name], clustered(matrices[model.name]), top, model.name)
figure.colorbar(picture, ax=axes, label="Pearson's correlation", shrink=0.8)
figure.suptitle(
    f"{layer}: who agrees with whom on clean images (arrows: the three highest TACs)",
    x=0.01,
    ha="left",
    fontweight="bold",
)
plots.show(figure, "Two clustered correlation matrices of a layer, poisoned model and clean twin, three rows marked.")

# %% tags=["hide-input"]
usual = {name: among(found, list(range(len(found)))) for name, found in matrices.items()}
trio = {n: among(found, truth[n][layer].topk(3).indices.tolist()) for n, found in matrices.items()}
alike = 0.75 < usual[poisoned.name] / usual[clean_twin.name] < 1.33
joined, joined_twin = (trio[model.name] > 1.5 * usual[model.name] for model in both)
answer(
    f"You were right if you said {'no' if alike else 'yes'}, and {'yes' if joined else 'no'}. On clean images the mean "
    "$\\lvert\\rho_{ij}\\rvert$ is "
    f"{usual[poisoned.name]:.2f} in the poisoned model and {usual[clean_twin.name]:.2f} in the twin. Among the three "
    f"marked filters it is {trio[poisoned.name]:.2f}, in the twin {trio[clean_twin.name]:.2f}. "
    + (
        "So these three agree with each other, although no image carries the trigger. But those of the twin do so too, "
        "and the twin has no backdoor: this does not tell the two networks apart."
        if joined and joined_twin
        else "So these three agree with each other, although no image carries the trigger. Those of the twin do not."
        if joined
        else "So without the trigger the filters that it moves most hardly form a group."
    )
)

# %% [markdown]
# The trigger is one more thing that maps can have in common. So the evaluator draws the poisoned model's matrix twice
# more: for clean and for triggered test images. Both are in the order in which the filters cluster under the trigger.
#
# > **Predict first.** What will the trigger do to the matrix: nothing, a block of a few filters (less than one in ten),
# > or a block of many?

# %%
from nbtools.attacker.triggers import stamp

top, ten = (truth[poisoned.name][layer].topk(k).indices.tolist() for k in (3, 10))
seen, company, block = {}, {}, {}
for what, images in {"clean": others, "triggered": stamp(poisoned.trigger, others)}.items():
    seen[what] = matrix_of(maps_of(poisoned.model, layer, images))
    company[what] = among(seen[what], ten)
    block[what] = int((np.abs(np.delete(seen[what][top[0]], top[0])) > 0.5).sum())
print("mean |correlation| among the ten highest TACs: " + ", ".join(f"{k} {v:.2f}" for k, v in company.items()))

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), gridspec_kw={"wspace": 0.08})
order = clustered(seen["triggered"])
for axis, (what, of_images) in zip(axes, seen.items(), strict=True):
    picture = heat_map(axis, of_images, order, top, f"{poisoned.name}, {what} test images")
figure.colorbar(picture, ax=axes, label="Pearson's correlation", shrink=0.8)
figure.suptitle(f"{layer}: does the trigger change who agrees with whom?", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "The same layer's correlation matrix on clean and on triggered test images, in the same order.")

# %% tags=["hide-input"]
size, usually = block["triggered"], block["clean"]
found = "nothing" if size <= usually else "a block of a few" if size < len(matrix) / 10 else "a block of many"
answer(
    f"You were right if you said {found}: with the trigger, {size} of {len(matrix)} filters correlate above 0.5 with "
    f"the one that it moves most; on clean images {usually} do. Among the ten filters with the highest TAC "
    f"the mean $\\lvert\\rho_{{ij}}\\rvert$ goes from {company['clean']:.2f} to {company['triggered']:.2f}"
    + (": they all answer to one thing, the trigger. " if company["triggered"] > company["clean"] + 0.2 else ". ")
    + "The defender, who has no trigger, cannot see this."
)

# %% [markdown]
# ## 3. All layers in one pass
#
# To keep every map of every layer would fill the memory, and it is not needed. Three sums that grow with each batch are
# enough: the number $N$ of positions in all images, the sum of each filter's values, and the sum of the products of
# each pair:
#
# $$\mathrm{cov}(A_i, A_j) = \frac{1}{N} \sum A_i A_j - \frac{1}{N^2} \sum A_i \sum A_j$$


# %%
def stream(model: torch.nn.Module, images: Images) -> dict[str, torch.Tensor]:
    """Every layer's correlation matrix, from sums over one pass."""
    sums = {unit.conv: [0, 0, 0] for unit in units}

    def see(name: str, maps: torch.Tensor) -> None:
        rows = maps.transpose(0, 1).flatten(1).double()  # [filters, images * h * w]
        for place, new in enumerate((rows.shape[1], rows.sum(1), rows @ rows.T)):
            sums[name][place] = sums[name][place] + new

    with torch.no_grad(), watch(model, units, see):
        for batch in images.floats().split(50):
            model(batch)
    found = {}
    for name, (n, total, products) in sums.items():
        covariance = products / n - torch.outer(total, total) / n**2
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0)  # a dead map has no direction
        found[name] = covariance * torch.outer(scale, scale)
    return found


streamed = stream(poisoned.model, clean)
by_numpy = torch.from_numpy(matrix)
torch.testing.assert_close(streamed[layer].cpu(), by_numpy, rtol=1e-4, atol=1e-5)
print(f"sums and numpy.corrcoef agree on {layer} to {float((streamed[layer].cpu() - by_numpy).abs().max()):.0e}")

# %% [markdown]
# The difference of two large sums loses digits when a filter's mean is large compared with its spread. We summed in
# float64. The package first subtracts the mean of the first batch, so that fast float32 products are enough.
#
# The term itself is the mean absolute correlation with the *other* filters of the layer:
#
# $$r_i = \frac{1}{C_l - 1} \sum_{j \neq i} \lvert \rho_{ij} \rvert$$

# %%
from nbtools.defender.components import components
from nbtools.defender.score import EPSILON, suspiciousness

parts = {model.name: components(model.model, clean) for model in both}
correlation = {name: part.correlation for name, part in parts.items()}
for name, found in streamed.items():
    mine = (found.abs().sum(1) - found.diagonal()) / (len(found) - 1)
    torch.testing.assert_close(mine, correlation[poisoned.name][name], rtol=1e-3, atol=1e-4)
print(f"nbtools.defender.components.components gives the same r on {len(units)} layers")

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(9.5, 3.9))
for model, color, shift in zip(both, (plots.POISONED, plots.CLEAN), (-0.18, 0.18), strict=True):
    terms.strip_with_rings(axis, correlation[model.name], truth[model.name], color, shift, 0.26, model.name)
axis.set_xlim(-0.7, len(units) - 0.3)
axis.set(
    ylabel="mean |correlation| with the others", xlabel="layer (ringed: the three highest TACs)", ylim=(-0.02, None)
)
axis.legend(frameon=False, fontsize=9, markerscale=2.5)
axis.set_title("How much company each filter has")
plots.show(figure, "Mean absolute correlation of every filter by layer, poisoned model and twin, top TACs ringed.")

# %% [markdown]
# ## 4. Is a filter that goes its own way suspicious?
#
# The argument: clean training spreads each feature over many filters, and these filters agree. The backdoor is a
# feature of its own. On clean images, without a trigger, its filters have nothing in common with the others. So low
# correlation is suspicious, and the term divides by it:
#
# $$\frac{1}{\tilde r_i + \varepsilon}, \qquad \tilde r_i = \frac{r_i}{\mathrm{mean}_l(r)}, \quad \varepsilon = 0.01$$
#
# Now against TAC, with two variants: the correlation before the ReLU, and the correlation with the *closest* other
# filter instead of the mean over all. The *rank correlation* is 1 where two measures put the filters in the same order,
# 0 where the orders have nothing in common, and -1 where one is the reverse of the other. The *precision* is the share
# of TAC's ten highest filters that are among the term's ten highest.
#
# > **Predict first.** Where will the order by the term agree best with TAC: in the early layers (before stage 2), in
# > the middle (stages 2 and 3), or in the last ones (stage 4)?

# %%
scores = {model.name: terms.low_is_suspicious(correlation[model.name]) for model in both}
of_term_alone = suspiciousness(parts[poisoned.name], {"correlation": -1})
for name, r in correlation[poisoned.name].items():
    torch.testing.assert_close(1 / (r / r.mean() + EPSILON), scores[poisoned.name][name])
    torch.testing.assert_close(of_term_alone[name], scores[poisoned.name][name])

last = terms.deep_layers(units)
title = f"{poisoned.name}: the filters that the trigger moves, and how alone they are"
terms.show_against_tac(scores[poisoned.name], truth[poisoned.name], last, "correlation", title)

# %%
closest = {name: (found - torch.diag(found.diagonal())).abs().amax(1) for name, found in streamed.items()}
before_relu = components(poisoned.model, clean, after_relu=False).correlation
lines = {
    "low mean |r| (the score's term)": agreement(scores[poisoned.name], truth[poisoned.name]),
    "low mean |r|, before the ReLU": agreement(terms.low_is_suspicious(before_relu), truth[poisoned.name]),
    "low |r| with the closest": agreement(terms.low_is_suspicious(closest), truth[poisoned.name]),
    "the clean twin: low mean |r|": agreement(scores[clean_twin.name], truth[clean_twin.name]),
}
terms.show_agreement(lines, "Agreement of going one's own way with TAC, layer by layer")
terms.mean_agreement(lines, last).round(2)

# %% tags=["hide-input"]
stages = {"the early": ("conv1", "layer1"), "the middle": ("layer2", "layer3"), "the last": ("layer4",)}
mine, twins = (pd.DataFrame(lines[name]).T.drop([unit.conv for unit in units if unit.shortcut])
               for name in ("low mean |r| (the score's term)", "the clean twin: low mean |r|"))  # fmt: skip
where = {place: mine.index.str.startswith(names) for place, names in stages.items()}
ranks = {place: (mine[rows].spearman.mean(), twins[rows].spearman.mean()) for place, rows in where.items()}
highest, term = max(here for here, _ in ranks.values()), mine.loc[last].mean()
best = " or ".join(place for place, (here, _) in ranks.items() if here > highest - 0.05)
answer(
    f"You were right if you said {best}: without the shortcuts, the mean rank correlation is "
    + ", ".join(f"{here:+.2f} in {place} layers (in the twin {there:+.2f})" for place, (here, there) in ranks.items())
    + (". It is weak everywhere" if highest < 0.3 else "")
    + ". What the twin shows as well has nothing to do with a backdoor. In stages 3 and 4 the term's ten highest hold "
    f"{10 * term.precision:.1f} of TAC's ten highest filters, and a random order would hold {10 * term.chance:.1f}."
)

# %% [markdown]
# ## 5. Pruning by correlation alone
#
# The rank correlation judges the order of *all* filters. A threshold prunes only those at the top of the order. So a
# low rank correlation does not settle what pruning does.
#
# > **Predict first.** A filter without company says what no other filter says. Is it cheap or expensive to lose? And,
# > after that rank correlation, will ASR fall?

# %%
sweep = pd.DataFrame(trained.pruned(scores[trained.name], level) for trained in both for level in mus)
run.save_rows(sweep, "05_correlation")
terms.show_sweep(sweep, both, "Pruning by low correlation alone: what it breaks, and what it costs")

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
asr = after.asr[level]
many, fewer = lost.loc[most].max(), lost.loc[level].max()
price = "expensive" if fewer > 5 else "cheap" if many <= 5 else "cheap for few filters and expensive for many"
worked = asr < had[mine]["asr"] / 2
answer(
    f"You were right if you said {price}, and {'yes' if worked else 'no'} for ASR. "
    f"Pruning {int(after.pruned[most])}, at $\\mu$ = {most:g}, takes ACC from {had[mine]['acc']:.1f} to "
    f"{after.acc[most]:.1f}, in the twin from {had[twin]['acc']:.1f} to {swept[twin].acc[most]:.1f}. With {took.count} "
    f"at $\\mu$ = {level:g}, it is {after.acc[level]:.1f} and {swept[twin].acc[level]:.1f}, and ASR goes from "
    f"{had[mine]['asr']:.1f} to {asr:.1f}"
    + (
        f", although the rank correlation with TAC is {term.spearman:+.2f}. "
        if worked and term.spearman < 0.2
        else ". "
    )
    + terms.who_does_the_work(halves, had[mine]["asr"])
)

# %% [markdown]
# In the score the term does not work alone. It multiplies the spectral norm of notebook 02, and only has to say which
# of the filters that *can* be loud have company. So once more, with the norm: without the term, with the paper's sign,
# and with the sign turned.
#
# > **Predict first.** At the same threshold, what will the term add to the norm: a higher ACC, a lower ASR or both? And
# > will the paper's sign do better than the other?

# %%
names = ("norm, low correlation suspicious (paper)", "norm, high correlation suspicious")
ablation = terms.prune_by_each(poisoned, terms.behind_norm(parts[poisoned.name], "correlation", *names), mu)
ablation.round(1)

# %% tags=["hide-input"]
alone, low, high = (row for _, row in ablation.iterrows())
saves, lowers = low.acc > alone.acc + 1, low.asr < alone.asr - 1
gain = "both" if saves and lowers else "a higher ACC" if saves else "a lower ASR" if lowers else "neither"
better = (low.acc > high.acc - 1) and (low.asr < high.asr + 1)
answer(
    f"You were right if you said {gain}: ACC goes from {alone.acc:.1f} (norm alone) to {low.acc:.1f}, ASR from "
    f"{alone.asr:.1f} to {low.asr:.1f}. With the sign turned, ACC is {high.acc:.1f} and ASR {high.asr:.1f}: "
    + ("the paper's sign does better. " if better else "here the paper's sign is not the better one. ")
    + (
        f"But correlation without the norm left an ACC of {after.acc[level]:.1f} (and an ASR of {asr:.1f}) at $\\mu$ = "
        f"{level:g}: the accuracy that is lost here is lost through the norm."
        if low.acc < after.acc[level] - 2
        else ""
    )
)

# %% [markdown]
# ## 6. Another draw of clean images
#
# How much of the ranking is left with other images, and with one image of each class?

# %%
count = max(draws or run.profile.draws, 2)


@torch.no_grad()
def correlation_of(images: Images) -> dict[str, torch.Tensor]:
    """The term of every filter, by the package's running sums, without the backward pass of `components`."""
    statistics = {unit.conv: MapStatistics() for unit in units}
    with watch(poisoned.model, units, lambda name, maps: statistics[name].add(maps)):
        for batch in images.floats().split(100):
            poisoned.model(batch)
    return {name: s.correlation() for name, s in statistics.items()}


lines = terms.redrawn(run, correlation_of, (1, samples_per_class), count)
title = f"The ranking by correlation, from {count} draws ({poisoned.name})"
alt = "Line chart over the layers: rank correlation of the term between draws."
terms.show_redrawn(lines, title, alt, legend="clean images")

# %% [markdown]
# One image gives many positions in an early layer and few in a late one. So with few images the correlations of a late
# layer rest on few numbers.
#
# ## 7. Exercises
#
# **Exercise 1** (easy, 5 minutes). How large would $r_i$ be if no filter agreed with any other? The cell shuffles the
# columns of each row of `rows_of_layer` on its own. Correlate the shuffled rows, and take the mean of $r_i$ over the
# filters in `alive`.

# %%
rows_of_layer = maps.transpose(0, 1).flatten(1).double().cpu()  # [filters, positions]
generator = torch.Generator().manual_seed(0)
shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows_of_layer])
by_chance = ...  # your answer, one number

exercises.by_chance(by_chance, shuffled, alive)

# %% [markdown]
# **Exercise 2** (medium, 15 minutes). Two terms that say the same are one term. Compute Spearman's rank correlation
# between the activation norm (notebook 04) and the correlation within each layer of `last`, and its mean. Both are in
# `parts[poisoned.name]`.

# %%
redundancy = ...  # your answer, one number in [-1, 1]

exercises.redundancy(redundancy, parts[poisoned.name], last)

# %% [markdown]
# ## 8. What we saw, and what this does not show
#
# - One pass of sums gives every layer's correlation matrix. Filters come in groups, and some have no group. The trigger
#   makes a group of its own, which only the evaluator can see.
# - How well the order of all filters agrees with TAC does **not** tell what pruning the top of it does.
# - It does **not** show that a filter without company belongs to a backdoor. A filter that is the only one to know
#   something is as alone as one that waits for a trigger, and pruning it may cost accuracy.
# - It says nothing about an attacker who spreads the backdoor over filters that agree with the others.
#
# **For the reading group**
# 1. $r_i$ averages over all other filters. When does a *pair* of backdoor filters that agree with each other still look
#    lonely?
# 2. Wider layers hold more copies of each feature. What does that do to $r_i$, and to the threshold?
# 3. Spectral norm, saliency, activation norm and correlation: which two are most alike, and which would you leave out
#    first? Note your guess for [06 · Suspiciousness](06_suspiciousness.ipynb).
#
# **Further reading**: Kornblith et al., *Similarity of neural network representations revisited* (1905.00414): how to
# compare whole layers instead of pairs of filters. Cogswell et al., *Reducing overfitting in deep networks by
# decorrelating representations* (1511.06068): what happens when training forbids filters to agree. Chan, Golub and
# LeVeque, *Algorithms for computing the sample variance* (1983): why sums of squares need a shift.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
absolute = np.abs(np.corrcoef(shuffled[alive].numpy()))
by_chance = float((absolute.sum() - len(alive)) / (len(alive) * (len(alive) - 1)))
exercises.by_chance(by_chance, shuffled, alive)
print(f"{layer}: mean |correlation| {r_of_layer[alive].mean():.3f}, by chance {by_chance:.3f}")

norms, company_of = parts[poisoned.name].activation, parts[poisoned.name].correlation
redundancy = np.mean([spearmanr(norms[n].cpu(), company_of[n].cpu()).statistic for n in last])
exercises.redundancy(redundancy, parts[poisoned.name], last)
print(f"rank correlation between activation norm and correlation in stages 3 and 4: {redundancy:+.2f}")

# %% [markdown]
# Previous: [04 · Activation norm](04_activation_norm.ipynb) · Next: [06 · Suspiciousness](06_suspiciousness.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
for model in both:
    assert all(bool(torch.isfinite(score).all()) for score in scores[model.name].values()), "every score is finite"
survives = pd.Series(lines[f"{samples_per_class} a class"]).mean()
assert survives >= 0.7, f"the ranking should survive another draw: {survives:.2f}"
assert company["triggered"] > company["clean"], f"the trigger should bring its filters together: {company}"
