"""Float32 that is float32: where numbers are compared with each other, no product is rounded to fewer digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import backends

_kinds: list[Any] = [backends.cuda, backends.cudnn, backends.mkldnn]  # what torch's types don't tell of them
PLACES: list[Any] = [_kinds[0].matmul, _kinds[1].conv, _kinds[2].matmul, _kinds[2].conv]
"""Where PyTorch keeps, for each library, how exact its products of float32 are."""


@contextmanager
def real_float32() -> Iterator[None]:
    """While the context lasts, products of float32 are computed in float32; afterwards as before. Also a decorator.

    On a GPU PyTorch computes convolutions of float32 in TF32 by default, with a mantissa of 10 bits; and
    `torch.set_float32_matmul_precision("medium")` makes matrix products bf16, on a CPU as well. In a training that
    does not matter; a score's ranking, or the sign of a small gradient, it can change. It is one setting for the whole
    process; float64 and autocast are not touched.
    """
    before = [place.fp32_precision for place in PLACES]
    try:
        for place in PLACES:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, own in zip(PLACES, before, strict=True):
            place.fp32_precision = own
