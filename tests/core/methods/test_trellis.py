"""Trellis codes: shortest paths, rates, outliers, and the error that they leave."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dpq_core import trellis_books
from dpq_core.kernels.cpu import trellis_path
from dpq_core.methods.assignment.hessian import Hessian
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.quantize import Quantized, quantize
from dpq_core.methods.trellis import rates as methods
from dpq_core.spec import AssignmentSpec, QuantSpec
from dpq_core.tensor.partition import Layout, Partition

K = 1024
SPEC = QuantSpec.preset(2).replace(trellis_rate=2.0)
WITH_DATA = SPEC.replace(assignment=AssignmentSpec(method="ldlq+icm", sweeps=2))


def weight(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def second_moment(cols: int, seed: int = 0) -> torch.Tensor:
    x = weight(8 * cols, cols, seed) @ torch.diag(torch.logspace(-1, 1, cols))
    x += weight(8 * cols, 1, seed + 1) * 2
    return x.T @ x / len(x)


def run(
    matrix: torch.Tensor, spec: QuantSpec = SPEC, hessian: torch.Tensor | None = None
) -> Quantized:
    partition = Partition.of(tuple(matrix.shape), Layout.LINEAR, spec)
    statistics = InputStatistics(hessian=hessian)
    return quantize(matrix, partition, spec, "w", statistics=statistics)


def output_error(result: Quantized, matrix: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (result.pq.decode(torch.float32) - matrix).double()
    zero = (matrix.double() @ hessian.double() * matrix.double()).sum()
    return float((error @ hessian.double() * error).sum() / zero)


@pytest.mark.parametrize("rate", [1, 3, 4, 6, 9])
def test_paths_are_the_best_of_all(rate: int) -> None:
    points, size = max(2, min(5, 12 // rate)), trellis_books.size_of(rate, K)
    books = trellis_books.codebooks(K)[rate, :size]
    x = weight(2, points, rate)[None]
    row_weight = torch.linspace(0.5, 2, points)
    codes = torch.zeros(1, points, dtype=torch.int32)
    trellis_path.nearest(
        0,
        1,
        x.numpy(),
        row_weight.numpy(),
        tuple(book.numpy() for book in trellis_books.by_coordinate(K)),
        np.array([rate]),
        codes.numpy(),
    )

    scores = (torch.cdist(x[0].T, books).square() * row_weight[:, None]).tolist()

    def cost(windows: list[int]) -> float:
        return sum(scores[point][window] for point, window in enumerate(windows))

    least = float("inf")
    for fresh in itertools.product(range(1 << rate), repeat=points):
        window, windows = 0, []
        for code in fresh:
            window = ((window << rate) | code) & (size - 1)
            windows.append(window)
        least = min(least, cost(windows))
    assert cost(codes[0].tolist()) == pytest.approx(least, rel=1e-4)


def test_bits_go_where_they_lower_the_error_most() -> None:
    """The greedy choice is the best of all, since the error is convex in the rate."""
    distortion = methods.DISTORTION[K]
    gains = [before - after for before, after in itertools.pairwise(distortion)]
    assert gains == sorted(gains, reverse=True)
    energy = torch.tensor([4.0, 1.0, 0.02, 9.0], dtype=torch.float64)
    rates = methods.allocate(energy, 9, K, None).rates
    best = min(
        (sum(float(e) * distortion[b] for e, b in zip(energy, bits, strict=True)), bits)
        for bits in itertools.product(range(9), repeat=4)
        if sum(bits) == 9
    )
    assert tuple(rates.tolist()) == best[1]


def test_rates_are_all_low_or_all_high() -> None:
    """No column lacks bits so that others have more than a low rate gives."""
    energy = torch.ones(4, dtype=torch.float64)
    energy[0] = 1e6
    assert methods.allocate(energy, 32, K, None).rates.tolist() == [8, 8, 8, 8]
    assert methods.allocate(energy, 26, K, None).rates.tolist() == [8, 6, 6, 6]
    assert methods.allocate(energy, 37, K, None).rates.tolist() == [12, 9, 8, 8]
    assert methods.allocate(energy, 48, K, None).rates.tolist() == [12, 12, 12, 12]


def test_distortions_are_those_of_the_codebooks() -> None:
    values = weight(1 << 14, 2, 3)
    for rate in (1, 4, 8, 9, 12):
        codes = torch.zeros(1, len(values), dtype=torch.int32)
        trellis_path.nearest(
            0,
            len(values) // trellis_books.RESTART,
            values.T[None].contiguous().numpy(),
            np.ones(len(values), np.float32),
            tuple(book.numpy() for book in trellis_books.by_coordinate(K)),
            np.array([rate]),
            codes.numpy(),
        )
        error = float((trellis_books.codebooks(K)[rate][codes[0].long()] - values).square().mean())
        assert error == pytest.approx(methods.DISTORTION[K][rate], rel=0.04)


def test_less_error_than_learned_codebooks_in_fewer_bytes() -> None:
    matrix, hessian = weight(384, 96), second_moment(96)
    learned = QuantSpec.preset(2).replace(assignment=AssignmentSpec(method="ldlq+icm"))
    ours, theirs = run(matrix, WITH_DATA, hessian), run(matrix, learned, hessian)
    assert ours.pq.nbytes < theirs.pq.nbytes
    assert output_error(ours, matrix, hessian) < 0.8 * output_error(theirs, matrix, hessian)
    assert run(matrix).relative_error < 0.95 * run(matrix, QuantSpec.preset(2)).relative_error


def test_errors_are_reported_as_they_are_and_never_rise() -> None:
    matrix, hessian = weight(200, 63), second_moment(63)
    result = run(matrix, WITH_DATA.replace(row_scale=False), hessian)  # no gain after the errors
    errors = result.output_errors
    assert list(errors) == sorted(errors, reverse=True)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(63)
    assert output_error(result, matrix, damped) == pytest.approx(errors[-1], rel=0.01)
    error = (result.pq.decode() - matrix).square().sum() / matrix.square().sum()
    assert result.relative_error == pytest.approx(float(error), rel=0.01)
    assert output_error(result, matrix, hessian) < 0.6 * output_error(run(matrix), matrix, hessian)


def test_heavy_single_weights_are_kept() -> None:
    matrix = weight(128, 64)
    matrix[5, 7], matrix[100, 33] = 40.0, -25.0
    for hessian in (None, second_moment(64)):
        spec = SPEC if hessian is None else WITH_DATA
        decoded = run(matrix, spec, hessian).pq.decode()
        assert decoded[5, 7] == pytest.approx(40, rel=0.03)
        assert decoded[100, 33] == pytest.approx(-25, rel=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (129, 5)])
@pytest.mark.parametrize("rate", [0.25, 1.0, 4.0, 6.0])
def test_any_shape(shape: tuple[int, int], rate: float) -> None:
    matrix = weight(*shape)
    hessian = second_moment(shape[1])
    result = run(matrix, WITH_DATA.replace(trellis_rate=rate), hessian)
    assert torch.isfinite(result.pq.decode()).all()


def test_zeros_stay_zeros() -> None:
    matrix = torch.zeros(64, 32)
    assert not run(matrix).pq.decode().any()
    matrix[0] = 1.0
    decoded = run(matrix, WITH_DATA, torch.eye(32)).pq.decode()
    assert not decoded[1:].any()


def test_the_number_of_threads_changes_nothing() -> None:
    matrix, hessian = weight(700, 64), second_moment(64)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(matrix, WITH_DATA, hessian).pq)
    torch.set_num_threads(before)
    for other in results[1:]:
        for name, part in results[0].parts().items():
            assert torch.equal(part, other.parts()[name]), name


def test_targets_are_as_large_as_expected() -> None:
    """The expected energy of what groups encode, against that of an actual feedback."""
    matrix, moment = weight(2000, 32), second_moment(32)
    hessian = Hessian.of(moment, width=2, damping=0.01)
    energy = torch.ones(16, dtype=torch.float64)
    allocation = methods.allocate(energy, 64, K, hessian)
    assert allocation.scales.double().square().mean() > 1.0
    result = run(matrix, WITH_DATA.replace(assignment={"method": "ldlq"}), moment)
    assert result.relative_error < 0.5
