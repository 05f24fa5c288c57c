"""Partition: the way from a tensor to a matrix to subvectors and back, and all stored sizes.

Inside the engine subvectors are a structure of arrays, ``[G, d, P]``: for a linear weight cut along
its inputs this is the transposed matrix itself, and the kernels stream over the points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.spec import QuantSpec
from dpq_core.tensor.pool_size import PoolSize, pool_vectors

MAX_TRELLIS_WEIGHTS = 2**31 - 1
"""Weights of one trellis code at most: places of outliers are 32-bit integers."""


class Layout(StrEnum):
    """How a tensor of a model is viewed as a matrix ``[R, C]`` whose rows are outputs.

    ``linear`` and ``embedding`` weights are matrices already: ``[out, in]`` and ``[entries, dim]``.
    A ``conv`` weight ``[Cout, Cin, kh, kw]`` (any number of spatial axes) becomes
    ``[Cout, Cin * kh * kw]``; ``QuantSpec.conv_layout`` orders the columns.
    """

    LINEAR = "linear"
    EMBEDDING = "embedding"
    CONV = "conv"


@dataclass(frozen=True, kw_only=True)
class Partition(Grouping):
    """The grouping of one tensor's matrix, and every size that follows from its spec.

    Attributes:
        shape: shape of the original tensor.
        layout: how that tensor is viewed as a matrix ``[R, C]``.
        orientation: axis of the matrix that is cut: ``input`` (columns, so that P = R) or
            ``output`` (rows, so that P = C).
        conv_layout: order of the columns of a convolution.
        K: codewords per codebook, at most the number of subvectors that share it.
        pool: V, vectors of the pool; 0 where codebooks are stored as they are.
        index_bits: bits of an index into the pool.
        row_bits: code bits of one point in all groups of a trellis code; 0 without a trellis.
    """

    shape: tuple[int, ...]
    layout: Layout
    orientation: str
    conv_layout: str
    K: int
    pool: int = 0
    index_bits: int = 0
    row_bits: int = 0

    @classmethod
    def of(cls, shape: tuple[int, ...], layout: Layout, spec: QuantSpec) -> Partition:
        """The partition of a tensor of ``shape`` by ``spec``.

        Raises:
            SpecError: the shape is empty or does not suit the layout, the spec asks for more
                codebooks than there are groups, or leaves the orientation open.
        """
        if spec.orientation == "auto":
            raise SpecError("orientation auto must be resolved by a plan first")
        rows, cols = _matrix_shape(shape, layout)
        axis, points = (cols, rows) if spec.orientation == "input" else (rows, cols)
        groups = math.ceil(axis / spec.d)
        if spec.trellis_rate and rows * cols > MAX_TRELLIS_WEIGHTS:
            raise SpecError(
                f"a trellis holds at most {MAX_TRELLIS_WEIGHTS:,} weights, not {rows * cols:,}; "
                "use trellis_rate=0 for this tensor"
            )
        row_bits = min(round(spec.trellis_rate * cols), trellis_books.MAX_RATE * groups)
        groups_per_codebook = 1 if row_bits else _groups_per_codebook(spec, groups, points)
        K = spec.K if row_bits else min(spec.K, max(2, groups_per_codebook * points))
        codebooks = math.ceil(groups / groups_per_codebook)
        pool, index_bits = _pool_size(spec, rows, cols, codebooks=codebooks, K=K)
        return cls(
            shape=tuple(shape),
            layout=layout,
            orientation=spec.orientation,
            conv_layout=spec.conv_layout,
            rows=rows,
            cols=cols,
            d=spec.d,
            groups=groups,
            pad=groups * spec.d - axis,
            groups_per_codebook=groups_per_codebook,
            stages=spec.stages,
            K=K,
            pool=pool,
            index_bits=index_bits,
            row_bits=row_bits,
        )

    @property
    def code_bits(self) -> int:
        """Bits of one stored code."""
        return max(1, (self.K - 1).bit_length())

    @property
    def group_bytes(self) -> int:
        """Bytes of the packed codes of one group of one stage."""
        return math.ceil(self.points * self.code_bits / 8)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """View a tensor of ``shape`` as a matrix ``[R, C]``; copies where it has to."""
        if self.layout is Layout.CONV and self.conv_layout == "channel":
            weight = weight.movedim(1, -1)
        return weight.reshape(self.rows, self.cols)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Bring a matrix ``[R, C]``, or some of its rows, back to ``shape``: undo ``to_matrix``."""
        if self.layout is Layout.CONV and self.conv_layout == "channel":
            _, channels, *kernel = self.shape
            return matrix.reshape(-1, *kernel, channels).movedim(-1, 1).contiguous()
        return matrix.reshape(-1, *self.shape[1:])

    def to_subvectors(self, matrix: Tensor) -> Tensor:
        """Cut a matrix ``[R, C]`` into contiguous subvectors ``[G, d, P]``, padded with zeros."""
        along = matrix.T if self.orientation == "input" else matrix  # [G*d - pad, P]
        if self.pad == 0:
            return along.contiguous().view(self.groups, self.d, self.points)
        padded = along.new_zeros(self.groups * self.d, self.points)
        padded[: along.shape[0]] = along
        return padded.view(self.groups, self.d, self.points)

    def from_subvectors(self, subvectors: Tensor) -> Tensor:
        """Join subvectors ``[G, d, P]`` to a matrix ``[R, C]``: undo ``to_subvectors``."""
        axis = self.groups * self.d - self.pad
        along = subvectors.reshape(self.groups * self.d, self.points)[:axis]
        return along.T if self.orientation == "input" else along

    def codebook_of_group(self) -> Tensor:
        """Index of the codebook that each group uses: int64 ``[G]``."""
        return torch.arange(self.groups) // self.groups_per_codebook


def _matrix_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    """R and C of a tensor viewed as a matrix; SpecError where the layout does not suit it."""
    minimum = 3 if layout is Layout.CONV else 2
    fits = len(shape) >= minimum if layout is Layout.CONV else len(shape) == minimum
    if not fits or math.prod(shape) == 0:
        raise SpecError(f"a {layout} tensor of shape {list(shape)} cannot be viewed as a matrix")
    return shape[0], math.prod(shape[1:])


def _groups_per_codebook(spec: QuantSpec, groups: int, points: int) -> int:
    """Number of adjacent groups that share a codebook by the spec's scope."""
    if spec.scope == "tensor":
        return groups
    if spec.scope == "subspace":
        return 1
    if isinstance(spec.scope, int):
        if spec.scope > groups:
            raise SpecError(
                f"scope asks for {spec.scope} codebooks, but there are only {groups} groups of "
                f"d={spec.d}; use at most {groups}, or scope=subspace"
            )
        return math.ceil(groups / spec.scope)
    code_bytes = groups * math.ceil(points * spec.code_bits / 8)
    affordable = spec.codebook_share * code_bytes / (spec.K * spec.d * _value_bytes(spec))
    return math.ceil(groups / min(groups, max(1, int(affordable))))


def _pool_size(spec: QuantSpec, rows: int, cols: int, *, codebooks: int, K: int) -> tuple[int, int]:
    """Vectors of the pool and bits of an index into it; both 0 where codebooks are stored whole.

    Unless the spec asks for a size, the paper's rule holds, and there is no pool where it would not
    pay (docs/algorithms.md#pool-size, #bit-accounting).
    """
    if spec.pool.method == "none":
        return 0, 0
    by_rule = pool_vectors(rows, cols, spec.d, codewords=codebooks * K)
    size = PoolSize(
        vectors=min(spec.pool.size, codebooks * K) or by_rule,
        codebooks=codebooks,
        K=K,
        d=spec.d,
        value_bits=8 * _value_bytes(spec),
        packed=spec.pool.packed,
    )
    return (size.vectors, size.index_bits) if spec.pool.size or size.pays else (0, 0)


def _value_bytes(spec: QuantSpec) -> int:
    """Bytes of one stored coordinate of a codeword."""
    return {"float32": 4, "int8": 1}.get(spec.codebook_dtype, 2)
