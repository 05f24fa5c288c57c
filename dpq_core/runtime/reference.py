"""The plain definitions that every fast path of the runtime is tested against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.tensor.pq_tensor import PQTensor


def linear(x: Tensor, pq: PQTensor, bias: Tensor | None = None) -> Tensor:
    """``x @ decode(pq).T + bias``: activations ``[..., cols]`` -> ``[..., rows]``."""
    return nn.functional.linear(x, pq.decode(x.dtype), bias)


def embedding(index: Tensor, pq: PQTensor, dtype: torch.dtype) -> Tensor:
    """Rows of the decoded table: int ``[...]`` -> ``[..., cols]``."""
    return pq.decode(dtype)[index]
