"""The layout of one quantized tensor: tensor <-> matrix <-> subvectors, and all stored sizes.

Inside the engine subvectors are a structure of arrays, ``[G, d, P]``: for a linear weight cut along
its inputs this is the transposed matrix itself, and the kernels stream over the points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.spec import QuantSpec
from dpq_core.tensor.pool_size import PoolSize, pool_vectors


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
    """

    shape: tuple[int, ...]
    layout: Layout
    orientation: str
    conv_layout: str
    K: int
    pool: int = 0
    index_bits: int = 0

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
        sharing = _groups_per_codebook(spec, groups, points)
        K = min(spec.K, max(2, sharing * points))
        pool, index_bits = pool_of(spec, rows, cols, (math.ceil(groups / sharing), K))
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
            groups_per_codebook=sharing,
            stages=spec.stages,
            K=K,
            pool=pool,
            index_bits=index_bits,
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
        """``weight`` of ``shape`` as a matrix ``[rows, cols]`` (a view where possible)."""
        if self.layout is Layout.CONV and self.conv_layout == "channel":
            weight = weight.movedim(1, -1)
        return weight.reshape(self.rows, self.cols)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of ``to_matrix``: ``[rows, cols]``, or only some rows, back to ``shape``."""
        if self.layout is Layout.CONV and self.conv_layout == "channel":
            _, channels, *kernel = self.shape
            return matrix.reshape(-1, *kernel, channels).movedim(-1, 1).contiguous()
        return matrix.reshape(-1, *self.shape[1:])

    def to_subvectors(self, matrix: Tensor) -> Tensor:
        """``[rows, cols]`` -> contiguous subvectors ``[groups, d, points]``, zero-padded."""
        along = matrix.T if self.orientation == "input" else matrix  # [axis, points]
        if self.pad == 0:
            return along.contiguous().view(self.groups, self.d, self.points)
        padded = along.new_zeros(self.groups * self.d, self.points)
        padded[: along.shape[0]] = along
        return padded.view(self.groups, self.d, self.points)

    def from_subvectors(self, subvectors: Tensor) -> Tensor:
        """The inverse of ``to_subvectors``: ``[groups, d, points]`` -> ``[rows, cols]``."""
        axis = self.groups * self.d - self.pad
        along = subvectors.reshape(self.groups * self.d, self.points)[:axis]
        return along.T if self.orientation == "input" else along

    def codebook_of_group(self) -> Tensor:
        """Index of the codebook that each group uses: int64 ``[groups]``."""
        return torch.arange(self.groups) // self.groups_per_codebook


def _matrix_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    minimum = 3 if layout is Layout.CONV else 2
    fits = len(shape) >= minimum if layout is Layout.CONV else len(shape) == minimum
    if not fits or math.prod(shape) == 0:
        raise SpecError(f"a {layout} tensor of shape {list(shape)} cannot be viewed as a matrix")
    return shape[0], math.prod(shape[1:])


def _groups_per_codebook(spec: QuantSpec, groups: int, points: int) -> int:
    """Groups per codebook for the spec's scope."""
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


def pool_of(spec: QuantSpec, rows: int, cols: int, codewords: tuple[int, int]) -> tuple[int, int]:
    """Size of the pool and bits of an index into it; 0 and 0 where codebooks stay as they are.

    Unless the spec asks for a size, the paper's rule holds, and there is no pool where it would not
    pay (docs/algorithms.md#bit-accounting).
    """
    codebooks, K = codewords
    if spec.pool.method == "none":
        return 0, 0
    ruled = pool_vectors(rows, cols, spec.d, codewords=codebooks * K)
    size = PoolSize(
        vectors=min(spec.pool.size, codebooks * K) or ruled,
        codebooks=codebooks,
        K=K,
        d=spec.d,
        value_bits=8 * _value_bytes(spec),
        packed=spec.pool.packed,
    )
    return (size.vectors, size.index_bits) if spec.pool.size or size.pays else (0, 0)


def _value_bytes(spec: QuantSpec) -> int:
    return {"float32": 4, "int8": 1}.get(spec.codebook_dtype, 2)
