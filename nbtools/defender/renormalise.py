"""Give the filters that are left the outputs' mean and spread back that they had before pruning: no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nbtools.data.images import Images
from nbtools.defender.learning import answers, at_most, divergence
from nbtools.defender.pruning import Mask
from nbtools.networks.units import check_finite, normalised, prunable_units

See = Callable[[Tensor], None]
"""Gets `[n, c, h, w]`, the maps behind a batch norm and before an activation inside, and then the batch norm runs."""


@dataclass(frozen=True)
class Renormalise:
    """REPAIR's renormalisation (Jordan et al., arXiv 2211.08403, for merged networks), here after pruning [ours].

    A pruned filter no longer adds what it added to every image, so the filters above it get other inputs. Each batch
    norm, from below to above, gets its gamma and beta changed so that every channel that is left has on the clean
    images the mean and the standard deviation that it had before pruning. It takes a few forward passes, no labels and
    no step of training. It is taken back where the answers to the clean images are then no nearer to those of the model
    before pruning, as a mean of the Kullback-Leibler divergence.

    Args:
        limit: a channel is multiplied by this factor at most, and by 1 / limit at least; 1 or more. At 1 the means
            alone are given back, which is bias correction (Nagel et al., arXiv 1906.04721).
        most: images, at least 2; of more, so many are drawn, since the maps of all of them are needed at once.
        seed: of that draw.

    Raises:
        ValueError: for a value out of its range.
    """

    limit: float = 2.0
    most: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit < math.inf or self.most < 2:  # so that NaN is refused too
            raise ValueError(f"limit >= 1 and most >= 2 are needed, got {self}")

    @torch.no_grad()
    def __call__(self, model: nn.Module, clean: Images, mask: Mask, before: nn.Module) -> list[dict[str, Any]]:
        """Change gamma and beta in place; the mask holds.

        Args:
            model: the pruned model, in eval mode.
            clean: the defender's images.
            mask: what stays pruned.
            before: the model before pruning, in eval mode; it is not changed.

        Returns:
            Two rows, as it was and renormalised: step (0 and 1, though nothing is trained), gain (mean fall of the
            divergence), chosen.

        Raises:
            ValueError: where a network is in training mode, or weights are not finite afterwards.
        """
        if any(module.training for net in (model, before) for module in net.modules()):
            raise ValueError("renormalising needs both networks in eval mode: call .eval() on them first")
        clean = at_most(clean, self.most, torch.Generator().manual_seed(self.seed))
        was = [(values, values.detach().clone()) for _, norm in _norms(model) for values in (norm.weight, norm.bias)]
        truth = answers(before, clean)
        first = divergence(answers(model, clean), truth)
        self._match(model, clean, mask, before)
        gain = float(first - divergence(answers(model, clean), truth))
        if not gain > 0:
            for values, old in was:
                values.copy_(old)
        check_finite(model)
        return [{"step": 0, "gain": 0.0, "chosen": not gain > 0}, {"step": 1, "gain": gain, "chosen": gain > 0}]

    @torch.no_grad()
    def _match(self, model: nn.Module, clean: Images, mask: Mask, before: nn.Module) -> None:
        images, target, calls = clean.floats(), dict[str, tuple[Tensor, Tensor]](), list[str]()

        def note(name: str) -> See:
            def see(output: Tensor) -> None:
                target[name] = _mean_and_std(output)
                calls.append(name)

            return see

        with _seen(before, {name: note(name) for name, _ in _norms(before)}):
            before(images)
        gone = {unit.bn: mask.pruned[unit.conv] for unit in prunable_units(model) if unit.conv in mask.pruned}

        def move(name: str, norm: nn.BatchNorm2d) -> See:
            def see(output: Tensor) -> None:
                (mean, std), (wanted_mean, wanted_std) = _mean_and_std(output), target[name]
                # a channel that hardly varies has no spread to give back, and a pruned one has nothing
                steady = std <= 1e-3 * norm.weight.abs().mean()
                factor = (wanted_std / std).masked_fill(steady, 1).clamp(1 / self.limit, self.limit)
                missing = wanted_mean - factor * mean
                if name in gone:
                    out = gone[name].to(factor.device)
                    factor, missing = factor.masked_fill(out, 1), missing.masked_fill(out, 0)
                norm.weight.mul_(factor)
                norm.bias.mul_(factor).add_(missing)

            return see

        once = {name: move(name, norm) for name, norm in _norms(model) if calls.count(name) == 1}
        with _seen(model, once):
            model(images)


def _norms(model: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """The batch norms that have gamma and beta."""
    return [(name, norm) for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d) and norm.affine]


def _mean_and_std(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel over images and positions: `[c]` each."""
    return maps.mean((0, 2, 3)), maps.std((0, 2, 3), correction=0)


@contextmanager
def _seen(model: nn.Module, see: dict[str, See]) -> Iterator[None]:
    """While the context lasts, what the named batch norms are about to give is seen; gamma and beta may be changed."""

    def hook(look: See) -> Callable[[nn.BatchNorm2d, tuple[Tensor, ...]], None]:
        return lambda norm, inputs: look(normalised(norm, inputs[0]))

    handles = list[RemovableHandle]()
    try:
        for name, look in see.items():
            handles.append(model.get_submodule(name).register_forward_pre_hook(hook(look)))
        yield
    finally:
        for handle in handles:
            handle.remove()
