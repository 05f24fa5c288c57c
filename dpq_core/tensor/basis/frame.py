"""Frame: the basis in which a matrix is quantized, and the way there and back.

``W = leave(core)``: the core is what codewords stand for. On the way to it the matrix may be
rotated (randomised Hadamard transform, QuIP#) or its columns reordered (PQF), and it is divided by
a scale per row and a scale per column group. A layer need not leave the frame: it can bring its
activations there instead, ``W x = out(core in(x))``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.tensor.basis import transform


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Scales, order and signs of one matrix ``[rows, cols]``; None where there are none.

    Attributes:
        row_scale: ``[rows]``, multiplied onto the rows of the core.
        column_scale: ``[cols]``, in the order of the core's columns.
        permutation: int64 ``[cols]``: column c of the core is column perm[c] of W.
        signs_in: +-1 ``[cols]`` of the transform of the inputs.
        signs_out: +-1 ``[rows]`` of the transform of the outputs.
    """

    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    permutation: Tensor | None = None
    signs_in: Tensor | None = None
    signs_out: Tensor | None = None

    @property
    def keeps_inputs(self) -> bool:
        """Whether activations need no change before they meet the core."""
        return self.column_scale is None and self.permutation is None and self.signs_in is None

    def rotate(self, matrix: Tensor) -> Tensor:
        """W ``[rows, cols]`` in the frame's basis, not yet scaled."""
        if self.permutation is not None:
            return matrix[:, self.permutation]
        if self.signs_in is None:
            return matrix
        return transform.forward(matrix.float(), self.signs_out, self.signs_in)

    def rotate_hessian(self, hessian: Tensor) -> Tensor:
        """H = E[x x^T] ``[cols, cols]`` of the inputs, as the core's columns see them."""
        if self.permutation is not None:
            hessian = hessian[self.permutation][:, self.permutation]
        elif self.signs_in is not None:
            hessian = transform.hessian(hessian, self.signs_in)
        if self.column_scale is not None:
            scale = self.column_scale.to(hessian.dtype)
            hessian = hessian * scale[:, None] * scale
        return hessian

    def restore(self, core: Tensor) -> Tensor:
        """Core float32 ``[rows, cols]`` -> W, float32."""
        if self.row_scale is not None:
            core = core * self.row_scale.float()[:, None]
        return self.restore_rows(core)

    def restore_rows(self, rows: Tensor) -> Tensor:
        """Rows of the core, already times their scales -> rows of W.

        Some rows are enough where there are no ``signs_out``; else all are needed.
        """
        if self.column_scale is not None:
            rows = rows * self.column_scale.float()
        if self.permutation is not None:
            return torch.empty_like(rows).index_copy_(1, self.permutation, rows)
        if self.signs_in is not None:
            return transform.inverse(rows, self.signs_out, self.signs_in)
        return rows

    def activations_in(self, x: Tensor) -> Tensor:
        """Inputs ``[..., cols]`` of the layer -> inputs of the core."""
        if self.permutation is not None:
            from dpq_core.kernels.cpu.columns import reorder  # numba loads on first use

            x = reorder(x, self.permutation)
        elif self.signs_in is not None:
            x = transform.activations_in(x, self.signs_in)
        return x if self.column_scale is None else x * self.column_scale.to(x.dtype)

    def activations_out(self, y: Tensor) -> Tensor:
        """Outputs of the core, times the row scales ``[..., rows]`` -> outputs of the layer."""
        return y if self.signs_out is None else transform.activations_out(y, self.signs_out)
