"""Moving averages of inputs: decay, sharing, several processes, a resumed run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpq_core.calibrate.moments import InputSums, Moments

pytestmark = pytest.mark.portable

CPU = torch.device("cpu")


class Alone:
    """The only process; ``others`` more would have had the same."""

    def __init__(self, others: int = 0) -> None:
        self.others, self.sums = others, 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        return value.mul_(1 + self.others)


class Pair(nn.Module):
    """q and k get the same tensor, o another one; the table is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.q, self.k, self.o = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, index):
        x = self.table(index)
        return self.o(self.q(x) * self.k(x))


def second_moment(x):
    x = x.detach().double().reshape(-1, x.shape[-1])
    return (x.T @ x / len(x)).float()


INDEX = torch.tensor([[0, 1, 1], [4, 1, 2]])


def test_layers_of_one_input_share_a_moment_and_an_embedding_counts():
    model, workers = Pair(), Alone()
    moments = Moments(model, ["table", "q", "k", "o"], rho=0.5)
    result = moments.collect(lambda: model(INDEX), workers)
    assert result.shape == (2, 3, 4)
    assert moments.of("q") is moments.of("k") is not moments.of("o")
    found = moments.of("q").hessian(4, CPU)
    torch.testing.assert_close(found, second_moment(model.table(INDEX)))
    assert (found.dtype, float(moments.of("q").count)) == (torch.float32, 6)
    assert moments.of("q").rows is None
    table = moments.of("table")
    assert table.moment is None
    assert table.rows.tolist() == [1, 3, 1, 0, 1]
    assert torch.equal(table.hessian(4, CPU), torch.eye(4))
    assert workers.sums == 2 * 3  # count and sums of table, q and o; k has nothing of its own
    assert moments.of("elsewhere") is None


def test_processes_add_what_they_saw():
    model = Pair()
    one, four = (Moments(model, ["table", "q"], rho=0.5) for _ in range(2))
    one.collect(lambda: model(INDEX), Alone())
    four.collect(lambda: model(INDEX), Alone(others=3))
    assert float(four.of("q").count) == 24
    torch.testing.assert_close(four.of("q").moment, 4 * one.of("q").moment)
    torch.testing.assert_close(four.of("q").hessian(4, CPU), one.of("q").hessian(4, CPU))
    assert four.of("table").rows.tolist() == [4, 12, 4, 0, 4]


def test_look_ups_fade_too():
    model = Pair()
    moments = Moments(model, ["table"], rho=0.25)
    for index in ([0, 0], [0, 3], [1, 1]):
        moments.collect(lambda index=index: model(torch.tensor(index)), Alone())
    assert moments.of("table").rows.tolist() == [2 / 16 + 1 / 4, 2, 0, 1 / 4, 0]
    assert float(moments.of("table").count) == 2 / 16 + 2 / 4 + 2


def test_layers_that_part_ways_are_measured_apart():
    model, calls = Pair(), []
    x, y = torch.randn(2, 4), torch.randn(3, 4)

    def forward():
        calls.append(0)
        model.q(x), model.k(x)
        model.q(y), model.k(2 * y)
        return len(calls)

    moments = Moments(model, ["q", "k"], rho=0.5)
    assert moments.collect(forward, Alone()) == 2  # it ran again
    found = {path: moments.of(path).hessian(4, CPU) for path in "qk"}
    torch.testing.assert_close(found["q"], second_moment(torch.cat([x, y])))
    torch.testing.assert_close(found["k"], second_moment(torch.cat([x, 2 * y])))


def test_a_layer_that_pauses_has_nothing_to_say_and_goes_on_later():
    model, x, y = Pair(), torch.randn(2, 4), torch.randn(3, 4)
    moments = Moments(model, ["q", "o"], rho=0.5)
    moments.collect(lambda: model.q(x), Alone())
    assert moments.of("o") is None
    moments.collect(lambda: model.o(y), Alone())
    assert moments.of("q") is None
    torch.testing.assert_close(moments.of("o").hessian(4, CPU), second_moment(y))
    assert float(moments.of("o").count) == 3
    moments.collect(lambda: model.q(y), Alone())
    assert float(moments.of("q").count) == 0.5 * 2 + 3


def test_a_resumed_run_has_the_same_sums():
    model = Pair()
    first, again = (Moments(model, ["table", "q", "k"], rho=0.5) for _ in range(2))
    first.collect(lambda: model(INDEX), Alone())
    saved = first.tensors()
    assert set(saved) == {"table/count", "table/rows", "q/count", "q/moment"}
    again.load(saved)
    for moments in (first, again):
        moments.collect(lambda: model(INDEX), Alone())
    now, wanted = again.tensors(), first.tensors()
    assert set(now) == set(wanted)
    assert all(torch.equal(now[name], wanted[name]) for name in now)


def test_paths_with_slashes_and_dots_come_back():
    moments = Moments(nn.Linear(2, 2), [], rho=0.5)
    moments.load({"a/b.c/count": torch.tensor(2.0), "a/b.c/rows": torch.ones(3)})
    assert set(moments.tensors()) == {"a/b.c/count", "a/b.c/rows"}


def test_no_rows_are_a_moment_of_zeros():
    empty = InputSums(count=torch.tensor(0.0, dtype=torch.float64), moment=torch.zeros(3, 3))
    assert torch.equal(empty.hessian(3, CPU), torch.zeros(3, 3))
    faint = InputSums(count=torch.tensor(1e-9, dtype=torch.float64), moment=torch.eye(3) * 2e-9)
    torch.testing.assert_close(faint.hessian(3, CPU), 2 * torch.eye(3))


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_all_or_nothing_is_remembered(rho):
    model, x, y = Pair(), torch.randn(2, 4), torch.randn(6, 4)
    moments = Moments(model, ["q"], rho=rho)
    for value in (x, y):
        moments.collect(lambda value=value: model.q(value), Alone())
    wanted = torch.cat([x, y]) if rho else y
    torch.testing.assert_close(moments.of("q").hessian(4, CPU), second_moment(wanted))
