"""The basis and the scales of one matrix on its way to codewords (``Frame`` is the way back)."""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis import permute, transform
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import column_bits

SWAPS_PER_COLUMN = 64
"""Swaps that the search for a permutation tries, per column."""

WINDOW = 2048
"""Columns that are permuted among themselves."""

ROWS = 4096
"""Rows from which covariances of columns are estimated, at most."""

_CHUNK = 1 << 20
"""Elements that are widened to float64 at a time."""


def choose(
    matrix: Tensor, partition: Partition, spec: QuantSpec, seed: int, hessian: Tensor | None = None
) -> dict[str, Tensor]:
    """The stored parts that say how columns are reordered or the matrix is rotated; often none.

    Args:
        matrix: ``[rows, cols]``.
        partition: of the tensor.
        spec: ``permute`` and ``transform``.
        seed: of the search and of the signs.
        hessian: H ``[cols, cols]`` of the inputs, if known: columns weigh by what they matter.
    """
    p, device = partition, matrix.device
    if spec.transform == "rht":
        sides = {"signs_in": p.cols}
        if p.layout is not Layout.EMBEDDING:  # see expected_parts
            sides["signs_out"] = p.rows
        return {
            name: transform.pack_signs(transform.signs(n, seed + i)).to(device)
            for i, (name, n) in enumerate(sides.items())
        }
    if not spec.permute:
        return {}
    order = _order(matrix, p, seed, None if hessian is None else hessian.diagonal())
    return {"permutation": pack(order[None].cpu(), column_bits(p.cols))[0].to(device)}


def _order(matrix: Tensor, p: Partition, seed: int, importance: Tensor | None) -> Tensor:
    """A permutation of the columns, int64 ``[cols]``, found in windows of columns.

    Time and memory grow with the square of the window; more rows than ``ROWS`` tell little more.
    """
    rows = torch.linspace(0, p.rows - 1, min(p.rows, ROWS), device=matrix.device).round().long()
    width = max(1, WINDOW // p.d) * p.d
    orders = []
    for first in range(0, p.cols, width):
        some = slice(first, min(first + width, p.cols))
        weights = None if importance is None else importance[some]
        moments = permute.column_moments(matrix[:, some][rows], weights)
        swaps = SWAPS_PER_COLUMN * len(moments.mean)
        found = permute.search(moments, p, swaps=swaps, seed=seed + first)
        orders.append(found.perm + first)
    return torch.cat(orders)


def checked_rms(matrix: Tensor, name: str) -> Tensor:
    """``row_rms`` of a weight as the checkpoint has it.

    Raises:
        SpecError: the weight holds NaN or infinite values.
    """
    rms = row_rms(matrix)
    if not bool(torch.isfinite(rms).all()):
        raise SpecError(f"tensor {name!r} holds NaN or infinite values; repair the checkpoint")
    return rms


def row_rms(matrix: Tensor) -> Tensor:
    """Root mean square of each row, float64 ``[rows]``, a few rows at a time."""
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    squares = [chunk.double().square().mean(dim=1) for chunk in torch.split(matrix, step)]
    return torch.cat(squares).sqrt()


def scaled_subvectors(matrix: Tensor, partition: Partition, scale: Tensor | None) -> Tensor:
    """Float32 subvectors ``[groups, d, points]`` of the rows over their scales ``[rows]``.

    Cut in the original dtype and scaled in place, so that one float32 copy exists, not three.
    """
    p = partition
    points = p.to_subvectors(matrix).to(torch.float32, copy=True)
    if scale is None:
        return points
    if p.orientation == "input":
        return points.div_(divisor(scale))
    by_row = torch.nn.functional.pad(divisor(scale), (0, p.pad), value=1.0)
    return points.div_(by_row.view(p.groups, p.d, 1))


def scale_groups(points: Tensor) -> Tensor:
    """Divide each group of subvectors ``[groups, d, points]`` by its RMS, in place.

    Returns:
        The scales, float16 ``[groups]``.
    """
    rms = points.square().mean(dim=(1, 2), dtype=torch.float64).sqrt()
    scale = rms.clamp(max=torch.finfo(torch.float16).max).half()
    points.div_(divisor(scale)[:, None, None])
    return scale


def divisor(scale: Tensor) -> Tensor:
    """The scales as float32 divisors: zeros divide by one."""
    values = scale.float()
    return torch.where(values == 0, 1.0, values)
