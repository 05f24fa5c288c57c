"""Size of a pool, and whether storing one pays, in bits as they are stored.

See docs/algorithms.md#pool-size and #bit-accounting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpq_core.errors import SpecError
from dpq_core.spec.sections import MAX_POOL

MAX_SHARE = 0.9
"""Pool vectors per codeword from which on there is no pool: it would only add the index map."""

SCALE_BITS = 16
"""Bits of the float16 scale of each int8 codebook, or of the whole int8 pool."""


def pool_vectors(rows: int, cols: int, d: int, *, codewords: int) -> int:
    """V, pool vectors of a matrix by the paper's rule: R C / (16 d^2).

    So 16 d subvectors share a pool vector, and a float16 pool takes an eighth of the bits of 8-bit
    codes. Never more than an index can name, nor than there are codewords.

    Args:
        rows: R.
        cols: C.
        d: length of a subvector.
        codewords: B K, codewords of all codebooks.
    """
    return max(1, min(round(rows * cols / (16 * d * d)), MAX_POOL, codewords))


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Bits of a pool of V vectors and of the B codebooks of K codewords that it would replace.

    Attributes:
        vectors: V.
        codebooks: B.
        K: codewords per codebook.
        d: subvector length.
        value_bits: of one stored coordinate, of the pool as of the codebooks it replaces.
        packed: the index map takes ceil(log2 V) bits per entry, else 16.
    """

    vectors: int
    codebooks: int
    K: int
    d: int
    value_bits: int = 16
    packed: bool = True

    def __post_init__(self) -> None:
        """Check that an index map can name every vector."""
        if not 1 <= self.vectors <= MAX_POOL:
            raise SpecError(
                f"a pool holds 1 to {MAX_POOL:,} vectors (its index has 16 bits), not "
                f"{self.vectors:,}; lower pool.size"
            )

    @property
    def index_bits(self) -> int:
        """Bits of one entry of the index map."""
        return max(1, (self.vectors - 1).bit_length()) if self.packed else 16

    @property
    def pool_bits(self) -> int:
        """Bits of the pool, including the scale of an int8 pool."""
        return self.vectors * self.d * self.value_bits + self._scale_bits

    @property
    def map_bits(self) -> int:
        """Bits of the index map: one byte-aligned run per codebook."""
        return self.codebooks * 8 * math.ceil(self.K * self.index_bits / 8)

    @property
    def codebook_bits(self) -> int:
        """Bits of the full codebooks that the pool would replace."""
        return self.codebooks * (self.K * self.d * self.value_bits + self._scale_bits)

    @property
    def pays(self) -> bool:
        """Whether pool and map take fewer bits than the codebooks, with V well below B K."""
        crowded = self.vectors >= MAX_SHARE * self.codebooks * self.K
        return not crowded and self.pool_bits + self.map_bits < self.codebook_bits

    @property
    def _scale_bits(self) -> int:
        """Bits of the scale of one int8 codebook or pool; 0 for other dtypes."""
        return SCALE_BITS if self.value_bits == 8 else 0
