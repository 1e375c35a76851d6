# %% [markdown]
# # 09 · Baselines
#
# At the end of this notebook you know seven older ways to repair a backdoored network, each as ten lines of code and
# one picture of what it does to ours, and four newer ones in brief. You have put all of them into one table.
#
# The papers: fine-tuning, the field's control; *fine-pruning* ([arXiv 1805.12185](https://arxiv.org/abs/1805.12185));
# *NAD* ([2101.05930](https://arxiv.org/abs/2101.05930)); *CLP*
# ([2208.03111](https://arxiv.org/abs/2208.03111)); *ANP*
# ([2110.14430](https://arxiv.org/abs/2110.14430)); *AWM* ([2207.04497](https://arxiv.org/abs/2207.04497)); *RNP*
# ([2305.14876](https://arxiv.org/abs/2305.14876)). Formulas and settings are those of the papers and of their public
# code. The newer four, *FT-SAM*, *D3*, *LMR* and *NFT*, are written **from public summaries**: section 8 says what
# these state and what we filled in. **What is ours**: wherever something is chosen, it is chosen by clean images that
# the defender holds back; the public code of several of them leaves the choice to whoever looks at the poisoned test
# images.

# %% [markdown]
# > **You will learn**
# > - seven ideas: tune, prune what sleeps, copy attention, cut loud filters, shake, mask weights, unlearn
# > - what each of them needs, what it costs, and where it fails
# > - which mistakes of public code make a defence look better than it is
# >
# > **Read before**: [02](02_spectral_norm.ipynb) and [06](06_suspiciousness.ipynb) · **minutes to read**: 35 ·
# > **to run**: printed at the very end
#
# | who | knows here | does |
# |---|---|---|
# | attacker | training set | poisons a few images |
# | defender | the model and a few clean images, far fewer than most of these papers give | tunes, prunes or masks |
# | evaluator | test set and trigger | reports ACC, ASR, RA and TAC; chooses nothing |

# %% tags=["parameters"]
profile = ""  # quick, laptop or paper; "" is paper with a GPU and CIFAR-10, else quick
attack = "badnets"  # badnets, blended, sig or wanet
poison_rate = 0.05  # share of the training set that carries the trigger
target = 0  # the class that the trigger leads to
seed = 0  # of data, initial weights and training
epochs = 0  # 0 is what the profile says
samples_per_class = 10  # the defender's clean images of each class
draw = 0  # which draw of clean images the defender happens to get

# %%
import copy
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator

import nbtools
from nbtools.data.images import draw_clean, to_floats
from nbtools.defender import ANP, AWM, RNP
from nbtools.defender.ft_sam import uphill
from nbtools.defender.soft_masks import SoftMasks
from nbtools.evaluator.agreement import agreement, tac
from nbtools.evaluator.evaluation import Evaluator, predict
from nbtools.lab.comparison import contenders, cuts
from nbtools.networks.training import augment
from nbtools.networks.units import layers_of, prunable_units
from nbtools.series import checks, plots

plots.style()
run = nbtools.start(profile, epochs=epochs, seed=seed, small=True)  # in laptop a narrow network
poisoned = run.model(attack, poison_rate, target)
clean_twin = run.clean_model(attack, target)
entries = contenders(run.profile)
older, newer = ("fine-tuning", "fine-pruning", "NAD", "CLP", "ANP", "AWM", "RNP"), ("FT-SAM", "D3", "LMR", "NFT")
line_up = {name: entries[name].defence for name in (*older, *newer)}
cut_short = {name: cut for name, cut in cuts(entries).items() if name in line_up}
print(f"cut short by this profile: {cut_short or 'nothing'}")

# %% [markdown]
# How many iterations the two slowest get is a matter of scale, like the number of test images, and the profile's.
# Where one is cut short, its row says what a hurried ANP or AWM does, not what the paper's does.
#
# | in the papers | here |
# |---|---|
# | fine-tuning | `nbtools.defender.FineTuning` |
# | mean clean activation, prune the dormant, tune | `nbtools.defender.FinePruning` |
# | attention map $A$, distillation | `nbtools.defender.nad.attention`, `NAD` |
# | $\sigma_i > \mathrm{mean}_l + u\,\mathrm{std}_l$ | `nbtools.defender.SpectralNorm` |
# | $\gamma_i (m_i + \delta_i)$, $\beta_i (1 + \xi_i)$ | `nbtools.defender.soft_masks.SoftMasks`, `ANP` |
# | universal perturbation, masks on weights | `nbtools.defender.AWM` |
# | unlearn, recover, prune | `nbtools.defender.RNP` |
# | the newer four | `nbtools.defender.FTSAM`, `D3`, `LMR`, `NFT` |
# | "the strongest setting that held-back clean images allow" (ours) | `nbtools.defender.Validation` |
#
# Every section prints one line: what the paper gives the method and what it gets here, what that cost, and what came
# out. The figures ring the three filters of each layer that the trigger moves most (TAC), which only the
# evaluator can know.

# %%
papers_images = {name: entries[name].per_class * run.splits.reserved.num_classes for name in line_up}
clean = run.draw(samples_per_class, draw=draw)
few_tests = draw_clean(run.splits.test, samples_per_class=10, seed=seed)
others = few_tests.subset(few_tests.labels != target)
truth = tac(poisoned.model, others, poisoned.trigger)
probe = Evaluator(few_tests, poisoned.trigger, target)  # some test images, for the many points of a curve
scores_of = {}


def repaired(name):
    """The defence of the line-up on the poisoned model; prints what it needs, what it costs, and what came out."""
    repair = run.repair(poisoned, line_up[name], samples_per_class, draw=draw)
    row = run.defend(poisoned, line_up[name], samples_per_class, draw=draw)
    given = len(clean) if papers_images[name] else 0
    print(f"{name}: {papers_images[name]:,} clean images in the paper, here {given} · {row['seconds']:.1f} s, "
          f"{row['peak_mb']:.0f} MB · ACC {row['acc_before']:.1f} to {row['acc_after']:.1f}, "
          f"ASR {row['asr_before']:.1f} to {row['asr_after']:.1f}")  # fmt: skip
    scores_of[name] = repair.scores
    return repair


def ranked(axis, scores, label):
    """All filters by their score, the highest first, each layer's top three by TAC ringed."""
    values = torch.cat(list(scores.values())).double().cpu()
    moved = torch.cat([truth[n] >= truth[n].topk(3).values[-1] for n in scores]).cpu()
    order = values.argsort(descending=True, stable=True)
    axis.plot(values[order], color=plots.BLUE, lw=1.5)
    places = moved[order].nonzero().flatten()
    axis.scatter(places, values[order][places], s=40, facecolor="none", edgecolor="black", linewidth=0.8)
    axis.set(xlabel="filters, sorted (ringed: top TAC)", ylabel=label)


# %% [markdown]
# (The papers' numbers are for CIFAR-10. Fine-pruning's states none; it gets NAD's 5 % of the training set in our
# comparison, and so does fine-tuning. MB is what the process took above what it had, at its highest; on a CPU it is a
# lower bound.)
#
# ## 1. Fine-tuning
#
# The control that every other defence must beat: train on, with the clean images and their labels. The hope is that the
# network *forgets* what it is no longer shown.
#
# $$\theta \leftarrow \theta - \eta_t \nabla_\theta \; \mathbb{E}_{(x, y) \in D} \, L(f_\theta(x), y), \qquad
# \eta_t \text{ falling as a cosine from } 0.01$$


# %%
def fine_tune(model, images, recipe):
    """SGD over the clean images; yields the model after each epoch."""
    model.train().requires_grad_(True)
    sgd = torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        wave = (1 + math.cos(math.pi * epoch / (recipe.epochs - 1))) / 2
        sgd.param_groups[0]["lr"] = recipe.final_lr + (recipe.lr - recipe.final_lr) * wave
        for batch in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            x = to_floats(augment(images.images[batch], generator))  # crop and flip
            sgd.zero_grad()
            F.cross_entropy(model(x), images.labels[batch]).backward()
            sgd.step()
        yield model.eval()
        model.train()


# %% [markdown]
# > **Predict first.** Nothing in these images speaks against the trigger. Will ASR fall at all?

# %%
repair = repaired("fine-tuning")
tuned = copy.deepcopy(poisoned.model)
curve = [probe(tuned).row()] + [probe(model).row() for model in fine_tune(tuned, clean, line_up["fine-tuning"].tune)]
for mine, theirs in zip(tuned.parameters(), repair.model.parameters(), strict=True):
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=5e-4)
print("the loop above and nbtools give the same network")

figure, axis = plt.subplots(figsize=(6.5, 3.2))
for column, color in (("acc", plots.CLEAN), ("asr", plots.POISONED), ("ra", plots.GREEN)):
    axis.plot([row[column] for row in curve], "o-", ms=4, color=color, label=column.upper())
axis.set(title="Fine-tuning, epoch by epoch (evaluator's view)", xlabel="epochs over the clean images",
         ylabel="percent of some test images", ylim=(-3, 103))  # fmt: skip
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "ACC, ASR and RA of the fine-tuned model after each epoch.")

# %% [markdown]
# **Where it fails.** A gradient on clean images has no reason to touch what only the trigger wakes. Where ASR falls all
# the same, look at ACC beside it: large steps, and batch norms that follow a few images, shake everything, the backdoor
# included. They are steps in no particular direction, and less of them leaves more of it.

# %% [markdown]
# ## 2. Fine-pruning
#
# The backdoor's channels should be those that clean images leave *dormant*. Rank the channels of the last convolution
# by their mean clean activation, prune from the bottom while accuracy on held-back images lasts, then fine-tune.
#
# $$a_i = \mathbb{E}_{x \in D} \; \mathrm{mean}_{h,w} \mathrm{ReLU}(\mathrm{BN}(F_i(x)))_{h,w}, \qquad
# \text{prune the } k \text{ lowest, the largest } k \text{ that accuracy bears}$$


# %%
def dormancy(model, bn_name, images):
    """Mean activation of each channel behind batch norm and ReLU."""
    seen = []
    bn = model.get_submodule(bn_name)
    handle = bn.register_forward_hook(lambda _module, _inputs, maps: seen.append(maps.relu().mean((0, 2, 3))))
    with torch.no_grad():
        model(images.floats())
    handle.remove()
    return seen[0]


def how_many(accuracies, allowed):
    """The last count before held-back accuracy falls by more than `allowed`; counts go up one by one from 0."""
    bad = [k for k, accuracy in enumerate(accuracies) if accuracy < accuracies[0] - allowed - 1e-9]
    return bad[0] - 1 if bad else len(accuracies) - 1


repair = repaired("fine-pruning")
last = [unit for unit in prunable_units(poisoned.model) if not unit.shortcut][-1]
learned, held = line_up["fine-pruning"].validation.split(clean)
activation = dormancy(poisoned.model, last.bn, learned)
torch.testing.assert_close(activation.double(), repair.scores[last.conv], rtol=1e-4, atol=1e-6)
tried = pd.DataFrame([row for row in repair.history if row["phase"] == "prune"])
allowed = max(line_up["fine-pruning"].validation.allowed, 1 / len(held))  # of few images one may always go wrong
count = how_many(list(tried.accuracy), allowed)
order = activation.argsort(stable=True)
assert repair.mask.pruned[last.conv][order].cpu().tolist() == [k < count for k in range(last.filters)]
print(f"the lines above and nbtools agree: the {count} most dormant of the {last.filters} channels of {last.conv}")

# %% [markdown]
# > **Predict first.** On the left the channels stand in the order in which they are pruned. Where do you expect those
# > that the trigger moves?

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.5))
dots = axes[0].scatter(range(last.filters), activation[order].cpu(), c=truth[last.conv][order].cpu(), s=16,
                       cmap="cividis", linewidth=0)  # fmt: skip
figure.colorbar(dots, ax=axes[0], label="TAC (evaluator only)")
axes[0].axvline(count - 0.5, color=plots.PRUNED, ls="--", lw=1)
axes[0].set(xlabel="channels, the most dormant first", ylabel="mean clean activation")
axes[1].plot(tried.pruned, 100 * tried.accuracy, color=plots.BLUE, lw=1.5)
axes[1].axvline(count, color=plots.PRUNED, ls="--", lw=1)
axes[1].set(xlabel="channels pruned", ylabel=f"accuracy on {len(held)}\nheld-back images (%)", ylim=(-3, 103))
figure.suptitle(f"{last.conv}: {count} of {last.filters} channels sleep enough to be pruned",
                x=0.01, ha="left", fontweight="bold")  # fmt: skip
plots.show(
    figure,
    "Left: mean activations of the last convolution's channels, sorted, TAC as colour. Right: held-back accuracy "
    "against the number of channels pruned.",
)
untuned = probe(repair.untuned) if repair.untuned is not None else probe(repair.model)
rest = int((truth[last.conv].topk(10).indices[:, None] == order[count:]).any(1).sum())
print(f"pruned, not yet tuned: {untuned}; {rest} of the ten channels with the highest TAC were kept")

# %% [markdown]
# **Where it fails.** It looks at one layer, and it takes for granted that clean and poisoned signals use different
# channels there. Bright dots to the right are channels that the trigger moves *and* clean images use; a ranking by
# dormancy comes to them last. And where nearly all of the layer can go without a loss, the network doesn't need it: in
# a ResNet the shortcut leads round it, for clean images and for the backdoor alike (the paper's networks had none).
# Compare the printed line with the section's first: where ASR falls only there, it was the tuning that did it.

# %% [markdown]
# ## 3. NAD, neural attention distillation
#
# Fine-tune a copy, the teacher. Then let the backdoored network learn the labels *and* to look where the teacher
# looks: its attention maps shall be the teacher's.
#
# $$A_l(x) = \frac{\sum_c |F_{l,c}(x)|^2}{\lVert \sum_c |F_{l,c}(x)|^2 \rVert_2 + 10^{-6}}, \qquad
# L = L_{CE} + \sum_{l} \beta_l \, \overline{\lVert A_l(\text{student}) - A_l(\text{teacher}) \rVert^2}$$
#
# (The public code's mean goes over the positions of a map too, with $\beta$ for the maps of a full-size ResNet-18. The
# two agree there; on smaller maps, as here in the narrow networks, that mean would pull several times as hard [ours].)


# %%
def attention(maps):
    """[n, channels, h, w] to [n, h * w]: where a layer looks."""
    energy = (maps**2).sum(1).flatten(1)
    return energy / (energy.norm(dim=1, keepdim=True) + 1e-6)


@torch.no_grad()
def looks(model, x, layers):
    """Layer name to its maps."""
    maps, handles = {}, []
    for name in layers:
        hook = lambda _module, _inputs, out, name=name: maps.update({name: out})  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    model(x)
    for handle in handles:
        handle.remove()
    return maps


# %%
from nbtools.defender.nad import attention as theirs

nad = line_up["NAD"]
repair = repaired("NAD")
teacher = copy.deepcopy(poisoned.model)
nad.teacher(teacher, clean)  # the teacher: ten epochs of fine-tuning
shown = others.subset(torch.arange(0, len(others), len(others) // 5)[:5])
triggered = poisoned.trigger(shown.floats())
models = {"before": poisoned.model, "teacher": teacher, "student": repair.model}
maps = {name: looks(model, triggered, nad.layers) for name, model in models.items()}
for layer in nad.layers:
    torch.testing.assert_close(attention(maps["student"][layer]), theirs(maps["student"][layer]))
mine = sum(beta * (attention(maps["before"][name]) - attention(maps["teacher"][name])).square().sum(1).mean()
           for beta, name in zip(nad.betas, nad.layers, strict=True))  # fmt: skip
torch.testing.assert_close(mine, nad.distance(maps["before"], maps["teacher"]), rtol=1e-4, atol=1e-4)
print("attention and distance above are those of nbtools")

# %% [markdown]
# > **Predict first.** These images carry the trigger, which neither teacher nor student ever saw in the defence. Where
# > does the backdoored network look, and where does the teacher?

# %%
layers = nad.layers[:2]  # the last stage's map has too few positions to show much
figure, axes = plt.subplots(len(shown), 1 + 3 * len(layers), figsize=(9.5, 1.35 * len(shown) + 0.6))
for row, picture in zip(axes, triggered, strict=True):
    row[0].imshow(plots.pixels(picture), interpolation="nearest")
for block, layer in enumerate(layers):
    for column, name in enumerate(models, start=1 + 3 * block):
        side = maps[name][layer].shape[-2:]
        for row, energy in zip(axes[:, column], attention(maps[name][layer]), strict=True):
            row.imshow(energy.view(side).cpu(), cmap="cividis", vmin=0)
        axes[0, column].set_title(f"{layer}\n{name}", fontsize=8, fontweight="normal", loc="center")
axes[0, 0].set_title("with the trigger", fontsize=8, fontweight="normal", loc="center")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
figure.suptitle("Where the networks look on triggered images", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "Triggered images and their attention maps in two layers: before, in the teacher, in the student.")
obeys = {
    name: 100 * float((predict(model, probe.triggered) == target).double().mean()) for name, model in models.items()
}
print("ASR on some test images: " + ", ".join(f"{name} {asr:.1f}" for name, asr in obeys.items()))

# %% [markdown]
# **Where it fails.** The teacher is the same backdoored network, tuned a little: where its ASR is still high, its maps
# light up at the trigger as well, and the student is taught to look there. Where the student's ASR is lower than the
# teacher's all the same, it can't have learned that from the teacher; the strong pull of the maps (those $\beta$) has
# shaken it, and ACC says at what price. The paper gives it 5 % of the training set, and its code starts with a learning
# rate of 0.1 for two epochs; ours is 0.01 throughout [ours].

# %% [markdown]
# ## 4. CLP, channel Lipschitz pruning
#
# No image at all: a channel through which a small patch can shout has a large Lipschitz bound, its spectral norm with
# the batch norm folded in. Prune what stands out in its layer; notebook [02](02_spectral_norm.ipynb) is about it.
#
# $$\sigma_i = \lVert \mathrm{reshape}(W_i, [C_\text{in}, k^2]) \rVert_2 \,
# \frac{|\gamma_i|}{\sqrt{\mathrm{var}_i + \epsilon}}, \qquad
# \text{prune where } \sigma_i > \mathrm{mean}_l(\sigma) + u \, \mathrm{std}_l(\sigma), \; u = 3$$

# %%
repair = repaired("CLP")
for unit, conv, bn in layers_of(poisoned.model, prunable_units(poisoned.model)):
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    folded = conv.weight.flatten(2) * scale[:, None, None]  # [filters, C_in, k * k]
    sigma = torch.linalg.matrix_norm(folded.double(), ord=2)
    torch.testing.assert_close(sigma, repair.scores[unit.conv], rtol=1e-5, atol=1e-9)
    stands_out = sigma > sigma.mean() + line_up["CLP"].mu * sigma.std()
    assert torch.equal(stands_out, repair.mask.pruned[unit.conv])
print("the six lines above and nbtools prune the same filters")

# %% [markdown]
# > **Predict first.** How many of the rings lie above the line?

# %%
plots.show(
    plots.score_distribution(
        repair.scores, repair.mask, line_up["CLP"].mu, f"CLP prunes {repair.mask.count} of {repair.mask.filters}", truth
    ),
    "Strip plot of the spectral norm by layer with the threshold; pruned filters crossed, top TAC filters ringed.",
)

# %% [markdown]
# **Where it fails.** Where the backdoor is spread over many filters that are each a little louder, none stands out:
# rings below the line stay. And without images it can't know which loud filters the clean task lives on: where ACC
# falls far, a few crosses without a ring were enough, and the method itself would not notice. (In a pre-activation
# network its public code pairs convolutions with the wrong batch norms; here the pairs are read from the graph.)

# %% [markdown]
# ## 5. ANP, adversarial neuron pruning
#
# A backdoored network collapses sooner when its neurons are *shaken*: small, adversarial changes of the batch norms
# make it say the target class for clean images. So learn masks that make the shaken network right again, and prune what
# they switch off.
#
# $$\min_{m \in [0,1]} \; a \, L(m) + (1 - a) \max_{|\delta_i|, |\xi_i| \le \epsilon} L(m + \delta, \xi), \qquad
# \gamma_i \to \gamma_i (m_i + \delta_i), \quad \beta_i \to \beta_i (1 + \xi_i)$$


# %%
def shaken(model, x, factors, shifts):
    """Logits with every gamma times its factor and every beta times its shift, batch norms normalising by the batch."""
    twin = copy.deepcopy(model).train()
    units = prunable_units(twin)
    sizes = [unit.filters for unit in units]
    for (_, _, bn), factor, shift in zip(
        layers_of(twin, units), factors.split(sizes), shifts.split(sizes), strict=True
    ):
        bn.weight.data *= factor
        bn.bias.data *= shift
    return twin(x)


def worst_noise(soft, m, x, y, epsilon, generator):
    """One signed step uphill from a random start, inside the box: delta and xi, [2, filters]."""
    noise = epsilon * (2 * torch.rand(2, soft.count, generator=generator) - 1).to(x.device)
    noise.requires_grad_(True)
    loss = F.cross_entropy(soft(x, m + noise[0], 1 + noise[1]), y)
    (gradient,) = torch.autograd.grad(loss, noise)
    return (noise + epsilon * gradient.sign()).clamp(-epsilon, epsilon).detach()


# %% [markdown]
# With these, one iteration: a batch, its worst noise, and a step of the masks.

# %%
anp, generator = line_up["ANP"], torch.Generator().manual_seed(line_up["ANP"].seed)
soft = SoftMasks(poisoned.model, prunable_units(poisoned.model))  # convolutions frozen: only masks get a gradient
m = torch.ones(soft.count, device=run.device, requires_grad=True)
part = clean.subset(torch.randperm(len(clean), generator=generator)[: anp.batch_size])
x, y = to_floats(augment(part.images, generator)), part.labels
delta, xi = worst_noise(soft, m.detach(), x, y, anp.epsilon, generator)
calm, noisy = soft(x, m), soft(x, m + delta, 1 + xi)
torch.testing.assert_close(noisy, shaken(poisoned.model, x, m + delta, 1 + xi), rtol=1e-3, atol=1e-3)
(anp.share * F.cross_entropy(calm, y) + (1 - anp.share) * F.cross_entropy(noisy, y)).backward()
one_step = (m - anp.lr * m.grad).clamp(0, 1).detach()
torch.testing.assert_close(one_step, ANP(iterations=1).masks(poisoned.model, clean)[1], rtol=1e-3, atol=1e-3)
print("the forward pass under noise and the first step of the masks are those of nbtools")

# %% [markdown]
# > **Predict first.** Clean images, no trigger, shaken batch norms. What share of them will the poisoned network send
# > to the target class, and the clean twin? And once the masks are learned?

# %%
from nbtools.defender.threshold_sweep import sweep

repair = repaired("ANP")
masks = 1 - torch.cat(list(repair.scores.values()))
strengths = [0.0, 0.1, 0.2, 0.4]
own = clean.subset(clean.labels != target)
x, y = own.floats(), own.labels
drawn = {}
for name, trained, m in (("poisoned", poisoned, None), ("clean twin", clean_twin, None),
                         ("poisoned, masks learned", poisoned, masks)):  # fmt: skip
    soft = SoftMasks(trained.model, prunable_units(trained.model))
    m = torch.ones(soft.count, device=run.device) if m is None else m
    drawn[name] = []
    for epsilon in strengths:
        noise = worst_noise(soft, m, x, y, epsilon, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            drawn[name].append(100 * float((soft(x, m + noise[0], 1 + noise[1]).argmax(1) == target).double().mean()))


# %%
def obedience(model):
    """ASR of a pruned copy on some test images."""
    return 100 * float((predict(model, probe.triggered) == target).double().mean())


units = prunable_units(poisoned.model)
swept = pd.DataFrame([row for row in repair.history if row["kind"] == "threshold"])
swept["asr"] = [row["measured"] for row in sweep(poisoned.model, units, masks, anp.thresholds, obedience)]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for (name, line), color in zip(drawn.items(), (plots.POISONED, plots.CLEAN, plots.GREEN), strict=True):
    axes[0].plot(strengths, line, "o-", ms=4, color=color, label=name)
axes[0].set(xlabel="noise on the batch norms, epsilon", ylabel="clean images sent to the target (%)", ylim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
ranked(axes[1], repair.scores, "1 - mask")
axes[2].plot(swept.threshold, 100 * swept.held_back, color=plots.CLEAN, label="held-back accuracy (defender)")
axes[2].plot(swept.threshold, swept.asr, color=plots.POISONED, label="ASR (evaluator)")
for threshold in swept.threshold[swept.chosen]:
    axes[2].axvline(threshold, color=plots.PRUNED, ls="--", lw=1)
axes[2].set(xlabel="prune masks up to (dashed: chosen)", ylabel="percent", ylim=(-3, 103))
axes[2].legend(frameon=False, fontsize=8)
figure.suptitle("ANP: what noise does, what the masks learn, what each threshold leaves",
                x=0.01, ha="left", fontweight="bold")  # fmt: skip
plots.show(
    figure,
    "Left: share of clean images sent to the target against the noise. Middle: one minus mask of all filters, sorted, "
    "top TAC filters ringed. Right: held-back accuracy and ASR against the threshold.",
)

# %% [markdown]
# Where the orange line lies well above the blue one, ANP's guess holds for this network. The green line may rise again:
# noise is measured against the whole gamma, so what a mask has made small is shaken harder.
#
# **Where it fails.** Masks need iterations: two thousand in the paper. Few images are soon known by heart, and a mask
# of a filter that *they* don't need costs nothing. And everything hangs on the threshold: between "does nothing" and
# "breaks the network" there may be a narrow window, and the defender sees only the blue line, on a handful of images.
# With no dashed line drawn, no threshold passed. Notebook [10](10_comparison.ipynb) shows how much better ANP looks if
# one peeks at the orange one.

# %% [markdown]
# ## 6. AWM, adversarial weight masking
#
# Finer than filters: every *weight* gets a mask. In each round one *universal* perturbation is found that changes the
# network's own answers on as many clean images as it can, a stand-in for the unknown trigger; then the masks learn to
# be right with and without it.
#
# $$\min_{m \in [0,1]} a \, L(x; m \odot \theta) + (1 - a) \, L\big(\mathrm{clip}(x + \Delta); m \odot \theta\big) +
# c \, \lVert m \rVert_1, \qquad \Delta = \arg\max_{\lVert \Delta \rVert_1 \le \tau} L\big(x + \Delta,
# f(x)\big)$$

# %%
from torch.func import functional_call


def universal(model, x, tau, passes, size, seed, ascent=10.0):
    """One perturbation for all images that changes what the model answers; no label is used."""
    with torch.no_grad():
        answers = model(x).argmax(1)
    delta, generator = torch.zeros_like(x[:1]).requires_grad_(True), torch.Generator().manual_seed(seed)
    for batch in [b for _ in range(passes) for b in torch.randperm(len(x), generator=generator).split(size)]:
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x[batch] + delta), answers[batch]), delta)
        delta = (delta + ascent * gradient).detach().requires_grad_(True)
    return (delta * (tau / delta.abs().sum()).clamp_max(1)).detach()


def masked_loss(model, masks, x, y, delta, a=0.9, c=1e-8):
    """What the masks descend."""
    weights = {name: model.get_parameter(name) * mask for name, mask in masks.items()}
    quiet = F.cross_entropy(functional_call(model, weights, (x,)), y)
    loud = F.cross_entropy(functional_call(model, weights, ((x + delta).clamp(0, 1),)), y)
    return a * quiet + (1 - a) * loud + c * sum(mask.sum() for mask in masks.values())


awm = line_up["AWM"]
one = AWM(rounds=1, passes=1, batch_size=len(clean))  # a single step: small enough to check by hand
history = one.masks(poisoned.model, prunable_units(poisoned.model), clean)[1]
delta = universal(poisoned.model, clean.floats(), one.tau, one.passes, one.batch_size, one.seed)
ones = {name: torch.ones_like(p) for name, p in poisoned.model.named_parameters() if p.ndim == 4}
loss = masked_loss(poisoned.model, ones, clean.floats(), clean.labels, delta)
assert math.isclose(loss, history[0]["loss"], rel_tol=1e-3)
assert math.isclose(delta.abs().sum(), history[0]["norm"], rel_tol=1e-3)
print(f"loss {loss:.4f} and l1 norm {delta.abs().sum():.1f} of the perturbation are those of nbtools")

# %% [markdown]
# > **Predict first.** Will the perturbation resemble the trigger? Will the clean twin's look different?

# %%
repair = repaired("AWM")
x = clean.floats()
found = {name: universal(trained.model, x, awm.tau, awm.passes, awm.batch_size, awm.seed)
         for name, trained in (("poisoned", poisoned), ("clean twin", clean_twin))}  # fmt: skip
change = poisoned.trigger(own.floats()) - own.floats()
most = int(change.abs().sum((1, 2, 3)).argmax())  # on an image whose corner is white a white square is no change
example = own.floats()[most][None]
panels = {
    "the trigger's change\n(evaluator only)": change[most][None] + 0.5,
    "perturbation,\npoisoned": 0.5 + found["poisoned"],
    "perturbation,\nclean twin": 0.5 + found["clean twin"],
    "an image": example,
    "with the perturbation\nof the poisoned": example + found["poisoned"],
}
figure, axes = plt.subplots(1, len(panels) + 1, figsize=(11.5, 2.5), width_ratios=[1] * len(panels) + [2.2])
for axis, (name, picture) in zip(axes, panels.items(), strict=False):
    axis.imshow(plots.pixels(picture[0].clamp(0, 1)), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=8, fontweight="normal", loc="center")
ranked(axes[-1], repair.scores, "1 - mean mask")
figure.suptitle("AWM: a stand-in for the trigger, and whose weights fade", x=0.01, ha="left", fontweight="bold")
plots.show(
    figure,
    "The trigger's change, the universal perturbations of both networks, an image with and without it, and the filters "
    "by how far their weights faded, top TAC filters ringed.",
)
with torch.no_grad():
    for name, trained in (("poisoned", poisoned), ("clean twin", clean_twin)):
        moved = trained.model((own.floats() + found[name]).clamp(0, 1)).argmax(1)
        print(f"{name}: under its perturbation {100 * float((moved != own.labels).double().mean()):.0f} % of the clean "
              f"images are misread, {100 * float((moved == target).double().mean()):.0f} % as the target")  # fmt: skip

# %% [markdown]
# **Where it fails.** A perturbation that may change every pixel finds any weakness of the network, not the backdoor in
# particular: where the clean twin's does as much harm, the masks learn robustness in general, and pay for it in
# ACC. A mask moves by at most about the learning rate (0.01) a step, so a hurried AWM can hardly have faded anything:
# read the axis of the last panel. And no filter ever becomes exactly removable.

# %% [markdown]
# ## 7. RNP, reconstructive neuron pruning
#
# First make the network *forget* the clean task, by gradient ascent on the clean images; what only the trigger wakes is
# not ascended on, and stays. Then let masks, weights frozen, bring the clean task back: the filters that are in its
# way, whose masks sink, are the backdoor's. Prune these in the original network.
#
# $$\theta' = \text{ascend } L(f_\theta(x), y) \text{ until accuracy} \le 0.2, \qquad
# m = \arg\min_{m \in [0,1]} L(f_{m \odot \theta'}(x), y), \qquad \text{prune } m_i \le t$$


# %%
def unlearn(model, images, rnp, epochs):
    """Gradient ascent on the clean loss, all weights; yields the network before it and after each epoch."""
    model.train().requires_grad_(True)
    sgd = torch.optim.SGD(
        model.parameters(), rnp.unlearn_lr, rnp.momentum, weight_decay=rnp.weight_decay, maximize=True
    )
    generator = torch.Generator().manual_seed(rnp.seed)
    yield model.eval()
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images), generator=generator).split(rnp.batch_size):
            x = to_floats(augment(images.images[batch], generator))
            sgd.zero_grad()
            F.cross_entropy(model(x), images.labels[batch]).backward()
            sgd.step()
        yield model.eval()


rnp = line_up["RNP"]
learned, _ = rnp.validation.split(clean)
mine = list(unlearn(copy.deepcopy(poisoned.model), learned, rnp, 1))[-1]
theirs, _ = RNP(unlearn_epochs=1).unlearn(poisoned.model, prunable_units(poisoned.model), learned)
for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
print("an epoch of the loop above and of nbtools give the same network")

# %% [markdown]
# > **Predict first.** While the network forgets, which goes first: what it knows of clean images, or the backdoor?

# %%
repair = repaired("RNP")
steps = pd.DataFrame([row for row in repair.history if row["stage"] == "unlearn"])
copies = unlearn(copy.deepcopy(poisoned.model), learned, rnp, int(steps.epoch.max()))
forgetting = pd.DataFrame([probe(model).row() for model in copies])

figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4))
axes[0].plot(steps.epoch, 100 * steps.accuracy, "x:", color=plots.GREY, label="accuracy on the defender's images")
axes[0].plot(forgetting.acc, "o-", ms=4, color=plots.CLEAN, label="ACC (some test images)")
axes[0].plot(forgetting.asr, "s-", ms=4, color=plots.POISONED, label="ASR (some test images)")
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].axhline(100 * rnp.until, color=plots.PRUNED, ls="--", lw=1)
axes[0].set(xlabel="epochs of unlearning (dashed: stop)", ylabel="percent", ylim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
ranked(axes[1], repair.scores, "1 - mask, after recovery")
title = f"RNP: {len(steps) - 1} epochs of unlearning, then {repair.mask.count} of {repair.mask.filters} filters pruned"
figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
plots.show(
    figure,
    "Left: accuracy, ACC and ASR while the network unlearns the clean images. Right: one minus mask of all filters, "
    "sorted, top TAC filters ringed.",
)

# %% [markdown]
# **Where it fails.** All rests on the gap between the two lines on the left: where ASR goes down with ACC, or before
# it, what recovery must switch off is not the backdoor. With few images an epoch may be a single step, so that
# unlearning runs out of epochs above the dashed line: then too little of the clean task is gone for the masks to tell
# filters apart. And the threshold on the masks is chosen by even fewer images.

# %% [markdown]
# ## 8. Four newer ones, as summarised
#
# We could read summaries of these papers, not the papers. The idea and the loss of each are theirs. What a summary
# leaves open, such as epochs and learning rates, is ours, and the same for all attacks. So a low row in the table says
# that *this* version fails here, on *these* networks and amounts of images.
#
# - **FT-SAM** (2023): go where the loss is low *all around*, each weight $w$ in its own scale. The gradient is taken at
#   $w + e$ with $e = \rho\, w^2 g \,/\, \lVert \lvert w \rvert g \rVert$ and $\rho = 2$.
# - **NFT** (2024): one factor $m \le 1$ a filter, learned on blends of two images,
#   $L_{\mathrm{mix}} + \eta \lVert 1 - m \rVert_1$.
# - **D3** (2025): leave the place where the backdoor was learned, $-\lVert W - W_0 \rVert + \lambda \max(0, L -
#   \varepsilon)$, with $W$ the head, whose norm is kept.
# - **LMR** (2026): find the class $c$ that the network falls back on, and push its logit down in the head alone: $L + a
#   \max(0, z_c - \max_{j \ne c} z_j + 3)$ for images of other classes, and a term that holds the true class up.
#
# The code below writes two of them out and holds them against the package.


# %%
def uphill_by_hand(weights, gradients, rho):
    """FT-SAM's step: the direction of steepest ascent when each weight's step is counted in units of the weight."""
    length = sum(float((w.abs() * g).square().sum()) for w, g in zip(weights, gradients, strict=True)) ** 0.5
    return [rho * w.square() * g / length for w, g in zip(weights, gradients, strict=True)]


def repel_by_hand(logits, labels, c, a=1.0, b=0.25):
    """LMR's loss, image by image."""
    total = 0.0
    for z, y in zip(logits, labels.tolist(), strict=True):
        others = torch.cat([z[:c], z[c + 1 :]]).max()
        rivals = torch.cat([z[:y], z[y + 1 :]]).max()
        if y != c:
            total += F.cross_entropy(z, torch.tensor(y, device=z.device)) + a * (z[c] - others + 3.0).relu()
        total += b * (rivals - z[y] + 0.5).relu()
    return total / len(labels)


model, lmr = copy.deepcopy(poisoned.model).requires_grad_(True), line_up["LMR"]
weights = list(model.parameters())
loss = F.cross_entropy(model(clean.floats()), clean.labels)
gradients = torch.autograd.grad(loss, weights)
here = [weight.detach() for weight in weights]
mine = uphill_by_hand(here, gradients, 2.0)
for step, theirs in zip(mine, uphill(here, gradients, 2.0), strict=True):
    torch.testing.assert_close(step, theirs, rtol=1e-3, atol=1e-5)
with torch.no_grad():
    logits = poisoned.model(clean.floats())
    torch.testing.assert_close(repel_by_hand(logits, clean.labels, target), lmr.loss(logits, clean.labels, target))
    for weight, step in zip(weights, mine, strict=True):
        weight += step
    steep = F.cross_entropy(model(clean.floats()), clean.labels)
print(f"both agree with nbtools; FT-SAM's step takes the clean loss from {float(loss):.2f} to {float(steep):.2f}")

# %% [markdown]
# LMR needs to know the class. It takes a copy, ascends the clean loss, and asks which class the copy falls back on.
#
# > **Predict first.** Will that be the target? And which class will the clean twin fall back on?

# %%
figure, axis = plt.subplots(figsize=(6.5, 2.8))
for place, trained, color in ((-0.2, poisoned, plots.POISONED), (0.2, clean_twin, plots.CLEAN)):
    fallen = lmr.fallen_back_on(trained.model, clean).exp().cpu()
    axis.bar(torch.arange(len(fallen)) + place, fallen, 0.4, color=color, label=trained.name)
    print(
        f"{trained.name}: falls back on {clean.classes[int(fallen.argmax())]} (the target is {clean.classes[target]})"
    )
axis.set(xticks=range(len(clean.classes)), ylabel="probability (geometric mean)")
axis.set_title("LMR: which class a copy falls back on when it forgets")
axis.set_xticklabels(clean.classes, rotation=40, ha="right")
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Mean probability of each class after the ascent, for the poisoned network and its clean twin.")
for name in newer:
    repaired(name)

# %% [markdown]
# **Where they fail.** FT-SAM and D3 move all weights with few images, so ACC pays. D3 and LMR act through the head: if
# the backdoor has made its features look like the target's before the head sees them, the head cannot tell them apart.
# LMR pushes down whichever class it suspects, so a wrong suspect costs that class and leaves the backdoor. NFT's
# factors may only sink, and blends of images must ask for it.

# %% [markdown]
# ## 9. All of them
#
# One loop, the same clean images, the same evaluation, on the poisoned network and on its clean twin.
#
# > **Predict first.** Which two will leave the least ASR? Which will cost the clean twin most?

# %%
table = []
for name, defence in line_up.items():
    for trained in (poisoned, clean_twin):
        row = run.defend(trained, defence, samples_per_class, draw=draw)
        table.append({"name": name, "cut_short": name in cut_short, **row})
table = pd.DataFrame(table)
run.save_rows(table, "09_baselines")
wide = table.pivot(index="name", columns="attack").loc[list(line_up)]
pd.DataFrame(
    {
        "clean images, paper": pd.Series(papers_images),
        "ACC before": wide["acc_before"][attack],
        "ACC after": wide["acc_after"][attack],
        "ASR before": wide["asr_before"][attack],
        "ASR after": wide["asr_after"][attack],
        "RA after": wide["ra_after"][attack],
        "twin: ACC before": wide["acc_before"]["none"],
        "twin: ACC after": wide["acc_after"]["none"],
        "pruned": wide["pruned"][attack],
        "seconds": wide["seconds"][attack],
        "MB": wide["peak_mb"][attack],
    }
).round(1)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
places = range(len(line_up))
for column, axis in zip(("acc", "asr"), axes, strict=True):
    for kind, color, shift in ((attack, plots.POISONED, -0.12), ("none", plots.CLEAN, 0.12)):
        values, before = wide[f"{column}_after"][kind], wide[f"{column}_before"][kind]
        rows = [place + shift for place in places]
        axis.hlines(rows, before, values, color=color, lw=1, alpha=0.5)
        axis.scatter(values, rows, color=color, s=30, label=poisoned.name if kind == attack else "clean twin")
        axis.scatter(before, rows, color=color, s=30, marker="|")
    axis.set(xlabel=f"{column.upper()} (%)")
axes[0].set_yticks(places, list(line_up))
axes[0].invert_yaxis()
axes[1].set(xlim=(-3, 103))
axes[0].legend(frameon=False, fontsize=8)
figure.suptitle(f"{len(clean)} clean images: before (bar) and after (dot)", x=0.01, ha="left", fontweight="bold")
plots.show(figure, "ACC and ASR of the poisoned network and its clean twin before and after each of the baselines.")

# %% [markdown]
# Read a row as a whole. Where the dot of ASR has gone left and that of ACC has stayed, the method works here; where
# both went left, it broke the network, and the backdoor with it. The clean twin's dot is what it costs those who have
# no backdoor. The ASR of the twin is no attack at all: it counts the triggered images that a network takes for the
# target anyway, and where it *rises*, the repaired network has begun to say that class for other reasons.
#
# One model and one draw of clean images don't make a ranking, and most of these methods have far more images in their
# papers. Notebook [10](10_comparison.ipynb) gives them both: several attacks, and the papers' own amounts.

# %% [markdown]
# ## 10. Mistakes seen in public code
#
# None of the following is a remark on an idea. The last costs time; each of the others changes what a table says.
# Beside each stands the test of this package that would fail if it were made here.
#
# | mistake seen | where | the test |
# |---|---|---|
# | threshold chosen by *test* ASR | ANP, BackdoorBench | `test_anp`: the strongest that the held-back images allow |
# | the same | RNP, BackdoorBench | `test_rnp`: the threshold comes from images that were held back |
# | masks trained on the test split | ANP, backdoor-toolbox | `test_isolation`: no import reaches the test set |
# | clean data taken from the test set | AWM | `test_datasets`: three parts that share no picture |
# | target class counted in ASR | AWM, BackdoorBox | `test_evaluation`: ASR and RA count all but the target |
# | target class dropped from ACC | NAD, RNP | `test_evaluation`: ACC counts all classes |
# | model aliased: "before" is after | fine-pruning, BackdoorBench | `test_fine_pruning`: copied and not aliased |
# | images normalised twice | FMP | `test_fmp`: the network sees images from 0 to 1 |
# | test images move BN statistics | FMP | `test_evaluation`: evaluation changes nothing in the model |
# | a seed option that is never applied | backdoor-toolbox | `test_plain_fine_tuning`: another seed, another model |
# | convolutions paired with wrong batch norms | CLP, pre-activation | `test_models`: pairs of a forward pass |
# | attention taken after the pooling | NAD, copies of it | `test_nad`: maps are taken before the pooling |
# | gradients made that nothing uses | ANP | `test_anp`: no gradient of a convolution's weights is ever made |

# %% [markdown]
# ## 11. Exercises
#
# **Exercise 1** (easy, 5 minutes). Somebody takes NAD's map *after* the global average pooling, `[n, channels, 1, 1]`.
# Compute `attention` of the student's last-stage maps after `F.adaptive_avg_pool2d(..., 1)`, and say why this term
# teaches nothing.

# %%
after_pooling = ...  # your answer: [n, 1]

checks.same(after_pooling, torch.ones(len(triggered), 1), "divide a single number by its own length", 1e-3)

# %% [markdown]
# **Exercise 2** (medium, 10 minutes). Fine-pruning believes that the backdoor sleeps on clean images. Test it:
# Spearman's rank correlation between dormancy (minus `activation`) and TAC over the channels of `last.conv`. What sign
# does the belief ask for?

# %%
belief = ...  # your answer, in [-1, 1]

checks.same(
    belief,
    agreement({last.conv: -activation}, truth)[last.conv]["spearman"],
    "minus activation against truth[last.conv]; scipy.stats.spearmanr takes numpy arrays on the CPU",
)

# %% [markdown]
# **Exercise 3** (hard, 20 minutes). CLP, ANP and RNP all score filters. Do they suspect the same ones? For each pair,
# which share of the ten highest scores in `last.conv` do they have in common? The scores are in `scores_of`.

# %%
in_common = ...  # your answer: three shares, for CLP and ANP, CLP and RNP, ANP and RNP

pairs = [("CLP", "ANP"), ("CLP", "RNP"), ("ANP", "RNP")]
checks.same(
    in_common,
    torch.tensor([agreement(scores_of[a], scores_of[b])[last.conv]["precision"] for a, b in pairs]),
    "topk(10).indices of each, as sets",
)

# %% [markdown]
# ## 12. What we saw, and what this does not show
#
# - Seven baselines are seven guesses about what sets a backdoor's filters apart: nothing (fine-tuning), that they
#   sleep, where they look, how loud they can be, how they bear noise, what a universal perturbation leans on, what is
#   left when the clean task is forgotten. The figures above say, for one network, how far each guess holds.
# - The newer four add four more: that a flat loss, a head far away, a class pushed down, or blended images undo it.
# - Most of them need a number chosen (channels, threshold, epochs), and the defender has little to choose it with. What
#   a baseline achieves and what it could have achieved with the trigger in hand are two different results.
# - It does **not** show how these methods rank: one attack, one network, one draw, fewer images than their papers give,
#   and in a hurried profile only a part of the iterations of ANP and AWM.
#
# **For the reading group**
# 1. Which of these would survive an attacker who knows it, and what would he add to his training?
# 2. A repaired network has lost a point of ACC. Is that the price of the repair or of the few images? Which experiment
#    would tell?
# 3. ANP and RNP let batch norms normalise by the batch while the masks are learned. What could go wrong when the masks
#    are then used with running statistics?
#
# **Further reading**: the papers above. Wu et al., *BackdoorBench* (2206.12654): most of these under one roof,
# with the choices that section 10 lists. Min et al., *Towards stable backdoor purification through feature shift
# tuning* (2310.01875): why fine-tuning alone works at high poison rates and fails at low ones.

# %% [markdown]
# ## Solutions

# %% tags=["solution", "hide-input"]
after_pooling = attention(F.adaptive_avg_pool2d(maps["student"]["layer4"], 1))
checks.same(after_pooling.cpu(), torch.ones(len(triggered), 1), "one position holds all the attention there is", 1e-3)

from scipy.stats import spearmanr

belief = float(spearmanr(-activation.cpu(), truth[last.conv].cpu()).statistic)
checks.same(belief, agreement({last.conv: -activation}, truth)[last.conv]["spearman"], "the belief asks for a plus")

highest = {name: set(scores_of[name][last.conv].topk(10).indices.tolist()) for name in ("CLP", "ANP", "RNP")}
in_common = [len(highest[a] & highest[b]) / 10 for a, b in pairs]
by_package = torch.tensor([agreement(scores_of[a], scores_of[b])[last.conv]["precision"] for a, b in pairs])
checks.same(in_common, by_package, "three sets of ten")
print(f"dormancy against TAC: {belief:+.2f}; in common:", dict(zip(pairs, in_common, strict=True)))
print(f"by chance two would share {10 / last.filters:.2f} of their ten")

# %% [markdown]
# Previous: [08 · Magnitude-based pruning](08_magnitude_pruning.ipynb) · Next: [10 · Comparison](10_comparison.ipynb)

# %% tags=["check", "remove-cell"]
checks.backdoor_took(poisoned, clean_twin)
after = wide["asr_after"][attack]
left = {"quick": 80, "laptop": 50, "paper": 50}[run.profile.name]
assert after["fine-tuning"] >= left, "fine-tuning on a few images should leave the backdoor in place"
if run.profile.name != "quick":  # there rounding decides whether any of the hurried baselines succeeds
    assert after.min() <= 60, "none of them does anything to the backdoor"
lost = wide["acc_before"]["none"] - wide["acc_after"]["none"]
assert lost[list(older)].median() <= 5, "most of the seven should leave a clean network as it is"
assert steps.loss.iloc[-1] > steps.loss.iloc[0], "unlearning should raise the clean loss"
