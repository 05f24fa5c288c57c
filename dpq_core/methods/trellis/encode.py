"""Encoding of one weight by paths through a trellis (docs/algorithms.md#trellis)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.kernels.cpu.threads import spread
from dpq_core.methods.assignment.assign import AssignResult
from dpq_core.methods.assignment.compiled import whole_tiles
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.data_free import Encoded
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.trellis.rates import Allocation, allocate
from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.basis.gain import RowProducts
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import frame_of


def encode(
    subvectors: Tensor,
    partition: Partition,
    spec: QuantSpec,
    stored: Mapping[str, Tensor],
    statistics: InputStatistics,
) -> Encoded:
    """Encode one weight.

    Args:
        subvectors: of the weight in its basis, rows divided by their scales; float32 ``[G, 2, P]``.
        partition: all sizes.
        spec: its damping and sweeps are read.
        stored: parts that hold the basis and the row scales.
        statistics: statistics of the layer's inputs.
    """
    p, frame = partition, frame_of(partition, stored)
    by_row = torch.ones(p.rows)
    if frame.row_scale is not None:
        by_row = basis.divisor(frame.row_scale).cpu().square()
    core = p.from_subvectors(subvectors).contiguous()
    outliers = _outliers(core)
    outliers.take_from(core)
    energy = _energy(core, p)
    objective: Objective | None = None
    gain: Tensor | None = None
    errors: tuple[float, ...] = ()
    if statistics.hessian is None or spec.assignment.method == "l2":
        if statistics.row_weight is not None:
            by_row = by_row * statistics.row_weight.cpu().float()
        allocation = allocate(energy, p.row_bits, p.K, None)
        codes = _nearest(p.to_subvectors(core), p, allocation, by_row)
        core_hat = p.from_subvectors(_words(codes, allocation, p.K)).contiguous().to(core.device)
    else:
        objective = Objective.of(
            core,
            frame.rotate_hessian(statistics.hessian.to(core.device).float()),
            p,
            damping=spec.assignment.damping,
            row_weight=by_row.to(core.device),
        )
        allocation = allocate(energy, p.row_bits, p.K, objective.hessian)
        result = _improve(objective, allocation, p.K, spec.assignment.sweeps)
        codes, core_hat = result.codes, result.core_hat
    outliers.add_to(core)
    outliers.add_to(core_hat)
    if objective is not None:
        objective = replace(objective, core=core)
        zero_error = objective.error(torch.zeros_like(core))
        errors = tuple(error / zero_error for error in result.errors) if zero_error else ()
        gain = objective.gains(core_hat)
    scale = allocation.divisors.repeat_interleave(p.d)[: p.cols].to(core.device)
    parts = {
        "codes": trellis.pack_windows(codes, allocation.rates),
        "rates": trellis.pack_rates(allocation.rates),
        "group_scale": allocation.scales,
        "outliers": outliers.places.int(),
        "outlier_values": (outliers.values / scale[outliers.places % p.cols]).half(),
    }
    return Encoded(
        parts={name: part.to(core.device) for name, part in parts.items()},
        products=RowProducts(
            energy=_row_sums(core, core),
            along=_row_sums(core, core_hat),
            decoded=_row_sums(core_hat, core_hat),
        ),
        gain=gain,
        errors=errors,
    )


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """The weights of one core that are stored apart.

    Attributes:
        places: indices into the flattened core, ascending, int64 ``[N]``.
        values: their values, float32 ``[N]``.
    """

    places: Tensor
    values: Tensor

    def take_from(self, core: Tensor) -> None:
        """Put zeros in their places, in place; the core is contiguous."""
        core.view(-1)[self.places] = 0

    def add_to(self, core: Tensor) -> None:
        """Add them to a core or to its reconstruction, in place; it is contiguous."""
        core.view(-1)[self.places] += self.values


def _outliers(core: Tensor) -> Outliers:
    """The weights that are largest in units of their column's root mean square."""
    columns = core.square().mean(0, dtype=torch.float64).sqrt().float()
    size = (core.abs() / basis.divisor(columns)).flatten()
    places = size.topk(trellis.outlier_count(*core.shape)).indices.sort().values
    return Outliers(places=places, values=core.flatten()[places])


def _energy(core: Tensor, partition: Partition) -> Tensor:
    """Mean square of each group of a core ``[R, C]``: float64 ``[G]``."""
    squares = core.square().sum(0, dtype=torch.float64).cpu()
    padded = torch.nn.functional.pad(squares, (0, partition.pad))
    return padded.view(-1, trellis_books.WIDTH).sum(1) / (trellis_books.WIDTH * len(core))


def _row_sums(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of the rows of two matrices, float64 ``[R]``."""
    return (left * right).sum(1, dtype=torch.float64).cpu()


def _nearest(
    subvectors: Tensor, partition: Partition, allocation: Allocation, weights: Tensor
) -> Tensor:
    """Windows of the nearest paths, int32 ``[G, P]``, for weights of the rows ``[R]``."""
    from dpq_core.kernels.cpu import trellis_path  # numba loads on first use

    p = partition
    codes = torch.empty(p.groups, p.points, dtype=torch.int32)
    arrays = (
        (subvectors.cpu() / allocation.divisors[:, None, None]).numpy(),
        weights.float().numpy(),
        tuple(book.numpy() for book in trellis_books.by_coordinate(p.K)),
        allocation.rates.numpy(),
        codes.numpy(),
    )
    tiles = -(-p.points // trellis_books.RESTART)
    steps = codes.numel() * p.K
    spread(lambda first, last: trellis_path.nearest(first, last, *arrays), tiles, steps)
    return codes


def _words(codes: Tensor, allocation: Allocation, K: int) -> Tensor:
    """The scaled codewords of windows int32 ``[G, P]``: float32 ``[G, 2, P]``."""
    books = trellis_books.codebooks(K)
    words = torch.empty(len(codes), trellis_books.WIDTH, codes.shape[1])
    for j, rate in enumerate(allocation.rates.tolist()):
        words[j] = books[rate][codes[j].long()].T
    return words.mul_(allocation.divisors[:, None, None])


def _improve(objective: Objective, allocation: Allocation, K: int, sweeps: int) -> AssignResult:
    """Windows by error feedback, then by coordinate descent; see ``AssignResult``.

    Its errors are those after error feedback and after each sweep.
    """
    grouping, hessian = objective.grouping, objective.hessian
    codes = torch.empty(grouping.groups, grouping.points, dtype=torch.int32)
    core_hat = torch.empty_like(objective.core)
    errors = [0.0] * (1 + sweeps)
    for rows in objective.chunks():
        chunk = _Chunk(objective, rows, allocation, K)
        errors[0] += chunk.feed_back()
        for sweep in range(sweeps):
            errors[1 + sweep] += chunk.descend()
        count = rows.stop - rows.start
        codes[hessian.order.cpu(), rows] = chunk.codes[:, :count]
        decoded = (chunk.columns - chunk.residual)[:, :count]
        core_hat[rows] = objective.by_row(decoded.to(core_hat.device), rows)
    scaled = tuple(error * hessian.scale for error in errors)
    return AssignResult(codes=codes, core_hat=core_hat, errors=scaled)


def column_energy(matrix: Tensor, partition: Partition) -> Tensor:
    """Mean square of each group of a matrix whose rows have unit energy: float64 ``[G]``."""
    scale = basis.divisor(basis.row_rms(matrix)).to(matrix.device)
    return _energy(matrix.float() / scale[:, None], partition)


class _Chunk:
    """Some rows of a layer, decided by the loops of ``dpq_core.kernels.cpu.trellis_sweeps``.

    Attributes:
        columns: float32 W^T ``[n, m]``, in the order of the Hessian, m whole tiles.
        residual: float32 (W - W_hat)^T ``[n, m]``.
        codes: windows by step, int32 ``[steps, m]``.
    """

    def __init__(self, objective: Objective, rows: slice, allocation: Allocation, K: int) -> None:
        self.hessian = objective.hessian
        order = self.hessian.order.cpu()
        tile = trellis_books.RESTART
        self.columns = whole_tiles(objective.by_column(rows).cpu(), tile)
        self.weights = whole_tiles(objective.weights(rows).cpu()[None], tile)[0]
        self.residual = torch.empty_like(self.columns)
        self.codes = torch.zeros(len(order), self.columns.shape[1], dtype=torch.int32)
        self._by_row = torch.zeros(self.columns.shape[1], dtype=torch.float64)
        self._books = tuple(book.numpy() for book in trellis_books.by_coordinate(K))
        self._sizes = [trellis_books.size_of(rate, K) for rate in allocation.rates.tolist()]
        self._rates, self._scales = allocation.rates[order], allocation.divisors[order]
        self._error = 0.0

    def feed_back(self) -> float:
        """Choose all paths by error feedback; returns the error over the scale of H."""
        from dpq_core.kernels.cpu import trellis_sweeps

        lower, metrics = (factor.cpu().contiguous() for factor in self.hessian.feedback)
        self._run(trellis_sweeps.feed_back, self.columns, lower, metrics)
        self._error = float(self._by_row @ self.weights.double())
        return self._error

    def descend(self) -> float:
        """Choose every path anew; returns the error over the scale of H, which never rises."""
        from dpq_core.kernels.cpu import trellis_sweeps

        matrix = self.hessian.matrix.cpu()
        metrics = self.hessian.diagonal.cpu().contiguous()
        self._run(trellis_sweeps.descend, matrix @ self.residual, matrix, metrics)
        self._error = max(0.0, self._error - float(self._by_row @ self.weights.double()))
        return self._error

    def _run(self, kernel: Callable[..., None], *inputs: Tensor) -> None:
        """Run a kernel over all tiles, on as many threads as there are."""
        settings = (self._rates, self._scales, self.weights)
        results = (self.codes, self.residual, self._by_row)
        after = tuple(tensor.numpy() for tensor in (*settings, *results))
        arrays = (*(tensor.numpy() for tensor in inputs), self._books, *after)
        columns, rows = self.columns.shape
        steps = rows * (columns * (columns // 2) + sum(self._sizes))
        tiles = rows // trellis_books.RESTART
        spread(lambda first, last: kernel(first, last, *arrays), tiles, steps)
