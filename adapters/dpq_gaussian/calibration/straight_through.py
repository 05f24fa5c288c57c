"""Straight-through estimators (Bengio et al. 2013): exact values whose gradient skips rounding."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, proxy: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0]


def straight_through(value: Tensor, proxy: Tensor) -> Tensor:
    """Returns ``value`` bit for bit, and passes its gradient to ``proxy`` of the same shape."""
    return cast(Tensor, _Through.apply(value, proxy))  # type: ignore[no-untyped-call]


def rotated_straight_through(quaternions: Tensor, angles: Tensor) -> Tensor:
    """Returns quaternions ``[n, 4]`` and passes gradients to rotation vectors ``[n, 3]``.

    Turning by a vector works alike on all quaternions that stand for the same Gaussian: which of
    them the file holds may change from one step to the next.
    """
    x, y, z = (angles / 2).unbind(-1)
    a, b, c, d = quaternions.unbind(-1)
    change = [-x * b - y * c - z * d, x * a + y * d - z * c, y * a + z * b - x * d]
    change.append(z * a + x * c - y * b)
    return straight_through(quaternions, torch.stack(change, dim=-1))
