"""PQEmbedding: an embedding table on a quantized weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.runtime.weight import PQWeight


class PQEmbedding(nn.Module):
    """Rows of a quantized table; only the rows that are asked for are decoded."""

    def __init__(
        self,
        weight: PQWeight,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a quantized table ``[entries, dim]``; ``dtype`` is that of the output."""
        super().__init__()
        self.weight = weight
        self.padding_idx = padding_idx
        self.dtype = dtype

    @property
    def num_embeddings(self) -> int:
        """Entries of the table."""
        return self.weight.partition.rows

    @property
    def embedding_dim(self) -> int:
        """Length of an entry."""
        return self.weight.partition.cols

    def forward(self, index: Tensor) -> Tensor:
        """Integer ``[...]`` -> ``[..., dim]``."""
        rows: Tensor = self.weight(self._rows, index.reshape(-1).long())
        return rows.view(*index.shape, self.embedding_dim)

    def _rows(self, index: Tensor) -> Tensor:
        return self.weight.rows(index, self.dtype)
