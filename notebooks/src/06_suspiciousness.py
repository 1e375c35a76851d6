# %% [markdown]
# # 06 · Suspiciousness
#
# [![Open in Colab](figures/colab.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/06_suspiciousness.ipynb)
# [![Open on Binder](figures/binder.svg)](https://mybinder.org/v2/gh/OWNER/REPOSITORY/main?labpath=notebooks/06_suspiciousness.ipynb)
#
# At the end of this notebook you have pruned a backdoor out of a network, with ten clean images of each class and with
# ten images in all. Four measurements become one score, the score becomes a mask, and a short tuning wins back
# accuracy. And you have solved a riddle: the order that the score gives to a layer does not agree with what the trigger
# moves, and yet pruning by it works. A second attack, which profile `quick` leaves out, shows where the defence ends.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417). **The formula is reconstructed from the paper's
# summary**: the four terms, the square root and the threshold are the paper's; how they are joined is ours, and
# section 6 takes it apart.

# %% [markdown]
# > **You will learn**
# > - how four measurements of a filter become one score
# > - why a score can find a backdoor although it does not put the filters in the right order
# > - what the threshold $\mu$ trades, over several draws of the clean images, and what pruning costs a clean model
# > - why fine-tuning can bring a pruned backdoor back, and how to keep it from doing so
# >
# > **Read before**: [02](02_spectral_norm.ipynb) to [05](05_correlation.ipynb), one for each term ·
# > **minutes to read**: 46 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | puts the trigger on a few training images |
# | defender | the model, ten clean images of each class (or ten in all) | scores, prunes, tunes |
# | evaluator | test set and trigger | reports ACC, ASR and RA; chooses nothing |
#
# ACC is clean accuracy. ASR, the attack success rate, is the share of triggered images that the network takes for the
# target class. RA, robust accuracy, is the share of them that it classifies right after all.

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
hard_attack = ""  # a second attack, from section 4 on; "" is what the profile says: blended, and none in quick
low_rate = 0.0  # a second poison rate for the tables of section 4, say 0.01; 0 leaves it out
seed = 0  # of data, initial weights and training
width = 0  # channels of the first stage; 0 is what the profile says
epochs = 0  # 0 is what the profile says
samples_per_class = 10  # the defender's clean images of each class
n_total = 10  # the other setting: so many clean images in all
draws = 0  # draws of the clean images; 0 is what the profile says
mus = [1.5, 2.0, 2.5, 3.0, 4.0]  # thresholds to try, standard deviations above the layer's mean

# %%
import textwrap
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch

import nbtools
from nbtools.data.images import draw_clean
from nbtools.defender import FineTune, LastStage, RandomPruning, Renormalise, SpectralNorm, Suspiciousness
from nbtools.evaluator.agreement import agreement, tac
from nbtools.evaluator.evaluation import predict
from nbtools.series import plots
from nbtools.series.exercises import suspiciousness as exercises
from nbtools.series.words import answer

plots.style()
run = nbtools.start(profile, width=width, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
draws, hard_attack = draws or run.profile.draws, hard_attack or run.profile.hard_attack
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
defence = Suspiciousness()
prune_only = replace(defence, fine_tune=None)
print(textwrap.fill(repr(defence), 100, subsequent_indent="    "))

# %% [markdown]
# | in the paper | here |
# |---|---|
# | the terms $\sigma_i$, $s_i$, $a_i$, $r_i$ of 02 to 05 | `nbtools.defender.components.components` |
# | the score $S_i$ (reconstructed) | `nbtools.defender.score.suspiciousness` |
# | prune where $S_i > \mathrm{mean}_l + \mu\,\mathrm{std}_l$ | `nbtools.defender.pruning.threshold` |
# | set $\gamma_i = \beta_i = 0$ | `nbtools.defender.pruning.apply`, `hold` |
# | the whole defence | `nbtools.defender.Suspiciousness` |

# %% [markdown]
# ## 1. Four measurements, one number
#
# A filter is suspicious when it *could* answer loudly (high $\sigma_i$), but the clean images hardly need it (low
# saliency $s_i$), hardly excite it (low activation norm $a_i$), and its map is unlike those of its neighbours (low mean
# correlation $r_i$):
#
# $$S_i = \tilde\sigma_i \sqrt{\frac{1}{(\tilde s_i + \varepsilon)(\tilde a_i + \varepsilon)
# (\tilde r_i + \varepsilon)}}, \qquad
# \tilde\sigma_i = \frac{\sigma_i}{\mathrm{mean}_l(\sigma)}, \quad \varepsilon = 0.01$$
#
# A tilde means: divided by the mean over the filters of its layer $l$. That holds for all four terms.

# %% tags=["hide-input"]
from nbtools.series import schematics

schematics.show("four terms")


# %%
def score_of_layer(sigma, saliency, activation, correlation, epsilon=0.01):
    """The formula, for the filters of one layer."""
    sigma, s, a, r = (term / term.mean() for term in (sigma, saliency, activation, correlation))
    return sigma * torch.sqrt(1 / ((s + epsilon) * (a + epsilon) * (r + epsilon)))


clean = run.draw(samples_per_class)
parts = defence.components(poisoned.model, clean)  # one forward and one backward pass over 100 images
scores = defence.scores(parts)
for name in scores:
    mine = score_of_layer(*(parts.of(term)[name] for term in ("sigma", "saliency", "activation", "correlation")))
    torch.testing.assert_close(mine, scores[name], rtol=1e-6, atol=1e-9)
print(f"the formula above and nbtools agree on {len(scores)} layers")

# %% [markdown]
# Here are the most suspicious filters of one layer, with their four terms (1 is the layer's mean). The last column is
# the evaluator's. It ranks the filters by their *trigger-activated change* (TAC, notebook 02): how far the trigger
# moves the filter's map. Rank 1 is the filter that it moves most.

# %%
others = draw_clean(run.splits.test, samples_per_class=20, seed=seed)
others = others.subset(others.labels != target)
truth = tac(poisoned.model, others, poisoned.trigger)
layer = max(scores, key=lambda n: float(((scores[n] - scores[n].mean()) / scores[n].std()).max()))
top = scores[layer].topk(6).indices.cpu()
table = pd.DataFrame({term: parts.of(term)[layer].cpu() / parts.of(term)[layer].mean().cpu() for term in
                      ("sigma", "saliency", "activation", "correlation")}).iloc[top.numpy()]  # fmt: skip
table["score"] = scores[layer].cpu()[top].numpy()
table["rank by TAC"] = truth[layer].cpu().argsort(descending=True).argsort()[top].numpy() + 1
print(f"{layer}, {len(scores[layer])} filters")
table.rename_axis("filter").round(2)

# %% [markdown]
# A filter can stand at the top for two reasons: because it could be loud (the first column is above 1), or because the
# next three terms are so near to zero that the root becomes large. A filter that answers nothing at all is of the
# second kind. The trigger hardly moves such a filter: see the last column.
#
# ## 2. Against the truth
#
# Is a filter with a high score one that the trigger moves? Two numbers for each layer say it: the rank correlation of
# the score with TAC, and the share of TAC's top ten that is among the score's top ten. Low values of saliency,
# activation norm and correlation are suspicious, so these three count with a minus.
#
# > **Predict first.** Which of the four terms alone agrees best with TAC? Will the score beat it in every layer?

# %%
signs = {"sigma": 1, "saliency": -1, "activation": -1, "correlation": -1}
alone = {term: {n: sign * z for n, z in parts.of(term).items()} for term, sign in signs.items()}
tables = {name: agreement(s, truth) for name, s in {**alone, "suspiciousness": scores}.items()}
plots.show(
    plots.agreement_by_layer(tables, f"{poisoned.name}: each term and the score against TAC"),
    "Two line charts over the layers, five lines each: rank correlation with TAC and precision among the top ten.",
)
deep = [n for n in scores if n.startswith(("layer3", "layer4")) and "downsample" not in n]
pd.DataFrame({name: pd.DataFrame(t).T.loc[deep].mean() for name, t in tables.items()}).T.round(2)

# %% tags=["hide-input"]
ranks = pd.DataFrame({name: pd.DataFrame(t).T.spearman for name, t in tables.items()})  # one row for each layer
mean, best = ranks.mean(), ranks[list(signs)].mean().idxmax()
wins = int((ranks.suspiciousness > ranks[best]).sum())
answer(
    f"You were right if you said {best}: its rank correlation with TAC is {mean[best]:+.2f}, averaged over all layers. "
    f"The score reaches {mean.suspiciousness:+.2f}, and it beats {best} in {wins} of {len(ranks)} layers. "
    + (
        "So the order that the score gives to a layer does not agree with what the trigger moves. By this rank "
        "correlation, pruning by the score should not work. Keep that in mind for section 3."
        if abs(mean.suspiciousness) < 0.3
        else "So here the order that the score gives to a layer agrees with what the trigger moves; section 3 asks "
        "whether it must."
    )
)

# %% [markdown]
# ## 3. The threshold, and a riddle
#
# The next two figures show every filter of the network, in standard deviations above its layer's mean: first the
# poisoned model, then its clean twin. Crosses are pruned. Rings are drawn around the three filters of each layer that
# the trigger moves most, which only the evaluator can know.

# %%
mask = defence.mask(parts)
parts_twin = defence.components(clean_twin.model, clean)
scores_twin, mask_twin = defence.scores(parts_twin), defence.mask(parts_twin)

# %% tags=["hide-input"]
plots.show(
    plots.score_distribution(
        scores, mask, defence.mu, f"{poisoned.name}: {mask.count} of {mask.filters} filters stand out", truth
    ),
    "Strip plot of the score by layer with the threshold; pruned filters crossed, top TAC filters ringed.",
)
plots.show(
    plots.score_distribution(
        scores_twin, mask_twin, defence.mu, f"Clean twin: {mask_twin.count} stand out although nothing is there"
    ),
    "The same strip plot for the clean twin.",
)

# %% [markdown]
# A threshold in standard deviations finds filters that stand out in the clean twin too. So the defence does not
# *detect* a backdoor. It removes what would carry one, and what that costs a clean model is part of its price.
#
# **The riddle.** Section 2 says that the order by score does not agree with what the trigger moves. How can pruning by
# it remove a backdoor? The evaluator, who holds the trigger, can take the crosses apart. The first part are those
# crosses that are among the quarter of their layer with the highest TAC ("that the trigger moves"). The second part
# are all the others. Each part is pruned alone.
#
# > **Predict first.** Which crosses do the work: those that the trigger moves, or the others?

# %%
from nbtools.defender.pruning import Mask, pruned_copy

loud = {name: change >= change.quantile(0.75) for name, change in truth.items()}  # a quarter of each layer, by TAC
moved = {name: crosses & loud[name] for name, crosses in mask.pruned.items()}
others_alone = {name: crosses & ~loud[name] for name, crosses in mask.pruned.items()}
loudest = {name: torch.zeros_like(crosses) for name, crosses in mask.pruned.items()}
for name, crosses in mask.pruned.items():
    loudest[name][truth[name].topk(int(crosses.sum())).indices] = True
riddle = {"nothing": poisoned.before_at_a_glance.row() | {"pruned": 0}}
for who, pruned in {
    "all crosses": mask.pruned,
    "the crosses that the trigger moves": moved,
    "the other crosses": others_alone,
    "as many filters, those that the trigger moves most": loudest,
}.items():
    part = Mask(pruned)
    riddle[who] = poisoned.glance(pruned_copy(poisoned.model, part)).row() | {"pruned": part.count}
share = riddle["the crosses that the trigger moves"]["pruned"] / mask.count
print(f"{share:.0%} of the crosses are among the quarter that the trigger moves most; by chance it would be 25 %")
pd.DataFrame(riddle).T.rename_axis("pruned are").astype({"pruned": int}).round(1)

# %% tags=["hide-input"]
whole, hit, rest = (riddle[who] for who in list(riddle)[1:4])
answer(
    f"You were right if you said: those that the trigger moves. Pruned alone, these {hit['pruned']} filters lower ASR "
    f"from {riddle['nothing']['asr']:.1f} to {hit['asr']:.1f} %, as all {whole['pruned']} crosses do "
    f"({whole['asr']:.1f} %), and ACC is {hit['acc']:.1f} % (before: {riddle['nothing']['acc']:.1f} %). The other "
    f"{rest['pruned']} crosses, pruned alone, leave ASR at {rest['asr']:.1f} %. "
    f"{mask.filters - mask.count:,} of the {mask.filters:,} filters lie below the threshold, and their order does not "
    f"matter. Of the {mask.count} above it, these {hit['pruned']} do the work."
)

# %% [markdown]
# **So the riddle is solved.** A rank correlation asks about the order of *all* filters. Pruning uses only the few that
# stand *above the threshold*. The score need not put a layer in order: it is enough that some of the trigger's filters
# stand out. The others that stand out with them are the price, and it is small where the clean images hardly need them.
#
# Nor should a defender wish for TAC itself as a score. The last line of the table prunes as many filters by TAC, and it
# costs far more ACC. In section 2 the lines of saliency and activation norm lie mostly below zero: the trigger moves
# most those filters that the clean images use most. The score spares filters that are used; TAC does not.
#
# Next: how far does the result depend on $\mu$, and on *which* clean images the defender happens to own? Three scores
# are compared over several $\mu$: this one with ten images of each class, this one with ten in all, and $\sigma_i$
# alone. The last is the defence CLP of notebook 02, which needs no image. Grey crosses are the control that every score
# must beat: as many filters of every layer, chosen at random.
#
# > **Predict first.** How many points of ACC does $\sigma_i$ alone lose against the score with ten images of each
# > class: at the default $\mu$, and when each of the two has the $\mu$ that suits it best?

# %%
a_class, in_all, norm, control = (
    f"{samples_per_class} a class",
    f"{n_total} in all",
    "none: sigma alone (CLP)",
    "as many at random",
)
rows = []


def point(mu, images, defence, **drawn):
    """One point of the figure, on the first of the test images."""
    rows.append({"mu": mu, "images": images, **run.defend(poisoned, defence, **drawn, glance=True)})


for mu in mus:
    for draw in range(draws):
        point(mu, a_class, replace(prune_only, mu=mu), samples_per_class=samples_per_class, draw=draw)
        point(mu, in_all, replace(prune_only, mu=mu), n_total=n_total, draw=draw)
    point(mu, norm, SpectralNorm(mu=mu))
for seed_of_control in range(max(draws, 3)):
    point(defence.mu, control, RandomPruning(prune_only, seed_of_control), samples_per_class=samples_per_class)
sweep = pd.DataFrame(rows)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.7))
for axis, column, label in zip(axes, ("acc_pruned", "asr_pruned"), ("ACC (%)", "ASR (%)"), strict=True):
    lines = sweep[sweep.images != control]
    sns.lineplot(lines, x="mu", y=column, hue="images", style="images", markers=True, dashes=False, ax=axis,
                 errorbar=("pi", 100), legend=column == "asr_pruned")  # fmt: skip
    crosses = sweep[sweep.images == control]
    axis.scatter(crosses.mu, crosses[column], color=plots.GREY, marker="x", s=40, label=control)
    axis.axhline(sweep[column.replace("pruned", "before")].iloc[0], color=plots.GREY, ls=":", lw=1)
    axis.axvline(defence.mu, color=plots.PRUNED, ls="--", lw=1)
    axis.set(ylabel=f"{label} after pruning", ylim=(-3, 103))
axes[1].legend(frameon=False, fontsize=8, title="clean images")
figure.suptitle(f"{poisoned.name}: what mu trades (dotted: before; dashed: the default mu; bands: all draws)",
                x=0.01, ha="left", fontweight="bold")  # fmt: skip
plots.show(figure, "ACC and ASR after pruning against mu for three amounts of clean images, with random controls.")

# %%
sweep.groupby(["images", "mu"])[["acc_pruned", "asr_pruned", "pruned"]].mean().unstack("images").round(1)

# %% tags=["hide-input"]
points = sweep[sweep.images != control].groupby(["images", "mu"])[["acc_pruned", "asr_pruned"]].mean()
usual = min(mus, key=lambda mu: abs(mu - defence.mu))
suits = (points.acc_pruned - points.asr_pruned).groupby("images").idxmax()  # much ACC, little ASR
(acc, asr), (acc_norm, asr_norm) = points.loc[a_class, usual], points.loc[norm, usual]
(best_acc, best_asr), (best_norm, best_asr_norm) = points.loc[suits[a_class]], points.loc[suits[norm]]
answer(
    f"You were right if you said about {acc - acc_norm:.0f} points at the default and {best_acc - best_norm:.0f} at "
    f"the best. At the default, $\\sigma_i$ alone leaves an ACC of {acc_norm:.1f} % and an ASR of {asr_norm:.1f} %, "
    f"the score {acc:.1f} and {asr:.1f} %. Each at its best $\\mu$ (highest ACC minus ASR), $\\sigma_i$ alone leaves "
    f"{best_norm:.1f} and {best_asr_norm:.1f} % ($\\mu$ {suits[norm][1]:g}), the score {best_acc:.1f} and "
    f"{best_asr:.1f} % ($\\mu$ {suits[a_class][1]:g}). But only the evaluator can choose the best $\\mu$: a defender "
    "sees no ASR, and fixes $\\mu$ in advance."
)

# %% [markdown]
# Look at the grey crosses as well: each is one draw of as many filters at random. Where such a cross lies as low as the
# lines, this many filters can break the backdoor by luck, and a low ASR alone is then no merit of the score.
#
# ## 4. Tuning that does not bring the backdoor back
#
# Pruning can cost accuracy, and the few clean images could win it back. With their labels they hardly can: a network
# learns a hundred labels by heart after a few passes, and ten even sooner. But the defender owns a better teacher: the
# network as it was before pruning. On a clean image its backdoor is silent, and its softened answers say more than a
# label. So the pruned network learns to answer as the network did before, on crops and flips of the clean images. (This
# recipe is ours. The idea of a network as teacher is that of *knowledge distillation*.)
#
# When to stop? The rule uses only the defender's images. They are dealt into folds. Each fold is held back once, and
# the cross-entropy of the held-back images is watched while a copy is tuned on the others. The real model is tuned for
# as many steps as were best, if the gain is more than its standard error. Otherwise it is left alone.

# %%
tuner = FineTune()
repair = run.repair(poisoned, replace(defence, fine_tune=tuner), samples_per_class)
curve = pd.DataFrame(repair.history)
stop = curve[curve.chosen].iloc[0]
print(f"the held-back images choose {int(stop.step)} steps of {tuner.steps}")

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.5, 3.2))
axis.fill_between(curve.step, curve.gain - curve.error, curve.gain + curve.error, alpha=0.25, color=plots.BLUE)
axis.plot(curve.step, curve.gain, "o-", ms=4, color=plots.BLUE)
axis.axvline(stop.step, color=plots.PRUNED, ls="--", lw=1)
axis.axhline(0, color=plots.GREY, lw=1)
axis.set(title=f"Held-back images choose {int(stop.step)} steps of {tuner.steps}", xlabel="step of fine-tuning",
         ylabel="fall of the held-back\ncross-entropy (± s.e.)")  # fmt: skip
plots.show(figure, "Gain in held-back cross-entropy against the step of fine-tuning, with the chosen one.")

# %% [markdown]
# Fine-tuning with folds takes many times as long as scoring: for each fold a copy is tuned. Two ways are cheaper.
#
# *The last stage alone* is tuned, with the same teacher. What reaches the last stage is computed once, so a step costs
# little. The tuning is taken back where the answers come no nearer to the teacher's.
#
# *Renormalise* trains nothing. A filter that is gone no longer adds what it added to every image, so the filters above
# it get other inputs than they learned to expect. One pass gives that back: from the lowest layer to the highest, each
# batch norm's $\gamma_i$ and $\beta_i$ are changed until every filter that is left has, on the clean images, the mean
# and the standard deviation that it had before pruning (REPAIR,
# [arXiv 2211.08403](https://arxiv.org/abs/2211.08403), where it serves merged networks; its use here is ours).
#
# > **Predict first.** Which of the three wins most ACC, and which one brings most of the backdoor back?

# %%
hard = [run.model(hard_attack, poison_rate, target)] if hard_attack else []
rare = [run.model(attack, low_rate, target)] if low_rate else []
models = {model.name: model for model in (poisoned, *rare, *hard, clean_twin)}
ways = {"fine-tuned": FineTune(), "last stage": LastStage(), "renormalised": Renormalise()}
mended = [
    {"way": way, **run.defend(model, replace(defence, fine_tune=after), samples_per_class, draw=draw, glance=True)}
    for model in models.values()
    for way, after in ways.items()
    for draw in range(draws)
]
mended = pd.DataFrame(mended)
run.save_rows(mended, "06_mended")
alone = mended[mended.way == "last stage"].assign(way="pruned alone", acc_after=mended.acc_pruned, seconds=float("nan"))
alone["asr_after"] = alone.asr_pruned
mended = pd.concat([alone, mended]).rename(columns={"acc_after": "ACC", "asr_after": "ASR"})
means = mended.groupby(["model", "way"])[["ACC", "ASR", "seconds"]].mean()
means.loc[[(model, way) for model in models for way in ("pruned alone", *ways)]].round(1)

# %% tags=["hide-input"]
asked = [name for name in models if name != clean_twin.name]
change = pd.concat({name: means.loc[name].loc[list(ways)] - means.loc[(name, "pruned alone")] for name in asked})
total = change.groupby(level=1).mean()
told = "; ".join(f"{way} {row.ACC:+.1f} and {row.ASR:+.1f}" for way, row in total.loc[list(ways)].iterrows())
most = f"{total.ASR.idxmax()} brings most of the backdoor back" if total.ASR.max() > 2 else "none brings it back"
winners = " or ".join(total.index[total.ACC.max() - total.ACC < 0.2])
answer(
    f"You were right if you said: {winners} wins most ACC, and {most}. Against pruning alone, ACC and ASR "
    f"change by these points{' (mean of the attacks)' if asked[1:] else ''}: {told}. Renormalising gives a filter back "
    "the spread that it had. That can make filters of the backdoor louder as well; section 5 looks into it."
)

# %% [markdown]
# The last stage alone wins back what fine-tuning does, or more (where no gain is clear, the folds stop fine-tuning
# before its first step), in a small part of the time. So it is what the defence does by default. That was settled at
# full width, by a rule that was written first ([lab notes](../data/lab_notes.md#full-width)).
#
# Now everything together, with one setting: on this attack (and, where `low_rate` asks for it, on the same with fewer
# poisoned images), on the second attack where there is one, and on the clean twin, over the draws of the clean images.
#
# > **Predict first.** Ten images in all are one of each class. Compared with ten of each class, what do they cost: more
# > ACC, or more of the attack?

# %%
table = []
for model in models.values():
    for draw in range(draws):
        for images in ({"samples_per_class": samples_per_class}, {"n_total": n_total}):
            row = run.defend(model, defence, draw=draw, glance=True, **images)
            name = in_all if row["n_total"] else a_class
            for stage in ("before", "pruned", "after"):
                numbers = {k: row[f"{k}_{stage}"] for k in ("acc", "asr", "ra")}
                table.append({"model": model.name, "images": name, "draw": draw, "stage": stage, **numbers})
main = pd.DataFrame(table).replace({"stage": {"after": "tuned"}})
run.save_rows(pd.concat([sweep.assign(part="sweep"), main.assign(part="main")]), "06_suspiciousness")
main.groupby(["model", "images", "stage"], sort=False)[["acc", "asr", "ra"]].agg(["mean", "std"]).round(1)

# %% tags=["hide-input"]
plots.show(
    plots.before_after(main, "The repair, step by step (bars: all draws)", hue="images", panel="model"),
    "Clean accuracy and attack success rate before, after pruning and after tuning.",
)

# %% tags=["hide-input"]
repaired = main[main.stage == "tuned"].groupby(["model", "images"])[["acc", "asr"]].mean().unstack("images")
less_acc, more_asr = ((repaired[n][a_class] - repaired[n][in_all]).loc[asked].mean() for n in ("acc", "asr"))
told = "; ".join(
    f"{name}: ACC {row['acc', a_class]:.1f} against {row['acc', in_all]:.1f} %, ASR {row['asr', a_class]:.1f} against "
    f"{row['asr', in_all]:.1f} %"
    for name, row in repaired.loc[asked].iterrows()
)
twin_acc = main[main.model == clean_twin.name].groupby(["stage", "images"]).acc.mean()
clean_twin_cost = twin_acc["before"] - twin_acc["tuned"]
costs = {"more of the attack": -more_asr, "more ACC": less_acc, "neither": 1}
answer(
    f"You were right if you said {max(costs, key=costs.get)}. Ten of each class against ten in all: {told}. "
    f"On the clean twin the repair costs {clean_twin_cost[a_class]:.1f} and {clean_twin_cost[in_all]:.1f} points of "
    "ACC. The defender can estimate ACC only, and ACC does not tell whether the backdoor went or stayed."
)

# %% [markdown]
# One setting for all attacks does not mean that all attacks yield to it. Where ASR stops halfway, the score missed
# filters that the backdoor can live on.
#
# What does the repair mean for single images? Here are triggered test images, each with the poisoned model's answer and
# that of the network `repair` of section 4 (pruned, and fine-tuned for as many steps as the held-back images chose).

# %% tags=["hide-input"]
triggered = poisoned.evaluate.triggered
sample = triggered.subset(torch.randperm(len(triggered), generator=torch.Generator().manual_seed(0))[:200])
plots.show(
    plots.flipped(
        sample,
        predict(poisoned.model, sample),
        predict(repair.model, sample),
        "Triggered images that the repaired model sees as what they are (before → after)",
    ),
    "Ten triggered images whose prediction flips from the target class back to the true class.",
)

# %% [markdown]
# So far pruned filters only hold zeros. Those whose channel nothing else needs can be cut out of the network for good:

# %%
import torch_pruning

from nbtools.defender.pruning import remove

example = clean.floats()[:2]
smaller = remove(repair.model, repair.mask, example)
gap = float((smaller(example) - repair.model(example)).abs().max())
sizes = [torch_pruning.utils.count_ops_and_params(m, example[:1]) for m in (repair.model, smaller)]
print(f"largest difference of the outputs: {gap:.1e}")
for name, (operations, parameters) in zip(("masked ", "removed"), sizes, strict=True):
    print(f"{name}  {operations / 1e6:8.2f} million multiply-adds  {parameters:,.0f} parameters")

# %% [markdown]
# ## 5. How a pruned backdoor comes back
#
# A backdoor is rarely gone after pruning: weaker filters that carried a share of it are still there. The models of
# `attack` and `hard_attack` are pruned at the default $\mu$ with the ten images in all, then fine-tuned on these ten in
# five ways:
#
# 1. the first way of section 4: the network before pruning is the teacher, and batch norms (BN) keep their running
#    statistics (*frozen*),
# 2. the same, but the clean images are blended in pairs, a popular way to make more of a small set,
# 3. the labels are the teacher, batch norms frozen,
# 4. the labels are the teacher, batch norms in training mode (what `model.train()` does, and most code),
# 5. nothing learns, only the running statistics follow the clean images.
#
# > **Predict first.** No trigger is ever seen. Which of the five bring the attack back?

# %%
attacked = {model.name: model for model in (poisoned, *hard)}
recipes = {
    "model as teacher, BN frozen": FineTune(),
    "the same, images blended in pairs": FineTune(mixed=True),
    "labels, BN frozen": FineTune(teacher="labels", lr=3e-4),
    "labels, BN in training mode": FineTune(teacher="labels", lr=3e-4, frozen_bn=False),
    "only BN statistics move": FineTune(teacher="labels", lr=0, frozen_bn=False),
}
ten_images = run.draw(n_total=n_total)


def attack_rate(model, triggered):
    """Percentage of the triggered images that the model takes for the target."""
    return 100 * float((predict(model, triggered) == target).double().mean())


rows, started, ended, probes = [], {}, {}, {}
for trained in attacked.values():
    everything = trained.evaluate.triggered
    triggered = everything.subset(torch.arange(0, len(everything), max(len(everything) // 300, 1)))  # some 300
    probes[trained.name] = triggered
    start_from = started[trained.name] = prune_only(trained.model, ten_images)
    quiet, loud = attack_rate(start_from.model, triggered), attack_rate(trained.model, triggered)
    print(f"{trained.name}: {start_from.mask.count} filters pruned, ASR {loud:.1f} -> {quiet:.1f}")
    for name, recipe in recipes.items():
        model = ended[trained.name, name] = pruned_copy(trained.model, start_from.mask)
        rows.append({"model": trained.name, "recipe": name, "step": 0, "asr": quiet})
        for step in recipe.tune(model, ten_images, start_from.mask, trained.model, recipe.steps):
            rows.append({"model": trained.name, "recipe": name, "step": step, "asr": attack_rate(model, triggered)})
comeback = pd.DataFrame(rows)

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, len(attacked), figsize=(5.4 * len(attacked), 4), sharey=True, squeeze=False)
for axis, (name, lines) in zip(axes[0], comeback.groupby("model", sort=False), strict=True):
    sns.lineplot(lines, x="step", y="asr", hue="recipe", marker="o", ax=axis, legend=axis is axes[0, 0])
    axis.axhline(attacked[name].before.asr, color=plots.GREY, ls=":", lw=1)
    axis.set(ylim=(-3, 103), xlabel="step of fine-tuning on clean images", ylabel="ASR (%)", title=name)
axes[0, 0].legend(frameon=False, fontsize=8)
figure.suptitle("Does the attack come back? (dotted: before pruning)", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "ASR against fine-tuning steps for five recipes, a panel for each attack.")

# %%
comeback.pivot(index=["model", "step"], columns="recipe", values="asr").round(1)

# %% tags=["hide-input"]
ends = comeback.sort_values("step").groupby(["model", "recipe"], sort=False).asr.agg(["first", "last"])
rose = ends[ends["last"] > ends["first"] + 5]
numbers = sorted({list(recipes).index(recipe) + 1 for _, recipe in rose.index})
told = "; ".join(
    f"{name}, recipe {list(recipes).index(recipe) + 1}: {was:.0f} to {now:.0f} %"
    for (name, recipe), (was, now) in rose.iterrows()
)
frozen = ends[[recipes[recipe].frozen_bn for _, recipe in ends.index]]
rise = max(float((frozen["last"] - frozen["first"]).max()), 0)
answer(
    f"You were right if you said {' and '.join(map(str, numbers)) or 'none'}. There ASR rises by more than five points "
    f"({told}). In recipe 5 not one weight moves, so the statistics of the batch norms alone can bring an attack back. "
    f"With frozen statistics ASR ends at most {rise:.0f} points above its start."
)

# %% [markdown]
# Where does it come from? One suspect is the volume. Pruning silences channels, so the layers behind them receive less,
# and the variance of what reaches each batch norm falls below the running variance $v_i$ that it remembers. A frozen
# batch norm goes on dividing by the old, larger value, and what is left of the backdoor stays quiet. In training mode
# it learns the new, smaller variance and *turns the volume up again*: that of the clean signal, and that of the rest of
# the backdoor.
#
# If the suspicion is right, the gain $1/\sqrt{v_i + \epsilon_\mathrm{bn}}$ of the filters that are left rises above 1
# in the next figure, and with it what the trigger moves in the last layers. Both are divided by their values before the
# statistics moved.

# %%
from nbtools.networks.units import layers_of, prunable_units

louder, gain = {}, {}
for name, trained in attacked.items():
    units, silenced = prunable_units(trained.model), started[name].mask.pruned
    gains, moved = [], []
    for model in (started[name].model, ended[name, "only BN statistics move"]):
        gains.append({u.conv: (bn.running_var + bn.eps).rsqrt() for u, _, bn in layers_of(model, units)})
        moved.append(tac(model, others, trained.trigger))
    gain[name] = [float((gains[1][u.conv] / gains[0][u.conv])[~silenced[u.conv]].median()) for u in units]
    louder[name] = [float(moved[1][u.conv].sum() / moved[0][u.conv].sum()) for u in units]

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, len(attacked), figsize=(5.4 * len(attacked), 4), sharey=True, squeeze=False)
layers = [unit.conv for unit in units]
for axis, name in zip(axes[0], attacked, strict=True):
    axis.plot(layers, gain[name], "o-", ms=4, color=plots.BLUE, label="gain of the filters that are left (median)")
    axis.plot(layers, louder[name], "s-", ms=4, color=plots.ORANGE, label="what the trigger moves (TAC, summed)")
    axis.axhline(1, color=plots.GREY, lw=1)
    axis.tick_params(axis="x", labelrotation=90, labelsize=7)
    axis.set(ylabel="after / before BN statistics move", title=name)
axes[0, 0].legend(frameon=False, fontsize=8)
figure.suptitle("Are batch norms turning the volume up?", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Change of BN gain and of TAC by layer when the statistics move, a panel for each attack.")

# %% [markdown]
# A value of 1 means that moving the statistics changed nothing in that layer. Compare the two lines in the last layers.
# The median gain can stay near 1 where the trigger moves far more than before: a median tells little of the few filters
# that carry a backdoor. The next experiment takes the two kinds of statistics apart: the means say where a filter's
# zero lies, the variances how loud it is.
#
# > **Predict first.** Which of the two brings more of the attack back: the means, or the variances?

# %%
import copy


def with_moved(pruned, moved, kinds):
    """A copy of the pruned model with these running statistics of the other."""
    model, statistics = copy.deepcopy(pruned), moved.state_dict()
    for key, value in model.state_dict().items():
        if key.rpartition(".")[2] in kinds:
            value.copy_(statistics[key])
    return model


mean, variance = "running_mean", "running_var"
kinds = {"neither": (), "the means": (mean,), "the variances": (variance,), "both": (mean, variance)}
rows = []
for name, trained in attacked.items():
    some = trained.evaluate.test.subset(torch.arange(500))
    for moved, which in kinds.items():
        model = with_moved(started[name].model, ended[name, "only BN statistics move"], which)
        right = float((predict(model, some) == some.labels).double().mean())
        rows.append({"model": name, "what moves": moved, "ACC": 100 * right, "ASR": attack_rate(model, probes[name])})
apart = pd.DataFrame(rows).set_index(["model", "what moves"])

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, len(attacked), figsize=(5.4 * len(attacked), 2.6), sharey=True, squeeze=False)
for axis, name in zip(axes[0], attacked, strict=True):
    bars = apart.loc[name].iloc[::-1]
    bars.plot.barh(ax=axis, color=[plots.BLUE, plots.ORANGE], width=0.75, legend=axis is axes[0, 0])
    for container in axis.containers:
        axis.bar_label(container, fmt="%.0f", padding=2, fontsize=8)
    axis.set(xlim=(0, 108), xlabel="percent", ylabel="", title=name)
axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.12), ncols=2)
figure.suptitle("Which of the two statistics brings the attack back?", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "ACC and ASR of the pruned model when neither, one or both of the BN statistics move.")

# %%
apart.round(1)

# %% tags=["hide-input"]
asr = apart.ASR.unstack("what moves").loc[list(attacked)]
louder_wins = (asr["the variances"] > asr["the means"]).tolist()
told = "; ".join(
    f"{name}: from {row['neither']:.0f} to {row['the means']:.0f} % with the means, to {row['the variances']:.0f} % "
    f"with the variances, to {row['both']:.0f} % with both"
    for name, row in asr.iterrows()
)
winner = "the variances" if all(louder_wins) else "the means" if not any(louder_wins) else "that the attacks differ"
answer(
    f"You were right if you said {winner}. ASR by attack: {told}. "
    + (
        "So the suspicion about the volume holds, though a median filter hardly shows it."
        if winner == "the variances"
        else "So the volume is not the whole story: where a filter's zero lies counts here as well."
    )
)

# %% [markdown]
# The defender sees neither ASR nor TAC, so cannot know whether this happens. The rule has to be the cautious one:
# frozen statistics. So prune enough, tune as little as helps, and never judge a repair before it is tuned.

# %% [markdown]
# ## 6. Which part does the work?
#
# The formula is a reconstruction, so every part of it has to earn its place. Each row leaves something out or changes
# it; pruning alone, at the default $\mu$, on the same poisoned models.
#
# > **Predict first.** Which rows leave an ASR above 50 % on every attacked model? And does leaving out saliency,
# > activation norm or correlation make the result worse?

# %%
from nbtools.defender.score import POWERS

variants = {
    "as it is": {},
    "without saliency": {"powers": {**POWERS, "saliency": 0}},
    "without activation norm": {"powers": {**POWERS, "activation": 0}},
    "without correlation": {"powers": {**POWERS, "correlation": 0}},
    "saliency with a plus": {"powers": {**POWERS, "saliency": 0.5}},
    "no square root": {"powers": {"sigma": 1, "saliency": -1, "activation": -1, "correlation": -1}},
    "BN not folded": {"fold_bn": False},
    "before the ReLU": {"after_relu": False},
    "threshold over the whole network": {"scope": "global"},
    "shortcuts kept": {"shortcuts": False},
    "saliency from the margin": {"saliency": "margin"},
    "saliency from cross-entropy": {"saliency": "cross_entropy"},
    "saliency from softened cross-entropy": {"saliency": "softened"},
    "saliency of the mean gradient": {"per_image": False},
}
variants = {name: change for name, change in variants.items() if change != {"saliency": defence.saliency}}
rows = []
for name, change in variants.items():
    for model in attacked.values():
        row = run.defend(model, replace(prune_only, **change), samples_per_class, glance=True)
        rows.append({"variant": name, "model": model.name, **row})
ablation = pd.DataFrame(rows)
run.save_rows(ablation, "06_ablation")
ablation.pivot(index="variant", columns="model", values=["acc_after", "asr_after", "pruned"]).loc[list(variants)].round(
    1
)

# %% tags=["hide-input"]
of = ablation.pivot(index="variant", columns="model", values="asr_after")
failed = ", ".join(name for name in variants if of.loc[name].min() > 50) or "none"
mean = ablation.groupby("variant")[["acc_after", "asr_after"]].mean()
as_it_is, without = mean.loc["as it is"], mean.loc[[name for name in variants if name.startswith("without")]]
worse = ", ".join(without.index[without.asr_after > as_it_is.asr_after + 3]) or "none of the three"
told = "; ".join(f"{name} {row.acc_after:.1f} and {row.asr_after:.1f} %" for name, row in without.iterrows())
answer(
    f"You were right if you said for the first: {failed}. For the second: {worse} (an ASR that is more than three "
    f"points higher). "
    f"As it is, ACC and ASR are {as_it_is.acc_after:.1f} and {as_it_is.asr_after:.1f} %; {told}"
    f"{' (means of the attacks)' if hard else ''}. So on these models not every term earns its place."
)

# %% [markdown]
# One draw of the clean images on a model or two is a hint, not a verdict: differences of a few points are noise.

# %% [markdown]
# ## 7. Exercises
#
# **Exercise 1** (easy, 5 minutes). Write the threshold of the table at the top: a function of a layer's score
# `[filters]` and of `mu`, which returns a bool tensor `[filters]`, True where the filter is pruned. The standard
# deviation is the unbiased one.

# %%
stands_out = ...  # your answer, a function: (score, mu) -> bool tensor

exercises.stands_out(stands_out, scores, defence.mu)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). `nbtools.defender.pruning.apply` prunes a model in place and returns a function
# that undoes it. Use it on a copy of the poisoned model with `mask`. How many single numbers of the state dict differ
# from those of the poisoned model, while the mask is applied and after it is undone?

# %%
values_that_differ = ...  # your answer, [2]: while applied, and after

exercises.values_that_differ(values_that_differ, poisoned.model, mask)

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). Ten images *in all* are one of each class. Which of the four terms suffers most?
# Compute for each term and layer the rank correlation between its values in `parts` and in `few`, and take the mean
# over the layers.

# %%
few = defence.components(poisoned.model, run.draw(n_total=n_total))
stability = ...  # your answer, a dictionary: each of the four terms to its mean rank correlation

exercises.stability(stability, parts, few)

# %% [markdown]
# ## 8. What we saw, and what this does not show
#
# - Four measurements that any owner of a model can make in one pass over a few images give each filter a score, and a
#   threshold in standard deviations turns the scores into a mask. Section 4 says how far that cleans, and what it costs
#   where nothing is wrong.
# - The score's order over a layer does not agree with what the trigger moves. Pruning works all the same, because it
#   uses only the filters above the threshold, and some of the trigger's filters are there. A score should be judged by
#   what is pruned, not by a rank correlation.
# - Fine-tuning is not harmless: with batch norms in training mode it can undo the repair without ever seeing a trigger.
# - It does **not** show that this is what the paper's authors computed, nor that an attacker who knows the score could
#   not hide from it, nor what happens on other architectures and data sets: three later notebooks ask.
#
# **For the reading group**
# 1. Why does a threshold relative to the layer make sense, and what happens in a layer where half of the filters carry
#    the backdoor?
# 2. The evaluator's ASR chose nothing here. Which choices in published defences could it have leaked into?
# 3. What would you do with a checkpoint whose clean accuracy falls by three points after the repair?
#
# **Further reading**: the paper (2311.07417). Liu et al., *Fine-pruning* (1805.12185): prune, then tune. Wu and Wang,
# *Adversarial neuron pruning* (2110.14430): masks learned under perturbation, and its own look at batch norms.

# %% [markdown]
# ## Solutions


# %% tags=["solution", "hide-input"]
def stands_out(score, mu):
    return score > score.mean() + mu * score.std()


exercises.stands_out(stands_out, scores, defence.mu)
print(f"{layer}: {int(stands_out(scores[layer], defence.mu).sum())} of {len(scores[layer])} filters stand out")

from nbtools.defender.pruning import apply


def differing(model):
    state = poisoned.model.state_dict()
    return sum(int((value != state[name]).sum()) for name, value in model.state_dict().items())


twin = copy.deepcopy(poisoned.model)
undo = apply(twin, mask)
applied = differing(twin)
undo()
values_that_differ = [applied, differing(twin)]
exercises.values_that_differ(values_that_differ, poisoned.model, mask)
print(f"{mask.count} filters, {applied} values: the gamma and the beta of each; undone, {differing(twin)} differ")

from scipy.stats import spearmanr

stability = {
    term: float(pd.Series([spearmanr(parts.of(term)[n].cpu(), few.of(term)[n].cpu()).statistic for n in scores]).mean())
    for term in ("sigma", "saliency", "activation", "correlation")
}
exercises.stability(stability, parts, few)
print({term: round(value, 2) for term, value in stability.items()})

# %% [markdown]
# Previous: [05 · Correlation](05_correlation.ipynb) · Next: [07 · Feature map pruning](07_feature_map_pruning.ipynb)

# %% tags=["check", "remove-cell"]
after = main[(main.model == poisoned.name) & (main.stage == "tuned")]
before = main[(main.model == poisoned.name) & (main.stage == "before")]
fall = {"quick": 50, "laptop": 80, "paper": 80}[run.profile.name]
ten_a_class = after[after.images == a_class]
assert (before.asr.mean() - ten_a_class.asr.mean()) >= fall, "the backdoor survived the repair"
assert before.acc.mean() - ten_a_class.acc.mean() <= 5, "the repair cost more than five points"
assert abs(ranks.suspiciousness.mean()) < 0.3, "the score's order agrees with TAC here: there is no riddle"
left = {who: row["asr"] for who, row in riddle.items()}
assert left["the crosses that the trigger moves"] <= left["all crosses"] + 10, "other crosses do the work as well"
assert left["the other crosses"] >= left["nothing"] - 10, "crosses that the trigger hardly moves carry the backdoor"
assert gap < 1e-4 and sizes[1][1] < sizes[0][1], "physical removal changed the outputs or removed nothing"
at_the_end = comeback[comeback.step == comeback.step.max()].pivot(index="model", columns="recipe", values="asr")
rise = at_the_end["only BN statistics move"] / comeback[comeback.step == 0].groupby("model").asr.first()
back = rise.idxmax()
assert rise[back] >= 1.5, f"moving BN statistics should bring one of the attacks back, times {dict(rise)}"
assert at_the_end.loc[back, "labels, BN frozen"] < at_the_end.loc[back, "only BN statistics move"], "frozen keeps more"
assert max(louder[back]) > 1.05, "the trigger should move more after the statistics moved"
