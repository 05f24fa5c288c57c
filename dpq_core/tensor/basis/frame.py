"""Frame: the basis and the scales of the core of a matrix, and the way there and back.

The core is the matrix that codewords stand for. On the way to it the weight may be rotated
(randomised Hadamard transform, QuIP#, arXiv 2402.04396) or its columns reordered (PQF, arXiv
2010.15703), and it is divided by a scale per row and a scale per column group; ``restore`` is the
way back. A layer need not decode W: it can bring its activations into the basis of the core
instead, ``W x = activations_out(core activations_in(x))``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.tensor.basis import transform


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Scales, column order and signs of one matrix ``[R, C]``; None where there are none.

    Attributes:
        row_scale: ``[R]``, multiplied onto the rows of the core.
        column_scale: ``[C]``, in the order of the core's columns.
        permutation: int64 ``[C]``: column c of the core is column ``permutation[c]`` of W.
        signs_in: +-1 ``[C]`` of the transform of the inputs.
        signs_out: +-1 ``[R]`` of the transform of the outputs.
    """

    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    permutation: Tensor | None = None
    signs_in: Tensor | None = None
    signs_out: Tensor | None = None

    @property
    def keeps_inputs(self) -> bool:
        """Whether the core takes the inputs of the layer as they are."""
        return self.column_scale is None and self.permutation is None and self.signs_in is None

    def rotate(self, matrix: Tensor) -> Tensor:
        """W ``[R, C]`` in the basis of the core, not yet divided by scales."""
        if self.permutation is not None:
            return matrix[:, self.permutation]
        if self.signs_in is None:
            return matrix
        return transform.forward(matrix.float(), self.signs_out, self.signs_in)

    def rotate_hessian(self, hessian: Tensor) -> Tensor:
        """The second moment ``[C, C]`` of the core's inputs, from H = E[x x^T] of the layer's."""
        if self.permutation is not None:
            hessian = hessian[self.permutation][:, self.permutation]
        elif self.signs_in is not None:
            hessian = transform.hessian(hessian, self.signs_in)
        if self.column_scale is not None:
            scale = self.column_scale.to(hessian.dtype)
            hessian = hessian * scale[:, None] * scale
        return hessian

    def restore(self, core: Tensor) -> Tensor:
        """W, float32 ``[R, C]``, from the core float32 ``[R, C]``."""
        if self.row_scale is not None:
            core = core * self.row_scale.float()[:, None]
        return self.restore_rows(core)

    def restore_rows(self, rows: Tensor) -> Tensor:
        """Rows of W ``[n, C]`` from rows of the core that are already multiplied by their scales.

        A few rows can be given where there are no ``signs_out``; else all are needed.
        """
        if self.column_scale is not None:
            rows = rows * self.column_scale.float()
        if self.permutation is not None:
            return torch.empty_like(rows).index_copy_(1, self.permutation, rows)
        if self.signs_in is not None:
            return transform.inverse(rows, self.signs_out, self.signs_in)
        return rows

    def activations_in(self, x: Tensor) -> Tensor:
        """Inputs of the core ``[..., C]`` from the inputs of the layer."""
        if self.permutation is not None:
            from dpq_core.kernels.cpu.columns import reorder  # numba loads on first use

            x = reorder(x, self.permutation)
        elif self.signs_in is not None:
            x = transform.activations_in(x, self.signs_in)
        return x if self.column_scale is None else x * self.column_scale.to(x.dtype)

    def activations_out(self, y: Tensor) -> Tensor:
        """Outputs of the layer ``[..., R]`` from outputs of the core times the row scales."""
        return y if self.signs_out is None else transform.activations_out(y, self.signs_out)
