"""Units of work: runs of points of a tensor, cut independently of the number of threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_core.grouping import Grouping

UNIT_POINTS = 2048  # points whose coordinates stay in the L2 cache together
MAX_SLOTS = 64  # partial sums over all codebooks, so parallel accumulation scales to that
MAX_SLOT_BYTES = 1 << 28  # memory of all partial sums together
BATCHES = 32  # calls into the kernel per pass; the threads take them as they become free

GROUP, START, STOP, BOOK, SLOT = range(5)  # columns of Units.table


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of work of one tensor, each a run of points of one group.

    Attributes:
        table: int64 [units, 5]: group, first point, past-the-end point, packed codebook, slot.
            Units of one slot are adjacent; slot -1 (the last units) takes no part in sums.
        slots: partial sums per codebook; codebook c owns slots [c * slots, (c + 1) * slots).
    """

    table: NDArray[np.int64]
    slots: int

    @classmethod
    def of(cls, grouping: Grouping, *, K: int, width: int, mask_pad: bool = True) -> Units:
        """The units of subvectors ``[G, d, P]``.

        Args:
            grouping: grouping of the subvectors.
            K: codewords per codebook.
            width: float64 sums per codeword.
            mask_pad: whether a padded last group has a packed codebook of its own and stays out
                of the sums where it shares that codebook; else it is a group like the others.
        """
        groups, points = grouping.groups, grouping.points
        codebooks, groups_per_codebook = grouping.codebooks, grouping.groups_per_codebook
        runs = max(1, -(-points // UNIT_POINTS))
        bounds = np.arange(runs + 1, dtype=np.int64) * points // runs
        group = np.repeat(np.arange(groups, dtype=np.int64), runs)
        run = np.tile(np.arange(runs, dtype=np.int64), groups)
        book = group // groups_per_codebook
        fit = MAX_SLOT_BYTES // max(1, codebooks * K * width * 8)
        runs_per_codebook = groups_per_codebook * runs
        slots = int(max(1, min(-(-MAX_SLOTS // codebooks), runs_per_codebook, fit)))
        place = (group - book * groups_per_codebook) * runs + run
        slot = book * slots + place * slots // runs_per_codebook
        if mask_pad and grouping.pad:
            last = group == groups - 1
            book = np.where(last, codebooks, book)
            if grouping.groups_in_sums < groups:
                slot = np.where(last, -1, slot)
        table = np.stack([group, bounds[run], bounds[run + 1], book, slot], axis=1)
        return cls(table=np.ascontiguousarray(table), slots=slots)

    def batches(self, threads: int) -> list[tuple[int, int]]:
        """Ranges of units for one call each, which never cut through a slot."""
        slot = self.table[:, SLOT]
        starts = np.flatnonzero(np.r_[True, (slot[1:] != slot[:-1]) | (slot[1:] < 0)])
        count = min(len(starts), max(BATCHES, 4 * threads))
        cuts = starts[np.arange(count) * len(starts) // count]
        ends: list[Any] = [*cuts[1:], len(slot)]
        return [(int(a), int(b)) for a, b in zip(cuts, ends, strict=True)]
