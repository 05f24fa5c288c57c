"""Choice of the basis and the scales of one matrix before it is quantized."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis import permute, transform
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import column_bits

SWAPS_PER_COLUMN = 64
"""Swaps per column that the search for a permutation tries."""

WINDOW = 2048
"""Columns of one window; columns are permuted within windows."""

ROWS = 4096
"""Rows from which covariances of columns are estimated, at most."""

_CHUNK = 1 << 20
"""Elements that are widened to float64 at a time."""


def choose(
    matrix: Tensor, partition: Partition, spec: QuantSpec, seed: int, hessian: Tensor | None = None
) -> dict[str, Tensor]:
    """Choose the permutation or the rotation of a matrix; returns the stored parts that say it.

    Args:
        matrix: ``[R, C]``.
        partition: partition of the tensor.
        spec: its ``permute`` and ``transform`` are read.
        seed: seed of the search and of the signs.
        hessian: H ``[C, C]`` of the inputs, whose diagonal weighs the columns; None weighs all
            columns alike.
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
    importance = None if hessian is None else hessian.diagonal()
    permutation = _permutation(matrix, p, seed, importance)
    return {"permutation": pack(permutation[None].cpu(), column_bits(p.cols))[0].to(device)}


def _permutation(matrix: Tensor, p: Partition, seed: int, importance: Tensor | None) -> Tensor:
    """A permutation of the columns, int64 ``[C]``, searched window by window.

    Time and memory grow with the square of the window; more rows than ``ROWS`` tell little more.
    """
    rows = torch.linspace(0, p.rows - 1, min(p.rows, ROWS), device=matrix.device).round().long()
    width = max(1, WINDOW // p.d) * p.d
    windows = []
    for first in range(0, p.cols, width):
        columns = slice(first, min(first + width, p.cols))
        weights = None if importance is None else importance[columns]
        moments = permute.column_moments(matrix[:, columns][rows], weights)
        swaps = SWAPS_PER_COLUMN * len(moments.mean)
        result = permute.search(moments, p, swaps=swaps, seed=seed + first)
        windows.append(result.perm + first)
    return torch.cat(windows)


_LARGEST = 1e12
"""Largest weight that is quantized: sums of squares and of their products stay in float32."""


def checked_rms(matrix: Tensor, partition: Partition, name: str) -> Tensor:
    """Root mean square of each row of a weight, after checking that it can be quantized.

    Args:
        matrix: the weight ``[R, C]``.
        partition: of the weight.
        name: of the tensor.

    Raises:
        SpecError: the weight holds NaN, infinite or absurdly large values.
    """
    rms = row_rms(matrix)
    if not bool(torch.isfinite(rms).all()) or float(rms.max()) * matrix.shape[1] ** 0.5 > _LARGEST:
        _refuse_values(matrix, partition, name)
    return rms


def _refuse_values(matrix: Tensor, partition: Partition, name: str) -> None:
    """Refuse a weight for its first value that is not finite or too large, if there is any.

    Raises:
        SpecError: there is one.
    """
    damaged = ~torch.isfinite(matrix) | (matrix.abs() > _LARGEST)
    places = partition.from_matrix(damaged.to(torch.uint8)).nonzero()
    if not len(places):
        return
    value = float(partition.from_matrix(matrix)[tuple(places[0])])
    where = f"index {places[0].tolist()} is {value:g}"
    if not math.isfinite(value):
        raise SpecError(
            f"tensor {name!r} holds NaN or infinite values; repair the checkpoint ({where})"
        )
    raise SpecError(
        f"tensor {name!r} holds values too large to be quantized; repair the checkpoint, or keep "
        f"this tensor as it is ({where})"
    )


def row_rms(matrix: Tensor) -> Tensor:
    """Root mean square of each row, float64 ``[R]``, computed a few rows at a time."""
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    squares = [chunk.double().square().mean(dim=1) for chunk in torch.split(matrix, step)]
    return torch.cat(squares).sqrt()


def scaled_subvectors(matrix: Tensor, partition: Partition, scale: Tensor | None) -> Tensor:
    """Subvectors float32 ``[G, d, P]`` of a matrix whose rows are divided by scales ``[R]``.

    The matrix is cut in its dtype and scaled in place, so that one float32 copy exists, not three.
    """
    p = partition
    subvectors = p.to_subvectors(matrix).to(torch.float32, copy=True)
    if scale is None:
        return subvectors
    if p.orientation == "input":
        return subvectors.div_(divisor(scale))
    by_row = torch.nn.functional.pad(divisor(scale), (0, p.pad), value=1.0)
    return subvectors.div_(by_row.view(p.groups, p.d, 1))


def scale_groups(subvectors: Tensor) -> Tensor:
    """Divide each group of subvectors ``[G, d, P]`` by its RMS, in place.

    Returns:
        The scales, float16 ``[G]``.
    """
    rms = subvectors.square().mean(dim=(1, 2), dtype=torch.float64).sqrt()
    scale = rms.clamp(max=torch.finfo(torch.float16).max).half()
    subvectors.div_(divisor(scale)[:, None, None])
    return scale


def divisor(scale: Tensor) -> Tensor:
    """Scales as float32 divisors, with 1 in place of 0."""
    values = scale.float()
    return torch.where(values == 0, 1.0, values)
