"""The output error of one layer, which codes and codebooks are chosen to minimise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.methods.assignment.hessian import Hessian
from dpq_core.tensor.basis.gain import gain_of
from dpq_core.trellis_books import RESTART

CHUNK_FLOATS = 1 << 26  # values of one buffer [n, m]; rows are independent and come in chunks
CHUNK_UNIT = RESTART  # rows of a chunk are a multiple of this: no path of a trellis is cut


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The output error ``E_out = sum_r w_r (W - W_hat)_r H (W - W_hat)_r^T`` of one layer.

    See docs/algorithms.md#output-error.

    Attributes:
        core: float32 W [R, C], the matrix that is encoded (scales divided out).
        hessian: damped H, in steps of d columns (orientation input) or of one (output).
        grouping: grouping of the core's subvectors.
        orientation: subvectors run along the ``input`` axis (columns) or the ``output`` axis.
        row_weight: float32 w [R], not negative, the squared row scales; None weighs rows alike.
    """

    core: Tensor
    hessian: Hessian
    grouping: Grouping
    orientation: str
    row_weight: Tensor | None

    @classmethod
    def of(
        cls,
        core: Tensor,
        H: Tensor | Hessian,
        grouping: Grouping,
        *,
        orientation: str = "input",
        damping: float = 0.01,
        row_weight: Tensor | None = None,
    ) -> Objective:
        """The objective of one layer, whose H may be a prepared ``Hessian``.

        Raises:
            SpecError: shapes do not fit, or H is no second moment.
        """
        width = grouping.d if orientation == "input" else 1
        if isinstance(H, Tensor):
            H = Hessian.of(H.to(core.device), width=width, damping=damping)
        rows, cols = core.shape
        if (rows, cols) != (grouping.rows, grouping.cols):
            raise SpecError(
                f"a core [{rows}, {cols}] does not fit a grouping of [{grouping.rows}, "
                f"{grouping.cols}]"
            )
        if (H.width, H.cols) != (width, cols):
            raise SpecError(
                f"a second moment of {H.cols} columns in steps of {H.width} does not fit "
                f"{cols} columns in steps of {width}"
            )
        if row_weight is not None and row_weight.shape != (rows,):
            raise SpecError(f"row weights must be [{rows}], not {list(row_weight.shape)}")
        return cls(
            core=core.float(),
            hessian=H,
            grouping=grouping,
            orientation=orientation,
            row_weight=None if row_weight is None else row_weight.float(),
        )

    def chunks(self) -> list[slice]:
        """Ranges of rows that are processed at a time; all rows where subvectors cross rows."""
        rows = len(self.core)
        step = max(1024, CHUNK_FLOATS // len(self.hessian.matrix) // CHUNK_UNIT * CHUNK_UNIT)
        if self.orientation == "output":
            step = rows
        return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]

    def by_column(self, rows: slice, matrix: Tensor | None = None) -> Tensor:
        """Some rows of the core (or of another matrix of its shape), transposed and padded.

        Returns:
            Contiguous float32 [n, m], zero in the padding: n columns in the order of the Hessian,
            and m rows, rounded up to whole subvectors for orientation output.
        """
        part = (self.core if matrix is None else matrix)[rows]
        columns = self.core.new_zeros(len(self.hessian.matrix), self._padded(len(part)))
        columns[self.hessian.exists, : len(part)] = part.T[
            self.hessian.columns[self.hessian.exists]
        ]
        return columns

    def by_row(self, columns: Tensor, rows: slice) -> Tensor:
        """Rows of a matrix, [rows, C], from columns [n, m]: the inverse of ``by_column``."""
        core = self.core.new_empty(self.core.shape[1], rows.stop - rows.start)
        core[self.hessian.columns[self.hessian.exists]] = columns[
            self.hessian.exists, : core.shape[1]
        ]
        return core.T

    def without_pad(self, columns: Tensor) -> Tensor:
        """Columns [n, m] with zeros in the padding, changed in place."""
        if self.grouping.pad:
            columns[~self.hessian.exists] = 0
            if self.orientation == "output":
                columns[:, len(self.core) :] = 0
        return columns

    def weights(self, rows: slice) -> Tensor:
        """Weights of some rows, zero for padded rows: float32 [m], see ``by_column``."""
        count = rows.stop - rows.start
        weights = self.core.new_zeros(self._padded(count))
        weights[:count] = 1.0 if self.row_weight is None else self.row_weight[rows]
        return weights

    def error(self, core_hat: Tensor) -> float:
        """E_out of a reconstruction [R, C], with damped H, in the units of the measured H."""
        total = torch.zeros((), dtype=torch.float64, device=self.core.device)
        for rows in self.chunks():
            error = self.by_column(rows) - self.by_column(rows, core_hat)
            total += quadratic(error, self.hessian.matrix @ error, self.weights(rows))
        return float(total) * self.hessian.scale

    def gains(self, core_hat: Tensor) -> Tensor:
        """Gain of every row, measured on outputs: ``<w, H w> / <w, H w_hat>``, float64 ``[R]``.

        See ``tensor.basis.gain``.

        Args:
            core_hat: the reconstruction w_hat, float32 ``[R, C]``.
        """
        gains = []
        for rows in self.chunks():
            core = self.by_column(rows)
            image = self.hessian.matrix @ core
            energy = (core * image).sum(0, dtype=torch.float64)
            along = (self.by_column(rows, core_hat) * image).sum(0, dtype=torch.float64)
            gains.append(gain_of(energy, along)[: rows.stop - rows.start])
        return torch.cat(gains)

    def _padded(self, rows: int) -> int:
        """Number of rows, rounded up to whole subvectors for orientation output."""
        return (
            rows if self.orientation == "input" else -(-rows // self.grouping.d) * self.grouping.d
        )


def quadratic(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Weighted inner product ``sum_r w_r left_r . right_r`` of [n, m], weights [m], in float64."""
    return (left * right).sum(dim=0, dtype=torch.float64) @ weights.double()
