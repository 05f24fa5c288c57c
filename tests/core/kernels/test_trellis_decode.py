"""Dense rows and products of trellis codes by the compiled loops, against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu import trellis_decode
from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.partition import Layout, Partition

K = 1024
BOOKS = trellis_books.codebooks(K)


class Code:
    """A random trellis code of a matrix, and the matrix."""

    def __init__(self, rows: int, cols: int, rates: Tensor) -> None:
        generator = torch.Generator().manual_seed(rows * cols)
        self.rates = rates
        streams = int(rates.sum()), -(-rows // 8)
        self.codes = torch.randint(256, streams, generator=generator).to(torch.uint8)
        self.starts = trellis_books.starts(rates, rows)
        windows = trellis.windows(self.codes, rates, rows, K).long()
        words = BOOKS.reshape(-1, 2)[windows + rates[:, None] * BOOKS.shape[1]]  # [G, R, 2]
        self.dense = words.transpose(0, 1).reshape(rows, -1)
        spec = QuantSpec(d=2, K=K, trellis_rate=2.0)
        self.grouping: Grouping = Partition.of((rows, cols), Layout.LINEAR, spec)
        count = -(-rows * cols // 500)
        places = torch.randperm(rows * cols, generator=generator)[:count].sort().values
        self.outliers = torch.stack([places // cols, places % cols])
        self.values = torch.randn(count, generator=generator)
        self.matrix = self.dense[:, :cols].clone()
        self.matrix[tuple(self.outliers)] += self.values

    def product(self, inputs: Tensor) -> Tensor:
        quads = trellis_decode.quads(self.rates, self.starts)
        outliers = self.outliers, self.values
        return trellis_decode.product(inputs, self.codes, quads, BOOKS, outliers, self.grouping)


def rates_of(groups: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high + 1, (groups,), generator=torch.Generator().manual_seed(groups))


CASES = {
    "all rates": lambda: Code(300, 71, rates_of(36, 0, 12)),  # a part of a tile, a part of a group
    "rate 1": lambda: Code(128, 8, torch.ones(4, dtype=torch.int64)),
    "rate 8": lambda: Code(257, 10, torch.full((5,), 8)),
    "rate 9": lambda: Code(257, 10, torch.full((5,), 9)),
    "rate 12": lambda: Code(40, 10, torch.full((5,), 12)),
    "six bytes": lambda: Code(5, 6, torch.tensor([1, 0, 5])),
    "nothing": lambda: Code(20, 4, torch.zeros(2, dtype=torch.int64)),
    "many groups": lambda: Code(8, 600, rates_of(300, 1, 4)),
}


@pytest.fixture(params=CASES)
def code(request: pytest.FixtureRequest) -> Code:
    made: Code = CASES[request.param]()
    return made


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16])
def test_products_are_those_of_the_decoded_matrix(code: Code, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(tokens, code.matrix.shape[1], generator=generator)
    exact = inputs.double() @ code.matrix.double().T
    scale = inputs.double().abs() @ code.matrix.double().abs().T
    assert bool(((code.product(inputs) - exact).abs() <= 1e-5 * scale + 1e-30).all())


def test_a_product_is_the_same_beside_other_tokens(code: Code) -> None:
    inputs = torch.randn(9, code.matrix.shape[1], generator=torch.Generator().manual_seed(1))
    together = code.product(inputs)
    for token in range(9):
        torch.testing.assert_close(code.product(inputs[token : token + 1])[0], together[token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_exact(code: Code, dtype: torch.dtype) -> None:
    for first in range(0, len(code.dense), 128):
        for last in {len(code.dense), min(first + 128, len(code.dense))}:
            rows = trellis_decode.rows(
                code.codes,
                code.starts,
                code.rates,
                BOOKS.to(dtype),
                code.grouping,
                first,
                last,
            )
            assert torch.equal(rows, code.dense[first:last].to(dtype))


def test_the_number_of_threads_changes_nothing() -> None:
    code = Code(700, 1200, rates_of(600, 0, 12))
    inputs = torch.randn(3, 1200, generator=torch.Generator().manual_seed(1))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(code.product(inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
