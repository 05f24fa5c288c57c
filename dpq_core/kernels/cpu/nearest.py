"""Exact search for the nearest of very many centres, in less time than comparing all for small d.

A pool has 5,000 to 65,536 vectors and is searched for the nearest of 70,000 to 260,000 codewords,
again and again. Both are put in spatial order once; a run of points is then compared only with the
runs of centres whose bounding boxes are near enough (docs/algorithms.md#nearest-search).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.kernels.cpu.threads import spread

MAX_BOX_D = 5
"""Largest d for boxes: beyond, nearly all boxes are near each other."""

MIN_CENTRES = 512
"""Fewest points and centres for boxes: below, they cost more than they save."""


class Nearest:
    """Search for the nearest centres of the same points, again and again.

    Args:
        points: float32 [n, d], finite.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self._order: Tensor | None = None

    def move(self, points: Tensor) -> None:
        """Give the points new coordinates; their spatial order is kept, good or bad."""
        self.points = points

    def __call__(self, centres: Tensor, guess: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Index int64 [n] and squared distance float32 [n] of the centre nearest to each point.

        Args:
            centres: float32 [V, d], on the device of the points.
            guess: int64 [n], centres that are probably near; changes nothing but the time, and
                which one of several centres at the same distance is named.
        """
        n, d = self.points.shape
        on_cpu = self.points.device.type == "cpu"
        if not on_cpu or d > MAX_BOX_D or len(centres) < MIN_CENTRES or n < MIN_CENTRES:
            codes, squared = kernels.assign(self.points.T[None].contiguous(), centres[None])
            return codes[0].long(), squared[0]
        return self._by_boxes(centres, guess)

    def _by_boxes(self, centres: Tensor, guess: Tensor | None) -> tuple[Tensor, Tensor]:
        """See ``__call__``; on the CPU."""
        from dpq_core.kernels.cpu import boxes

        if self._order is None:
            run = boxes.POINTS
            self._order = torch.from_numpy(boxes.spatial_order(self.points.numpy(), run))
        order, points = self._order, self.points[self._order]
        centre_order = torch.from_numpy(boxes.spatial_order(centres.numpy(), boxes.CENTRES))
        packed = centres[centre_order]
        n, d = points.shape
        if guess is None:
            best = torch.full((n,), float(boxes.FAR))
            place = torch.zeros(n, dtype=torch.int32)
        else:
            inverse = torch.empty_like(centre_order)
            inverse[centre_order] = torch.arange(len(centres))
            place = inverse[guess[order]].int()
            best = (points - packed[place.long()]).square().sum(1)
        x, c = points.numpy(), packed.numpy()
        sides = (x, *boxes.bounds(x, boxes.POINTS)), (c, *boxes.bounds(c, boxes.CENTRES))
        out = best.numpy(), place.numpy()
        runs = -(-n // boxes.POINTS)
        dims = boxes.dimensions(d)
        spread(lambda first, last: boxes.search(*sides, dims, *out, first, last), runs, n * 64 * d)
        index, squared = torch.empty(n, dtype=torch.int64), torch.empty(n)
        index[order] = centre_order[place.long()]
        squared[order] = best
        return index, squared


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centres of points that are searched once; see ``Nearest``."""
    return Nearest(points)(centres)
