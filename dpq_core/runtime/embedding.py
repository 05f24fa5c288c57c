"""PQEmbedding: an embedding with a quantized table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.runtime.weight import PQWeight


class PQEmbedding(nn.Module):
    """An ``Embedding`` with a quantized table; only the rows that are looked up are decoded."""

    def __init__(
        self,
        weight: PQWeight,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take a quantized table ``[R, C]`` (entries, dim) and the dtype of the output."""
        super().__init__()
        self.weight = weight
        self.padding_idx = padding_idx
        self.dtype = dtype

    @property
    def num_embeddings(self) -> int:
        """Number of entries: R."""
        return self.weight.partition.rows

    @property
    def embedding_dim(self) -> int:
        """Length of an entry: C."""
        return self.weight.partition.cols

    def forward(self, index: Tensor) -> Tensor:
        """Look up entries: integers ``[...]`` to ``[..., C]``."""
        rows: Tensor = self.weight(self._rows, index.reshape(-1).long())
        return rows.view(*index.shape, self.embedding_dim)

    def _rows(self, index: Tensor) -> Tensor:
        """Rows ``[n, C]`` of the table at int64 ``[n]``."""
        return self.weight.rows(index, self.dtype)
