"""Compiled loops for nearest codewords and the sums of their members, in one pass (numba).

The inner loop compares ``score = |c|^2 / 2 - x.c`` (points and codewords relative to the mean
codeword) for blocks of points held in vector registers while the codewords stream by; numba has no
vector types, so that loop alone is written in LLVM IR (``_scan``) and specialised for d <= 8. All
of it is in one file because numba's disk cache notices changes of the jitted function's file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from dpq_core.kernels.cpu.units import BOOK, GROUP, SLOT, START, STOP

F = TypeVar("F", bound=Callable[..., Any])
jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
_cgutils = cast(Any, cgutils)  # has no type annotations

# 16 floats are one AVX-512 register; elsewhere 8 (one AVX register, two NEON registers).
LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 8
MAX_UNROLLED_D = 8
TILE = 4  # codewords per step of the generic loop (d > 8); packed codebooks are padded to it
CODEWORD_TILE = 1024  # codewords that stay in the L1/L2 cache while the points of a unit pass by
MAX_EXACT_D = 3  # the exact form is compiled only up to here


def registers(d: int) -> int:
    """Vector registers of points per block: as many as fit in 32 beside d coordinates each."""
    return 2 if 4 < d <= MAX_UNROLLED_D else 4


def unrolled_dims(d: int) -> tuple[int, ...]:
    """A tuple whose type tells the compiler d; () selects the loop for any d."""
    return (0,) * d if d <= MAX_UNROLLED_D else ()


_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VF, _VI = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


class _Emitter:
    """LLVM IR of one pass of codewords over one block of points."""

    def __init__(self, builder: Any, pointers: list[Any], d: int, dynamic_d: Any) -> None:
        self.b = builder
        self.x, self.c, self.best, self.idx = pointers
        self.d = d  # 0: not known at compile time
        self.dynamic_d = dynamic_d
        self.P = registers(d or MAX_UNROLLED_D + 1)
        self.fma = _cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VF, [_VF] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

    def at(self, pointer: Any, *terms: Any) -> Any:
        """A pointer plus offsets (ints or IR values)."""
        for term in terms:
            offset = ir.Constant(_I64, term) if isinstance(term, int) else term
            pointer = self.b.gep(pointer, [offset])
        return pointer

    def load(self, pointer: Any, vector: Any) -> Any:
        """The vector at a pointer."""
        return self.b.load(self.b.bitcast(pointer, vector.as_pointer()), align=4)

    def store(self, value: Any, pointer: Any) -> None:
        """Store a vector at a pointer."""
        self.b.store(value, self.b.bitcast(pointer, value.type.as_pointer()), align=4)

    def splat(self, value: Any, vector: Any) -> Any:
        """A vector with one value in all its lanes."""
        empty = ir.Constant(vector, ir.Undefined)
        one = self.b.insert_element(empty, value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, empty, ir.Constant(_VI, [0] * LANES))

    def codewords(self, count: Any, base: Any, step: int, scores: Callable[[Any], Any]) -> None:
        """Emit the loop over codewords, ``step`` at a time, which finds the lowest scores."""
        b, P = self.b, self.P
        spans = [(self.at(self.best, p * LANES), self.at(self.idx, p * LANES)) for p in range(P)]
        state = [
            [self.load(best, _VF) for best, _ in spans],
            [self.load(idx, _VI) for _, idx in spans],
        ]
        before, loop, done = b.block, b.append_basic_block("scan"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(_I64)
        k.add_incoming(ir.Constant(_I64, 0), before)
        phis = [[b.phi(v.type) for v in values] for values in state]
        rows = scores(k)  # may open blocks of its own
        best, idx = list(phis[0]), list(phis[1])
        for q, row in enumerate(rows):
            kq = b.add(b.trunc(b.add(k, ir.Constant(_I64, q)), _I32), base)
            name = self.splat(kq, _VI)
            for p in range(P):
                # Strict comparison in ascending order: ties go to the lowest index.
                closer = b.fcmp_ordered("<", row[p], best[p])
                best[p] = b.select(closer, row[p], best[p])
                idx[p] = b.select(closer, name, idx[p])
        after = b.add(k, ir.Constant(_I64, step))
        k.add_incoming(after, b.block)
        for phi_row, first, last in zip(phis, state, (best, idx), strict=True):
            for phi, start, end in zip(phi_row, first, last, strict=True):
                phi.add_incoming(start, before)
                phi.add_incoming(end, b.block)
        b.cbranch(b.icmp_signed("<", after, count), loop, done)
        b.position_at_end(done)
        for (best_at, idx_at), last_best, last_idx in zip(spans, best, idx, strict=True):
            self.store(last_best, best_at)
            self.store(last_idx, idx_at)

    def unrolled(self, count: Any, base: Any, exact: bool) -> None:
        """Emit a loop of one codeword per step; the block's coordinates stay in registers."""
        b, d, P = self.b, self.d, self.P
        xs = [
            [self.load(self.at(self.x, (i * P + p) * LANES), _VF) for p in range(P)]
            for i in range(d)
        ]

        def scores(k: Any) -> list[list[Any]]:
            row = self.at(self.c, b.mul(k, ir.Constant(_I64, d + 1)))
            c = [self.splat(b.load(self.at(row, i)), _VF) for i in range(d + 1)]
            out = []
            for p in range(P):
                s = ir.Constant(_VF, [0.0] * LANES) if exact else c[d]
                for i in range(d):
                    delta = b.fadd(xs[i][p], c[i])
                    pair = (delta, delta) if exact else (xs[i][p], c[i])
                    s = b.call(self.fma, [*pair, s])
                out.append(s)
            return [out]

        self.codewords(count, base, 1, scores)

    def tiled(self, count: Any, base: Any) -> None:
        """Emit a loop of TILE codewords per step, with a loop over the coordinates inside."""
        b, P = self.b, self.P
        width = b.add(self.dynamic_d, ir.Constant(_I64, 1))

        def scores(k: Any) -> list[list[Any]]:
            rows = [
                self.at(self.c, b.mul(b.add(k, ir.Constant(_I64, q)), width)) for q in range(TILE)
            ]
            start = [[self.splat(b.load(self.at(row, self.dynamic_d)), _VF)] * P for row in rows]
            before = b.block
            loop, done = b.append_basic_block("dims"), b.append_basic_block("dims_done")
            b.branch(loop)
            b.position_at_end(loop)
            i = b.phi(_I64)
            i.add_incoming(ir.Constant(_I64, 0), before)
            sums = [[b.phi(_VF) for _ in range(P)] for _ in rows]
            x_row = self.at(self.x, b.mul(i, ir.Constant(_I64, P * LANES)))
            x = [self.load(self.at(x_row, p * LANES), _VF) for p in range(P)]
            ends = []
            for row, phis, first in zip(rows, sums, start, strict=True):
                c = self.splat(b.load(self.at(row, i)), _VF)
                ends.append([b.call(self.fma, [x[p], c, phis[p]]) for p in range(P)])
                for phi, value, end in zip(phis, first, ends[-1], strict=True):
                    phi.add_incoming(value, before)
                    phi.add_incoming(end, loop)
            after = b.add(i, ir.Constant(_I64, 1))
            i.add_incoming(after, loop)
            b.cbranch(b.icmp_signed("<", after, self.dynamic_d), loop, done)
            b.position_at_end(done)
            return ends

        self.codewords(count, base, TILE, scores)


def _scan_codewords(
    typing: Any, x: Any, c: Any, base: Any, exact: Any, best: Any, idx: Any, dims: Any
) -> Any:
    """Compare packed codewords, whose indices start at ``base``, with one block of points.

    x: float32 [d, block] centred; c: float32 [count, d + 1] packed; best, idx: [block], updated.
    """
    signature = numba.types.void(x, c, base, exact, best, idx, dims)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = {
            n: _cgutils.create_struct_proxy(sig.args[n])(context, builder, value=args[n])
            for n in (0, 1, 4, 5)
        }
        dynamic_d = builder.extract_value(arrays[0].shape, 0)
        emit = _Emitter(builder, [a.data for a in arrays.values()], len(dims), dynamic_d)
        count = builder.extract_value(arrays[1].shape, 0)
        base_index = builder.trunc(args[2], _I32)
        if emit.d == 0:
            emit.tiled(count, base_index)
        elif emit.d > MAX_EXACT_D:
            emit.unrolled(count, base_index, exact=False)
        else:
            with builder.if_else(builder.trunc(args[3], ir.IntType(1))) as (then, otherwise):
                with then:
                    emit.unrolled(count, base_index, exact=True)
                with otherwise:
                    emit.unrolled(count, base_index, exact=False)
        return context.get_dummy_value()

    return signature, codegen


_scan = cast(Any, intrinsic)(_scan_codewords)


@jit
def _add_up(
    x: Any, codes: Any, weights: Any, g: Any, start: Any, stop: Any, sums: Any, dims: Any
) -> None:
    """Add points start..stop of one group to the sums of their codewords, in ascending order."""
    d = len(dims) if len(dims) > 0 else x.shape[0]
    weighted = weights.shape[0] > 0
    for p in range(start, stop):
        k = codes[p]
        if weighted:
            w = np.float64(weights[g, p])
            for i in range(d):
                sums[k, i] += w * x[i, p]
            sums[k, d] += w
            sums[k, d + 1] += w * w
        else:
            for i in range(d):
                sums[k, i] += x[i, p]
            sums[k, d] += 1.0


@jit
def _load(
    points: Any, start: Any, count: Any, centre: Any, used: Any, x: Any, best: Any, idx: Any
) -> Any:
    """Copy points of one group, centred, into x [blocks, d, block]; returns blocks used."""
    block = x.shape[2]
    blocks = (count + block - 1) // block
    x[:, used:] = 0
    best[:blocks] = np.inf
    idx[:blocks] = 0
    for n in range(blocks):
        first = start + n * block
        for i in range(used):
            for p in range(min(block, start + count - first)):
                x[n, i, p] = points[i, first + p] - centre[i]
    return blocks


@jit
def run_units(units: Any, data: Any, books: Any, codes: Any, sums: Any, dims: Any) -> int:
    """Assign the points of some units and, unless ``sums`` is empty, add up their clusters.

    Args:
        units: int64 [units, 5], see Units.table.
        data: points float32 [G, d, P]; weights float32 [G, P], or [0, 0] for unit weights.
        books: see ``pack_codebooks``: packed float32 [B, K padded to TILE, d + 1]; centres float32
            [B, d]; coordinates that the last packed codebook ignores; 1 to compare
            sum (x - c)^2, 0 to compare |c|^2 / 2 - x.c; points per block.
        codes: int32 [G, P], overwritten.
        sums: float64 [slots, K, d + 1 (or + 2 with weights)]: sum w x, sum w (, sum w^2).
        dims: see unrolled_dims.

    Returns:
        How many codes changed.
    """
    points, weights = data
    packed, centres, pad, exact, block = books
    d = points.shape[1]
    most = (np.max(units[:, STOP] - units[:, START]) + block - 1) // block
    x = np.zeros((most, d, block), np.float32)
    best, idx = np.empty((most, block), np.float32), np.empty((most, block), np.int32)
    moved = 0
    for u in range(units.shape[0]):
        g, start, stop, book = units[u, GROUP], units[u, START], units[u, STOP], units[u, BOOK]
        used = d - pad if book == packed.shape[0] - 1 else d
        blocks = _load(points[g], start, stop - start, centres[book], used, x, best, idx)
        for first in range(0, packed.shape[1], CODEWORD_TILE):
            tile = packed[book, first : min(first + CODEWORD_TILE, packed.shape[1])]
            for n in range(blocks):
                _scan(x[n], tile, first, exact, best[n], idx[n], dims)
        for n in range(blocks):
            at = start + n * block
            for p in range(min(block, stop - at)):
                moved += codes[g, at + p] != idx[n, p]
                codes[g, at + p] = idx[n, p]
        if sums.shape[0] > 0 and units[u, SLOT] >= 0:
            _add_up(points[g], codes[g], weights, g, start, stop, sums[units[u, SLOT]], dims)
    return moved
