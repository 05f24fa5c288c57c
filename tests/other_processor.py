"""Products of matrices as another processor computes them: right, but added up in another order.

No BLAS promises the order in which it adds up the terms of a product. It depends on the processor,
on the shapes of both matrices, on where in the result an entry is and on the alignment of the
memory. On the machine of a developer much of that never shows. Here it does: with
``OTHER_PROCESSOR=1`` each product is cut in two along its inner dimension, at a place that depends
on all of these, so that a test that takes two ways to a product for one fails on any machine.
``make portable`` runs with it. Threads change nothing: a BLAS shares out the entries of a result,
and not the terms of their sums (tests/core/kernels/test_thread_counts.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Product = Callable[[Tensor, Tensor], Tensor]


class OtherProcessor(TorchDispatchMode):
    """Within this context products of matrices are added up in an order of their own."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor:
        options = kwargs or {}
        if func in (aten.mm.default, aten.bmm.default):
            return product(func, *args)
        if func in (aten.addmm.default, aten.baddbmm.default):
            bias, left, right = args
            plain = aten.mm.default if func is aten.addmm.default else aten.bmm.default
            scaled = product(plain, left, right) * options.get("alpha", 1)
            return bias * options.get("beta", 1) + scaled
        if func is aten.mv.default:
            return product(aten.mm.default, args[0], args[1][:, None])[:, 0]
        if func is aten.dot.default:
            return product(aten.mm.default, args[0][None], args[1][:, None])[0, 0]
        return func(*args, **options)


def product(multiply: Product, left: Tensor, right: Tensor) -> Tensor:
    """``left [..., m, k] @ right [..., k, n]``, its left and its right half cut differently."""
    (m, k), n = left.shape[-2:], right.shape[-1]
    if k < 2 or not left.is_floating_point():
        return multiply(left, right)
    where = hash((m, n, k, left.data_ptr() % 64, right.data_ptr() % 64))
    half = (n + 1) // 2
    parts = [
        _cut(multiply, left, right[..., first:last], 1 + (where + first) % (k - 1))
        for first, last in ((0, half), (half, n))
    ]
    return torch.cat(parts, dim=-1)


def _cut(multiply: Product, left: Tensor, right: Tensor, at: int) -> Tensor:
    first = multiply(left[..., :at], right[..., :at, :])
    return first + multiply(left[..., at:], right[..., at:, :])
