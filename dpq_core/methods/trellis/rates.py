"""Rates and scales of the groups of a trellis code (docs/algorithms.md#trellis)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.kernels.cpu.threads import one_torch_thread
from dpq_core.methods.assignment.hessian import Hessian
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.partition import Partition

_LOW = (1.0, 0.5406, 0.2850, 0.1491, 0.0778, 0.0405, 0.0213, 0.0114, 0.0063)
_HIGH = (0.00305, 0.00173, 0.00108, 0.00079)

DISTORTION = {1024: (*_LOW, *_HIGH)}
"""K -> mean squared error of normal values of variance 1 at each rate, measured."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Rates and scales of the groups of one weight.

    Attributes:
        rates: bits of a code, int64 ``[G]``.
        scales: root mean square of what each group encodes, float16 ``[G]``.
    """

    rates: Tensor
    scales: Tensor

    @property
    def divisors(self) -> Tensor:
        """The scales as float32 divisors ``[G]``, 1 in place of 0."""
        return basis.divisor(self.scales)


_ROUNDS = 4
"""Rounds of choosing rates for the errors that the rates of the round before feed back."""


def allocate(energy: Tensor, row_bits: int, K: int, hessian: Hessian | None) -> Allocation:
    """Rates that minimise the expected output error, and the scales that go with them.

    In the metric H = L D L^T of error feedback, the error of group j is that of its code times
    ``sqrt(det D_j)`` per coordinate. A group encodes its weight and the errors that the groups
    before it feed back, and its own error is fed back to those after it: both count. Bits go where
    they lower the sum most (reverse water-filling).

    Args:
        energy: mean square of the subvectors of each group, float64 ``[G]``.
        row_bits: sum of the rates.
        K: codewords of a codebook.
        hessian: the metric; None: all columns count alike.
    """
    energy, distortion = energy.cpu().double(), torch.tensor(DISTORTION[K], dtype=torch.float64)
    if hessian is None:
        rates, target = _rates(energy, row_bits, distortion), energy
    else:
        with one_torch_thread():  # the same sums, and rates, for any number of threads
            rates, target = _rates_with_feedback(energy, row_bits, distortion, hessian)
    scales = target.sqrt().clamp(max=torch.finfo(torch.float16).max).half()
    return Allocation(rates=rates, scales=scales)


def _rates(weight: Tensor, row_bits: int, distortion: Tensor) -> Tensor:
    """Rates of least ``sum_j weight[j] distortion[rate[j]]``: bit by bit to whom it helps most.

    All rates are low ones, or else high ones and the highest low one: columns that matter to few
    inputs, such as the first token of a text, would have too few bits otherwise.
    """
    gains, weights = (-distortion.diff()).tolist(), weight.tolist()
    least, most = 0, trellis_books.LOW_RATES
    if row_bits > most * len(weights):
        least, most = most, trellis_books.MAX_RATE
    rates = [least] * len(weights)
    queue = [(-gains[least] * each, j) for j, each in enumerate(weights)]
    heapq.heapify(queue)
    for _ in range(row_bits - least * len(weights)):
        _, j = heapq.heappop(queue)
        rates[j] += 1
        if rates[j] < most:
            heapq.heappush(queue, (-gains[rates[j]] * weights[j], j))
    return torch.tensor(rates)


def _rates_with_feedback(
    energy: Tensor, row_bits: int, distortion: Tensor, hessian: Hessian
) -> tuple[Tensor, Tensor]:
    """Rates, and expected mean squares of what groups encode, float64 ``[G]`` both.

    The best of ``_ROUNDS`` rounds, by the expected output error.
    """
    order, width = hessian.order.cpu(), hessian.width
    lower, metrics = (factor.cpu() for factor in hessian.feedback)
    steps = len(order)
    shares = torch.empty(steps, steps, dtype=torch.float64)
    for j in range(steps):  # row by row: the whole matrix of float64 may be a gigabyte
        rows = lower[j * width : (j + 1) * width].double()
        shares[j] = rows.square_().view(width, steps, width).sum((0, 2)) / width
    prices = torch.linalg.det(metrics.double()).clamp(min=0).sqrt()
    own = energy[order]
    rates = torch.full((steps,), row_bits // steps)  # in the order of the steps, as all here
    best, least = (rates, own), float("inf")
    for _ in range(_ROUNDS):
        factors = distortion[rates]
        target = own.clone()  # what a step encodes: steps go from the last to the first
        for j in reversed(range(steps)):
            target[:j] += target[j] * factors[j] * shares[j, :j]
        expected = float((target * factors) @ prices)
        if expected < least and int(rates.sum()) == row_bits:
            best, least = (rates, target), expected
        costs = prices.clone()  # of an error: its own, and those of the steps that it is fed to
        for j in range(steps):
            costs[j] += (shares[j, :j] * factors[:j]) @ costs[:j]
        rates = _rates(target * costs, row_bits, distortion)
    rates, target = best
    return torch.zeros_like(rates).scatter(0, order, rates), torch.zeros_like(own).scatter(
        0, order, target
    )


def expected_error(energy: Tensor, partition: Partition) -> float:
    """Relative error of a weight with groups of the given energies, without statistics."""
    rates = allocate(energy, partition.row_bits, partition.K, None).rates
    share = torch.tensor(DISTORTION[partition.K], dtype=torch.float64)[rates]
    return float(energy @ share) / (float(energy.sum()) or 1.0)
