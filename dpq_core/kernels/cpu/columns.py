"""Reordering of activations by a permutation of columns, faster on a CPU than torch's gather.

For the 1152 inputs of a DiT-XL layer torch's indexing takes as long as the product with the
weight does. The order is read again for every token, from the L1 cache; values are moved as
machine words.
"""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from dpq_core.device import is_traced
from dpq_core.kernels.cpu.threads import spread

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
"""Integer dtype of a number of bytes, for values of dtypes that NumPy lacks (bfloat16)."""


@numba.njit(cache=True, nogil=True)
def _take(x, order, out, first, last):  # type: ignore[no-untyped-def]
    """Write ``x[t, order]`` to ``out[t]`` for tokens first..last."""
    for t in range(first, last):
        for c in range(len(order)):
            out[t, c] = x[t, order[c]]


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """Columns of activations ``[..., C]`` in another order: ``x[..., order]``, ``[..., n]``.

    Differentiable; on other devices, in traces and where gradients are needed, torch does it.

    Args:
        x: activations ``[..., C]``.
        order: int64 ``[n]``, every entry below C.
    """
    word = _WORDS.get(x.element_size())
    if (
        is_traced()
        or x.device.type != "cpu"
        or word is None
        or (x.requires_grad and torch.is_grad_enabled())
    ):
        return x.index_select(-1, order)
    tokens = x.detach().reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty(len(tokens), len(order), dtype=x.dtype)
    arrays = (tokens.view(word).numpy(), order.numpy(), out.view(word).numpy())
    spread(lambda first, last: _take(*arrays, first, last), len(tokens), out.numel())
    return out.view(*x.shape[:-1], len(order))
