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
        self._books = torch.tensor(self.order) // grouping.groups_per_codebook
        if grouping.pad:
            self._books[torch.tensor(self.order) == grouping.groups - 1] = len(codebooks)
        self._weights = objective.weights(rows).double()

    @staticmethod
    def can_do(objective: Objective, stages: int) -> bool:
        """Whether the compiled loops know such layers."""
        where = objective.core.device.type, objective.orientation
        return where == ("cpu", "input") and stages == 1 and objective.grouping.d <= MAX_D

    def sweep(self, allowed: Tensor | None) -> int:
        """As ``RowChunk.sweep``."""
        from dpq_core.kernels.cpu import sweep_jit

        codes = self._by_step(self.codes[0])
        before = codes.clone()
        mask = torch.zeros(0, 0, dtype=torch.bool)
        if allowed is not None:
            mask = self._padded(self._by_step(allowed))
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
        self._store(padded[:, :count])
        self.error = self.error - gains[:count] @ self._weights
        return int((padded[:, :count] != before).sum())

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
        self._store(codes[:, :count])
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

        missing = -values.shape[1] % LANES
        return torch.nn.functional.pad(values, (0, missing)).contiguous().clone()

    def _by_step(self, codes: Tensor) -> Tensor:
        """Values [groups, m] of groups, in the order of the steps."""
        return codes[torch.tensor(self.order)]

    def _store(self, codes: Tensor) -> None:
        """Keep codes [steps, m] of the steps in the order of the groups."""
        self.codes[0, torch.tensor(self.order)] = codes
