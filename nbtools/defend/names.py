"""A checkpoint's names without what wrappers put before them: the one place that decides what a name is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = re.compile(r"(?:(?:module|_orig_mod|backbone|model|net|network|encoder|ema_model|\d+)\.)+")
"""What wrappers put before a name: DataParallel, torch.compile, Lightning, an nn.Sequential that normalises first."""
LEFTOVER = re.compile(r"(?:.*\.)?(?:total_ops|total_params|n_averaged)")
"""What counters and averagers leave in a state dict; no layer needs it."""
STATISTIC = re.compile(r"(?:.*\.)?_?(mean|std)")
NAMED = 3
"""So many of the keys or prefixes are named in a message."""


def unwrapped(key: str) -> str:
    """A tensor's name without the prefixes that stand at its very beginning: "module.1.conv1.weight" is "conv1.weight".

    What looks like a prefix further on is the layer's own number: "layer1.0.conv1.weight" stays.
    """
    found = PREFIX.match(key)
    return key[found.end() :] if found else key


def plain_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Names without prefixes to the file's names; and the normalisation's mean and std, where the file has them.

    Raises:
        ValueError: where two tensors have the same name once their prefixes are gone.
    """
    plain: dict[str, str] = {}
    own: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = unwrapped(key)
        if LEFTOVER.fullmatch(key):
            continue
        if (found := STATISTIC.fullmatch(key)) and value.numel() == 3:
            own[found[1]] = value
        elif name in plain:
            raise ValueError(
                f"{plain[name]} and {key} are the same layer once their prefixes are gone; the file holds two models, "
                "save one alone"
            )
        else:
            plain[name] = key
    return plain, own


def prefix_note(plain: Mapping[str, str]) -> str:
    """Which prefixes were left out, in a sentence; "" where there were none."""
    prefixes = sorted({key.removesuffix(name) for name, key in plain.items() if key != name})
    return f"Names were read without {' and '.join(map(repr, prefixes[:NAMED]))} before them." if prefixes else ""
