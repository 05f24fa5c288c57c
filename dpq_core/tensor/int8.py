"""Symmetric 8-bit codebooks: int8 values and one float16 scale per codebook.

GPTVQ (arXiv 2402.15319, section 3.3; docs/algorithms.md#int8-codebooks) stores codebooks like this
at negligible loss: it halves what a pool or codebooks cost, which buys more codewords.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.errors import SpecError

LEVELS = 127
"""Largest magnitude of a stored value; -128 stays unused, so that the range is symmetric."""


def to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round codebooks to int8 multiples of one scale per codebook.

    The scale is the largest magnitude over 127, rounded up to float16: nothing is clipped, and
    no value moves by more than half a scale. A codebook of zeros has scale zero.

    Args:
        values: floating ``[..., n, d]``; each ``[n, d]`` gets one scale.

    Returns:
        Int8 ``[..., n, d]`` and float16 ``[...]``.

    Raises:
        SpecError: a value is not finite, or a scale overflows float16.
    """
    exact = values.double().abs().amax(dim=(-2, -1)) / LEVELS
    scale = exact.half()
    # The next float16 up: bit patterns of positive floats are in the order of their values.
    above = (scale.view(torch.int16) + 1).view(torch.float16)
    scale = torch.where(scale.double() < exact, above, scale)
    if not bool(torch.isfinite(scale).all()):
        raise SpecError("codebooks are not finite or overflow int8; use codebook_dtype=float32")
    divisor = torch.where(scale == 0, 1.0, scale.double())[..., None, None]
    return (values.double() / divisor).round().to(torch.int8), scale
