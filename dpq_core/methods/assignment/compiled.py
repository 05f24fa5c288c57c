"""Chunks of rows whose sweeps run in compiled code: one codeword per subvector, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.kernels.cpu.threads import spread
from dpq_core.methods.assignment.encoders import Steps
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.assignment.sweeps import NOISE, RowChunk

MAX_D = 8
"""Longest subvectors that the compiled loops are written out for."""


class CompiledRowChunk(RowChunk):
    """Some rows of a layer, decided by the loops of ``dpq_core.kernels.cpu.sweep_jit``.

    Args:
        objective: the layer; orientation input, one stage.
        rows: the rows.
        steps: as in ``RowChunk``.
        codebooks: float32 [B, K, d].
    """

    def __init__(self, objective: Objective, rows: slice, steps: Steps, codebooks: Tensor) -> None:
        super().__init__(objective.by_column(rows), objective.hessian, steps, stages=1)
        grouping = objective.grouping
        last = codebooks[-1:].clone()
        last[:, :, grouping.d - grouping.pad :] = 0  # coordinates beyond the matrix
        self._words = torch.cat([codebooks, last]).contiguous()
        self._groups = objective.hessian.order  # the group of each step
        self._books = self._groups // grouping.groups_per_codebook
        if grouping.pad:
            self._books[self._groups == grouping.groups - 1] = len(codebooks)
        self._weights = objective.weights(rows).double()

    @staticmethod
    def can_do(objective: Objective, stages: int) -> bool:
        """Whether the compiled loops know such layers."""
        where = objective.core.device.type, objective.orientation
        return where == ("cpu", "input") and stages == 1 and objective.grouping.d <= MAX_D

    def sweep(self, allowed: Tensor | None) -> int:
        """As ``RowChunk.sweep``."""
        from dpq_core.kernels.cpu import sweep_jit

        codes = self.codes[0, self._groups]
        mask = torch.zeros(0, 0, dtype=torch.bool)
        if allowed is not None:
            mask = self._padded(allowed[self._groups])
        padded, residual = self._padded(codes), self._padded(self.residual)
        gains = torch.zeros(padded.shape[1], dtype=torch.float64)
        arguments = (
            self.hessian.matrix @ residual,
            self.hessian.matrix,
            self.hessian.diagonal.contiguous(),
            self._words,
            self._offsets(self.hessian.diagonal),
            self._books,
            mask,
            NOISE,
            padded,
            residual,
            gains,
        )
        self._run(sweep_jit.descend, arguments)
        count = codes.shape[1]
        self.residual = residual[:, :count]
        self.codes[0, self._groups] = padded[:, :count]
        self.error = self.error - gains[:count] @ self._weights
        return int((padded[:, :count] != codes).sum())

    def _feed_back(self) -> None:
        from dpq_core.kernels.cpu import sweep_jit

        lower, metrics = self.hessian.feedback
        columns = self._padded(self.columns)
        codes = torch.zeros(self.count, columns.shape[1], dtype=torch.int32)
        residual = torch.empty_like(columns)
        errors = torch.zeros(columns.shape[1], dtype=torch.float64)
        arguments = (
            columns,
            lower.contiguous(),
            metrics.contiguous(),
            self._words,
            self._offsets(metrics),
            self._books,
            codes,
            residual,
            errors,
        )
        self._run(sweep_jit.feed_back, arguments)
        count = self.columns.shape[1]
        self.residual = residual[:, :count]
        self.codes[0, self._groups] = codes[:, :count]
        self.error = self.error + errors[:count] @ self._weights

    def _run(self, kernel: object, arguments: tuple[object, ...]) -> None:
        """Run a kernel over all tiles, on as many threads as there are."""
        from dpq_core.kernels.cpu import sweep_jit

        arrays = tuple(a.numpy() if isinstance(a, Tensor) else a for a in arguments)
        rows = -(-self.columns.shape[1] // sweep_jit.LANES) * sweep_jit.LANES
        columns, words = len(self.columns), self._words.shape[1]

        def run(first: int, last: int) -> None:
            kernel(first, last, *arrays)  # type: ignore[operator]

        spread(run, rows // sweep_jit.LANES, rows * columns * (columns // 2 + words))

    def _offsets(self, metrics: Tensor) -> Tensor:
        """``c^T M_j c`` of the codewords of each step: float32 [steps, K]."""
        words = self._words[self._books]  # [steps, K, d]
        return ((words @ metrics) * words).sum(dim=2)

    def _padded(self, values: Tensor) -> Tensor:
        """A copy of [..., m] with m rounded up to whole tiles, zeros behind."""
        from dpq_core.kernels.cpu.sweep_jit import LANES

        return whole_tiles(values, LANES)


def whole_tiles(values: Tensor, tile: int) -> Tensor:
    """A copy of ``[n, m]`` with m rounded up to a multiple of ``tile``, zeros behind."""
    count = values.shape[1]
    padded = values.new_zeros(len(values), -(-count // tile) * tile)
    padded[:, :count] = values
    return padded
