"""Moment: the running mean of x x^T, or of its diagonal, over the input rows x of a layer.

The sums are the same for any number of threads: where a product has few columns, BLAS shares
rows out to threads once there are some hundred of them, so that fewer are multiplied at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096
"""Rows whose products are summed in float32, before the sum is added up in float64."""
_COLUMNS = 1024
"""Columns of one block of the triangle."""
_ROWS_OF_NARROW = 128
"""The same as ``_ROWS`` for blocks of fewer columns."""


def add_products(total: Tensor, a: Tensor, b: Tensor, *, upper: bool = False) -> None:
    """Add a^T b to float64 sums, in the same order for any number of threads.

    Args:
        total: ``[m, n]``, changed in place.
        a: ``[rows, m]`` of any floating dtype.
        b: ``[rows, n]``.
        upper: leave out the blocks below the diagonal.
    """
    cols = a.shape[1]
    for first in range(0, cols, _COLUMNS):
        last = min(first + _COLUMNS, cols)
        start = first if upper else 0
        rows = _ROWS if last - first == _COLUMNS else _ROWS_OF_NARROW
        for some, others in zip(torch.split(a, rows), torch.split(b, rows), strict=True):
            left, right = some[:, first:last], others[:, start:]
            total[first:last, start:] += left.float().T @ right.float()


class Moment:
    """Uncentered second moment H = E[x x^T] of rows x, accumulated in float64.

    See docs/algorithms.md#assignment.

    Attributes:
        cols: length of a row.
        diagonal: whether only the squares are kept: E[x_i^2], ``[cols]``.
        count: number of rows seen, each times its weight since ``decayed``.
    """

    def __init__(
        self, cols: int, *, diagonal: bool = False, device: torch.device | str | None = None
    ) -> None:
        """Start with no rows.

        Args:
            cols: length of a row.
            diagonal: keep only the squares.
            device: device of the sums; that of the first rows by default.
        """
        self.cols, self.diagonal, self.count = cols, diagonal, 0.0
        self._device = device
        self._sum: Tensor | None = None  # float64 [cols, cols], upper block triangle, or [cols]

    def update(self, x: Tensor) -> None:
        """Add rows ``[n, cols]`` of any floating dtype."""
        total = self._sums(x.device)
        for chunk in torch.split(x.detach(), _ROWS):
            rows = chunk.to(total.device, torch.float32)
            if self.diagonal:
                total += rows.square().sum(dim=0)
            else:  # H is symmetric: half the products do
                add_products(total, rows, rows, upper=True)
        self.count += len(x)

    def update_counts(self, index: Tensor) -> None:
        """Add one-hot rows, given by the place of their one: int ``[...]``; diagonal only."""
        total = self._sums(index.device)
        counts = torch.bincount(index.detach().reshape(-1).long(), minlength=self.cols)
        total += counts.to(total.device)
        self.count += index.numel()

    def decayed(self, rho: float) -> Moment:
        """Multiply the weight of all rows seen so far by ``rho``, in place; for moving averages.

        With one ``decayed(rho)`` before each update the mean forgets at that rate, and needs no
        correction at its start.
        """
        if self._sum is not None:
            self._sum *= rho
        self.count *= rho
        return self

    def mean(self) -> Tensor:
        """E[x x^T], float32 ``[cols, cols]``, exactly symmetric; or its diagonal ``[cols]``.

        Zeros where no row was seen.
        """
        total = self._sums(torch.device("cpu"))
        mean = (total / max(self.count, 1e-300)).float()
        if self.diagonal:
            return mean
        for first in range(0, self.cols, _COLUMNS):
            last = first + _COLUMNS
            mean[last:, first:last] = mean[first:last, last:].T
            block = mean[first:last, first:last]  # a product x^T x is symmetric up to rounding
            block.copy_(block.triu() + block.triu(1).T)
        return mean

    def totals(self) -> Tensor:
        """The counts of ``update_counts``, float32 ``[cols]``; only with ``diagonal``."""
        return self._sums(torch.device("cpu")).float()

    def _sums(self, device: torch.device) -> Tensor:
        if self._sum is None:
            shape = (self.cols,) if self.diagonal else (self.cols, self.cols)
            self._sum = torch.zeros(shape, dtype=torch.float64, device=self._device or device)
        return self._sum


def moment_bytes(cols: int, diagonal: bool) -> int:
    """Size of a moment in memory, in bytes."""
    return 8 * cols * (1 if diagonal else cols)
