# %% [markdown]
# # 06 · Suspiciousness
#
# At the end of this notebook a poisoned network has been cleaned with ten images a class, and with ten images in all:
# four measurements become one score, the score becomes a mask, and a short tuning does the rest.
# A second attack, which profile `quick` leaves out, shows where this ends.
#
# Paper: [arXiv 2311.07417](https://arxiv.org/abs/2311.07417). **The formula is reconstructed from the paper's
# summary**: the four terms, the square root and the threshold are the paper's; how they are joined is ours, and
# section 6 takes it apart.

# %% [markdown]
# > **You will learn**
# > - how four weak witnesses make one good one
# > - what the threshold `mu` trades, over several draws of the clean images, and what pruning costs a clean model
# > - why fine-tuning can bring a pruned backdoor back, and how to keep it from doing so
# >
# > **Read before**: [02](02_spectral_norm.ipynb) to [05](05_correlation.ipynb), one for each term ·
# > **minutes to read**: 25 · **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model, ten clean images a class (or ten in all) | scores, prunes, tunes |
# | evaluator | test set and trigger | reports ACC, ASR and RA; chooses nothing |

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
from nbtools.series import checks, plots

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
# ## 1. Four witnesses, one number
#
# A filter is suspicious when it *could* answer loudly (high $\sigma$) although the clean images hardly need it (low
# saliency), hardly excite it (low activation norm), and it goes its own way (low correlation with its neighbours):
#
# $$S_i = \tilde\sigma_i \sqrt{\frac{1}{(\tilde s_i + e)(\tilde a_i + e)(\tilde r_i + e)}}, \qquad
# \tilde z_i = \frac{z_i}{\mathrm{mean}_l(z)}, \quad e = 0.01$$


# %%
def score_of_layer(sigma, saliency, activation, correlation, e=0.01):
    """The formula, for the filters of one layer."""
    sigma, s, a, r = (z / z.mean() for z in (sigma, saliency, activation, correlation))
    return sigma * torch.sqrt(1 / ((s + e) * (a + e) * (r + e)))


clean = run.draw(samples_per_class)
parts = defence.components(poisoned.model, clean)  # one forward and one backward pass over 100 images
scores = defence.scores(parts)
for name in scores:
    mine = score_of_layer(*(parts.of(term)[name] for term in ("sigma", "saliency", "activation", "correlation")))
    torch.testing.assert_close(mine, scores[name], rtol=1e-6, atol=1e-9)
print(f"the formula above and nbtools agree on {len(scores)} layers")

# %% [markdown]
# One layer, its most suspicious filters, and what each witness says (1 is the layer's mean):

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
# ## 2. Against the truth
#
# > **Predict first.** Which of the four terms alone agrees best with TAC? Will the score beat it in every layer?

# %%
signs = {"sigma": 1, "saliency": -1, "activation": -1, "correlation": -1}
alone = {term: {n: sign * z for n, z in parts.of(term).items()} for term, sign in signs.items()}
tables = {name: agreement(s, truth) for name, s in {**alone, "suspiciousness": scores}.items()}
plots.show(
    plots.agreement_by_layer(tables, f"{poisoned.name}: each witness and the score against TAC"),
    "Two line charts over the layers, five lines each: rank correlation with TAC and precision among the top ten.",
)
deep = [n for n in scores if n.startswith(("layer3", "layer4")) and "downsample" not in n]
pd.DataFrame({name: pd.DataFrame(t).T.loc[deep].mean() for name, t in tables.items()}).T.round(2)

# %% [markdown]
# ## 3. The threshold
#
# Every filter of the network, in standard deviations above its layer's mean. Crosses are pruned; rings are drawn
# around the three filters of each layer that the trigger moves most, which only the evaluator can know.

# %%
mask = defence.mask(parts)
plots.show(
    plots.score_distribution(
        scores, mask, defence.mu, f"{poisoned.name}: {mask.count} of {mask.filters} filters stand out", truth
    ),
    "Strip plot of the score by layer with the threshold; pruned filters crossed, top TAC filters ringed.",
)
parts_twin = defence.components(clean_twin.model, clean)
scores_twin, mask_twin = defence.scores(parts_twin), defence.mask(parts_twin)
plots.show(
    plots.score_distribution(
        scores_twin, mask_twin, defence.mu, f"Clean twin: {mask_twin.count} stand out although nothing is there"
    ),
    "The same strip plot for the clean twin.",
)

# %% [markdown]
# A threshold in standard deviations always finds somebody who stands out: the defence does not *detect* a backdoor, it
# removes what would carry one. What that costs a clean model is part of its price.
#
# And a riddle: section 2 says that over a whole layer the order by score has little to do with what the trigger moves.
# How can pruning by it remove a backdoor? The evaluator, who holds the trigger, can prune the crosses in two parts.
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

# %% [markdown]
# Compare the third and the fourth line. The crosses that the trigger moves do nearly all of the work, and they cost
# next to nothing; the others remove next to nothing. So the score need not put a whole layer in order. It is enough
# that some of the trigger's filters stand above the threshold; of the filters below it the order does not matter, and
# that order is most of what the rank correlation measures. Nor is TAC what a defender should wish for. The last line
# prunes as many filters by TAC itself: the trigger also moves filters that the clean images need, and those the score
# spares.
#
# How far does the result depend on `mu`, and on *which* clean images the defender happens to own?

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

# %%
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
sweep.groupby(["images", "mu"])[["acc_pruned", "asr_pruned", "pruned"]].mean().unstack("images").round(1)

# %% [markdown]
# Read it from the right, where little is pruned, to the left. The useful range is where ASR has fallen and ACC has
# not. The grey crosses are the control that every score must beat: as many filters of every layer, chosen at random.

# %% [markdown]
# ## 4. Tuning that does not bring the backdoor back
#
# Pruning costs some accuracy, and the few clean images could win it back. With their labels they hardly can: a
# hundred labels are learned by heart after a few passes, ten even sooner. But the defender owns a better teacher, the
# network as it was before pruning. On a clean image its backdoor is silent, and its softened answers say more than a
# label. So the pruned network learns to answer as it did before, on crops and flips of the clean images (this recipe is
# ours; the idea of a network as teacher is that of knowledge distillation).
#
# When to stop? The rule uses nothing but the defender's images: deal them into folds, hold each back once, and watch
# the cross-entropy of the held-back images while a copy is tuned on the others. Tune the real model for as many steps
# as were best, if the gain is more than its standard error; else leave it alone.

# %%
tuner = FineTune()
repair = run.repair(poisoned, replace(defence, fine_tune=tuner), samples_per_class)
curve = pd.DataFrame(repair.history)
figure, axis = plt.subplots(figsize=(6.5, 3.2))
axis.fill_between(curve.step, curve.gain - curve.error, curve.gain + curve.error, alpha=0.25, color=plots.BLUE)
axis.plot(curve.step, curve.gain, "o-", ms=4, color=plots.BLUE)
stop = curve[curve.chosen].iloc[0]
axis.axvline(stop.step, color=plots.PRUNED, ls="--", lw=1)
axis.axhline(0, color=plots.GREY, lw=1)
axis.set(title=f"Held-back images choose {int(stop.step)} steps of {tuner.steps}", xlabel="step of fine-tuning",
         ylabel="fall of the held-back\ncross-entropy (± s.e.)")  # fmt: skip
plots.show(figure, "Gain in held-back cross-entropy against the step of fine-tuning, with the chosen one.")

# %% [markdown]
# **For less.** Scoring takes one pass over the images, and fine-tuning with folds twenty times as long. Two ways are
# cheaper. *The last stage alone* is tuned, with the same teacher: what reaches it is computed once, so a step costs
# little, and it is taken back where the answers come no nearer. Or *no training at all*: a filter that is gone no
# longer adds what it added to every image, so the filters above it get other inputs than they learned to expect, and
# that can be given back in one pass. From below to above, each batch norm's $\gamma$ and $\beta$ are changed so that
# every channel that is left has, on the clean images, the mean and the standard deviation that it had before pruning
# (REPAIR, [arXiv 2211.08403](https://arxiv.org/abs/2211.08403), there for merged networks; its use here is ours).
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

# %% [markdown]
# Giving back the spread makes filters louder that pruning has made quieter, those of the backdoor as well; section 5
# looks into that. The last stage alone wins back what fine-tuning does, or more (where no gain is clear, the folds stop
# fine-tuning before its first step), in a fifth of the time. So it is what the defence does by default. That was
# settled at full width, by a rule that was written first ([data/README.md](../data/README.md#full-width)).
#
# Now everything at once, and not only on this model: one setting, on this attack (and, where `low_rate` asks for it, on
# the same with fewer poisoned images), on the second one where there is one, and on the clean twin; with ten images a
# class and with ten in all; over the draws of the clean images, on the first of the test images.

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

# %%
plots.show(
    plots.before_after(main, "The repair, step by step (bars: all draws)", hue="images", panel="model"),
    "Clean accuracy and attack success rate before, after pruning and after tuning.",
)

# %% [markdown]
# The defender can estimate the upper row, and it does not tell whether the backdoor went or stayed. Where the lower row
# falls to a few percent in every draw, the score found what carries the attack. Where it stops halfway, or the draws
# disagree, the score missed filters that the backdoor can live on; and a teacher who still has the backdoor can hand
# some of it back while ACC recovers. One setting for all attacks does not mean that all attacks yield to it.
#
# And what the repair means for single images: triggered test images, with the poisoned model's answer and that of the
# network that section 4 fine-tuned.

# %%
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
# Pruned filters only hold zeros so far. Those whose channel nothing else needs can be cut out of the network for good:

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
# `attack` and `hard_attack` are pruned at the default `mu` with the ten images in all, then fine-tuned on these ten in
# five ways:
#
# 1. the first way of section 4: the network before pruning is the teacher, batch norms keep their running statistics
#    (*frozen*),
# 2. the same, but the clean images are blended in pairs, a popular way to stretch a small set,
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

figure, axes = plt.subplots(1, len(attacked), figsize=(5.4 * len(attacked), 4), sharey=True, squeeze=False)
for axis, (name, lines) in zip(axes[0], comeback.groupby("model", sort=False), strict=True):
    sns.lineplot(lines, x="step", y="asr", hue="recipe", marker="o", ax=axis, legend=axis is axes[0, 0])
    axis.axhline(attacked[name].before.asr, color=plots.GREY, ls=":", lw=1)
    axis.set(ylim=(-3, 103), xlabel="step of fine-tuning on clean images", ylabel="ASR (%)", title=name)
axes[0, 0].legend(frameon=False, fontsize=8)
figure.suptitle("Does the attack come back? (dotted: before pruning)", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "ASR against fine-tuning steps for five recipes, a panel for each attack.")
comeback.pivot(index=["model", "step"], columns="recipe", values="asr").round(1)

# %% [markdown]
# Where could it come from? One suspect: pruning silences channels, so the layers behind them receive less, and the
# variance of what reaches each batch norm falls below the running variance that it remembers. A frozen batch norm goes
# on dividing by the old, larger value, and what is left of the backdoor stays quiet. In training mode it learns the
# new, smaller variance and *turns the volume up again*, of the clean signal and of the rest of the backdoor alike.
#
# The fifth recipe puts that to the test, since nothing else moves in it. If its line goes where the fourth's goes, the
# weights have nothing to do with it; and if the suspicion is right, the gain $1/\sqrt{\mathrm{var}}$ of the surviving
# filters lies above 1 below, and with it what the trigger moves in the last layers.

# %%
from nbtools.networks.units import layers_of, prunable_units

figure, axes = plt.subplots(1, len(attacked), figsize=(5.4 * len(attacked), 4), sharey=True, squeeze=False)
louder = {}
for axis, (name, trained) in zip(axes[0], attacked.items(), strict=True):
    units, silenced = prunable_units(trained.model), started[name].mask.pruned
    gains, moved = [], []
    for model in (started[name].model, ended[name, "only BN statistics move"]):
        gains.append({u.conv: (bn.running_var + bn.eps).rsqrt() for u, _, bn in layers_of(model, units)})
        moved.append(tac(model, others, trained.trigger))
    gain = [float((gains[1][u.conv] / gains[0][u.conv])[~silenced[u.conv]].median()) for u in units]
    louder[name] = [float(moved[1][u.conv].sum() / moved[0][u.conv].sum()) for u in units]
    layers = [u.conv for u in units]
    axis.plot(layers, gain, "o-", ms=4, color=plots.BLUE, label="gain of the surviving filters (median)")
    axis.plot(layers, louder[name], "s-", ms=4, color=plots.ORANGE, label="what the trigger moves (TAC, summed)")
    axis.axhline(1, color=plots.GREY, lw=1)
    axis.tick_params(axis="x", labelrotation=90, labelsize=7)
    axis.set(ylabel="after / before BN statistics move", title=name)
axes[0, 0].legend(frameon=False, fontsize=8)
figure.suptitle("Are batch norms turning the volume up?", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Change of BN gain and of TAC by layer when the statistics move, a panel for each attack.")

# %% [markdown]
# A value of 1 means that moving the statistics changed nothing in that layer. But a median tells little of the few
# filters that carry a backdoor. The experiment that decides takes the two kinds of statistics apart: the means say
# where a filter's zero lies, the variances how loud it is.

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
apart.round(1)

# %% [markdown]
# Where the variances alone bring more of the attack back than the means alone, the volume is to blame; what the means
# win in ACC then comes cheaper. How much either gains depends on what pruning left, and two attacks need not agree. The
# defender can see neither ASR nor TAC, so cannot know which case it is, and the rule has to be the cautious one: frozen
# statistics. Nor do the lines with frozen statistics have to stay flat. A teacher that still has the backdoor
# passes it on where its images come close to the trigger, as blends of two images do for a blended one. So: prune
# enough, tune as little as helps, and never call a repair done before it is tuned.

# %% [markdown]
# ## 6. Which part does the work?
#
# The formula is a reconstruction, so every part of it has to earn its place. Each row leaves something out or turns it
# round; pruning alone, at the default `mu`, on the same poisoned models.

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

# %% [markdown]
# One draw of the clean images on a model or two is a hint, not a verdict: differences of a few points are noise.

# %% [markdown]
# ## 7. Exercises
#
# **Exercise 1** (easy, 5 minutes). Write the threshold: a bool tensor of the filters of `layer` with
# $S_i > \mathrm{mean} + \mu\,\mathrm{std}$ (unbiased), for the default `mu`.

# %%
stands_out = ...  # your answer

checks.same(
    stands_out if stands_out is ... else stands_out.double(),
    mask.pruned[layer].double(),
    "std() of torch is the unbiased one; compare with a strict >",
)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Undo it: apply the mask to a copy of the poisoned model, undo it, and show that
# no bit of the state dict differs. (`nbtools.defender.pruning.apply` returns the function that undoes.)

# %%
bits_differ = ...  # your answer: True or False

checks.true(bits_differ if bits_differ is ... else not bits_differ, "compare every tensor with torch.equal")

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). Ten images *in all* are one a class. Which of the four terms suffers most? Compute
# for each term the rank correlation between its values on `clean` and on ten images, averaged over the layers.

# %%
stability = ...  # your answer: a dictionary from term to mean rank correlation

# %% [markdown]
# ## 8. What we saw, and what this does not show
#
# - Four measurements that any owner of a model can make in one pass over a handful of images rank its filters; a
#   threshold in standard deviations turns the ranks into a mask; the tables above say how far that cleans, over
#   several draws, and what it costs where nothing is wrong.
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
stands_out = scores[layer] > scores[layer].mean() + defence.mu * scores[layer].std()
checks.same(stands_out.double(), mask.pruned[layer].double(), "the formula of section 3")

from nbtools.defender.pruning import apply

twin = copy.deepcopy(poisoned.model)
undo = apply(twin, mask)
undo()
state = poisoned.model.state_dict()
bits_differ = any(not torch.equal(value, state[name]) for name, value in twin.state_dict().items())
checks.true(not bits_differ, "undo restores gamma and beta bit for bit")

from scipy.stats import spearmanr

few = defence.components(poisoned.model, run.draw(n_total=n_total))
stability = {
    term: float(pd.Series([spearmanr(parts.of(term)[n].cpu(), few.of(term)[n].cpu()).statistic for n in scores]).mean())
    for term in ("sigma", "saliency", "activation", "correlation")
}
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
