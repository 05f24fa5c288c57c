"""PQWeight: the stored parts of one quantized weight as a module that decodes on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dpq_core.packing import unpack
from dpq_core.partition import Partition
from dpq_core.pq_tensor import PQTensor, expected_parts

CHUNK_BYTES = 16 << 20
"""Bytes of the dense rows that exist at any time during a forward pass."""


class PQWeight(nn.Module):
    """A quantized weight that stands where the dense ``weight`` parameter stood.

    Its state dict holds exactly the stored parts (``codes``, ``codebooks``, ``row_scale``), so the
    names in a model equal the names in an artifact. Codes are a buffer; codebooks and scales are
    trainable. No method changes any of them.
    """

    codes: Tensor  # uint8 [groups, group_bytes]

    def __init__(
        self,
        partition: Partition,
        *,
        codebook_dtype: torch.dtype = torch.float16,
        row_scale: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate uninitialised parts, to be filled by a checkpoint loader."""
        super().__init__()
        self.partition = partition
        parts = expected_parts(partition, codebook_dtype=codebook_dtype, row_scale=row_scale)
        empty = {name: torch.empty(s, dtype=t, device=device) for name, (t, s) in parts.items()}
        self.register_buffer("codes", empty["codes"])
        self.codebooks = nn.Parameter(empty["codebooks"])  # [codebooks, K, d]
        self.row_scale = nn.Parameter(empty["row_scale"]) if row_scale else None  # [rows]

    @classmethod
    def from_pq(cls, pq: PQTensor) -> PQWeight:
        """A module that holds the parts of ``pq`` (shared, not copied)."""
        weight = cls(
            pq.partition,
            codebook_dtype=pq.codebooks.dtype,
            row_scale=pq.row_scale is not None,
            device="meta",
        )
        weight.load_state_dict(pq.parts(), assign=True)
        return weight

    def forward(self, use: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``use(*inputs)``, while the parts are in place.

        Libraries that offload weights (accelerate) bring a module's tensors around its own forward
        pass; so whoever decodes this weight does it in here.
        """
        return use(*inputs)

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense weight."""
        return torch.Size(self.partition.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the codebooks; the decoded weight takes that of the activations."""
        return self.codebooks.dtype

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.codebooks.device

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in its original shape, differentiable in codebooks and scales."""
        p, dtype = self.partition, dtype or self.dtype
        matrix = torch.empty(p.rows, p.cols, dtype=dtype, device=self.device)
        for first, rows in self.row_chunks(dtype):
            matrix[first : first + len(rows)] = rows
        return p.from_matrix(matrix)

    def row_chunks(
        self, dtype: torch.dtype, *, scaled: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, dense rows ``[chunk, cols]``) over the matrix view, top to bottom.

        A chunk may be overwritten when the next one is asked for.

        Args:
            dtype: of the rows, rounded from float32 once.
            scaled: False leaves the row scales to the caller, which is quicker.
        """
        p = self.partition
        scale = self.row_scale if scaled else None
        exact = dtype if scale is None else torch.float32
        along_rows = p.orientation == "output"
        unit = p.d if along_rows else 8  # 8 codes end on a byte, whatever the bits per code
        step = max(1, CHUNK_BYTES // (exact.itemsize * p.cols * unit)) * unit
        books = self.codebooks.detach().to(exact) if self._is_plain_cpu() else None
        for first in range(0, p.rows, step):
            last = min(first + step, p.rows)
            if books is not None:
                dense = self._fast_rows(first, last, books)
            else:
                dense = self._output_rows(first, last) if along_rows else self._rows(first, last)
            if scale is not None:
                dense = dense * scale[first:last].float()[:, None]
            yield first, dense.to(dtype)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of the matrix view (embedding look-up): int64 ``[n]`` -> ``[n, cols]``."""
        p = self.partition
        if p.orientation == "output":
            codes = self._codes(index // p.d)  # [n, cols]
            book = (index // p.d // p.tie)[:, None]
            words = self._codewords(codes, book)  # [n, cols, d]
            offset = (index % p.d)[:, None, None].expand(-1, p.cols, 1)
            dense = words.gather(2, offset)[..., 0]
        else:
            dense = self._assemble(self._codes_at(index))
        if self.row_scale is not None:
            dense = dense * self.row_scale[index].float()[:, None]
        return dense.to(dtype)

    def _is_plain_cpu(self) -> bool:
        """Whether the numba kernel applies: no gradient, on the CPU, subvectors along inputs."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        on_cpu = self.device.type == "cpu"
        return on_cpu and not trained and self.partition.orientation == "input"

    def _fast_rows(self, first: int, last: int, books: Tensor) -> Tensor:
        from dpq_core.kernels import decode  # numba loads on first use

        dense = decode.rows(self._row_codes(first, last), books, self.partition.tie)
        return dense[:, : self.partition.cols]

    def _rows(self, first: int, last: int) -> Tensor:
        """Rows ``first..last`` when subvectors run along the inputs; first is a multiple of 8."""
        return self._assemble(self._row_codes(first, last))

    def _row_codes(self, first: int, last: int) -> Tensor:
        """Codes ``[groups, last - first]`` of some points; first is a multiple of 8."""
        p = self.partition
        packed = self.codes[:, first * p.code_bits // 8 : -(-last * p.code_bits // 8)]
        return packed if p.code_bits == 8 else unpack(packed, p.code_bits, last - first)

    def _output_rows(self, first: int, last: int) -> Tensor:
        """Rows ``first..last`` when subvectors run along the outputs; first is a multiple of d."""
        p = self.partition
        group = torch.arange(first // p.d, -(-last // p.d), device=self.device)
        words = self._codewords(self._codes(group), (group // p.tie)[:, None])  # [g, cols, d]
        return words.transpose(1, 2).reshape(-1, p.cols)[: last - first]

    def _assemble(self, codes: Tensor) -> Tensor:
        """Codes ``[groups, n]`` of n rows -> float32 rows ``[n, cols]``."""
        p = self.partition
        book = p.codebook_of_group().to(codes.device)[:, None]
        words = self._codewords(codes, book)  # [groups, n, d]
        return words.transpose(0, 1).reshape(codes.shape[1], -1)[:, : p.cols]

    def _codewords(self, codes: Tensor, book: Tensor) -> Tensor:
        """Float32 codewords ``[..., d]`` of codes in the given codebooks (broadcast)."""
        flat = self.codebooks.float().view(-1, self.partition.d)  # [codebooks * K, d]
        return nn.functional.embedding(codes + book * self.partition.K, flat)

    def _codes(self, group: Tensor) -> Tensor:
        """Codes of some groups, ``[n, points]``."""
        return unpack(self.codes[group], self.partition.code_bits, self.partition.points)

    def _codes_at(self, point: Tensor) -> Tensor:
        """Codes of some points in every group: int64 ``[n]`` -> ``[groups, n]``."""
        p = self.partition
        if p.code_bits == 8:
            return self.codes[:, point]
        bit = point * p.code_bits
        code = torch.zeros(p.groups, len(point), dtype=torch.int64, device=point.device)
        for k in range((p.code_bits + 14) // 8):
            byte = (bit >> 3) + k
            code |= self.codes[:, byte.clamp(max=p.group_bytes - 1)].long() << (8 * k)
        return (code >> (bit & 7)) & ((1 << p.code_bits) - 1)
