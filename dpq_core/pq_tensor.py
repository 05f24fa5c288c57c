"""PQTensor: all that is stored for one quantized tensor, and the way back to the weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import ArtifactError
from dpq_core.packing import unpack
from dpq_core.partition import Partition

Part = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of one stored part."""


def expected_parts(
    partition: Partition, *, codebook_dtype: torch.dtype, row_scale: bool
) -> dict[str, Part]:
    """The parts that FORMAT.md requires for one quantized tensor, by name.

    ``codes``: uint8 ``[groups, group_bytes]``, bit-packed; ``codebooks``: ``[codebooks, K, d]``;
    ``row_scale`` (when the spec has it): float16 ``[rows]``.
    """
    p = partition
    parts: dict[str, Part] = {
        "codes": (torch.uint8, (p.groups, p.group_bytes)),
        "codebooks": (codebook_dtype, (p.codebooks, p.K, p.d)),
    }
    if row_scale:
        parts["row_scale"] = (torch.float16, (p.rows,))
    return parts


@dataclass(frozen=True, kw_only=True)
class PQTensor:
    """One product-quantized tensor.

    Attributes:
        partition: all sizes; also how the matrix is cut.
        dtype: of the original tensor, and of ``decode()``.
        codes: bit-packed, uint8 ``[groups, group_bytes]``.
        codebooks: ``[codebooks, K, d]``.
        row_scale: float16 ``[rows]`` or None.
    """

    partition: Partition
    dtype: torch.dtype
    codes: Tensor
    codebooks: Tensor
    row_scale: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """The stored tensors by part name; ``from_parts`` is the inverse."""
        parts = {"codes": self.codes, "codebooks": self.codebooks}
        return parts if self.row_scale is None else {**parts, "row_scale": self.row_scale}

    @classmethod
    def from_parts(
        cls, partition: Partition, dtype: torch.dtype, parts: Mapping[str, Tensor]
    ) -> PQTensor:
        """Rebuild from stored tensors, checking shapes, dtypes, code range and finiteness.

        Raises:
            ArtifactError: a part is missing, unknown, misshapen, out of range or not finite.
        """
        unknown = set(parts) - {"codes", "codebooks", "row_scale"}
        missing = {"codes", "codebooks"} - set(parts)
        if unknown or missing:
            raise ArtifactError(f"parts {sorted(unknown | missing)} are unknown or missing")
        tensor = cls(partition=partition, dtype=dtype, **parts)
        tensor._check()
        return tensor

    def _check(self) -> None:
        expected = expected_parts(
            self.partition,
            codebook_dtype=self.codebooks.dtype,
            row_scale=self.row_scale is not None,
        )
        for name, part in self.parts().items():
            if (part.dtype, tuple(part.shape)) != expected[name]:
                raise ArtifactError(
                    f"{name} is {part.dtype} {list(part.shape)}, expected {expected[name]}"
                )
            if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                raise ArtifactError(f"{name} holds NaN or infinite values")
        self._check_code_range()

    def _check_code_range(self) -> None:
        p = self.partition
        if 1 << p.code_bits == p.K:
            return  # every bit pattern is a valid code
        largest = max(int(self.codes_of(group).max()) for group in range(p.groups))
        if largest >= p.K:
            raise ArtifactError(f"a code is {largest}, but there are only {p.K} codewords")

    @property
    def nbytes(self) -> int:
        """Bytes of all stored parts: what the file holds for this tensor, headers apart."""
        return sum(part.numel() * part.element_size() for part in self.parts().values())

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: everything stored, over the weights of the original tensor."""
        return 8 * self.nbytes / (self.partition.rows * self.partition.cols)

    def codes_of(self, group: int) -> Tensor:
        """Codes of one group, int32 ``[points]``."""
        p = self.partition
        return unpack(self.codes[group : group + 1], p.code_bits, p.points)[0]

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in the original shape: float32 arithmetic, then cast.

        Args:
            dtype: of the result; the original tensor's by default.
        """
        p = self.partition
        codebooks = self.codebooks.float()
        subvectors = torch.empty(p.groups, p.d, p.points, device=codebooks.device)
        for group in range(p.groups):
            subvectors[group] = codebooks[group // p.tie][self.codes_of(group).long()].T
        matrix = p.from_subvectors(subvectors)
        if self.row_scale is not None:
            matrix = matrix * self.row_scale.float()[:, None]
        return p.from_matrix(matrix.to(dtype or self.dtype)).contiguous()
