"""Row scales that make quantized rows as long, along themselves, as the rows were.

A codeword is the mean of its members, so every quantized row is shorter than the row: the error
holds a share of the row itself, ``<w, w - w_hat> = D |w|^2`` for a relative error D. In one layer
that costs little; through many layers the same shrinkage adds up coherently, while the rest of the
error averages out. Scaling each row by ``<w, w> / <w, w_hat>`` takes that share away. It costs no
bytes, and a squared error of D / (1 - D) in place of D. Codes chosen for the output of the layer
are measured there (``outputs``): in the weights their errors are meant to be large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.kernels.cpu.error import row_products
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.partition import Partition

MAX_GAIN = 4.0
"""Rows whose codewords hardly point their way are not blown up beyond this."""


def gain_of(energy: Tensor, along: Tensor) -> Tensor:
    """``energy / along`` of every row, 1 where that has no meaning or is too much."""
    useful = (along > energy / MAX_GAIN) & (energy > 0)
    return torch.where(useful, energy / along, 1.0)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inner products of the rows of a core with their reconstructions, float64 ``[rows]``.

    Attributes:
        energy: x.x.
        along: x.c.
        decoded: c.c.
    """

    energy: Tensor
    along: Tensor
    decoded: Tensor

    @classmethod
    def of(
        cls,
        points: Tensor,
        codes: Tensor,
        books: Tensor,
        p: Partition,
        stored: Mapping[str, Tensor],
    ) -> Rows:
        """Measure a code.

        Args:
            points: scaled subvectors, float32 ``[groups, d, points]``.
            codes: int32 ``[stages * groups, points]``.
            books: float32 ``[stages * codebooks, K, d]``, as they are stored.
            p: partition of the tensor.
            stored: its scales.
        """
        weights = torch.zeros(p.groups, p.d, dtype=torch.float64)  # the pad counts 0
        weights.view(-1)[: p.groups * p.d - p.pad] = 1
        if "group_scale" in stored:
            weights *= basis.divisor(stored["group_scale"]).cpu().double().square()[:, None]
        found = row_products(
            points, codes, books, p, weights=weights, across=p.orientation == "input"
        )
        energy, along, decoded = found[: p.rows].cpu().unbind(1)
        return cls(energy=energy, along=along, decoded=decoded)

    def gain(self) -> Tensor:
        """``<w, w> / <w, w_hat>`` of every row."""
        return gain_of(self.energy, self.along)

    def relative_error(self, before: Tensor | None, after: Tensor | None) -> float:
        """||W - W_hat||^2 / ||W||^2.

        Args:
            before: scales ``[rows]`` by which the rows of W were divided; None: by none.
            after: scales with which they are stored.
        """
        old = torch.ones_like(self.energy)
        gain = old
        if before is not None and after is not None:
            old = basis.divisor(before).cpu().double()
            gain = after.cpu().double() / old
        squares = old.square()
        wrong = self.energy - 2 * gain * self.along + gain.square() * self.decoded
        total = float((squares * self.energy).sum())
        return max(0.0, float((squares * wrong).sum())) / total if total else 0.0
