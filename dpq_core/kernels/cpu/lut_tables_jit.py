"""Fixed-point tables of inner products with codewords, for look-ups in registers (LLVM IR, numba).

A table has ``ENTRIES`` entries of 2 or 3 bytes, stored byte by byte (planes); ``BLOCK`` groups
share a scale. ``lut_jit`` adds up the entries that codes name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
_jit_fma = cast(Callable[[F], F], numba.njit(cache=True, nogil=True, fastmath={"contract"}))
_cgutils = cast(Any, cgutils)  # has no type annotations

BLOCK = 32
"""Groups that share a scale: 32 tables of 2 planes are 16 KiB, and 257 bytes fit a 16-bit lane."""

ENTRIES = 256
"""Entries of a table, whatever K is: one for each value of a byte."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES = ir.VectorType(ir.IntType(8), 16)


def _splat(kind: Any, value: int) -> Any:
    """A constant vector with one value in all its lanes."""
    return ir.Constant(kind, [value] * kind.count)


def _add_table(typing: Any, x: Any, book: Any, inverse: Any, table: Any, planes: Any) -> Any:
    """Write the table of one group in fixed point.

    x: float32 [coordinates, at most d]; book: float32 [d, 256]; inverse: float32, entries per unit;
    table: uint8 [planes * 256]; planes: a tuple of that length.
    """
    signature = numba.types.void(x, book, inverse, table, planes)
    floats, integers = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = {
            n: _cgutils.create_struct_proxy(sig.args[n])(context, builder, value=args[n])
            for n in (0, 1, 3)
        }
        b = builder

        def call(name: str, *arguments: Any) -> Any:
            signature = ir.FunctionType(floats, [floats] * len(arguments))
            return b.call(_cgutils.get_or_insert_function(b.module, signature, name), arguments)

        def spread(value: Any) -> Any:
            empty = ir.Constant(floats, ir.Undefined)
            one = b.insert_element(empty, value, ir.Constant(_I32, 0))
            return b.shuffle_vector(one, empty, _splat(integers, 0))

        count = b.extract_value(arrays[0].shape, 0)
        values, book_at, table_at = (array.data for array in arrays.values())
        half = _splat(integers, 1 << (8 * len(planes) - 1))

        def vector(pointer: Any, offset: Any, kind: Any) -> Any:
            return b.bitcast(b.gep(pointer, [offset]), kind.as_pointer())

        with _cgutils.for_range(b, ir.Constant(_I64, ENTRIES // 64)) as step:
            first = b.mul(step.index, ir.Constant(_I64, 64))
            before = b.block
            loop, done = b.append_basic_block("coordinates"), b.append_basic_block("entries")
            zero = ir.Constant(_I64, 0)
            b.cbranch(b.icmp_signed(">", count, zero), loop, done)
            b.position_at_end(loop)
            c = b.phi(_I64)
            c.add_incoming(zero, before)
            sums = [b.phi(floats) for _ in range(4)]
            value = spread(b.fmul(b.load(b.gep(values, [c])), args[2]))
            row = b.add(first, b.mul(c, ir.Constant(_I64, ENTRIES)))
            ends = []
            for n, phi in enumerate(sums):
                at = vector(book_at, b.add(row, ir.Constant(_I64, 16 * n)), floats)
                entry = b.load(at, align=4)
                ends.append(call("llvm.fmuladd.v16f32", value, entry, phi))
            for phi, end in zip(sums, ends, strict=True):
                phi.add_incoming(_splat(floats, 0), before)
                phi.add_incoming(end, loop)
            after = b.add(c, ir.Constant(_I64, 1))
            c.add_incoming(after, loop)
            b.cbranch(b.icmp_signed("<", after, count), loop, done)
            b.position_at_end(done)
            for n, end in enumerate(ends):
                total = b.phi(floats)
                total.add_incoming(_splat(floats, 0), before)
                total.add_incoming(end, loop)
                ends[n] = total
            for n, total in enumerate(ends):
                nearest = call("llvm.rint.v16f32", total)
                fixed = b.add(b.fptosi(nearest, integers), half)
                for plane in range(len(planes)):
                    byte = b.trunc(b.lshr(fixed, _splat(integers, 8 * plane)), _BYTES)
                    offset = b.add(first, ir.Constant(_I64, plane * ENTRIES + 16 * n))
                    b.store(byte, vector(table_at, offset, _BYTES), align=1)
        return context.get_dummy_value()

    return signature, codegen


_table = cast(Any, intrinsic)(_add_table)


@_jit
def transpose_books(books: Any, turned: Any, largest: Any) -> None:
    """Write codebooks float32 [B, K, d] as [B, d, 256], and the largest magnitudes [B, d]."""
    for book in range(len(books)):
        for i in range(books.shape[2]):
            most = np.float32(0)
            for k in range(books.shape[1]):
                value = books[book, k, i]
                turned[book, i, k] = value
                most = max(most, abs(value))
            turned[book, i, books.shape[1] :] = 0
            largest[book, i] = most


@_jit_fma
def tabulate(
    x: Any,
    turned: Any,
    largest: Any,
    books: Any,
    tables: Any,
    scales: Any,
    planes: Any,
    first: Any,
    last: Any,
) -> None:
    """Write the fixed-point tables of tasks first..last; a task is a block of one token.

    A block's scale is a bound of its inner products over the range of entries; entries are stored
    plus half that range. A token that is not finite gets the scale NaN.

    Args:
        x: float32 [tokens, C].
        turned: codebooks, float32 [B, d, 256]; see ``transpose_books``.
        largest: float32 [B, d].
        books: int64 [groups, 2]: codebook, and first coordinate of x, of each row of codes.
        tables: uint8 [tokens, groups, planes * 256].
        scales: float32 [tokens, blocks].
        planes: a tuple of as many entries as there are planes.
        first: first task.
        last: past-the-end task.
    """
    groups, d, blocks = len(books), turned.shape[1], scales.shape[1]
    steps = np.float32((1 << (8 * len(planes) - 1)) - 128)  # with room for rounding
    for task in range(first, last):
        t, block = task // blocks, task % blocks
        begin, end = block * BLOCK, min((block + 1) * BLOCK, groups)
        bound = np.float32(0)
        for g in range(begin, end):
            book, start = books[g, 0], books[g, 1]
            total = np.float32(0)
            for i in range(min(d, x.shape[1] - start)):
                total += abs(x[t, start + i]) * largest[book, i]
            bound = total if not total <= bound else bound
            if not bound <= np.float32(3e38):
                break  # NaN or infinite: nothing is larger
        fine = bound <= np.float32(3e38)
        inverse = steps / bound if fine and bound > 0 else np.float32(0)
        scales[t, block] = bound / steps if fine else np.float32(np.nan)
        if fine and not inverse <= np.float32(3e38):  # a bound so small that its inverse overflows
            inverse, scales[t, block] = np.float32(0), np.float32(0)
        for g in range(begin, end):
            book, start = books[g, 0], books[g, 1]
            used = min(d, x.shape[1] - start) if fine else 0
            _table(x[t, start : start + used], turned[book], inverse, tables[t, g], planes)
