"""Error feedback and coordinate descent: sweeps over the columns of a layer, from last to first.

Blocked over columns, as GPTQ and QuIP# do it: what the columns outside a block contribute is one
matrix product per block, and only what those inside contribute is added step by step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpq_core.methods.assignment.encoders import Steps
from dpq_core.methods.assignment.hessian import Hessian

BLOCK = 128  # columns of a block
NOISE = 1e-6  # gain, over the sum of its terms, below which it may be rounding


class RowChunk:
    """Some rows of a layer, with their codes and errors so far.

    Args:
        columns: float32 W^T [n, m], in the order of the Hessian.
        hessian: damped H in steps of b columns.
        steps: encodes b columns of these rows.
        stages: S.

    Attributes:
        codes: int32 [S, steps, points]; step j decides group ``hessian.order[j]``.
        residual: float32 (W - W_hat)^T [n, m].
        error: damped E_out of these rows over the scale of H, float64.
    """

    def __init__(self, columns: Tensor, hessian: Hessian, steps: Steps, stages: int) -> None:
        self.columns, self.hessian, self.steps = columns, hessian, steps
        self.residual = torch.empty_like(columns)
        self.order: list[int] = hessian.order.tolist()
        self.count = len(self.order)
        shape = (stages, self.count, steps.points)
        self.codes = torch.zeros(shape, dtype=torch.int32, device=columns.device)
        self.error = torch.zeros((), dtype=torch.float64, device=columns.device)

    def start(self, method: str, codes: Tensor | None) -> None:
        """Choose all codes for the first time, or take ``codes`` [S, steps, points]."""
        if method.startswith("ldlq"):
            self._feed_back()
            return
        b = self.hessian.width
        metrics = self.hessian.diagonal
        if method != "blockdiag":
            metrics = torch.diag_embed(self.hessian.exists.float().view(-1, b))
        if codes is not None:
            self.codes.copy_(codes)
        for j in range(self.count):
            if codes is None:
                self._encode(j, self.columns[self._span(j)], metrics[j])
            self.residual[self._span(j)] = self.columns[self._span(j)] - self._values(j)
        for first, last in self._blocks():
            some = slice(first * b, last * b)
            self.error += self._sum(
                self.residual[some] * (self.hessian.matrix[some] @ self.residual)
            )

    def sweep(self, allowed: Tensor | None) -> int:
        """Choose every code anew, one step after the other; returns how many changed.

        Args:
            allowed: codes that may change, bool [steps, points]; None: all.
        """
        changed = torch.zeros((), dtype=torch.int64, device=self.columns.device)
        for first, last in self._blocks():
            for j, gradient, rest in self._gradients(first, last):
                codes, change, gain = self._proposal(j, gradient)
                group, span = self.order[j], self._span(j)
                take = gain > 0 if allowed is None else (gain > 0) & allowed[group]
                change *= self.steps.repeat_per_row(take)
                self.codes[:, group] = torch.where(take, codes, self.codes[:, group])
                self.residual[span] -= change
                rest -= self.hessian.matrix[first * len(change) : span.start, span] @ change
                self.error -= torch.where(take, gain, 0).sum(dtype=torch.float64)
                changed += take.sum()
        return int(changed)

    def gains(self) -> Tensor:
        """How much each code alone could lower the error: float32 [steps, points]."""
        gains = torch.empty(self.codes.shape[1:], device=self.columns.device)
        for first, last in self._blocks():
            for j, gradient, _ in self._gradients(first, last):
                gains[self.order[j]] = self._proposal(j, gradient)[2]
        return gains

    def decoded(self) -> Tensor:
        """The values that the codes stand for: float32 [n, m]."""
        return torch.cat([self._values(j) for j in range(self.count)])

    def _feed_back(self) -> None:
        """Error feedback T_j = W_j + (W - W_hat)_{>j} L_{>j,j} (LDLQ), from the last step on."""
        lower, metrics = self.hessian.feedback
        b = self.hessian.width
        for first, last in self._blocks():
            after = lower[last * b :, first * b : last * b].T @ self.residual[last * b :]
            for j in reversed(range(first, last)):
                span, inside = self._span(j), slice((j + 1) * b, last * b)
                targets = self.columns[span] + after[(j - first) * b :][:b]
                targets += lower[inside, span].T @ self.residual[inside]
                self._encode(j, targets, metrics[j])
                values = self._values(j)
                self.residual[span] = self.columns[span] - values
                difference = targets - values
                self.error += self._sum(difference * (metrics[j] @ difference))

    def _proposal(self, j: int, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best codes of step j while all others stand still.

        Args:
            j: the step.
            gradient: ((W - W_hat) H)_j^T [b, m], minus half the derivative of the error.

        Returns:
            Codes [S, points], the change of the values [b, m], and by how much each code lowers
            the error [points]: zero where it is the old one or the gain may be rounding.
        """
        group, metric, old = self.order[j], self.hessian.diagonal[j], self._values(j)
        targets = old + self.hessian.inverses[j] @ gradient
        codes = self.steps.encode(group, targets, metric)
        change = self.steps.decode(group, codes) - old
        linear, square = 2 * change * gradient, change * (metric @ change)
        gain = self.steps.sum_per_code(linear - square)
        least = NOISE * self.steps.sum_per_code(linear.abs() + square.abs())
        moved = (codes != self.codes[:, group]).any(dim=0)
        return codes, change, torch.where(moved & (gain > least), gain, 0)

    def _gradients(self, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each step of a block, from the last, its gradient, and those of the steps to come.

        A gradient is ((W - W_hat) H)_j^T [b, m]. The caller updates those to come when it changes
        the values of step j.
        """
        b = self.hessian.width
        block = self.hessian.matrix[first * b : last * b] @ self.residual
        for j in reversed(range(first, last)):
            at = (j - first) * b
            yield j, block[at : at + b], block[:at]

    def _encode(self, j: int, targets: Tensor, metric: Tensor) -> None:
        """Choose the codes of step j for targets [b, m]."""
        self.codes[:, self.order[j]] = self.steps.encode(self.order[j], targets, metric)

    def _values(self, j: int) -> Tensor:
        """The values [b, m] that the codes of step j stand for."""
        return self.steps.decode(self.order[j], self.codes[:, self.order[j]])

    def _sum(self, values: Tensor) -> Tensor:
        """Weighted sum of values [b, m], float64."""
        return self.steps.sum_per_code(values).sum(dtype=torch.float64)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of steps of about ``BLOCK`` columns, from the last to the first."""
        size = max(1, BLOCK // self.hessian.width)
        for last in range(self.count, 0, -size):
            yield max(0, last - size), last

    def _span(self, j: int) -> slice:
        """The columns of step j."""
        return slice(j * self.hessian.width, (j + 1) * self.hessian.width)
