"""PQEmbedding: an embedding with a quantized table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.device import is_traced
from dpq_core.runtime import operators
from dpq_core.runtime.layer import PQLayer
from dpq_core.runtime.weight import PQWeight


class PQEmbedding(PQLayer, nn.Embedding):
    """An ``Embedding`` with a quantized table; only the rows that are looked up are decoded."""

    dense_kind = nn.Embedding
    weight: PQWeight  # type: ignore[assignment]  # an Embedding's is a parameter

    def __init__(
        self,
        weight: PQWeight,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take a quantized table ``[R, C]`` (entries, dim).

        Args:
            weight: the table.
            padding_idx: as in ``Embedding``; its entry is looked up as any other.
            dtype: dtype of the output; by default that of the dense table.
        """
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.partition.rows, weight.partition.cols
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.use(weight)
        if dtype is not None:
            weight.dense_dtype = dtype

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the output."""
        return self.weight.dense_dtype

    def forward(self, index: Tensor) -> Tensor:
        """Look up entries: integers ``[...]`` to ``[..., C]``.

        Raises:
            IndexError: an index is outside the table (on a CPU; elsewhere as the device does).
        """
        if torch.is_autocast_enabled(index.device.type):
            with torch.autocast(index.device.type, enabled=False):  # an Embedding ignores it too
                return self.forward(index)
        if index.device.type == "cpu" and index.numel() and not is_traced():
            self._check_range(index)
        rows: Tensor = self.weight(self._rows, index.reshape(-1).long())
        return rows.view(*index.shape, self.embedding_dim)

    def _check_range(self, index: Tensor) -> None:
        """Refuse an index outside the table: packed codes have a few bits more than entries."""
        least, most = torch.aminmax(index)
        if least < 0 or most >= self.num_embeddings:
            raise IndexError(
                f"index {int(least if least < 0 else most)} is outside the table of "
                f"{self.num_embeddings} entries"
            )

    def _rows(self, index: Tensor) -> Tensor:
        """Rows ``[n, C]`` of the table at int64 ``[n]``."""
        if not self.weight.needs_operator():
            return self.weight.rows(index, self.dtype)
        rows: Tensor = operators.rows(index, *self.weight.operands(), self.dtype)
        return rows
