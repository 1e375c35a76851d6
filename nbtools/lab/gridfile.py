"""A grid's file: YAML with one mapping or several, and the names that they may have. No torch, for quick answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, but for names that are given twice: it would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a ValueError for a name that is given twice."""
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice (line {node.start_mark.line + 1} and below)")
        return super().construct_mapping(node, deep=deep)


def load(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """A grid file's text, and the mappings that it holds: one, or a list of them whose points are united.

    Raises:
        ValueError: for what is no YAML, holds no mapping, or gives a name twice.
        OSError: for a file that can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _OnceLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as YAML: {error}") from None
    parts = content if isinstance(content, list) else [content]
    if not parts or not all(isinstance(part, dict) and part for part in parts):
        raise ValueError(f"{path} holds no grid: names with lists of values, such as attack: [badnets, blended]")
    return text, parts


DEFAULTS: dict[str, Any] = {
    "profile": "",
    "dataset": "",
    "architecture": "resnet18",
    "width": 0,
    "epochs": 0,
    "small": False,
    "seed": 0,
    "attack": None,
    "poison_rate": None,
    "target": 0,
    "adaptive": "none",
    "defence": None,
    "samples_per_class": 10,
    "n_total": 0,
    "draw": 0,
    "glance": False,
}
"""Every axis, and the one value that it has where a grid does not name it; None: a grid must."""


def unknown_axes(part: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of one of a file's mappings, a sentence or none."""
    unknown = [name for name in part if name not in DEFAULTS]
    return [f"unknown {', '.join(map(repr, unknown))}; known: {', '.join(DEFAULTS)}"] if unknown else []


def check_file(path: Path) -> None:
    """Refuse a grid of experiments whose file can't be read, or that has a name which is none.

    Raises:
        ValueError, OSError: see `load`; and for an unknown name, with those that there are.
    """
    if problems := [f"- {problem}" for part in load(path)[1] for problem in unknown_axes(part)]:
        raise ValueError("\n".join([f"{path}:", *problems]))
