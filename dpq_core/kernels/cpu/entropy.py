"""Compiled loops of entropy coding: contexts along a sequence, and a table-driven decoder.

The decoder reads what constriction's ``AnsCoder`` writes (32-bit words, 64-bit state, 24-bit
probabilities). All probabilities are multiples of ``2 ** (24 - precision)``, so that the upper
bits of a state's slot address a table of symbols, and no search is needed.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

MODEL_BITS = 24
"""Bits of a probability in constriction's models."""

EMA_BITS = 4
"""Fractional bits of the running mean."""

FIELD_BITS = 17
"""Bits of a frequency in a packed entry: 2^16 is possible."""


@numba.njit(cache=True, nogil=True, inline="always")
def _bin(ema, thresholds):  # type: ignore[no-untyped-def]
    """Number of thresholds, int64 and ascending, that are at most ``ema``."""
    low, high = 0, len(thresholds)
    while low < high:
        middle = (low + high) >> 1
        if thresholds[middle] <= ema:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def means(symbols, groups, scale, start, shift, out):  # type: ignore[no-untyped-def]
    """Write the running mean before each symbol to out int64 [n]."""
    ema = start
    for i in range(len(symbols)):
        out[i] = ema
        ema += ((np.int64(symbols[i]) * scale[groups[i]] << EMA_BITS) - ema) >> shift


@numba.njit(cache=True, nogil=True)
def tables_of(symbols, groups, scale, start, shift, thresholds, table, out):  # type: ignore[no-untyped-def]
    """Write the table that each symbol is coded with, of ``table`` uint16 [G, B], to out [n]."""
    ema = start
    for i in range(len(symbols)):
        group = groups[i]
        out[i] = table[group, _bin(ema, thresholds)]
        ema += ((np.int64(symbols[i]) * scale[group] << EMA_BITS) - ema) >> shift


@numba.njit(cache=True, nogil=True)
def decode(  # type: ignore[no-untyped-def]
    words, ends, groups, scale, start, shift, thresholds, table, lut, entries, first, precision, out
):
    """Decode symbols to ``out`` int32 [n]; False where the words do not end with the last symbol.

    Args:
        words: uint32, the coders' words one after the other.
        ends: int64 [T + 1], where the words of each coder begin and end.
        groups: integers [n] below G.
        scale: int64 [G].
        start: first value of the running mean.
        shift: shift of the running mean: its weight for a new symbol is 2^-shift.
        thresholds: int64 [B - 1].
        table: uint16 [G, B], below T.
        lut: uint16 [T, 2 ** precision], upper slot bits -> rank of the symbol in its table.
        entries: int64, the tables one after the other: see ``pack_entries``.
        first: int64 [T], where a table begins in ``entries``.
        precision: bits of the frequencies.
        out: the symbols.
    """
    count = len(first)
    state = np.zeros(count, np.uint64)
    position = ends[1:].copy()
    for t in range(count):  # a coder's state is its last two words
        for _ in range(2):
            if position[t] > ends[t]:
                position[t] -= 1
                state[t] = (state[t] << np.uint64(32)) | np.uint64(words[position[t]])
    coarse = np.uint64(MODEL_BITS - precision)
    mask, field = np.uint64((1 << MODEL_BITS) - 1), np.int64((1 << FIELD_BITS) - 1)
    model, word, small = np.uint64(MODEL_BITS), np.uint64(32), np.uint64(1 << 32)
    follows = len(thresholds) > 0
    ema = start
    for i in range(len(out)):
        group = groups[i]
        t = table[group, _bin(ema, thresholds) if follows else 0]
        s = state[t]
        slot = s & mask
        entry = entries[first[t] + lut[t, slot >> coarse]]
        low = np.uint64((entry >> FIELD_BITS) & field) << coarse
        s = (s >> model) * (np.uint64(entry & field) << coarse) + (slot - low)
        if s < small and position[t] > ends[t]:
            position[t] -= 1
            s = (s << word) | np.uint64(words[position[t]])
        state[t] = s
        symbol = entry >> (2 * FIELD_BITS)
        out[i] = symbol
        if follows:
            ema += ((symbol * scale[group] << EMA_BITS) - ema) >> shift
    unread = 0
    for t in range(count):
        unread += (state[t] != 0) + (position[t] != ends[t])
    return unread == 0


def pack_entries(
    symbols: npt.NDArray[np.integer[Any]],
    cumulative: npt.NDArray[np.integer[Any]],
    frequencies: npt.NDArray[np.integer[Any]],
) -> npt.NDArray[np.int64]:
    """Pack symbol, cumulative frequency and frequency into one int64: one load per symbol."""
    entries = np.asarray(symbols, np.int64) << (2 * FIELD_BITS)
    return entries | np.asarray(cumulative, np.int64) << FIELD_BITS | frequencies
