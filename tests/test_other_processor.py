"""The stand-in for another processor computes products that are right and not the same."""

from __future__ import annotations

import pytest
import torch
from other_processor import OtherProcessor
from tolerances import assert_same_sums


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mm", [(50, 300), (300, 40)]),
        ("bmm", [(3, 20, 300), (3, 300, 1)]),
        ("addmm", [(40,), (50, 300), (300, 40)]),
        ("baddbmm", [(3, 20, 7), (3, 20, 300), (3, 300, 7)]),
        ("mv", [(50, 300), (300,)]),
        ("dot", [(300,), (300,)]),
    ],
)
def test_products_are_right_but_not_the_same(name, shapes):
    given = [torch.randn(shape) for shape in shapes]
    here = getattr(torch, name)(*given)
    with OtherProcessor():
        there = getattr(torch, name)(*given)
    assert (there.shape, there.dtype) == (here.shape, here.dtype)
    assert not torch.equal(here, there)
    left, right = given[-2:]
    size = left.double().norm(dim=-1).max() * right.double().norm(dim=max(0, right.ndim - 2)).max()
    assert_same_sums(there, here, length=301, magnitude=float(size))


def test_a_product_with_the_own_transpose_is_not_symmetric():
    x = torch.randn(300, 17)
    with OtherProcessor():
        moment = x.T @ x
    assert not torch.equal(moment, moment.T)


def test_rows_of_a_product_depend_on_how_many_there_are():
    x, weight = torch.randn(9, 300), torch.randn(300, 17)
    with OtherProcessor():
        assert not torch.equal(x[:4] @ weight, (x @ weight)[:4])


def test_gradients_pass_through_and_integers_stay_as_they_are():
    x, weight = torch.randn(9, 300), torch.randn(17, 300, requires_grad=True)
    with OtherProcessor():
        torch.nn.functional.linear(x, weight).sum().backward()
        assert torch.equal(
            torch.arange(6).view(2, 3) @ torch.ones(3, 1, dtype=torch.int64),
            torch.tensor([[3], [12]]),
        )
    torch.testing.assert_close(weight.grad, x.sum(0).expand(17, -1))
