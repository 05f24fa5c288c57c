"""PQTensor: all stored parts of one quantized tensor, and the way back to the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.errors import ArtifactError
from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.basis import transform
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.packing import UnpackedCache, unpack
from dpq_core.tensor.partition import Layout, Partition

Part = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of one stored part."""


def expected_parts(partition: Partition, spec: QuantSpec) -> dict[str, Part]:
    """Dtype and shape of every part that FORMAT.md requires (F12, F16-F18, F25-F29), by name.

    Args:
        partition: partition of the tensor.
        spec: spec by which it is quantized.
    """
    p = partition
    codebooks = p.stages * p.codebooks  # S*B
    dtype: torch.dtype = getattr(torch, spec.codebook_dtype)
    parts: dict[str, Part] = {"codes": (torch.uint8, (p.stages * p.groups, p.group_bytes))}
    if p.row_bits:
        parts["codes"] = (torch.uint8, (p.row_bits, trellis_books.group_bytes(p.points, 1)))
        parts["rates"] = (torch.uint8, (trellis.rate_bytes(p.groups),))
        parts["group_scale"] = (torch.float16, (p.groups,))
        parts["outliers"] = (torch.int32, (trellis.outlier_count(p.rows, p.cols),))
        parts["outlier_values"] = (torch.float16, parts["outliers"][1])
    elif p.pool:
        parts["pool"] = (dtype, (p.pool, p.d))
        parts["index_map"] = (torch.uint8, (codebooks, math.ceil(p.K * p.index_bits / 8)))
    else:
        parts["codebooks"] = (dtype, (codebooks, p.K, p.d))
    if dtype == torch.int8 and not p.row_bits:
        parts["codebook_scale"] = (torch.float16, (1 if p.pool else codebooks,))
    if spec.row_scale:
        parts["row_scale"] = (torch.float16, (p.rows,))
    if spec.group_scale:
        parts["group_scale"] = (torch.float16, (p.groups,))
    if spec.permute:
        parts["permutation"] = (torch.uint8, (math.ceil(p.cols * column_bits(p.cols) / 8),))
    if spec.transform == "rht":
        parts["signs_in"] = (torch.uint8, (math.ceil(p.cols / 8),))
        if p.layout is not Layout.EMBEDDING:  # a look-up must not need all the other rows
            parts["signs_out"] = (torch.uint8, (math.ceil(p.rows / 8),))
    return parts


PARTS = (
    "codes",
    "rates",
    "outliers",
    "outlier_values",
    "codebooks",
    "pool",
    "index_map",
    "codebook_scale",
    "row_scale",
    "group_scale",
    "permutation",
    "signs_in",
    "signs_out",
)
"""Names that a stored part can have."""


HALF_PARTS = ("codebook_scale", "row_scale", "group_scale", "outlier_values")
"""Names of the parts that are stored in float16, whatever the spec."""


def column_bits(cols: int) -> int:
    """Bits of one column index of a stored permutation."""
    return max(1, (cols - 1).bit_length())


def stored_values(partition: Partition, parts: Mapping[str, Tensor]) -> Tensor:
    """The stored codebooks ``[S*B, K, d]`` or the pool ``[V, d]``, in float32."""
    values = parts["pool" if partition.pool else "codebooks"].float()
    if "codebook_scale" not in parts:
        return values
    scale = parts["codebook_scale"].float()
    return values * (scale if partition.pool else scale[:, None, None])


def effective_books(
    partition: Partition, parts: Mapping[str, Tensor], unpacked: UnpackedCache | None = None
) -> Tensor:
    """The codebooks in float32 ``[S*B, K, d]``, read through the pool where there is one.

    Differentiable in the stored codebooks, pool and scales. The codebooks of a trellis are those of
    its rates, ``[13, 4 K, d]``, which are no parts; see ``book_of_group``.

    Args:
        partition: partition of the tensor.
        parts: stored parts by name.
        unpacked: cache of the unpacked index map.
    """
    p = partition
    if p.row_bits:
        return trellis_books.codebooks(p.K).to(parts["codes"].device)
    values = stored_values(p, parts)
    if not p.pool:
        return values
    index = (unpacked or UnpackedCache()).get(
        "index_map", parts["index_map"], lambda packed: unpack(packed, p.index_bits, p.K)
    )
    return torch.nn.functional.embedding(index, values)


def book_of_group(
    partition: Partition, parts: Mapping[str, Tensor], unpacked: UnpackedCache | None = None
) -> Tensor:
    """Index of the codebook that each group uses in one stage: int64 ``[G]``.

    Args:
        partition: partition of the tensor.
        parts: stored parts by name.
        unpacked: cache of the unpacked rates.
    """
    p, codes = partition, parts["codes"]
    if not p.row_bits:
        return p.codebook_of_group().to(codes.device)
    return (unpacked or UnpackedCache()).get(
        "rates", parts["rates"], lambda packed: trellis.rates_of(packed, p.groups)
    )


_CODES_AT_ONCE = 1 << 19
"""Codes unpacked at a time where a whole tensor is decoded: a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class PQTensor:
    """The stored parts of one product-quantized tensor.

    Attributes:
        partition: all sizes, and how the matrix is cut.
        spec: spec by which it was quantized.
        dtype: dtype of the original tensor and of ``decode()``.
        stored: exactly the ``expected_parts``, by name.
    """

    partition: Partition
    spec: QuantSpec
    dtype: torch.dtype
    stored: Mapping[str, Tensor]

    def parts(self) -> dict[str, Tensor]:
        """The stored parts by name; ``from_parts`` is the inverse."""
        return dict(self.stored)

    @classmethod
    def from_parts(
        cls, partition: Partition, spec: QuantSpec, dtype: torch.dtype, parts: Mapping[str, Tensor]
    ) -> PQTensor:
        """Build from stored parts, checking shapes, dtypes, range of the codes and finiteness.

        Raises:
            ArtifactError: a part is missing, unknown, misshapen, out of range or not finite.
        """
        expected = expected_parts(partition, spec)
        if different := set(expected) ^ set(parts):
            raise ArtifactError(f"parts {sorted(different)} are unknown or missing")
        for name, part in parts.items():
            if (part.dtype, tuple(part.shape)) != expected[name]:
                raise ArtifactError(
                    f"{name} is {part.dtype} {list(part.shape)}, expected {expected[name]}"
                )
            if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                raise ArtifactError(f"{name} holds NaN or infinite values")
        tensor = cls(partition=partition, spec=spec, dtype=dtype, stored=dict(parts))
        tensor._check_ranges()
        return tensor

    def _check_ranges(self) -> None:
        """Raise ArtifactError where a code, an index or the permutation is out of range."""
        p = self.partition
        if p.row_bits:
            trellis.check(self.stored, p.groups, p.row_bits, p.rows * p.cols)
        elif 1 << p.code_bits != p.K:  # otherwise every bit pattern is a valid code
            largest = max(int(self.codes_of(row).max()) for row in range(p.stages * p.groups))
            if largest >= p.K:
                raise ArtifactError(f"a code is {largest}, but there are only {p.K} codewords")
        if p.pool and 1 << p.index_bits != p.pool:
            largest = int(unpack(self.stored["index_map"], p.index_bits, p.K).max())
            if largest >= p.pool:
                raise ArtifactError(f"an index is {largest}, but the pool has {p.pool} vectors")
        if "permutation" in self.stored:
            order = permutation_of(self.stored["permutation"], p.cols)
            if not torch.equal(order.sort().values, torch.arange(p.cols, device=order.device)):
                raise ArtifactError("permutation does not name every column once")

    @property
    def codes(self) -> Tensor:
        """Bit-packed codes, uint8 ``[S*G, group_bytes]``; see ``tensor.trellis`` for its own."""
        return self.stored["codes"]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored parts: what the file holds for this tensor, headers apart."""
        return sum(part.numel() * part.element_size() for part in self.stored.values())

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: everything stored, over the weights of the original tensor."""
        return 8 * self.nbytes / (self.partition.rows * self.partition.cols)

    def codes_of(self, row: int) -> Tensor:
        """Codes of one group of one stage, row ``s * G + j`` of all codes: int32 ``[P]``."""
        return self._codes(row, row + 1)[0]

    def _codes(self, first: int, last: int) -> Tensor:
        """Codes of rows first..last, int32 ``[last - first, P]``; of a trellis, its windows."""
        p = self.partition
        if not p.row_bits:
            return unpack(self.codes[first:last], p.code_bits, p.points)
        rates = trellis.rates_of(self.stored["rates"], p.groups)
        begin, end = (int(rates[:row].sum()) for row in (first, last))
        return trellis.windows(self.codes[begin:end], rates[first:last], p.points, p.K)

    def books(self) -> Tensor:
        """The codebooks, float32 ``[S*B, K, d]``, read through the pool where there is one."""
        return effective_books(self.partition, self.stored)

    def core(self) -> Tensor:
        """The core, a float32 matrix ``[R, C]``: sums of codewords, before any scale."""
        p = self.partition
        codebooks, books = self.books(), book_of_group(p, self.stored).tolist()
        subvectors = torch.zeros(p.groups, p.d, p.points, device=codebooks.device)
        step = max(1, _CODES_AT_ONCE // p.points)
        for first in range(0, p.stages * p.groups, step):
            codes = self._codes(first, min(first + step, p.stages * p.groups)).long()
            for row, code in enumerate(codes, first):
                stage, group = divmod(row, p.groups)
                subvectors[group] += codebooks[stage * p.codebooks + books[group]][code].T
        core = p.from_subvectors(subvectors)
        if p.row_bits:
            core = core.contiguous()
            trellis.add_outliers(core, 0, self.stored)
        return core

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in the original shape: float32 arithmetic, then cast.

        Args:
            dtype: dtype of the result; by default that of the original tensor.
        """
        matrix = frame_of(self.partition, self.stored).restore(self.core())
        return self.partition.from_matrix(matrix.to(dtype or self.dtype)).contiguous()


def frame_of(
    partition: Partition, parts: Mapping[str, Tensor], unpacked: UnpackedCache | None = None
) -> Frame:
    """The frame (scales, order, signs) in which a tensor was quantized, from its stored parts.

    Args:
        partition: partition of the tensor.
        parts: stored parts by name.
        unpacked: cache of the unpacked permutation and signs.
    """
    p, cache = partition, unpacked or UnpackedCache()
    signs = {
        name: cache.get(name, parts[name], partial(transform.unpack_signs, n=n))
        for name, n in (("signs_in", p.cols), ("signs_out", p.rows))
        if name in parts
    }
    permutation = parts.get("permutation")
    if permutation is not None:
        permutation = cache.get(
            "permutation", permutation, lambda packed: permutation_of(packed, p.cols)
        )
    if (scale := parts.get("group_scale")) is not None:
        used = UnpackedCache() if scale.requires_grad and torch.is_grad_enabled() else cache
        scale = used.get("columns", scale, lambda one: one.repeat_interleave(p.d)[: p.cols])
    return Frame(
        row_scale=parts.get("row_scale"),
        column_scale=scale,
        permutation=permutation,
        **signs,
    )


def permutation_of(packed: Tensor, cols: int) -> Tensor:
    """Unpack a stored permutation, int64 ``[C]``: column c of the core is column perm[c] of W."""
    return unpack(packed[None], column_bits(cols), cols)[0].long()
