"""The compiled tile loops: front-to-back blending of sorted splats, and its gradient (numba).

A tile is 16 pixels wide, one vector. The loop over the rows of one splat in one tile is written in
LLVM's language, because masked updates of several arrays are beyond numba's vectoriser. All of it
is in one file because numba's disk cache notices changes of the jitted function's file only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from dpq_gaussian.rendering import constants as rc
from dpq_gaussian.rendering.constants import TILE

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
_cgutils = cast(Any, cgutils)  # has no type annotations

PIXELS = TILE * TILE
_STATE = 6  # per pixel: transmittance (negative: stopped), red, green, blue, depth, last splat
_GRAD_STATE = 8  # transmittance, rest, last splat, gradients of red, green, blue, alpha, depth
_BATCH = 16  # splats fetched together; after each batch a tile looks whether any pixel goes on

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VF, _VI = ir.VectorType(_F32, TILE), ir.VectorType(_I32, TILE)
_LOOSE = ("contract", "nsz", "reassoc")
_EXP2 = (1.0, 0.693147182, 0.240226507, 0.0555041087, 0.00961812911, 0.00133335581, 0.000154035304)


class _Emitter:
    """LLVM IR for the rows of one splat in one tile."""

    def __init__(self, builder: Any, state: Any, splat: Any, corner: list[Any]) -> None:
        self.b, self.state = builder, state
        places = [builder.gep(splat, [ir.Constant(_I64, i)]) for i in range(rc.FIELDS)]
        self.field = field = [builder.load(place) for place in places]
        scale = ir.Constant(_F32, np.float32(math.sqrt(0.5 * math.log2(math.e))))
        self.inv_u = self.splat(builder.fmul(field[rc.INV_U], scale))
        self.inv_v = builder.fmul(field[rc.INV_V], scale)
        self.opacity = self.splat(field[rc.OPACITY])
        self.paint = [self.splat(field[i]) for i in (rc.RED, rc.GREEN, rc.BLUE, rc.DEPTH)]
        lanes = ir.Constant(_VF, [float(x) for x in range(TILE)])
        self.dx = builder.fadd(self.splat(corner[0]), lanes)
        self.corner_y = corner[1]

    def splat(self, value: Any) -> Any:
        """A vector of equal values."""
        empty = ir.Constant(_VF, ir.Undefined)
        one = self.b.insert_element(empty, value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, empty, ir.Constant(_VI, [0] * TILE))

    def const(self, value: float) -> Any:
        return ir.Constant(_VF, [float(np.float32(value))] * TILE)

    def call(self, name: str, *args: Any) -> Any:
        kind = ir.FunctionType(_VF, [_VF] * len(args))
        function = _cgutils.get_or_insert_function(self.b.module, kind, f"llvm.{name}.v{TILE}f32")
        return self.b.call(function, args)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.call("fmuladd", x, y, z)

    def at(self, plane: int, y: Any) -> Any:
        """Pointer to one row of one plane of the state."""
        offset = self.b.add(
            self.b.mul(y, ir.Constant(_I64, TILE)), ir.Constant(_I64, plane * PIXELS)
        )
        return self.b.bitcast(self.b.gep(self.state, [offset]), _VF.as_pointer())

    def load(self, plane: int, y: Any) -> Any:
        return self.b.load(self.at(plane, y), align=4)

    def store(self, value: Any, plane: int, y: Any) -> None:
        self.b.store(value, self.at(plane, y), align=4)

    def exp2(self, x: Any) -> Any:
        """2^x for x <= 0, to 2 ulp; everything below 2^-20 is 2^-20."""
        b = self.b
        x = self.call("maxnum", x, self.const(-20.0))
        whole = self.call("rint", x)
        part = b.fsub(x, whole)
        value = self.const(_EXP2[-1])
        for coefficient in reversed(_EXP2[:-1]):
            value = self.fma(value, part, self.const(coefficient))
        shift = b.shl(b.fptosi(whole, _VI), ir.Constant(_VI, [23] * TILE))
        return b.bitcast(b.add(b.bitcast(value, _VI), shift), _VF)

    def falloff(self, y: Any) -> tuple[Any, Any, Any]:
        """Scalar dy, vector u in pixels and opacity x Gaussian of row ``y`` of the tile."""
        b = self.b
        dy = b.fadd(self.corner_y, b.sitofp(y, _F32))
        v = b.fmul(dy, self.inv_v)
        u = b.fsub(self.dx, self.splat(b.fmul(self.field[rc.SLOPE], dy)))
        scaled = b.fmul(u, self.inv_u)
        exponent = self.fma(b.fneg(scaled), scaled, self.splat(b.fneg(b.fmul(v, v))))
        return dy, u, b.fmul(self.opacity, self.exp2(exponent))

    def rows(self, span: list[Any], count: int, row: Callable[..., list[Any]]) -> list[Any]:
        """Run ``row(y)`` over a span of rows; sums of the ``count`` vectors that it returns."""
        b = self.b  # the accumulators will live in registers: LLVM promotes such stack slots
        slots = [_cgutils.alloca_once_value(b, self.const(0.0)) for _ in range(count)]
        with _cgutils.for_range_slice(b, *span, ir.Constant(_I64, 1), _I64) as (y, _):
            for slot, term in zip(slots, row(y), strict=True):
                b.store(b.fadd(b.load(slot), term, flags=_LOOSE), slot)
        kind, name = ir.FunctionType(_F32, [_F32, _VF]), f"llvm.vector.reduce.fadd.v{TILE}f32"
        add_up = _cgutils.get_or_insert_function(b.module, kind, name)
        zero = ir.Constant(_F32, 0.0)
        return [b.call(add_up, [zero, b.load(slot)], fastmath=_LOOSE) for slot in slots]

    def blend(self, y: Any, number: Any) -> list[Any]:
        """Blend one row; its weights (transmittance x alpha)."""
        b = self.b
        alpha = self.call("minnum", self.falloff(y)[2], self.const(rc.MAX_ALPHA))
        before = self.load(0, y)
        weight = b.fmul(alpha, before)
        after = b.fsub(before, weight)
        open_ = b.fcmp_ordered(">", before, self.const(0.0))
        adds = b.and_(b.fcmp_ordered(">=", alpha, self.const(rc.MIN_ALPHA)), open_)
        low = b.fcmp_ordered("<=", after, self.const(rc.MIN_TRANSMITTANCE))
        keeps = b.and_(adds, b.not_(low))
        weight = b.select(keeps, weight, self.const(0.0))
        self.store(b.select(adds, b.select(low, b.fneg(before), after), before), 0, y)
        for plane, value in enumerate(self.paint, start=1):
            self.store(self.fma(weight, value, self.load(plane, y)), plane, y)
        self.store(b.select(keeps, number, self.load(5, y)), 5, y)
        return [weight]

    def unblend(self, y: Any, number: Any) -> list[Any]:
        """Undo the blending of one row; the terms of the GRADIENTS."""
        b = self.b
        dy, u, raw = self.falloff(y)
        alpha = self.call("minnum", raw, self.const(rc.MAX_ALPHA))
        kept = b.fcmp_ordered(">=", self.load(2, y), number)
        kept = b.and_(kept, b.fcmp_ordered(">=", alpha, self.const(rc.MIN_ALPHA)))
        alpha = b.select(kept, alpha, self.const(0.0))
        inverse = b.fdiv(self.const(1.0), b.fsub(self.const(1.0), alpha))
        before = b.fmul(self.load(0, y), inverse)
        rest = self.load(1, y)
        paint_grads = [self.load(plane, y) for plane in (3, 4, 5, 7)]
        gain = self.load(6, y)  # what the splat adds to the loss per unit of weight
        for value, grad in zip(self.paint, paint_grads, strict=True):
            gain = self.fma(value, grad, gain)
        weight = b.fmul(alpha, before)
        alpha_grad = self.fma(before, gain, b.fneg(b.fmul(rest, inverse)))
        self.store(before, 0, y)
        self.store(self.fma(weight, gain, rest), 1, y)
        free = b.fcmp_ordered("<", raw, self.const(rc.MAX_ALPHA))
        v = b.select(free, b.fmul(alpha, alpha_grad), self.const(0.0))
        rows = self.splat(dy)
        vu, vy = b.fmul(v, u), b.fmul(v, rows)
        moments = [v, vu, b.fmul(vu, u), vy, b.fmul(vy, u), b.fmul(vy, rows)]
        return moments + [b.fmul(weight, grad) for grad in paint_grads]


def _make(count: int, step: Callable[[_Emitter, Any, Any], list[Any]]) -> Any:
    def rows(
        typing: Any, state: Any, splats: Any, index: Any, corner: Any, span: Any, number: Any,
        sums: Any,
    ) -> Any:  # fmt: skip
        """Run one splat over its rows of a tile; ``sums[:count]`` receives the sums of its terms.

        corner, span: as ``_place`` returns them; number: of the splat in the tile, from 1.
        """
        signature = numba.types.void(state, splats, index, corner, span, number, sums)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = [
                _cgutils.create_struct_proxy(sig.args[n])(context, builder, value=args[n]).data
                for n in (0, 1, 6)
            ]
            offset = builder.mul(args[2], ir.Constant(_I64, rc.FIELDS))
            pair = [[builder.extract_value(args[n], i) for i in (0, 1)] for n in (3, 4)]
            emit = _Emitter(builder, data[0], builder.gep(data[1], [offset]), pair[0])
            number = emit.splat(args[5])
            totals = emit.rows(pair[1], count, lambda y: step(emit, y, number))
            for i, total in enumerate(totals):
                builder.store(total, builder.gep(data[2], [ir.Constant(_I64, i)]))
            return context.get_dummy_value()

        return signature, codegen

    return cast(Any, intrinsic)(rows)


_blend = _make(1, _Emitter.blend)
_unblend = _make(rc.GRADIENTS, _Emitter.unblend)


@_jit
def _planes(count: Any) -> Any:
    """float32 [count, 256] on a cache line: vectors that straddle two lines cost twice as much."""
    room = np.empty(count * PIXELS + 16, np.float32)
    skip = (64 - room.ctypes.data % 64) % 64 // 4
    return room[skip : skip + count * PIXELS].reshape(count, PIXELS)


@_jit
def _place(splat: Any, x0: Any, y0: Any, height: Any) -> Any:
    """The tile's first pixel centre from the mean; first row of the splat, row after its last."""
    x, y = np.float32(x0 + 0.5) - splat[rc.MEAN_X], np.float32(y0 + 0.5) - splat[rc.MEAN_Y]
    reach = splat[rc.REACH] / splat[rc.INV_V] + np.float32(0.01)
    low = max(math.ceil(max(-y - reach, np.float32(0))), 0)
    high = min(math.floor(min(reach - y, np.float32(TILE))), min(TILE, height - y0) - 1)
    return (x, y), (np.int64(low), np.int64(high + 1))


@_jit
def _fetch(pairs: Any, splats: Any, batch: Any) -> None:
    """Copy splats from all over memory: the processor waits for them together, not one by one."""
    for i in range(pairs.shape[0]):
        for k in range(rc.FIELDS):
            batch[i, k] = splats[pairs[i], k]


@_jit
def forward(tiles: Any, lists: Any, splats: Any, weights: Any, image: Any, last: Any) -> None:
    """Blend the tiles ``first <= t < last`` of an image.

    Args:
        tiles: first tile, tile after the last, tiles per row of the image.
        lists: starts int64 [tiles + 1] into pairs int32 [P], the splats of each tile by depth.
        splats: float32 [V, FIELDS].
        weights: float32 [P], overwritten: sum of transmittance x alpha over the tile's pixels.
        image: float32 [H, W, 5], overwritten: colour without background, depth, transmittance.
        last: float32 [H, W], overwritten: number of the last blended splat in its tile, 0: none.
    """
    begin, end, across = tiles
    starts, pairs = lists
    height, width = last.shape
    state, one = _planes(_STATE), np.empty(1, np.float32)
    batch = np.empty((_BATCH, rc.FIELDS), np.float32)
    for t in range(begin, end):
        x0, y0 = t % across * TILE, t // across * TILE
        state[1:] = 0
        for i in range(PIXELS):  # pixels beyond the border take no part
            state[0, i] = 1 if x0 + i % TILE < width else -1
        weights[starts[t] : starts[t + 1]] = 0
        for first in range(starts[t], starts[t + 1], _BATCH):
            if not (state[0] > 0).any():
                break
            last_one = min(first + _BATCH, starts[t + 1])
            _fetch(pairs[first:last_one], splats, batch)
            for p in range(first, last_one):
                corner, span = _place(batch[p - first], x0, y0, height)
                number = np.float32(p - starts[t] + 1)
                _blend(state, batch, p - first, corner, span, number, one)
                weights[p] = one[0]
        for y in range(y0, min(y0 + TILE, height)):
            for x in range(x0, min(x0 + TILE, width)):
                i = (y - y0) * TILE + x - x0
                for c in range(4):
                    image[y, x, c] = state[c + 1, i]
                image[y, x, 4] = abs(state[0, i])
                last[y, x] = state[5, i]


@_jit
def backward(
    tiles: Any, lists: Any, splats: Any, image: Any, last: Any, image_grad: Any, sums: Any
) -> None:
    """Gradients of the splats from those of the tiles ``first <= t < last``.

    Arguments as for ``forward``, which made ``image`` and ``last``; image_grad: float32 [H, W, 5],
    gradients of colour, depth and of the sum of the weights; sums: float32 [P, GRADIENTS],
    overwritten.
    """
    begin, end, across = tiles
    starts, pairs = lists
    height, width = last.shape
    state, batch = _planes(_GRAD_STATE), np.empty((_BATCH, rc.FIELDS), np.float32)
    for t in range(begin, end):
        x0, y0 = t % across * TILE, t // across * TILE
        state[:] = 0
        most = np.int64(0)
        for y in range(y0, min(y0 + TILE, height)):
            for x in range(x0, min(x0 + TILE, width)):
                i = (y - y0) * TILE + x - x0
                state[0, i] = image[y, x, 4]
                state[2, i] = last[y, x]
                most = np.int64(max(most, np.int64(last[y, x])))
                for c in range(3):
                    state[3 + c, i] = image_grad[y, x, c]
                state[6, i] = image_grad[y, x, 4]
                state[7, i] = image_grad[y, x, 3]
        sums[starts[t] + most : starts[t + 1]] = 0
        for stop in range(starts[t] + most, starts[t], -_BATCH):
            first = max(stop - _BATCH, starts[t])
            _fetch(pairs[first:stop], splats, batch)
            for p in range(stop - 1, first - 1, -1):
                corner, span = _place(batch[p - first], x0, y0, height)
                number = np.float32(p - starts[t] + 1)
                _unblend(state, batch, p - first, corner, span, number, sums[p])
