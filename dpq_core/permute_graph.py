"""Permutations that cost nothing at inference: reorder a hidden axis on both of its sides.

Between a producer (its rows and bias are the hidden units) and its consumers (their columns are)
the order of the units is free, as long as all that lies between acts on each unit alone, such as
an activation function or a product with another producer permuted alike (PQF, arXiv 2010.15703,
section 3.2; METHODS 2.3). Only an adapter knows which tensors form such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpq_core.errors import SpecError


def permute_hidden(
    producers: Sequence[Tensor],
    consumers: Sequence[Tensor],
    perm: Tensor,
    *,
    consumer_perm: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Reorder the hidden units between producers and consumers; the function stays the same.

    Args:
        producers: weights ``[hidden, ...]`` and biases ``[hidden]``; unit i becomes ``perm[i]``.
        consumers: weights ``[out, hidden, ...]``.
        perm: int64 ``[hidden]``, as ``dpq_core.permute.search`` finds it for the consumers.
        consumer_perm: where the consumers see the units repeated (grouped-query attention): the
            order of their columns.

    Returns:
        The permuted producers and consumers, as new tensors.

    Raises:
        SpecError: an axis does not have the length of its permutation, or that is none.
    """
    columns = perm if consumer_perm is None else consumer_perm
    for order in (perm, columns):
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise SpecError(f"not a permutation of 0..{len(order) - 1}")
    sizes = {(t.shape[0], len(perm)) for t in producers}
    sizes |= {(t.shape[1], len(columns)) for t in consumers}
    for found, expected in sorted(sizes):
        if found != expected:
            raise SpecError(f"a hidden axis of {found} units cannot be permuted by {expected}")
    return [t[perm] for t in producers], [t[:, columns] for t in consumers]


def head_permutation(within: Tensor, repeat: int = 1) -> Tensor:
    """Orders inside attention heads -> one order of all columns.

    Args:
        within: int64 ``[heads, head_dim]``: each head's order of its own columns.
        repeat: adjacent heads that share each order: with grouped-query attention the output
            projection sees each value head as often.

    Returns:
        int64 ``[heads * repeat * head_dim]``.
    """
    spread = within.repeat_interleave(repeat, dim=0)
    first = torch.arange(len(spread), device=within.device) * within.shape[1]
    return (spread + first[:, None]).flatten()
