"""Nearest codewords and cluster sums on the CPU: compiled loops over units, on several threads.

Which points are summed together is fixed by the shapes alone, so results do not depend on the
number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu import nearest_jit as cpu_jit
from dpq_core.kernels.cpu import sums_jit as cpu_sums
from dpq_core.kernels.cpu.threads import spread, thread_count
from dpq_core.kernels.cpu.units import Units

MAX_FAST_RESOLUTION = 1024.0
"""Ratio of |x|^2 to the squared distance beyond which sum (x - c)^2 is compared (d <= 3 only).

The score |c|^2 / 2 - x.c loses as many bits as |x|^2 has over the distance; the ratio is about
K^(2/d) for a codebook that fills space.
"""


class CPULloyd:
    """The passes of dpq_core.kernels.Lloyd; arguments as in dpq_core.kernels.lloyd."""

    def __init__(
        self, points: Tensor, grouping: Grouping, *, K: int, weights: Tensor | None = None
    ) -> None:
        self.points: NDArray[np.float32] = points.numpy()
        G, d, P = self.points.shape
        self.K, self.grouping, self.books = K, grouping, grouping.codebooks
        self.weights = np.empty((0, 0), np.float32) if weights is None else weights.numpy()
        self.width = d + 1 + (weights is not None)
        self.units = Units.of(grouping, K=K, width=self.width)
        self.codes: NDArray[np.int32] = np.full((G, P), -1, np.int32)
        self._sums: NDArray[np.float64] = np.empty((0, 0, 0))
        self._steps = G * P * K
        threads = thread_count(len(self.units.table), self._steps)
        self._batches = [self.units.table[a:b] for a, b in self.units.batches(threads)]

    def moments(self) -> Tensor:
        """See dpq_core.kernels.Lloyd."""
        width = 2 * self.points.shape[1] + 1
        out = np.zeros((self.books, self.units.slots, width))
        flat = out.reshape(-1, width)
        self._run(lambda units: cpu_sums.moments(units, self.points, self.weights, flat))
        return torch.from_numpy(_fold(out))

    def assign(self, codebooks: Tensor) -> int:
        """See dpq_core.kernels.Lloyd."""
        return self._pass(codebooks, np.empty((0, 0, 0)))

    def step(self, codebooks: Tensor) -> tuple[int, Tensor]:
        """See dpq_core.kernels.Lloyd; the sums are overwritten by the next call."""
        if self._sums.size == 0:
            self._sums = np.zeros((self.books * self.units.slots, self.K, self.width))
        else:
            self._sums.fill(0)
        moved = self._pass(codebooks, self._sums)
        per_book = self._sums.reshape(self.books, self.units.slots, self.K, self.width)
        return moved, torch.from_numpy(_fold(per_book))

    def result(self) -> Tensor:
        """See dpq_core.kernels.Lloyd."""
        return torch.from_numpy(self.codes)

    def distances(self, codebooks: Tensor) -> Tensor:
        """Squared distances float32 [G, P] of the points to the codewords of ``codes``."""
        out = np.empty(self.codes.shape, np.float32)
        books = np.ascontiguousarray(codebooks.numpy())
        cut = self.grouping.groups_per_codebook, self.grouping.pad
        self._run(
            lambda units: cpu_sums.distances(units, self.points, books, self.codes, *cut, out)
        )
        return torch.from_numpy(out)

    def _pass(self, codebooks: Tensor, sums: NDArray[np.float64]) -> int:
        """Assign and, unless ``sums`` is empty, add up clusters; returns how many codes changed."""
        d = self.points.shape[1]
        exact = int(d <= cpu_jit.MAX_EXACT_D and self.K ** (2 / d) > MAX_FAST_RESOLUTION)
        packed, centres = self._pack(np.ascontiguousarray(codebooks.numpy()), exact)
        block = cpu_jit.LANES * cpu_jit.registers(d)
        data, books = (
            (self.points, self.weights),
            (packed, centres, self.grouping.pad, exact, block),
        )
        dims = cpu_jit.unrolled_dims(d)
        return self._run(
            lambda units: cpu_jit.run_units(units, data, books, self.codes, sums, dims)
        )

    def _pack(
        self, books: NDArray[np.float32], exact: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Packed codebooks and their centres; a padded group gets a copy that ignores the pad."""
        B, K, d = books.shape
        step = 1 if d <= cpu_jit.MAX_UNROLLED_D else cpu_jit.TILE
        pad = self.grouping.pad
        packed = np.empty((B + (pad > 0), -(-K // step) * step, d + 1), np.float32)
        centres = np.empty((len(packed), d), np.float32)
        cpu_sums.pack_codebooks(books, pad, exact, packed, centres)
        return packed, centres

    def _run(self, kernel: Callable[[Any], int]) -> int:
        """Call the kernel on every batch of units; returns the sum of its results."""
        results = [0] * len(self._batches)

        def run(first: int, last: int) -> None:
            for batch in range(first, last):
                results[batch] = kernel(self._batches[batch])

        spread(run, len(self._batches), self._steps)
        return sum(results)


def _fold(partial: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up the slots (axis 1) of each codebook in ascending order."""
    total = partial[:, 0]
    for slot in range(1, partial.shape[1]):
        total = total + partial[:, slot]
    return total


def assign(points: Tensor, codebooks: Tensor, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """See dpq_core.kernels.assign."""
    lloyd = CPULloyd(points, grouping, K=codebooks.shape[1])
    lloyd.assign(codebooks)
    return lloyd.result(), lloyd.distances(codebooks)
