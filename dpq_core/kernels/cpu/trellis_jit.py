"""Dense rows and products of a trellis code (docs/algorithms.md#trellis-products, LLVM IR, numba).

The codes of eight rows of a group are ``rate`` bytes: with the bits before them they fit one
register, from which the windows are shifted; at high rates it holds four rows. Four groups are
taken together, so that their look-ups overlap; in a product they are of one rate, and the values
of a row are always added up in the same order.

The IR has no instruction of a particular processor. It shares a file with the loops around it
because numba's disk cache notices changes of the jitted function's file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from dpq_core.trellis_books import HIGH, LOW_RATES, RESTART

_cgutils = cast(Any, cgutils)  # has no type annotations

GROUPS = 4  # taken together
WINDOWS = 1024  # codewords of the codebook of a low rate
_STRIDE = HIGH * WINDOWS  # from the codebook of one rate to that of the next
_EIGHTS = RESTART // 8
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_PAIR = ir.VectorType(_F32, 2)


def _constant(value: int) -> Any:
    return ir.Constant(_I64, value)


class _Emitter:
    """LLVM IR over the rows of one tile of four groups.

    Attributes:
        b: builder of the function that the IR goes to.
        streams: pointer to all bit streams, at least eight bytes.
        starts: first bytes of the tile in the streams of the groups, int64.
    """

    def __init__(self, builder: Any, streams: Any, starts: Any) -> None:
        self.b, self.streams = builder, streams
        self.starts = [builder.load(builder.gep(starts, [_constant(g)])) for g in range(GROUPS)]

    def codes(self, start: Any, passed: Any) -> Any:
        """The 64 bits of a stream before a byte as an integer; bits before the tile are zeros.

        Args:
            start: first byte of the tile, int64.
            passed: bytes from there to the end of the codes, int64.
        """
        b, zero = self.b, _constant(0)
        at = b.sub(b.add(start, passed), _constant(8))
        missing = b.select(b.icmp_signed("<", at, zero), b.sub(zero, at), zero)
        place = b.bitcast(b.gep(self.streams, [b.add(at, missing)]), _I64.as_pointer())
        bits = b.lshr(b.bswap(b.load(place, align=1)), b.shl(missing, _constant(3)))
        spare = b.sub(_constant(64), b.shl(passed, _constant(3)))
        spare = b.select(b.icmp_signed(">", spare, zero), spare, zero)
        spare = b.select(b.icmp_signed("<", spare, _constant(64)), spare, _constant(63))
        return b.and_(bits, b.lshr(_constant(-1), spare))  # rate 0 has one bit, and a book of zeros

    def each_eight(self, eights: Any, write: Callable[[Any], None]) -> None:
        """A loop over eights of rows: ``write`` gets the index of the eight."""
        b, before = self.b, self.b.block
        loop, done = b.append_basic_block("eights"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        eight = b.phi(_I64)
        eight.add_incoming(_constant(0), before)
        write(eight)
        after = b.add(eight, _constant(1))
        eight.add_incoming(after, b.block)
        b.cbranch(b.icmp_signed("<", after, eights), loop, done)
        b.position_at_end(done)

    def ending(self, start: Any, eight: Any, rate: Any, *, half: bool) -> Any:
        """The 64 bits of a stream up to the end of an eight of rows, or of its first half."""
        b = self.b
        passed = b.mul(b.add(eight, _constant(1)), rate)
        if not half:
            return self.codes(start, passed)
        bits = self.codes(start, b.sub(passed, b.lshr(rate, _constant(1))))
        return b.lshr(bits, b.shl(b.and_(rate, _constant(1)), _constant(2)))

    def last_window(self, rate: Any) -> Any:
        """The largest window of a rate: a mask for its bits."""
        b = self.b
        high = b.icmp_signed(">", rate, _constant(LOW_RATES))
        return b.select(high, _constant(_STRIDE - 1), _constant(WINDOWS - 1))

    def word(self, book: Any, bits: Any, mask: Any, kind: Any) -> Any:
        """The codeword of the window in the lowest bits."""
        window = self.b.and_(bits, mask)
        return self.b.load(self.b.gep(self.b.bitcast(book, kind.as_pointer()), [window]), align=4)

    def products(
        self, rate: Any, book: Any, inputs: Any, sums: Any, eights: Any, lanes: int, *, whole: bool
    ) -> None:
        """Add the products of four groups of one rate to the sums of rows.

        Args:
            rate: int64.
            book: pointer to the codebook.
            inputs: pointer to ``GROUPS`` vectors.
            sums: pointer to a vector per row.
            eights: number of eights of rows.
            lanes: width of a vector: two values for each token.
            whole: whether eight rows fit 64 bits, as at rates below 8; else four are loaded.
        """
        b, kind = self.b, ir.VectorType(_F32, lanes)
        order = ir.Constant(ir.VectorType(_I32, lanes), [lane % 2 for lane in range(lanes)])
        vectors = [self.load(inputs, _constant(g), kind)[0] for g in range(GROUPS)]
        mask, rows = self.last_window(rate), 8 if whole else 4

        def write(eight: Any) -> None:
            for part in range(8 // rows):
                half = part + 1 < 8 // rows
                bits = [self.ending(start, eight, rate, half=half) for start in self.starts]
                for row in reversed(range(part * rows, (part + 1) * rows)):
                    index = b.add(b.mul(eight, _constant(8)), _constant(row))
                    total, place = self.load(sums, index, kind)
                    for g in range(GROUPS):
                        word = self.word(book, bits[g], mask, _PAIR)
                        word = b.shuffle_vector(word, ir.Constant(_PAIR, ir.Undefined), order)
                        bits[g] = b.lshr(bits[g], rate)
                        product = b.fmul(word, vectors[g], flags=("contract",))
                        total = b.fadd(total, product, flags=("contract",))
                    b.store(total, place, align=4)

        self.each_eight(eights, write)

    def load(self, pointer: Any, index: Any, kind: Any) -> tuple[Any, Any]:
        """The vector at an index of an array of vectors, and its place."""
        place = self.b.gep(pointer, [self.b.mul(index, _constant(kind.count))])
        place = self.b.bitcast(place, kind.as_pointer())
        return self.b.load(place, align=4), place

    def rows(self, rates: Any, books: Any, out: Any, stride: Any, eights: Any, kind: Any) -> None:
        """Write the codewords of four groups to rows.

        Args:
            rates: rates of the groups, int64.
            books: pointer to the codebooks of all rates.
            out: pointer to the codeword of the first group in the first row.
            stride: int64 codewords from row to row.
            eights: number of eights of rows.
            kind: integer type as large as a codeword.
        """
        b = self.b
        books, out = (b.bitcast(pointer, kind.as_pointer()) for pointer in (books, out))
        group_books = [b.gep(books, [b.mul(rate, _constant(_STRIDE))]) for rate in rates]
        masks = [self.last_window(rate) for rate in rates]
        streams = list(zip(self.starts, rates, strict=True))

        def write(eight: Any) -> None:
            for part in range(2):
                bits = [self.ending(start, eight, rate, half=part == 0) for start, rate in streams]
                for row in reversed(range(part * 4, part * 4 + 4)):
                    index = b.add(b.mul(eight, _constant(8)), _constant(row))
                    place = b.gep(out, [b.mul(index, stride)])
                    for g in range(GROUPS):
                        word = self.word(group_books[g], bits[g], masks[g], kind)
                        b.store(word, b.gep(place, [_constant(g)]), align=4)
                        bits[g] = b.lshr(bits[g], rates[g])

        self.each_eight(eights, write)


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return _cgutils.create_struct_proxy(kind)(context, builder, value=array).data


def _add_tile(typing, streams, starts, rate, book, inputs, sums, eights, sizes):  # type: ignore[no-untyped-def]
    """Add the products of four groups of one rate to the sums of one tile.

    streams: uint8; starts: int64 [4], first bytes of the tile; rate, eights: int64; book: float32
    [4 K, 2]; inputs: float32 [4, lanes]; sums: float32 [rows, lanes]; sizes: see ``sizes_of``.
    """
    signature = numba.types.void(streams, starts, rate, book, inputs, sums, eights, sizes)
    lanes, whole = len(sizes[0]), len(sizes[1]) == 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = {n: _pointer(context, builder, sig.args[n], args[n]) for n in (0, 1, 3, 4, 5)}
        emit = _Emitter(builder, at[0], at[1])
        emit.products(args[2], at[3], at[4], at[5], args[6], lanes, whole=whole)
        return context.get_dummy_value()

    return signature, codegen


def _write_tile(typing, streams, starts, rates, books, out, stride, eights):  # type: ignore[no-untyped-def]
    """Write the codewords of four groups to the rows of one tile.

    streams: uint8; starts, rates: int64 [4]; books: uint32 or uint64 [13, 4 K], one word each; out:
    of the same type, from the first codeword on; stride: int64 words of a row; eights: int64.
    """
    signature = numba.types.void(streams, starts, rates, books, out, stride, eights)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = [_pointer(context, builder, sig.args[n], args[n]) for n in range(5)]
        each = [builder.load(builder.gep(at[2], [_constant(g)])) for g in range(GROUPS)]
        kind = ir.IntType(sig.args[3].dtype.bitwidth)
        _Emitter(builder, at[0], at[1]).rows(each, at[3], at[4], args[5], args[6], kind)
        return context.get_dummy_value()

    return signature, codegen


_add_products = cast(Any, intrinsic)(_add_tile)
_write_rows = cast(Any, intrinsic)(_write_tile)


def sizes_of(tokens: int) -> tuple[Any, Any]:
    """Tuples whose types tell the compiler the lanes, and to load eight rows at once, or four."""
    lanes = (0,) * (2 * tokens)
    return (lanes, (0,)), (lanes, (0, 0))


@numba.njit(cache=True, nogil=True)
def multiply_tiles(streams, quads, books, inputs, outliers, values, out, sizes, first, last):  # type: ignore[no-untyped-def]
    """Write the products of some tiles of ``RESTART`` rows; callable from compiled code.

    Args:
        streams: bit streams, uint8, at least eight.
        quads: int64 [quads, 9], see ``trellis_decode.quads``.
        books: float32 [13, 4 K, 2].
        inputs: float32 [tokens, C], C even.
        outliers: rows, ascending, and columns of the outliers, int64 [2, N].
        values: their values, float32 [N].
        out: float32 [tokens, R], written.
        sizes: ``sizes_of`` as many tokens or more.
        first: first tile.
        last: past-the-end tile.
    """
    tokens, rows = out.shape
    whole, halves = sizes
    lanes = len(whole[0])
    sums = np.empty((RESTART, lanes), np.float32)
    vectors = np.zeros((GROUPS, lanes), np.float32)
    places = np.empty(GROUPS, np.int64)
    for tile in range(first, last):
        row = tile * RESTART
        eights = (min(RESTART, rows - row) + 7) // 8
        sums[:, :] = 0
        for quad in range(len(quads)):
            rate = quads[quad, 2 * GROUPS]
            for g in range(GROUPS):
                places[g] = quads[quad, g] + tile * _EIGHTS * rate
                group = quads[quad, GROUPS + g]
                for t in range(tokens):
                    vectors[g, 2 * t] = inputs[t, 2 * group] if group >= 0 else 0
                    vectors[g, 2 * t + 1] = inputs[t, 2 * group + 1] if group >= 0 else 0
            if rate < 8:
                _add_products(streams, places, rate, books[rate], vectors, sums, eights, whole)
            else:
                _add_products(streams, places, rate, books[rate], vectors, sums, eights, halves)
        for t in range(tokens):
            for r in range(min(RESTART, rows - row)):
                out[t, row + r] = sums[r, 2 * t] + sums[r, 2 * t + 1]
    begin, end = np.searchsorted(outliers[0], np.array([first, last]) * RESTART)
    for n in range(begin, end):
        for t in range(tokens):
            out[t, outliers[0, n]] += inputs[t, outliers[1, n]] * values[n]


@numba.njit(cache=True, nogil=True)
def write_tiles(streams, starts, rates, books, out, first_tile, blocks, first, last):  # type: ignore[no-untyped-def]
    """Write the codewords of some blocks of groups of tiles of ``RESTART`` rows.

    Args:
        streams: bit streams, uint8, at least eight.
        starts: first byte of each group's stream, int64 [G], G a multiple of 4.
        rates: int64 [G].
        books: one word each, uint32 or uint64 [13, 4 K].
        out: words [n, G], n a multiple of 8.
        first_tile: tile of the first row of ``out``.
        blocks: blocks of groups that a tile is cut into.
        first: first block, counted through all tiles.
        last: past-the-end block.
    """
    quads = len(rates) // GROUPS
    places = np.empty(GROUPS, np.int64)
    for each in range(first, last):
        tile, block = each // blocks, each % blocks
        row = tile * RESTART
        eights = min(RESTART, len(out) - row) // 8
        for quad in range(block * quads // blocks, (block + 1) * quads // blocks):
            group = quad * GROUPS
            for g in range(GROUPS):
                rate = rates[group + g]
                places[g] = starts[group + g] + (first_tile + tile) * _EIGHTS * rate
            part = rates[group : group + GROUPS]
            _write_rows(streams, places, part, books, out[row, group:], out.shape[1], eights)
