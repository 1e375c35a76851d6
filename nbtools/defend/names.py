"""A checkpoint's names without what stands around them: the one place that decides which names are the network's.

A name is that of an architecture's layer with something before it: nothing, what a wrapper put there (`module.`), or
the attribute under which its owner keeps the network (`resnet.`). What is before it is found by the first convolution,
whose name the architecture tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nbtools.defend.checkpoint import PREFERRED
from nbtools.defend.kinds import Kind

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""What stands between a module and what it wraps, anywhere in a name: DataParallel, torch.compile, sharding, Fabric."""
LEFTOVER = re.compile(r"(?:.*\.)?(?:total_ops|total_params|n_averaged|initted|step)")
"""What counters and averagers leave in a state dict; no layer needs it."""
STATISTIC = re.compile(r"(?:.*\.)?_?(?:(?!running_)[a-z]+_)?(mean|std)")
MEASURE = re.compile(
    r"(?i).*(?:criterion|loss|metric|accura|auroc|confusion|confmat|entropy|smooth(?:er|ing)|(?:class|pos)_?weight|"
    r"(?<![a-z])(?:acc|f1|auc|ce|bce|nll|xent|mse|precision|recall)(?![a-z]))"
)
"""A loss or a measure with tensors of its own: no part of the network wherever it stands."""
SMALL = 5
"""A group of names less than one in so many of the largest is a block of a network, and no network."""
NAMED = 3
"""So many of the keys or prefixes are named in a message."""


class SeveralNetworks(ValueError):
    """More than one network is there, and nothing tells which is meant."""


@dataclass(frozen=True, eq=False)
class Network:
    """The names of one network in a state dict.

    Args:
        prefix: what stood before them, wrappers left out; "" where nothing did.
        keys: the plain names to the file's; of the head too, where it lay outside of the prefix.
        matched: what the match with the architecture gave.
        aside: the file's names that belong to no network.
        others: prefixes of further networks of this architecture.
        statistics: the normalisation's mean and std, where the file has them.
    """

    prefix: str
    keys: dict[str, str]
    matched: Any
    aside: tuple[str, ...]
    others: tuple[str, ...]
    statistics: dict[str, Tensor]

    @property
    def notes(self) -> list[str]:
        """How the names were read, in sentences."""
        before = {key.removesuffix(name) for name, key in self.keys.items() if key.endswith(name) and key != name}
        parts = [part for name, key in self.keys.items() if not key.endswith(name) for part in key.split(".")]
        inside = {f"{part}." for part in parts if part in WRAPPERS}
        said = [f"{_quoted(found)} {where} them" for found, where in ((before, "before"), (inside, "in")) if found]
        notes = [f"Names were read without {' and '.join(said)}."] if said else []
        measures = [key for key in self.aside if MEASURE.match(key)]
        return notes + ([f"Left as they are, beside the network: {first(measures)}."] if measures else [])

    @property
    def doubts(self) -> list[str]:
        """What may be wrong with that, in sentences."""
        more = [key for key in self.aside if not MEASURE.match(key)]
        doubts = [f"The weights under {name.rstrip('.') or 'no prefix'} were left as they are: still to be suspected."
                  for name in self.others]  # fmt: skip
        if more:
            doubts.append(
                f"{len(more)} tensors beside the network were left as they are ({first(more)}): if its answers depend "
                "on them, this repair means nothing."
            )
        return doubts


def unwrapped(key: str) -> str:
    """A tensor's name without wrappers, wherever they stand: "layer1._orig_mod.0.conv1.weight" too."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def is_statistic(name: str, value: Tensor) -> bool:
    """Whether a tensor is a normalisation's mean or std, by its name and size."""
    return STATISTIC.fullmatch(name) is not None and value.numel() == 3


def first(names: Sequence[str]) -> str:
    """The first few of a list, and whether there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _quoted(names: set[str]) -> str:
    return " and ".join(map(repr, sorted(names)[:NAMED]))


def find(tensors: Mapping[str, Tensor], kind: Kind, match: Callable[[Mapping[str, Any]], Any], wanted: str) -> Network:
    """The network of this architecture in a state dict.

    Args:
        tensors: the file's names to tensors.
        kind: the architecture.
        match: from plain names with shapes to whatever is made of them.
        wanted: the prefix of the one that is meant, without its last dot; "" where the file has one alone, or one whose
            name tells that it is the main one.

    Raises:
        ValueError: what `match` raises, where nothing fits.
        SeveralNetworks: where two tensors have the same name once wrappers are gone; where several networks fit, and
            none is the main one or has the prefix that is wanted.
    """
    keys: dict[str, str] = {}
    statistics: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = unwrapped(key)
        if LEFTOVER.fullmatch(key) and value.numel() == 1:
            continue
        if is_statistic(name, value) and not any(kind.our_name(t) in kind.own_statistics for t in _tails(name, 1)):
            statistics[name] = value
        elif name in keys:
            raise SeveralNetworks(
                f"{keys[name]} and {key} are the same layer once their prefixes are gone; the file holds two models, "
                "save one alone"
            )
        else:
            keys[name] = key
    free, found, refusals = dict(keys), {}, []
    for prefix in _prefixes(keys, kind):
        names = _under(prefix, free, kind)
        try:
            matched = match({name: tuple(tensors[key].shape) for name, key in names.items()})
        except ValueError as error:
            refusals.append(error)
            continue
        found[prefix] = matched, names
        free = {name: key for name, key in free.items() if key not in names.values()}
    if not found:
        if refusals:
            raise refusals[-1]  # that of the shortest prefix, under which most of the file lies
        match({name: tuple(tensors[key].shape) for name, key in keys.items()})
    prefix = _main(list(found), wanted)
    matched, names = found.pop(prefix)
    for others in found:  # of their normalisation nothing is wanted
        statistics = {name: value for name, value in statistics.items() if not (others and name.startswith(others))}
    own = {STATISTIC.fullmatch(name)[1]: value for name, value in statistics.items()}  # type: ignore[index]
    return Network(prefix, names, matched, tuple(free.values()), tuple(found), own)


def _prefixes(keys: Mapping[str, str], kind: Kind) -> list[str]:
    """What may stand before a network's names, the longest first: a copy inside of another is found before it."""
    stem = f"{kind.stem}.weight"
    starts = {name.removesuffix(tail) for name in keys for tail in _tails(name) if kind.our_name(tail) == stem}
    sizes = {start: sum(name.startswith(start) for name in keys) for start in starts}
    large = [start for start, size in sizes.items() if size * SMALL >= max(sizes.values())]
    return sorted(large, key=len, reverse=True)


def _under(prefix: str, free: Mapping[str, str], kind: Kind) -> dict[str, str]:
    """Plain names of what lies under a prefix, the head too where it lies outside, to the file's names.

    Where the head lies outside, so may other layers, and all that is no loss or measure is the network's.
    """
    names = {name.removeprefix(prefix): key for name, key in free.items() if name.startswith(prefix)}
    names = {name: key for name, key in names.items() if not _measures(name.partition(".")[0], kind)}
    heads = {f"{head}.weight" for head in kind.heads}
    if not prefix or any(kind.our_name(name) in heads for name in names):
        return names
    rest = {name: key for name, key in free.items() if not name.startswith(prefix) and not _measures(name, kind)}
    tails = {(name, tail) for name in rest for tail in _tails(name) if kind.our_name(tail) in heads}
    if len(tails) != 1:
        return names
    (name, tail) = tails.pop()
    before = name.removesuffix(tail)
    return names | {name.removeprefix(before): key for name, key in rest.items()}


def _measures(name: str, kind: Kind) -> bool:
    """Whether a name is that of a loss or a measure, and of no layer of the network's own."""
    return MEASURE.match(name) is not None and not any(tail.partition(".")[0] in kind.parts for tail in _tails(name, 1))


def _tails(name: str, least: int = 2) -> Iterator[str]:
    """A name, and what is left of it without its first part, its first two, ..., down to so many parts."""
    parts = name.split(".")
    return (".".join(parts[place:]) for place in range(len(parts) - least + 1))


def _main(prefixes: Sequence[str], wanted: str) -> str:
    """The prefix of the network that is meant."""
    names = {prefix: prefix.rstrip(".") for prefix in prefixes}
    said = " and ".join(name or "no prefix" for name in names.values())
    if wanted:
        for prefix, name in names.items():
            if name == unwrapped(wanted):
                return prefix
        raise SeveralNetworks(f"the file has no network of this architecture under --key {wanted!r}, but under {said}")
    order = ("", *PREFERRED)
    ranks = {prefix: order.index(last) if (last := name.rpartition(".")[2]) in order else len(order)
             for prefix, name in names.items()}  # fmt: skip
    best = [prefix for prefix, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        raise SeveralNetworks(f"the file holds {len(names)} networks, under {said}; name one with --key")
    return best[0]
