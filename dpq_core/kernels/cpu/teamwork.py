"""Arrays at addresses, and a meeting of threads, for compiled loops that run a whole model.

A table of addresses describes all weights of a model by one array, so that a call from Python
passes a few arguments instead of thousands. Threads that run the same loop meet after each product.
One that waits spins for a few microseconds, then hands its processor to whoever needs it.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

_cgutils = cast(Any, cgutils)  # has no type annotations

_SPINS = 100
"""Looks at the counter before the processor is handed on."""


def _pointer_to(typing: Any, address: Any) -> Any:
    """An integer as a pointer without a type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return numba.types.voidptr(address), codegen


def _atomic_add(typing: Any, counters: Any, index: Any, value: Any) -> Any:
    """Add to an entry of int64 ``counters``; gives what it was before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = _cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "seq_cst")

    return numba.types.int64(counters, numba.types.int64, numba.types.int64), codegen


def _hand_on(typing: Any) -> Any:
    """Hand the processor to another thread that is ready to run (POSIX ``sched_yield``)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform == "win32":  # has no such function, and its teams are of one thread
            return ir.Constant(ir.IntType(32), 0)
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(
            _cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), []
        )

    return numba.types.int32(), codegen


pointer = cast(Any, intrinsic)(_pointer_to)
_add = cast(Any, intrinsic)(_atomic_add)
_yield = cast(Any, intrinsic)(_hand_on)
_array_at = cast(Any, numba).carray


@numba.njit(nogil=True, cache=True)
def floats(address, count):  # type: ignore[no-untyped-def]
    """Float32 ``[count]`` at an address."""
    return _array_at(pointer(address), (count,), np.float32)


@numba.njit(nogil=True, cache=True)
def integers(address, count):  # type: ignore[no-untyped-def]
    """Int64 ``[count]`` at an address."""
    return _array_at(pointer(address), (count,), np.int64)


@numba.njit(nogil=True, cache=True)
def octets(address, count):  # type: ignore[no-untyped-def]
    """Uint8 ``[count]`` at an address."""
    return _array_at(pointer(address), (count,), np.uint8)


@numba.njit(nogil=True, cache=True)
def words(address, count):  # type: ignore[no-untyped-def]
    """Uint16 ``[count]`` at an address."""
    return _array_at(pointer(address), (count,), np.uint16)


@numba.njit(nogil=True, cache=True)
def meet(counters, threads):  # type: ignore[no-untyped-def]
    """Wait until all threads of a team have come here.

    Args:
        counters: int64 ``[16]``, zeros at first: arrivals, and eight entries on the meetings held.
        threads: size of the team.
    """
    if threads == 1:
        return
    held = _add(counters, 8, 0)
    if _add(counters, 0, 1) == threads - 1:
        _add(counters, 0, -threads)
        _add(counters, 8, 1)
        return
    spins = 0
    while _add(counters, 8, 0) == held:
        spins += 1
        if spins > _SPINS:
            _yield()
