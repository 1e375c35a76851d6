"""Masks over filters: from a threshold or at random, applied, undone, held, or made physical."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbtools.defender.removal import Removal, take_out
from nbtools.networks.graph import duplicate
from nbtools.networks.units import layers_of, prunable_units

SCOPES = ("layer", "global")


@dataclass(frozen=True, eq=False)
class Mask:
    """Which filters are pruned.

    Args:
        pruned: convolution name to bool `[filters]`, True where the filter is pruned.
    """

    pruned: dict[str, Tensor]

    @property
    def count(self) -> int:
        """How many filters are pruned."""
        return sum(int(m.sum()) for m in self.pruned.values())

    @property
    def filters(self) -> int:
        """How many filters there are."""
        return sum(len(m) for m in self.pruned.values())

    @property
    def share(self) -> float:
        """Pruned share of the filters, in [0, 1]."""
        return self.count / max(self.filters, 1)

    def by_layer(self) -> dict[str, int]:
        """Convolution name to the number of its pruned filters."""
        return {name: int(m.sum()) for name, m in self.pruned.items()}

    def __repr__(self) -> str:
        return f"Mask({self.count} of {self.filters} filters)"


def check_threshold(mu: float, scope: str = "layer", rounds: int = 1) -> None:
    """Refuse what `threshold` can't work with.

    Raises:
        ValueError: for a negative or NaN `mu`, an unknown scope, or no round.
    """
    if not mu >= 0:
        raise ValueError(f"mu must be 0 or more, got {mu}: it counts standard deviations above the mean")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    if not rounds >= 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")


def threshold(
    scores: dict[str, Tensor],
    mu: float,
    scope: str = "layer",
    rounds: int = 1,
    counted: dict[str, Tensor] | None = None,
) -> Mask:
    """Prune where S_i > mean(S) + mu * std(S) (arXiv 2311.07417).

    Of n numbers none lies (n - 1) / sqrt(n) standard deviations or more above their mean: a layer of eight filters
    loses none where mu is above 2.47 (sixteen: 3.75, 32: 5.48), however they score.

    Args:
        scores: convolution name to `[filters]`.
        mu: standard deviations above the mean, 0 or more; higher prunes less.
        scope: mean and (unbiased) standard deviation over the filters of a "layer", or of the whole network, "global".
        rounds: how often; each round takes mean and standard deviation over the filters that are left [ours].
        counted: convolution name to bool `[filters]`: mean and standard deviation are over these, and only these are
            pruned [ours]; None counts all.

    Raises:
        ValueError: for a negative or NaN `mu`, an unknown scope, no round, or scores that are not finite.
    """
    check_threshold(mu, scope, rounds)
    device, cpu = next((score.device for score in scores.values()), None), torch.device("cpu")
    scores = _moved(scores, cpu)  # a few thousand numbers, of which nearly every line below asks something
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"the scores of {name} hold NaN or infinite values")
    everyone = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    counted = _moved(counted, cpu) if counted else everyone
    left = dict(counted)
    for _ in range(rounds):
        pools = {name: score[left[name]] for name, score in scores.items()}
        if scope == "global":
            pools = dict.fromkeys(scores, torch.cat(list(pools.values())))
        for name, pool in pools.items():
            # one filter, or equal scores, have no spread to stand out from; rounding of the mean must not give them one
            if len(pool) > 1 and bool(pool.amax() > pool.amin()):
                left[name] = left[name] & ~(scores[name] > pool.mean() + mu * pool.std())
    return Mask(_moved({name: counted[name] & ~left[name] for name in scores}, device))


def _moved(layers: dict[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """The same on another device, in one copy."""
    if all(values.device == device for values in layers.values()):
        return layers
    whole = torch.cat(list(layers.values())).to(device)
    return dict(zip(layers, whole.split([len(values) for values in layers.values()]), strict=True))


def most_suspicious(scores: dict[str, Tensor], counts: dict[str, int]) -> Mask:
    """Prune the `counts[name]` highest scores of each layer: equal numbers, whatever a score's distribution."""
    pruned = {}
    for name, score in scores.items():
        mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
        mask[score.topk(counts.get(name, 0)).indices] = True
        pruned[name] = mask
    return Mask(pruned)


def at_random(like: Mask, seed: int = 0) -> Mask:
    """As many filters of each layer as `like` prunes, drawn at random: the control that a score must beat."""
    generator = torch.Generator().manual_seed(seed)
    draws = {name: torch.rand(len(m), generator=generator).to(m.device) for name, m in like.pruned.items()}
    return most_suspicious(draws, like.by_layer())


def _batch_norms(model: nn.Module, mask: Mask) -> list[tuple[nn.BatchNorm2d, Tensor]]:
    units = prunable_units(model)
    missing = sorted(set(mask.pruned) - {unit.conv for unit in units})
    if missing:
        raise ValueError(f"the mask names layers that the model does not have: {', '.join(missing[:3])}")
    pairs = []
    for unit, _, bn in layers_of(model, [u for u in units if u.conv in mask.pruned]):
        pruned = mask.pruned[unit.conv]
        if pruned.shape != (unit.filters,) or pruned.dtype != torch.bool:
            raise ValueError(
                f"the mask for {unit.conv} is {pruned.dtype} {list(pruned.shape)}, "
                f"the model takes torch.bool [{unit.filters}]"
            )
        pairs.append((bn, pruned.to(bn.weight.device)))
    return pairs


def hold(model: nn.Module, mask: Mask) -> Callable[[], None]:
    """A function that sets gamma = beta = 0 wherever the mask prunes; call it after each optimiser step."""
    pairs = _batch_norms(model, mask)
    return lambda: _silence(pairs)


@torch.no_grad()
def _silence(pairs: list[tuple[nn.BatchNorm2d, Tensor]]) -> None:
    for bn, pruned in pairs:
        bn.weight.masked_fill_(pruned, 0)
        bn.bias.masked_fill_(pruned, 0)


def apply(model: nn.Module, mask: Mask) -> Callable[[], None]:
    """Prune in place (gamma = beta = 0) and return the function that undoes it, bit for bit.

    Raises:
        ValueError: where the mask does not fit the model; the model is then untouched.
    """
    pairs = _batch_norms(model, mask)
    kept = [(bn, bn.weight.detach().clone(), bn.bias.detach().clone()) for bn, _ in pairs]
    _silence(pairs)

    @torch.no_grad()
    def undo() -> None:
        for bn, gamma, beta in kept:
            bn.weight.copy_(gamma)
            bn.bias.copy_(beta)

    return undo


def pruned_copy(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy of the model with the mask applied; the model itself is not changed."""
    twin = duplicate(model)
    apply(twin, mask)
    return twin


def remove(model: nn.Module, mask: Mask, example: Tensor) -> nn.Module:
    """A smaller copy without the pruned filters, with the same outputs: the model of `removal`."""
    return removal(model, mask, example).model


def removal(model: nn.Module, mask: Mask, example: Tensor) -> Removal:
    """A smaller copy without the pruned filters, with the same outputs, and a record of those that had to stay.

    A filter can be taken out where every layer that takes its channel gets exactly 0 there: inside a residual block
    always; on a residual stream, to which several layers add, only where all of them prune it; behind an activation
    that makes something of 0 never; of grouped convolutions as many as all groups can lose. What can't be taken out
    stays as zeros, and the record says why. See `nbtools.defender.removal`.

    Args:
        model: the model, pruned or not; it is not changed.
        mask: which filters.
        example: one float batch `[n, 3, h, w]` of images that the model takes.

    Returns:
        The smaller model in eval mode, and what was left. Its layers answer as the pruned model's do but for rounding:
        in float64, on these images and on noise, none differs by more than 1e-9 of its largest answer.

    Raises:
        ValueError: where the mask does not fit the model.
    """
    import torch_pruning  # noqa: F401  # if it is missing, say so here

    order = [unit.conv for unit in prunable_units(model) if unit.conv in mask.pruned]
    return take_out(pruned_copy(model, mask), {conv: mask.pruned[conv] for conv in order}, example)
