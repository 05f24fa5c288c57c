"""Sums of table entries that are looked up in vector registers (LLVM IR, numba).

The 256 entries of a group's table are fixed-point numbers of 2 or 3 bytes, stored byte by byte
(planes), so that a plane is 256 bytes and fits in registers: four of AVX-512, where two permutes
(``vpermi2b``) and a blend look up 64 codes, or 16 segments of AVX2, where ``vpshufb`` looks up 32
codes in one segment and zeroes the rest. Looked-up bytes are added up in 16-bit lanes, even and odd
rows apart. After a block of ``BLOCK`` groups, too few for a lane to overflow, the planes are joined
to integers, which are exact, and added to float32 sums with the scale of the block.

The emitter and the loop around it share a file because numba's disk cache notices changes of the
jitted function's file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from dpq_core.kernels.cpu.lut_tables_jit import BLOCK, ENTRIES

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
_cgutils = cast(Any, cgutils)  # has no type annotations

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()


def _splat(kind: Any, value: int) -> Any:
    """A constant vector with one value in all its lanes."""
    return ir.Constant(kind, [value] * kind.count)


class _Emitter:
    """LLVM IR that adds up one tile: some vectors of rows, over the groups of a block.

    Attributes:
        lanes: rows of one vector: 64 (AVX-512 VBMI) or 32 (AVX2).
        vectors: vectors of the tile.
        planes: bytes of a table entry.
    """

    def __init__(self, builder: Any, lanes: int, vectors: int, planes: int) -> None:
        self.b, self.lanes, self.vectors, self.planes = builder, lanes, vectors, planes
        self.bytes = ir.VectorType(_I8, lanes)
        self.words = ir.VectorType(_I16, lanes // 2)

    def call(self, name: str, kind: Any, arguments: list[Any]) -> Any:
        """Call an intrinsic of LLVM whose arguments and result are of one type."""
        signature = ir.FunctionType(kind, [kind] * len(arguments))
        function = _cgutils.get_or_insert_function(self.b.module, signature, name)
        return self.b.call(function, arguments)

    def load(self, pointer: Any, offset: int, kind: Any) -> Any:
        """The vector at a pointer to bytes, which need not be aligned."""
        at = self.b.gep(pointer, [ir.Constant(_I64, offset)])
        return self.b.load(self.b.bitcast(at, kind.as_pointer()), align=1)

    def look_up(self, table: Any, codes: list[Any]) -> list[list[Any]]:
        """The bytes of the entries of some vectors of codes: by vector, then by plane."""
        return self._permuted(table, codes) if self.lanes == 64 else self._shuffled(table, codes)

    def _permuted(self, table: Any, codes: list[Any]) -> list[list[Any]]:
        quarters = [
            [self.load(table, plane * ENTRIES + q * 64, self.bytes) for q in range(4)]
            for plane in range(self.planes)
        ]
        rows = []
        for code in codes:
            upper = self.b.icmp_signed("<", code, _splat(self.bytes, 0))
            row = []
            for a, b, c, d in quarters:
                name = "llvm.x86.avx512.vpermi2var.qi.512"
                low = self.call(name, self.bytes, [a, code, b])
                high = self.call(name, self.bytes, [c, code, d])
                row.append(self.b.select(upper, high, low))
            rows.append(row)
        return rows

    def _shuffled(self, table: Any, codes: list[Any]) -> list[list[Any]]:
        half = ir.VectorType(_I8, 16)
        twice = ir.Constant(ir.VectorType(_I32, 32), [*range(16), *range(16)])
        rows: list[list[Any]] = [[None] * self.planes for _ in codes]
        for segment in range(16):
            parts = [
                self.load(table, plane * ENTRIES + segment * 16, half)
                for plane in range(self.planes)
            ]
            parts = [self.b.shuffle_vector(part, part, twice) for part in parts]
            for row, code in zip(rows, codes, strict=True):
                # 0..15 for codes of the segment become 0x70..0x7f; others get the top bit.
                index = self.b.xor(code, _splat(self.bytes, segment * 16))
                marks = _splat(self.bytes, 0x70)
                index = self.call("llvm.uadd.sat.v32i8", self.bytes, [index, marks])
                for plane, part in enumerate(parts):
                    entry = self.call("llvm.x86.avx2.pshuf.b", self.bytes, [part, index])
                    row[plane] = entry if segment == 0 else self.b.or_(row[plane], entry)
        return rows

    def tile(self, codes: Any, stride: Any, table: Any, groups: Any, out: Any, scale: Any) -> None:
        """Add the sums over ``groups`` groups, times ``scale``, to the float32 rows at ``out``."""
        b = self.b
        before, loop, done = b.block, b.append_basic_block("groups"), b.append_basic_block("sums")
        b.branch(loop)
        b.position_at_end(loop)
        g = b.phi(_I64)
        g.add_incoming(ir.Constant(_I64, 0), before)
        sums = [
            [[b.phi(self.words) for _ in range(2)] for _ in range(self.planes)]
            for _ in range(self.vectors)
        ]
        row = b.gep(codes, [b.mul(g, stride)])
        entries = b.gep(table, [b.mul(g, ir.Constant(_I64, self.planes * ENTRIES))])
        loaded = [self.load(row, v * self.lanes, self.bytes) for v in range(self.vectors)]
        ends = []
        for of_vector, looked_up in zip(sums, self.look_up(entries, loaded), strict=True):
            for phis, entry in zip(of_vector, looked_up, strict=True):
                pair = b.bitcast(entry, self.words)
                parts = (b.and_(pair, _splat(self.words, 255)), b.lshr(pair, _splat(self.words, 8)))
                ends += [(phi, b.add(phi, part)) for phi, part in zip(phis, parts, strict=True)]
        for phi, end in ends:
            phi.add_incoming(_splat(self.words, 0), before)
            phi.add_incoming(end, loop)
        after = b.add(g, ir.Constant(_I64, 1))
        g.add_incoming(after, loop)
        b.cbranch(b.icmp_signed("<", after, groups), loop, done)
        b.position_at_end(done)
        flat = [end for _, end in ends]
        for v in range(self.vectors):
            of_vector = flat[v * 2 * self.planes : (v + 1) * 2 * self.planes]
            self.store(of_vector, b.trunc(groups, _I32), out, v * self.lanes, scale)

    def store(self, sums: list[Any], groups: Any, out: Any, row: int, scale: Any) -> None:
        """Join the planes of one vector and add it to ``out``; even rows come before odd ones."""
        b, count = self.b, self.lanes // 2
        wide, floats = ir.VectorType(_I32, count), ir.VectorType(_F32, self.lanes)
        offset = self.spread(b.shl(groups, ir.Constant(_I32, 8 * self.planes - 1)), wide)
        halves = []
        for parity in range(2):
            total = b.sub(_splat(wide, 0), offset)  # entries are stored above half their range
            for plane in range(self.planes):
                part = b.zext(sums[2 * plane + parity], wide)
                total = b.add(total, b.shl(part, _splat(wide, 8 * plane)))
            halves.append(b.sitofp(total, ir.VectorType(_F32, count)))
        order = [lane // 2 + lane % 2 * count for lane in range(self.lanes)]
        mask = ir.Constant(ir.VectorType(_I32, self.lanes), order)
        interleaved = b.shuffle_vector(*halves, mask)
        at = b.bitcast(b.gep(out, [ir.Constant(_I64, row)]), floats.as_pointer())
        scaled = b.fmul(interleaved, self.spread(scale, floats))
        b.store(b.fadd(b.load(at, align=4), scaled), at, align=4)

    def spread(self, value: Any, kind: Any) -> Any:
        """A vector with one value, not a constant, in all its lanes."""
        empty = ir.Constant(kind, ir.Undefined)
        one = self.b.insert_element(empty, value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, empty, _splat(ir.VectorType(_I32, kind.count), 0))


def _add_tile(typing: Any, codes: Any, tables: Any, out: Any, scale: Any, sizes: Any) -> Any:
    """Add the sums of one tile to ``out``.

    codes: uint8 [groups, rows of the tile or more]; tables: uint8 [groups, planes * 256]; out:
    float32 [rows]; scale: float32; sizes: a tuple of nested tuples whose lengths are lanes / 32,
    vectors and planes.
    """
    signature = numba.types.void(codes, tables, out, scale, sizes)
    lanes, vectors, planes = (len(size) for size in sizes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = [
            _cgutils.create_struct_proxy(sig.args[n])(context, builder, value=args[n])
            for n in range(3)
        ]
        stride = builder.extract_value(arrays[0].strides, 0)
        groups = builder.extract_value(arrays[0].shape, 0)
        emit = _Emitter(builder, 32 * lanes, vectors, planes)
        emit.tile(arrays[0].data, stride, arrays[1].data, groups, arrays[2].data, args[3])
        return context.get_dummy_value()

    return signature, codegen


_tile = cast(Any, intrinsic)(_add_tile)


def sizes(lanes: int, vectors: int, planes: int) -> tuple[tuple[int, ...], ...]:
    """A tuple whose type tells the compiler the sizes of a tile; see ``_add_tile``."""
    return ((0,) * (lanes // 32), (0,) * vectors, (0,) * planes)


@_jit
def add_up(
    codes: Any, tables: Any, scales: Any, out: Any, wide: Any, narrow: Any, first: Any, last: Any
) -> None:
    """Write the sums of rows first..last, which are multiples of a vector's lanes.

    Args:
        codes: uint8 [groups, R].
        tables: uint8 [tokens, groups, planes * 256].
        scales: float32 [tokens, blocks].
        out: float32 [tokens, R rounded up to whole vectors].
        wide: ``sizes`` of a tile of several vectors.
        narrow: ``sizes`` of a tile of one vector.
        first: first row.
        last: past-the-end row, at most the width of ``out``.
    """
    groups, rows = codes.shape
    lanes = 32 * len(wide[0])
    step = lanes * len(wide[1])
    out[:, first:last] = 0
    rest = np.zeros((BLOCK, lanes), np.uint8)
    for block in range(scales.shape[1]):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, groups)
        row = first
        while row < last:
            if row + step <= min(last, rows):
                part = codes[begin:end, row:]
                for t in range(len(tables)):
                    _tile(part, tables[t, begin:end], out[t, row:], scales[t, block], wide)
                row += step
                continue
            if row + lanes <= rows:
                part = codes[begin:end, row:]
            else:
                for g in range(end - begin):
                    for r in range(rows - row):
                        rest[g, r] = codes[begin + g, row + r]
                part = rest[: end - begin, 0:]
            for t in range(len(tables)):
                _tile(part, tables[t, begin:end], out[t, row:], scales[t, block], narrow)
            row += lanes
