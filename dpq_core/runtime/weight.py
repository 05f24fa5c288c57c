"""PQWeight: the stored parts of one quantized weight, as a module that decodes on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dpq_core.runtime.stand_in import StandIn
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.packing import UnpackedCache, unpack
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import (
    PQTensor,
    effective_books,
    expected_parts,
    frame_of,
    stored_values,
)

CHUNK_BYTES = 16 << 20
"""Bytes of dense rows that exist at a time during a forward pass."""


class PQWeight(StandIn):
    """A quantized weight in place of the dense ``weight`` parameter of a module.

    Its state dict holds exactly the stored parts (``codes``, ``codebooks``, ``row_scale``, ...), so
    the names in a model equal the names in an artifact. Integers are buffers; codebooks, pools and
    scales are trainable (see ``make_trainable``). No forward pass changes any of them.
    """

    codes: Tensor  # uint8 [S*G, group_bytes]

    def __init__(
        self,
        partition: Partition,
        spec: QuantSpec,
        *,
        device: torch.device | str | None = None,
        dense_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate uninitialised parts, which a checkpoint loader fills."""
        super().__init__(dense_dtype)
        self.partition = partition
        self.spec = spec
        for name, (dtype, shape) in expected_parts(partition, spec).items():
            empty = torch.empty(shape, dtype=dtype, device=device)
            if dtype.is_floating_point:
                self.register_parameter(name, nn.Parameter(empty))
            else:
                self.register_buffer(name, empty)
        self._unpacked = UnpackedCache()

    @classmethod
    def from_pq(cls, pq: PQTensor) -> PQWeight:
        """A module that holds the parts of ``pq`` (shared, not copied)."""
        weight = cls(pq.partition, pq.spec, device="meta", dense_dtype=pq.dtype)
        weight.load_state_dict(pq.parts(), assign=True)
        return weight

    def parts(self) -> dict[str, Tensor]:
        """The current parts by name."""
        return {**self._parameters, **self._buffers}  # type: ignore[dict-item]  # none is None

    def pq(self, dtype: torch.dtype = torch.float32) -> PQTensor:
        """The parts as they are stored, rounded to the dtypes of the spec and checked.

        Args:
            dtype: dtype of the dense weight.

        Raises:
            ArtifactError: a value is not finite in its stored dtype.
        """
        parts = {name: part.detach() for name, part in self.parts().items()}
        if "codebook_scale" not in parts and self.spec.codebook_dtype == "int8":
            name = "pool" if self.partition.pool else "codebooks"
            parts[name], parts["codebook_scale"] = to_int8(parts[name])
        expected = expected_parts(self.partition, self.spec)
        parts = {name: part.to(expected[name][0]) for name, part in parts.items()}
        return PQTensor.from_parts(self.partition, self.spec, dtype, parts)

    def make_trainable(self) -> None:
        """Make codebooks (or pool) and scales float32 parameters that require gradients.

        Integer codebooks become floats; ``pq`` rounds them again.
        """
        if self.spec.codebook_dtype == "int8" and "codebook_scale" in self._parameters:
            name = "pool" if self.partition.pool else "codebooks"
            values = stored_values(self.partition, self.parts()).detach()
            delattr(self, name)
            delattr(self, "codebook_scale")
            self.register_parameter(name, nn.Parameter(values))
        for name, part in self._parameters.items():
            if part is not None:
                setattr(self, name, nn.Parameter(part.detach().float()))

    def books(self) -> Tensor:
        """The codebooks, float32 ``[S*B, K, d]``, differentiable in their parts."""
        return effective_books(self.partition, self.parts(), self._unpacked)

    def frame(self) -> Frame:
        """The frame of the core: its scales, column order and signs."""
        return frame_of(self.partition, self.parts(), self._unpacked)

    def sizes(self) -> str:
        """Sizes of codes and codebooks in one line, which ``print(model)`` shows."""
        p = self.partition
        stages = f"stages={p.stages}, " if p.stages > 1 else ""
        pool = f", pool={p.pool}" if p.pool else ""
        return f"{stages}d={p.d}, K={p.K}, codebooks={p.codebooks}{pool}"

    def forward(self, use: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Call ``use(*inputs)`` while the parts are on their device.

        Libraries that offload weights (accelerate) load the tensors of a module for its forward
        pass only, so every caller that decodes this weight does it in here.
        """
        return use(*inputs)

    @property
    def is_constant(self) -> bool:
        """Whether no gradient goes to what the weight is decoded from."""
        return not self.requires_grad and "core_chunks" not in vars(self)

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        return self.codes.device

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in its original shape, differentiable in codebooks and scales."""
        p, dtype = self.partition, dtype or self.dtype
        frame = self.frame()
        exact = dtype if frame.keeps_inputs else torch.float32
        matrix = torch.empty(p.rows, p.cols, dtype=exact, device=self.device)
        for first, rows in self.core_chunks(exact):
            matrix[first : first + len(rows)] = rows
        return p.from_matrix(frame.restore_rows(matrix).to(dtype))

    def core_chunks(
        self, dtype: torch.dtype, *, scaled: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of the core from the top, as (first row, dense rows ``[chunk, C]``).

        The core is the matrix before columns are scaled, reordered and rotated (``frame``). A chunk
        may be overwritten by the next one.

        Args:
            dtype: dtype of the rows, rounded from float32 once.
            scaled: False leaves the row scales to the caller, which is quicker.
        """
        p = self.partition
        scale = self.parts().get("row_scale") if scaled else None
        exact = dtype if scale is None and p.stages == 1 else torch.float32
        along_rows = p.orientation == "output"
        unit = p.d if along_rows else 8  # 8 codes end on a byte, whatever the bits per code
        step = max(1, CHUNK_BYTES // (exact.itemsize * p.cols * unit)) * unit
        fast = self._is_plain_cpu()
        books = self.books().detach().to(exact) if fast else self.books()
        for first in range(0, p.rows, step):
            last = min(first + step, p.rows)
            if fast:
                dense = self._fast_rows(first, last, books)
            elif along_rows:
                dense = self._output_rows(first, last, books)
            else:
                dense = self._assemble(self._row_codes(first, last), books)
            if scale is not None:
                dense = dense * scale[first:last].float()[:, None]
            yield first, dense.to(dtype)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``[n, C]`` of the weight at int64 ``[n]``, for look-ups in an embedding."""
        p, books = self.partition, self.books()
        if "signs_out" in self._buffers:
            return self.decode(dtype)[index]
        if p.orientation == "output":
            dense = self._rows_along_outputs(index, books)
        else:
            dense = self._assemble(self._codes_at(index), books)
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

    def _is_plain_cpu(self) -> bool:
        """Whether the compiled loop applies: on a CPU, no gradient, subvectors along the inputs."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        on_cpu = self.device.type == "cpu"
        return on_cpu and not trained and self.partition.orientation == "input"

    def _fast_rows(self, first: int, last: int, books: Tensor) -> Tensor:
        """Rows ``first..last`` of the core by the compiled loop; the memory is reused."""
        from dpq_core.kernels.cpu import decode  # numba loads on first use

        p = self.partition
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
        packed = self.codes[:, first * p.code_bits // 8 : -(-last * p.code_bits // 8)]
        return packed if p.code_bits == 8 else unpack(packed, p.code_bits, last - first)

    def _output_rows(self, first: int, last: int, books: Tensor) -> Tensor:
        """Rows first..last of a core cut along the outputs; first is a multiple of d."""
        p = self.partition
        group = torch.arange(first // p.d, -(-last // p.d), device=self.device)
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
        book = p.codebook_of_group().to(codes.device)
        stages = torch.arange(p.stages, device=codes.device)[:, None] * p.codebooks
        words = _codewords(codes, (stages + book).view(-1, 1), books)  # [S*G, n, d]
        if p.stages > 1:
            words = words.view(p.stages, p.groups, -1, p.d).sum(0)
        return words.transpose(0, 1).reshape(codes.shape[1], -1)[:, : p.cols]

    def _codes_at(self, point: Tensor) -> Tensor:
        """Codes ``[S*G, n]`` of the points at int64 ``[n]``."""
        p = self.partition
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
