"""Straight-through gradients: values as the file will restore them, gradients as if unrounded."""

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


def through(value: Tensor, proxy: Tensor) -> Tensor:
    """``value``, bit for bit, whose gradient goes to ``proxy``, of the same shape."""
    return cast(Tensor, _Through.apply(value, proxy))  # type: ignore[no-untyped-call]


def turned(quaternions: Tensor, angles: Tensor) -> Tensor:
    """Quaternions ``[n, 4]`` as they are; gradients go to rotation vectors ``[n, 3]`` of the world.

    Turning by a vector works alike on all quaternions that stand for the same Gaussian: which of
    them the file holds may change from one step to the next.
    """
    x, y, z = (angles / 2).unbind(-1)
    a, b, c, d = quaternions.unbind(-1)
    change = [-x * b - y * c - z * d, x * a + y * d - z * c, y * a + z * b - x * d]
    change.append(z * a + x * c - y * b)
    return through(quaternions, torch.stack(change, dim=-1))
