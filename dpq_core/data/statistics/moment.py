"""Moment: the running mean of x x^T, or of its diagonal, over the input rows x of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096
"""Rows whose products are summed in float32, before the sum is added up in float64."""
_COLUMNS = 1024
"""Columns of one block of the triangle."""


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
                continue
            for first in range(0, self.cols, _COLUMNS):  # H is symmetric: half the products do
                last = first + _COLUMNS
                total[first:last, first:] += rows[:, first:last].T @ rows[:, first:]
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
