"""The table of all weights of a model: sizes and addresses, and what keeps those alive."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpq_core.kernels.cpu import lut, lut_jit, lut_tables_jit, trellis_decode, trellis_jit
from dpq_core.runtime import PQEmbedding, PQLinear
from dpq_core.runtime.weight import PQWeight
from dpq_core.trellis_books import codebooks
from dpq_llama.compiled import products
from dpq_llama.compiled.step import Work

_PLANES = 3  # bytes of an entry of a table: as exact as float32

_DENSE = {torch.float32: products.DENSE, torch.bfloat16: products.BFLOAT16}


def unsuitable(layer: nn.Module) -> str:
    """Why the compiled step cannot multiply with a layer, in a few words; empty where it can."""
    if type(layer) in (nn.Linear, nn.Embedding):
        return "" if layer.weight.device.type == "cpu" else "weights are not on the CPU"
    if not isinstance(layer, PQLinear | PQEmbedding):
        return f"a layer is a {type(layer).__name__}"
    weight, p = layer.weight, layer.weight.partition
    if weight.device.type != "cpu":
        return "weights are not on the CPU"
    if p.orientation != "input":
        return "subvectors lie along the outputs"
    if "signs_in" in weight.parts() or "signs_out" in weight.parts():
        return "weights are rotated"
    if p.row_bits:
        return ""
    if p.code_bits != 8:
        return f"codes have {p.code_bits} bits"
    return "" if lut.usable()[0].lanes else "the processor has neither AVX2 nor AVX-512 VBMI"


class WeightTable:
    """Rows of the table of weights, see ``products``, in the order in which layers are added.

    Dense float32 and bfloat16 weights and all codes are shared with the model.

    Attributes:
        rows: one array int64 ``[FIELDS]`` per weight.
    """

    def __init__(self) -> None:
        """An empty table."""
        self.rows: list[NDArray[np.int64]] = []
        self._alive: list[Tensor] = []

    def table(self) -> NDArray[np.int64]:
        """The table, int64 ``[weights, FIELDS]``."""
        return np.stack(self.rows)

    def add(self, layer: Any) -> None:
        """Add a linear layer or an embedding, for which ``unsuitable`` is empty."""
        row = np.zeros(products.FIELDS, np.int64)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if isinstance(weight, PQWeight):
            self._add_quantized(row, weight)
        else:
            kind = _DENSE.get(weight.dtype, products.DENSE)
            dense = weight.detach() if weight.dtype in _DENSE else weight.detach().float()
            row[products.KIND] = kind
            row[products.ROWS], row[products.COLS] = weight.shape
            row[products.WIDTH] = weight.shape[1]
            row[products.CODES] = self._address(dense)
        if bias is not None:
            row[products.BIAS] = self._address(bias.detach().float())
        self.rows.append(row)

    def _add_quantized(self, row: NDArray[np.int64], weight: PQWeight) -> None:
        """Fill a row of the table with a quantized weight."""
        p, parts, frame = weight.partition, weight.parts(), weight.frame()
        row[products.ROWS], row[products.COLS], row[products.D] = p.rows, p.cols, p.d
        row[products.WIDTH] = p.groups * p.d
        codes = trellis_decode.streams(weight.codes) if p.row_bits else weight.codes
        row[products.CODES], row[products.CODE_BYTES] = self._address(codes), codes.numel()
        if frame.row_scale is not None:
            row[products.ROW_SCALE] = self._address(frame.row_scale.detach().float())
        if frame.column_scale is not None:
            row[products.COLUMN_SCALE] = self._address(frame.column_scale.detach().float())
        if frame.permutation is not None:
            row[products.ORDER] = self._address(frame.permutation.long())
        if p.row_bits:
            row[products.KIND], row[products.GROUPS] = products.TRELLIS, p.groups
            quads, outliers = weight.quads(), weight.outlier_places()
            row[products.QUADS], row[products.QUAD_COUNT] = self._address(quads), len(quads)
            row[products.OUTLIERS] = self._address(outliers)
            row[products.OUTLIER_COUNT] = outliers.shape[1]
            values = parts["outlier_values"].detach().float()
            row[products.OUTLIER_VALUES] = self._address(values)
            row[products.STARTS] = self._address(weight.stream_starts())
            row[products.RATES] = self._address(weight.book_of_group())
            return
        books = weight.books().detach().contiguous()
        turned = torch.empty(len(books), p.d, lut_tables_jit.ENTRIES)
        largest = torch.empty(len(books), p.d)
        lut_tables_jit.transpose_books(books.numpy(), turned.numpy(), largest.numpy())
        row[products.KIND], row[products.GROUPS] = products.LEARNED, len(codes)
        row[products.BOOKS], row[products.BOOK_COUNT] = self._address(turned), len(books)
        row[products.LARGEST] = self._address(largest)
        sources = lut.sources(p.stages, p.groups, p.groups_per_codebook, p.codebooks, p.d)
        row[products.SOURCES] = self._address(torch.from_numpy(sources))

    def _address(self, tensor: Tensor) -> int:
        """Address of a tensor's values, which the table keeps alive."""
        kept = tensor.contiguous()
        self._alive.append(kept)
        return kept.data_ptr()

    def work(self, mixed: int) -> Work:
        """Memory that all threads share, large enough for every weight of the table.

        Args:
            mixed: outputs of the attention of one token.
        """
        table = self.table()
        inner = np.concatenate([table[:1], table[2:]])  # all but the head
        learned = np.where(
            table[:, products.KIND] == products.LEARNED, table[:, products.GROUPS], 0
        )
        groups = max(int(learned.max()), 1)
        lanes = lut.usable()[0].lanes or 32
        width = max(int(inner[1:, products.ROWS].max()), int(table[:, products.WIDTH].max()))
        head = int(table[1, products.ROWS])
        return Work(
            books=codebooks(trellis_jit.WINDOWS).numpy(),
            sizes=trellis_jit.sizes_of(1),
            wide=lut_jit.sizes(lanes, lut.VECTORS[lanes, _PLANES], _PLANES),
            narrow=lut_jit.sizes(lanes, 1, _PLANES),
            planes=(0,) * _PLANES,
            tables=np.empty((3, groups * _PLANES * lut_tables_jit.ENTRIES), np.uint8),
            scales=np.empty((3, -(-groups // lut_tables_jit.BLOCK)), np.float32),
            outputs=np.empty((3, 1, -(-width // products.TILE) * products.TILE), np.float32),
            logits=np.empty((1, 1, -(-head // products.TILE) * products.TILE), np.float32),
            mixed=np.empty(mixed, np.float32),
            counters=np.zeros(16, np.int64),
        )
