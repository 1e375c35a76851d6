"""Float32 that is float32: where numbers are compared with each other, no product is rounded to fewer digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import backends


@contextmanager
def real_float32() -> Iterator[None]:
    """While the context lasts, products of float32 are computed in float32; afterwards as before. Also a decorator.

    On a GPU PyTorch computes convolutions of float32 in TF32 by default, with a mantissa of 10 bits; and
    `torch.set_float32_matmul_precision("medium")` makes matrix products bf16, on a CPU as well. In a training that
    does not matter; a score's ranking, or the sign of a small gradient, it can change. It is one setting for the whole
    process; float64 and autocast are not touched.
    """
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            place.fp32_precision = own
