"""Kinds of values that the command line takes, beyond click's own."""

from __future__ import annotations

import re

import click

from nbtools.wording import known

DEFENCES = ("suspiciousness", "clp", "chosen_mu", "shift_unlearning", "fmp", "mnp", "nad", "anp", "rnp", "awm", "d3")
DEFENCES += ("lmr", "ft_sam", "nft", "fine_pruning", "fine_tuning")
"""The names in `nbtools.defender.choices.DEFENCES`; here, so that a wrong one is refused without torch."""

ARCHS = ("resnet18", "preact_resnet18", "torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50")
ARCHS += ("torchvision/vgg16_bn", "torchvision/mobilenet_v2", "torchvision/densenet121")
ARCHS += ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "wideresnet")
"""Those in `nbtools.defend.architecture`, likewise."""
ARCH_FORMS = re.compile(r"(torchvision|timm)/[\w.\-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""Others: a network of a library, or the function in somebody's module that gives one."""


def check_words(defence: str, arch: str) -> None:
    """Refuse a defence or an architecture that does not exist, before anything heavy is imported.

    Raises:
        UsageError: with the list of what exists.
    """
    if defence not in DEFENCES:
        raise click.UsageError(known("defence", defence, DEFENCES))
    if arch not in ARCHS and not ARCH_FORMS.fullmatch(arch):
        raise click.UsageError(
            f"unknown architecture {arch!r}; known: {', '.join(ARCHS)}; also torchvision/NAME, timm/NAME and "
            "PACKAGE.MODULE:FUNCTION"
        )


class Numbers(click.ParamType):
    """Numbers with commas between them, so many of one kind: 0.5,0.5,0.5."""

    name = "numbers"

    def __init__(
        self, count: int, kind: type = float, least: float = float("-inf"), most: float = float("inf")
    ) -> None:
        self.count, self.kind, self.least, self.most = count, kind, least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers, or a usage error that says what is wanted."""
        try:
            found = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if len(found) != self.count or not all(self.least <= number <= self.most for number in found):
            kind = "whole numbers" if self.kind is int else "numbers"
            self.fail(
                f"{value!r}: it takes {self.count} {kind}, {self.least:g} to {self.most:g}, with commas between them"
            )
        return found


class Size(click.ParamType):
    """Pixels of a square, or height x width."""

    name = "pixels"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Height and width, or a usage error that says what is wanted."""
        height, _, width = str(value).lower().partition("x")
        sides = (height, width or height)
        if not all(re.fullmatch(r"[0-9]{1,4}", side) and 4 <= int(side) <= 2048 for side in sides):
            self.fail(f"{value!r}: it takes pixels, 4 to 2048, such as 32, or height x width, such as 64x48")
        return int(sides[0]), int(sides[1])
