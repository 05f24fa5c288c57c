"""Gain: a factor on each row scale that makes up for the shrinkage of quantized rows.

A codeword is the mean of its members, so every quantized row is shorter than the row: the error
holds a share of the row itself, ``<w, w - w_hat> = D |w|^2`` for a relative error D. In one layer
that costs little; through many layers the same shrinkage adds up coherently, while the rest of the
error averages out. Scaling each row by ``<w, w> / <w, w_hat>`` takes that share away. It costs no
bytes, and a squared error of D / (1 - D) in place of D (docs/algorithms.md#gain). Where codes
were chosen for the output of the layer, the gain is measured on outputs instead
(``methods.output_aware``): in the weights their errors are meant to be large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.kernels.cpu.row_products import row_products
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.partition import Partition

MAX_GAIN = 4.0
"""Largest gain; rows that would need more are not scaled."""


def gain_of(energy: Tensor, along: Tensor) -> Tensor:
    """The gain ``energy / along`` of every row; 1 where it is undefined or above ``MAX_GAIN``."""
    usable = (along > energy / MAX_GAIN) & (energy > 0)
    return torch.where(usable, energy / along, 1.0)


@dataclass(frozen=True, kw_only=True)
class RowProducts:
    """Inner products of each row x of a core and its reconstruction c, float64 ``[R]``.

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
        subvectors: Tensor,
        codes: Tensor,
        codebooks: Tensor,
        partition: Partition,
        stored: Mapping[str, Tensor],
    ) -> RowProducts:
        """Compute the products for given codes and codebooks.

        Args:
            subvectors: scaled subvectors of the core, float32 ``[G, d, P]``.
            codes: int32 ``[S*G, P]``.
            codebooks: float32 ``[S*B, K, d]``, as they are stored.
            partition: partition of the tensor.
            stored: stored parts that hold its scales.
        """
        p = partition
        weights = torch.zeros(p.groups, p.d, dtype=torch.float64)  # the pad counts 0
        weights.view(-1)[: p.groups * p.d - p.pad] = 1
        if "group_scale" in stored:
            weights *= basis.divisor(stored["group_scale"]).cpu().double().square()[:, None]
        products = row_products(
            subvectors, codes, codebooks, p, weights=weights, across=p.orientation == "input"
        )
        energy, along, decoded = products[: p.rows].cpu().unbind(1)
        return cls(energy=energy, along=along, decoded=decoded)

    def gain(self) -> Tensor:
        """The gain ``<w, w> / <w, w_hat>`` of every row, float64 ``[R]``."""
        return gain_of(self.energy, self.along)

    def relative_error(self, before: Tensor | None, after: Tensor | None) -> float:
        """The relative squared error ||W - W_hat||^2 / ||W||^2.

        Args:
            before: scales ``[R]`` by which the rows of W were divided; None where by none.
            after: scales ``[R]`` that are stored.
        """
        divisor = torch.ones_like(self.energy)
        gain = divisor
        if before is not None and after is not None:
            divisor = basis.divisor(before).cpu().double()
            gain = after.cpu().double() / divisor
        squares = divisor.square()
        error = self.energy - 2 * gain * self.along + gain.square() * self.decoded
        total = float((squares * self.energy).sum())
        return max(0.0, float((squares * error).sum())) / total if total else 0.0
