"""The reference for convolution-BN pairs: what a forward pass really does, seen through hooks."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """A network on the device "meta"; one that computes its shapes with tensors is built with its weights first."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:
        return build().to("meta")


class Arguments(TorchDispatchMode):
    """Keeps the tensors that every operation takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[list[Any]] = []

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.taken.append(tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def pairs_of_a_forward_pass(model: nn.Module, side: int = 64) -> tuple[list[tuple[str, str]], list[str]]:
    """A batch norm's input IS a convolution's output, no other operation takes that tensor, and both are called once.

    Args:
        model: on the device "meta".
        side: of the image, in pixels.

    Returns:
        Pairs of names, and the convolutions without a batch norm of their own, both in the order of the calls.
    """
    outputs: list[tuple[str, Tensor]] = []
    inputs: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                outputs.append((name, output))
            else:
                inputs.append((name, given[0]))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(keep(name))
    with torch.no_grad(), Arguments() as operations:
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    calls = Counter(name for name, _ in outputs + inputs)
    takers = Counter(key for taken in operations.taken for key in {id(each) for each in taken})
    pairs, alone = [], []
    for conv, out in outputs:
        norms = [bn for bn, given in inputs if given is out]
        if takers[id(out)] == len(norms) == 1 and calls[conv] == calls[norms[0]] == 1:
            pairs.append((conv, norms[0]))
        elif conv not in alone:
            alone.append(conv)
    return pairs, alone
