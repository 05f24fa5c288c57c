"""How a tensor of a model is viewed as a matrix ``[rows, cols]`` (rows are outputs)."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """The kinds of weights that dpq compresses.

    ``linear`` and ``embedding`` weights are matrices already: ``[out, in]`` and ``[entries, dim]``.
    A ``conv`` weight ``[Cout, Cin, kh, kw]`` (any number of spatial axes) becomes
    ``[Cout, Cin * kh * kw]``; ``QuantSpec.conv_layout`` orders the columns.
    """

    LINEAR = "linear"
    EMBEDDING = "embedding"
    CONV = "conv"
