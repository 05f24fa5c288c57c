"""Decoding of one quantized weight from its stored parts: whole, by chunks of rows, or by rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dpq_core import trellis_books
from dpq_core.tensor import trellis
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.packing import UnpackedCache, unpack
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import book_of_group, effective_books, frame_of

CHUNK_BYTES = 16 << 20
"""Bytes of dense rows that exist at a time during a forward pass."""

TILE_BYTES = 2 << 20
"""Bytes of dense rows that are decoded into the caches of two cores and multiplied from there."""


class Decodable:
    """A quantized weight that decodes on demand: ``PQWeight``, and what operators see of one.

    Attributes:
        partition: all sizes, and how the matrix is cut.
        dense_dtype: dtype of the dense weight that is meant.
        codes: packed codes, uint8 ``[S*G, group_bytes]``.
    """

    partition: Partition
    dense_dtype: torch.dtype
    codes: Tensor
    _unpacked: UnpackedCache

    def parts(self) -> dict[str, Tensor]:
        """The current parts by name."""
        raise NotImplementedError

    def books(self) -> Tensor:
        """The codebooks, float32 ``[S*B, K, d]``, differentiable in their parts."""
        return effective_books(self.partition, self.parts(), self._unpacked)

    def book_of_group(self) -> Tensor:
        """Index of the codebook that each group uses in one stage: int64 ``[G]``."""
        return book_of_group(self.partition, self.parts(), self._unpacked)

    def stream_starts(self) -> Tensor:
        """First byte of the bit stream of each group of a trellis: int64 ``[G]``."""
        return self._unpacked.get(
            "stream starts",
            self.parts()["rates"],
            lambda _: trellis_books.starts(self.book_of_group(), self.partition.points),
        )

    def quads(self) -> Tensor:
        """Groups of a trellis that a product takes together, see ``kernels.cpu.trellis_decode``."""
        from dpq_core.kernels.cpu import trellis_decode  # numba loads on first use

        return self._unpacked.get(
            "quads",
            self.parts()["rates"],
            lambda _: trellis_decode.quads(self.book_of_group(), self.stream_starts()),
        )

    def outlier_places(self) -> Tensor:
        """Row and column of each outlier of a trellis: int64 ``[2, N]``."""
        cols = self.partition.cols
        return self._unpacked.get(
            "outlier places",
            self.parts()["outliers"],
            lambda places: torch.stack([places.long() // cols, places.long() % cols]),
        )

    def frame(self) -> Frame:
        """The frame of the core: its scales, column order and signs."""
        return frame_of(self.partition, self.parts(), self._unpacked)

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in its original shape, differentiable in codebooks and scales."""
        p, dtype = self.partition, dtype or self.dense_dtype
        frame = self.frame()
        exact = dtype if frame.keeps_inputs else torch.float32
        matrix = torch.empty(p.rows, p.cols, dtype=exact, device=self.codes.device)
        for first, rows in self.core_chunks(exact):
            matrix[first : first + len(rows)] = rows
        return p.from_matrix(frame.restore_rows(matrix).to(dtype))

    def core_chunks(
        self, dtype: torch.dtype, *, scaled: bool = True, tiled: bool = False
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of the core from the top, as (first row, dense rows ``[chunk, C]``).

        The core is the matrix before columns are scaled, reordered and rotated (``frame``). A chunk
        may be overwritten by the next one.

        Args:
            dtype: dtype of the rows, rounded from float32 once.
            scaled: False leaves the row scales to the caller, which is quicker.
            tiled: make chunks of ``TILE_BYTES`` where decoding is fast, else of ``CHUNK_BYTES``.
        """
        p = self.partition
        scale = self.parts().get("row_scale") if scaled else None
        exact = dtype if scale is None and p.stages == 1 else torch.float32
        along_rows = p.orientation == "output"
        unit = trellis_books.RESTART if p.row_bits else 8  # whole bytes, and no window across
        unit = p.d if along_rows else unit
        fast = self._is_plain_cpu()
        nbytes = min(TILE_BYTES, CHUNK_BYTES) if fast and tiled else CHUNK_BYTES
        step = max(1, nbytes // (exact.itemsize * p.cols * unit)) * unit
        books = self.books().detach().to(exact) if fast else self.books()
        for first in range(0, p.rows, step):
            last = min(first + step, p.rows)
            if fast:
                dense = self._fast_rows(first, last, books)
            elif along_rows:
                dense = self._output_rows(first, last, books)
            else:
                dense = self._assemble(self._row_codes(first, last), books)
            if p.row_bits:
                trellis.add_outliers(dense, first, self.parts())
            if scale is not None:
                dense = dense * scale[first:last].float()[:, None]
            yield first, dense.to(dtype)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``[n, C]`` of the weight at int64 ``[n]``, for look-ups in an embedding."""
        p, books = self.partition, self.books()
        if "signs_out" in self.parts():
            return self.decode(dtype)[index]
        if p.orientation == "output":
            dense = self._rows_along_outputs(index, books)
        else:
            dense = self._assemble(self._codes_at(index), books)
        if p.row_bits:
            dense = trellis.add_outliers_at(dense, index, self.parts())
        scale = self.parts().get("row_scale")
        if scale is not None:
            dense = dense * scale[index].float()[:, None]
        return self.frame().restore_rows(dense).to(dtype)

    def row_chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of the dense matrix from the top, as (first row, rows ``[chunk, C]``)."""
        frame = self.frame()
        if frame.signs_out is not None:
            yield 0, self.partition.to_matrix(self.decode(dtype))
            return
        exact = dtype if frame.keeps_inputs else torch.float32
        for first, rows in self.core_chunks(exact):
            yield first, frame.restore_rows(rows).to(dtype)

    def is_trained(self) -> bool:
        """Whether gradients of the parts are needed: they are on, and some part requires them."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.parts().values())

    def _is_plain_cpu(self) -> bool:
        """Whether the compiled loop applies: on a CPU, no gradient, subvectors along the inputs."""
        on_cpu = self.codes.device.type == "cpu"
        return on_cpu and not self.is_trained() and self.partition.orientation == "input"

    def _fast_rows(self, first: int, last: int, books: Tensor) -> Tensor:
        """Rows ``first..last`` of the core by the compiled loop; the memory is reused."""
        from dpq_core.kernels.cpu import decode, trellis_decode  # numba loads on first use

        p = self.partition
        if p.row_bits:
            streams = self.codes, self.stream_starts(), self.book_of_group()
            return trellis_decode.rows(*streams, books, p, first, last)[:, : p.cols]
        codes = self._row_codes(first, last).chunk(p.stages)
        codebooks = books.chunk(p.stages)
        dense = decode.rows(codes[0], codebooks[0], p.groups_per_codebook)
        if p.stages > 1:
            dense = dense.clone()  # the kernel's memory is that of its next result
            for stage_codes, stage_codebooks in zip(codes[1:], codebooks[1:], strict=True):
                dense += decode.rows(stage_codes, stage_codebooks, p.groups_per_codebook)
        return dense[:, : p.cols]

    def _row_codes(self, first: int, last: int) -> Tensor:
        """Codes ``[S*G, last - first]`` of points first..last; first is a multiple of 8."""
        p = self.partition
        if p.row_bits:
            return self._codes_at(torch.arange(first, last, device=self.codes.device))
        packed = self.codes[:, first * p.code_bits // 8 : -(-last * p.code_bits // 8)]
        return packed if p.code_bits == 8 else unpack(packed, p.code_bits, last - first)

    def _output_rows(self, first: int, last: int, books: Tensor) -> Tensor:
        """Rows first..last of a core cut along the outputs; first is a multiple of d."""
        p = self.partition
        group = torch.arange(first // p.d, -(-last // p.d), device=self.codes.device)
        words = self._summed(group, books)  # [g, C, d]
        return words.transpose(1, 2).reshape(-1, p.cols)[: last - first]

    def _rows_along_outputs(self, index: Tensor, books: Tensor) -> Tensor:
        """Float32 rows ``[n, C]`` of a core cut along the outputs."""
        p = self.partition
        words = self._summed(index // p.d, books)  # [n, C, d]
        offset = (index % p.d)[:, None, None].expand(-1, p.cols, 1)
        return words.gather(2, offset)[..., 0]

    def _summed(self, group: Tensor, books: Tensor) -> Tensor:
        """Sums of codewords over the stages for all points of some groups: ``[n, P, d]``."""
        p = self.partition
        stages = [
            _codewords(
                unpack(self.codes[group + stage * p.groups], p.code_bits, p.points),
                (group // p.groups_per_codebook + stage * p.codebooks)[:, None],
                books,
            )
            for stage in range(p.stages)
        ]
        return stages[0] if p.stages == 1 else torch.stack(stages).sum(0)

    def _assemble(self, codes: Tensor, books: Tensor) -> Tensor:
        """Float32 rows ``[n, C]`` of a core cut along the inputs, from codes ``[S*G, n]``."""
        p = self.partition
        book = self.book_of_group()
        stages = torch.arange(p.stages, device=codes.device)[:, None] * p.codebooks
        words = _codewords(codes, (stages + book).view(-1, 1), books)  # [S*G, n, d]
        if p.stages > 1:
            words = words.view(p.stages, p.groups, -1, p.d).sum(0)
        return words.transpose(0, 1).reshape(codes.shape[1], -1)[:, : p.cols]

    def _codes_at(self, point: Tensor) -> Tensor:
        """Codes ``[S*G, n]`` of the points at int64 ``[n]``."""
        p = self.partition
        if p.row_bits:
            return trellis.windows_at(self.codes, self.book_of_group(), p.points, point, p.K)
        if p.code_bits == 8:
            return self.codes[:, point]
        bit = point * p.code_bits
        code = torch.zeros(len(self.codes), len(point), dtype=torch.int64, device=point.device)
        for k in range((p.code_bits + 14) // 8):
            byte = (bit >> 3) + k
            code |= self.codes[:, byte.clamp(max=p.group_bytes - 1)].long() << (8 * k)
        return (code >> (bit & 7)) & ((1 << p.code_bits) - 1)


def _codewords(codes: Tensor, book: Tensor, books: Tensor) -> Tensor:
    """Codewords ``[..., d]`` of codes in the codebooks with the given indices (broadcast)."""
    _, K, d = books.shape
    return nn.functional.embedding(codes + book * K, books.reshape(-1, d))
