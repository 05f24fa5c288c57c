"""Plain definitions of the runtime, against which every fast path is tested."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.tensor.pq_tensor import PQTensor


def linear(x: Tensor, pq: PQTensor, bias: Tensor | None = None) -> Tensor:
    """The linear layer ``x @ decode(pq).T + bias``: activations ``[..., C]`` to ``[..., R]``."""
    return nn.functional.linear(x, pq.decode(x.dtype), bias)


def embedding(index: Tensor, pq: PQTensor, dtype: torch.dtype) -> Tensor:
    """The embedding ``decode(pq)[index]``: integers ``[...]`` to ``[..., C]``."""
    return pq.decode(dtype)[index]
