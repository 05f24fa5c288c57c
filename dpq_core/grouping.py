"""Grouping: how one matrix is cut into subvectors, and which of them share a codebook.

One notation of shapes holds in the whole engine: ``weight [R, C]``, ``subvectors [G, d, P]``,
``codes [S*G, P]``, ``codebooks [S*B, K, d]``, ``pool [V, d]``, for R rows, C columns, G groups, P
points per group, B codebooks, S additive stages, K codewords per codebook and V pool vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpq_core.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The cut of a matrix ``[R, C]`` into subvectors ``[G, d, P]``.

    Group j of stage s reads codebook ``s * B + j // groups_per_codebook`` of ``[S*B, K, d]``.

    Attributes:
        rows: R.
        cols: C.
        d: length of a subvector.
        groups: G, runs of d coordinates along the axis that is cut.
        groups_per_codebook: adjacent groups that share a codebook; the last may have fewer.
        stages: S, codewords that add up to a subvector.
        pad: coordinates at the end of the last group that lie beyond the matrix and do not count.
    """

    rows: int
    cols: int
    d: int
    groups: int
    groups_per_codebook: int = 1
    stages: int = 1
    pad: int = 0

    def __post_init__(self) -> None:
        """Check the numbers that no shape implies."""
        if self.groups_per_codebook < 1 or self.stages < 1:
            raise SpecError(
                f"groups_per_codebook and stages must be at least 1, not "
                f"{self.groups_per_codebook} and {self.stages}"
            )
        if not 0 <= self.pad < self.d:
            raise SpecError(f"pad must be 0..{self.d - 1}, not {self.pad}")

    @classmethod
    def of_subvectors(
        cls,
        shape: Sequence[int],
        *,
        groups_per_codebook: int = 1,
        stages: int = 1,
        pad: int = 0,
    ) -> Grouping:
        """The grouping of subvectors of shape ``[G, d, P]``, as of P rows cut along the columns."""
        groups, d, points = shape
        return Grouping(
            rows=points,
            cols=groups * d - pad,
            d=d,
            groups=groups,
            groups_per_codebook=groups_per_codebook,
            stages=stages,
            pad=pad,
        )

    @property
    def points(self) -> int:
        """P, subvectors per group: the length of the axis that is not cut."""
        return self.rows * self.cols // (self.groups * self.d - self.pad)

    @property
    def codebooks(self) -> int:
        """B, codebooks of one stage."""
        return -(-self.groups // self.groups_per_codebook)

    @property
    def groups_in_sums(self) -> int:
        """Number of groups that codewords are averaged over.

        A padded last group that shares its codebook stays out: its padded coordinates would count
        for the others.
        """
        shares = self.groups - (self.codebooks - 1) * self.groups_per_codebook > 1
        return self.groups - int(self.pad > 0 and shares)

    def one_stage(self) -> Grouping:
        """The same grouping with a single stage."""
        return replace(self, stages=1)
