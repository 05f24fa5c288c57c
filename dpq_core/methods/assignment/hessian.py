"""The metric of a layer's output error: the damped second moment of its inputs, and its factors.

Everything here has a mean diagonal of one, ``H / mean(diag H) + damping I``
(docs/algorithms.md#damping), and ``Hessian.scale`` takes errors back to the units of the H that was
measured.

Steps are ordered by their energy, and sweeps go from the last to the first: columns with large
inputs are decided while most others can still make up for them. Nothing is stored for that. Against
the order of the layer it lowers the output error by 5 to 17 % where energies differ, by 1 % where
they do not, and the opposite order raises it by as much (measured; GPTQ's ``act_order``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.kernels.cpu.threads import one_torch_thread

MIN_DAMPING = 1e-6  # least damping that keeps a float32 second moment positive definite
MAX_DAMPING = 1.0  # a matrix that needs more than its own mean diagonal is no second moment
PAD_WEIGHT = 1e-6  # diagonal at padded coordinates, whose targets are zero


@dataclass(frozen=True, kw_only=True)
class Hessian:
    """A damped second moment, prepared for assignment in steps of b columns.

    Attributes:
        matrix: float32 [n, n], symmetric positive definite, mean diagonal 1 + damping, its rows and
            columns in the order of the steps; n is C rounded up to a multiple of b.
        order: int64 [n / b]: the column group that each step decides.
        scale: mean diagonal of the measured H; an error times ``scale`` is in the units of H.
        width: b, columns that are decided together.
        cols: C, columns of the layer; those beyond are padding.
    """

    matrix: Tensor
    order: Tensor
    scale: float
    width: int
    cols: int

    @classmethod
    def of(cls, H: Tensor, *, width: int, damping: float = 0.01) -> Hessian:
        """Normalise, damp and pad a second moment E[x x^T].

        Args:
            H: [C, C], any floating dtype; columns without data may be zero.
            width: d for subvectors along the input axis, 1 for subvectors along the output axis.
            damping: added to the diagonal, in units of its mean; at least ``MIN_DAMPING``.

        Raises:
            SpecError: H is not a finite square matrix with a non-negative diagonal.
        """
        cols = len(H)
        if H.ndim != 2 or H.shape[1] != cols:
            raise SpecError(f"a second moment is a square matrix, not {list(H.shape)}")
        diagonal = H.diagonal().double()
        if not bool(torch.isfinite(H).all()) or bool((diagonal < 0).any()):
            raise SpecError("the second moment holds NaN, infinite or negative values; repeat it")
        scale = float(diagonal.mean()) or 1.0
        n = -(-cols // width) * width
        matrix = torch.zeros(n, n, dtype=torch.float32, device=H.device)
        matrix[:cols, :cols] = H / scale
        matrix.diagonal()[:cols] += max(damping, MIN_DAMPING)
        matrix.diagonal()[cols:] = PAD_WEIGHT
        order = matrix.diagonal().double().view(-1, width).sum(dim=1).argsort(stable=True)
        columns = _columns(order, width)
        return cls(
            matrix=matrix[columns][:, columns], order=order, scale=scale, width=width, cols=cols
        )

    @cached_property
    def columns(self) -> Tensor:
        """The layer's column at each row of ``matrix``: int64 [n]."""
        return _columns(self.order, self.width)

    @cached_property
    def exists(self) -> Tensor:
        """Whether each row of ``matrix`` is a column of the layer and no padding: bool [n]."""
        return self.columns < self.cols

    @cached_property
    def diagonal(self) -> Tensor:
        """The blocks H_jj: float32 [n / b, b, b]."""
        b, steps = self.width, len(self.matrix) // self.width
        each = torch.arange(steps, device=self.matrix.device)
        return self.matrix.view(steps, b, steps, b)[each, :, each]

    @cached_property
    def inverses(self) -> Tensor:
        """The inverses of the blocks H_jj: float32 [n / b, b, b]."""
        inverses: Tensor = torch.linalg.inv(self.diagonal.double())
        return inverses.float()

    @cached_property
    def feedback(self) -> tuple[Tensor, Tensor]:
        """The factors of H = L D L^T, L unit block lower triangular (QuIP#, arXiv 2402.04396).

        Returns:
            L float32 [n, n] and the diagonal blocks of D, float32 [n / b, b, b]. The output error
            is ``sum_j |T_j - What_j|^2`` in the metrics D_j, with the targets T_j of ``ldlq``.

        Raises:
            SpecError: the matrix is far from positive semidefinite.
        """
        n, b = len(self.matrix), self.width
        lower = cholesky(self.matrix).view(n, n // b, b)
        steps = torch.arange(n // b, device=lower.device)
        blocks = lower.view(n // b, b, n // b, b)[steps, :, steps]  # [n / b, b, b]
        metrics = (blocks @ blocks.mT).float()
        eye = torch.eye(b, dtype=blocks.dtype, device=blocks.device).expand_as(blocks)
        inverses = torch.linalg.solve_triangular(blocks, eye, upper=False).float()
        unit = torch.bmm(lower.float().movedim(1, 0), inverses)  # [n / b, n, b]
        return unit.movedim(0, 1).reshape(n, n), metrics


def _columns(order: Tensor, width: int) -> Tensor:
    """The column at each place when groups of ``width`` columns come in some order: int64 [n]."""
    return (order[:, None] * width + torch.arange(width, device=order.device)).flatten()


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor, float64, with more damping where rounding left negative eigenvalues.

    Args:
        matrix: a damped second moment in units of its mean diagonal; one of float64 is changed.

    Raises:
        SpecError: eigenvalues are more negative than rounding leaves them.

    LAPACK adds up in an order that depends on the number of threads, so it gets one.
    """
    work = matrix.double()
    damping = MIN_DAMPING
    factor: Tensor
    while True:
        with one_torch_thread():
            factor, info = torch.linalg.cholesky_ex(work)
        if int(info) == 0:
            return factor
        if damping > MAX_DAMPING:
            raise SpecError("the second moment is not positive semidefinite; collect it again")
        work.diagonal().add_(damping)
        damping *= 10
