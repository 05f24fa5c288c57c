"""Inner products of each row of a core and its reconstruction: numba on the CPU, torch elsewhere.

From ``x.x``, ``x.c`` and ``c.c`` of every row follow its squared error and the scale that fits it.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.threads import spread

_BLOCK = 1024
"""Points of one task, whose sums stay in the cache."""


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _by_point(points, codes, books, groups_per_codebook, weights, out, first, last):  # type: ignore[no-untyped-def]
    """Add sums over groups and coordinates of blocks first..last to float64 out [P, 3]."""
    groups, d, count = points.shape
    stages = codes.shape[0] // groups
    per_stage = books.shape[0] // stages
    for block in range(first, last):
        begin, end = block * _BLOCK, min((block + 1) * _BLOCK, count)
        for g in range(groups):
            for i in range(d):
                weight = weights[g, i]
                for n in range(begin, end):
                    x = np.float64(points[g, i, n])
                    c = 0.0
                    for s in range(stages):
                        book = s * per_stage + g // groups_per_codebook
                        c += books[book, codes[s * groups + g, n], i]
                    out[n, 0] += weight * (x * x)
                    out[n, 1] += weight * (x * c)
                    out[n, 2] += weight * (c * c)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _by_coordinate(points, codes, books, groups_per_codebook, weights, out, first, last):  # type: ignore[no-untyped-def]
    """Write sums over points of groups first..last to float64 out [G * d, 3]."""
    groups, d, count = points.shape
    stages = codes.shape[0] // groups
    per_stage = books.shape[0] // stages
    for g in range(first, last):
        for i in range(d):
            xx = xc = cc = 0.0
            for n in range(count):
                x = np.float64(points[g, i, n])
                c = 0.0
                for s in range(stages):
                    book = s * per_stage + g // groups_per_codebook
                    c += books[book, codes[s * groups + g, n], i]
                xx += x * x
                xc += x * c
                cc += c * c
            row = g * d + i
            out[row, 0], out[row, 1], out[row, 2] = xx, xc, cc
            out[row] *= weights[g, i]


def row_products(
    subvectors: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    grouping: Grouping,
    *,
    weights: Tensor,
    across: bool,
) -> Tensor:
    """The products ``x.x``, ``x.c``, ``c.c`` of every row x of a core and its reconstruction c.

    Args:
        subvectors: of the core, float32 ``[G, d, P]``.
        codes: int32 ``[S*G, P]``.
        codebooks: float32 ``[S*B, K, d]``.
        grouping: grouping of the subvectors.
        weights: weight of a product at each coordinate, float64 ``[G, d]``; zero in the padding.
        across: a row crosses all groups at one point (subvectors along the inputs); otherwise it is
            one coordinate of one group.

    Returns:
        Float64 ``[P, 3]``, or ``[G * d, 3]``.
    """
    groups, d, count = subvectors.shape
    groups_per_codebook = grouping.groups_per_codebook
    if subvectors.device.type != "cpu":
        return _by_torch(subvectors, codes, codebooks, groups_per_codebook, weights, across)
    out = np.zeros((count if across else groups * d, 3))
    inputs = (subvectors.numpy(), codes.numpy(), codebooks.numpy(), groups_per_codebook)
    arrays = (*inputs, weights.numpy(), out)
    kernel, tasks = (_by_point, -(-count // _BLOCK)) if across else (_by_coordinate, groups)
    spread(lambda first, last: kernel(*arrays, first, last), tasks, subvectors.numel())
    return torch.from_numpy(out)


def _by_torch(
    subvectors: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    groups_per_codebook: int,
    weights: Tensor,
    across: bool,
) -> Tensor:
    """See ``row_products``."""
    groups, d, count = subvectors.shape
    stages = len(codes) // groups
    per_stage = len(codebooks) // stages
    weights = weights.to(subvectors.device)
    out = torch.zeros(count if across else groups * d, 3, device=subvectors.device).double()
    for g in range(groups):
        x = subvectors[g].double()  # [d, P]
        c = torch.zeros_like(x)
        for s in range(stages):
            c += codebooks[s * per_stage + g // groups_per_codebook][codes[s * groups + g].long()].T
        sums = torch.stack([x * x, x * c, c * c], dim=-1) * weights[g][:, None, None]
        if across:
            out += sums.sum(0)
        else:
            out[g * d : (g + 1) * d] = sums.sum(1)
    return out
