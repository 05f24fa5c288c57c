"""Rounding to a grid per group of weights: the baseline of ``suites/methods.py``.

``b`` bits per weight, and a float16 scale and minimum per group of adjacent columns of a row. The
range of a group is shrunk as far as lowers its squared error. With statistics the columns are
rounded one by one, the later ones making up for the error of the earlier (OPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = tuple((bits, group) for bits in (1, 2, 3, 4) for group in (32, 64, 128, 0))
"""Bits and weights per group; 0 is a whole row."""


@dataclass(frozen=True)
class Rounding:
    """Bits per weight and weights per group; a group of 0 is a whole row."""

    bits: int
    group: int

    def nbytes(self, rows: int, cols: int) -> int:
        """What a matrix takes, scales and minima included."""
        groups = rows * -(-cols // (self.group or cols))
        return -(-rows * cols * self.bits // 8) + 4 * groups

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and scale of every weight's group, each like ``weight`` ``[rows, cols]``.

        Raises:
            ValueError: a row does not split into whole groups.
        """
        rows, cols = weight.shape
        group = self.group or cols
        if cols % group:
            raise ValueError(f"{cols} columns are not whole groups of {group}")
        parts = weight.reshape(rows, -1, group)
        low, high = parts.amin(2, keepdim=True), parts.amax(2, keepdim=True)
        best, least = (low, high - low), torch.full_like(low, torch.inf)
        for shrink in torch.linspace(1, 0.4, 13).tolist():
            middle, half = (low + high) / 2, (high - low) / 2 * shrink
            floor = (middle - half).half().float()
            scale = (2 * half / (2**self.bits - 1)).half().float().clamp_min(1e-7)
            error = (self._round(parts, floor, scale) - parts).square().sum(2, keepdim=True)
            better = error < least
            best = (torch.where(better, floor, best[0]), torch.where(better, scale, best[1]))
            least = torch.minimum(error, least)
        floor, scale = (value.expand_as(parts).reshape(rows, cols) for value in best)
        return floor, scale

    def nearest(self, weight: Tensor) -> Tensor:
        """Every weight ``[rows, cols]`` rounded by itself."""
        return self._round(weight, *self.grid(weight))

    def feedback(self, weight: Tensor, hessian: Tensor, damping: float = 0.01) -> Tensor:
        """Column by column, in the order of falling energy, with error feedback.

        Args:
            weight: ``[rows, cols]``.
            hessian: E[x x^T] ``[cols, cols]``.
            damping: added to its diagonal, in units of its mean.
        """
        floor, scale = self.grid(weight)
        order = hessian.diagonal().argsort(descending=True, stable=True)
        H = hessian[order][:, order].double()
        H.diagonal().add_(damping * H.diagonal().mean())
        upper = torch.linalg.cholesky(torch.linalg.inv(H), upper=True).float()
        rest, rounded = weight[:, order].clone(), torch.empty_like(weight)
        for step, column in enumerate(order.tolist()):
            now = self._round(rest[:, step], floor[:, column], scale[:, column])
            rounded[:, column] = now
            error = (rest[:, step] - now) / upper[step, step]
            rest[:, step:] -= error[:, None] * upper[step, step:]
        return rounded

    def _round(self, weight: Tensor, floor: Tensor, scale: Tensor) -> Tensor:
        return ((weight - floor) / scale).round().clamp(0, 2**self.bits - 1) * scale + floor
