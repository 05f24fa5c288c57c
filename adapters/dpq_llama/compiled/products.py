"""Products and rows of all weights of a model, described by a table of sizes and addresses.

A row of the table is one weight ``[R, C]``: dense (float32, or bfloat16 as words), a trellis code,
or codes of learned codebooks. Threads share the rows of each product by tiles; the sum of a row is
always added up in the same order, so that results never depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from dpq_core.kernels.cpu import lut_jit, lut_tables_jit, trellis_jit
from dpq_core.kernels.cpu.lut_tables_jit import BLOCK, ENTRIES
from dpq_core.kernels.cpu.teamwork import floats, integers, octets, words
from dpq_core.trellis_books import HIGH, LOW_RATES, RESTART

DENSE, BFLOAT16, TRELLIS, LEARNED = range(4)
"""Kinds of weights."""

(
    KIND,
    ROWS,
    COLS,
    WIDTH,  # inputs of the core, padded to whole groups
    CODES,
    CODE_BYTES,
    ROW_SCALE,  # addresses of scales, order and bias are 0 where there are none
    COLUMN_SCALE,
    ORDER,
    BIAS,
    QUADS,
    QUAD_COUNT,
    OUTLIERS,
    OUTLIER_VALUES,
    OUTLIER_COUNT,
    STARTS,
    RATES,
    GROUPS,  # rows of codes: of all stages
    D,
    BOOKS,
    LARGEST,
    SOURCES,
    BOOK_COUNT,
    FIELDS,
) = range(24)
"""Columns of the table, int64."""

TILE = RESTART
"""Rows that one thread multiplies at a time; a trellis restarts after as many."""

LOW_WINDOW = trellis_jit.WINDOWS.bit_length() - 1
HIGH_WINDOW = (HIGH * trellis_jit.WINDOWS).bit_length() - 1
"""Bits of a window of a trellis code, at rates up to ``LOW_RATES`` and at those above."""


_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_fast = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


@_fast
def _dot(weight, x):  # type: ignore[no-untyped-def]
    """Inner product of float32 vectors."""
    total = np.float32(0)
    for c in range(len(x)):
        total += weight[c] * x[c]
    return total


@_fast
def _dot_of_words(weight, x):  # type: ignore[no-untyped-def]
    """Inner product of a bfloat16 vector, as uint16, and a float32 vector."""
    total = np.float32(0)
    for c in range(len(x)):
        total += np.uint32(np.uint32(weight[c]) << np.uint32(16)).view(np.float32) * x[c]
    return total


@_jit
def core_inputs(weight, x, out):  # type: ignore[no-untyped-def]
    """Write the inputs of the core, float32 ``[WIDTH]``, from those of the layer ``[C]``."""
    cols = weight[COLS]
    if weight[ORDER] != 0:
        order = integers(weight[ORDER], cols)
        for c in range(cols):
            out[c] = x[order[c]]
    else:
        for c in range(cols):
            out[c] = x[c]
    if weight[COLUMN_SCALE] != 0:
        scale = floats(weight[COLUMN_SCALE], cols)
        for c in range(cols):
            out[c] *= scale[c]
    out[cols : weight[WIDTH]] = 0


@_jit
def _learned(weight):  # type: ignore[no-untyped-def]
    """Codes, turned codebooks, their largest values and sources of a weight; see ``lut_jit``."""
    groups, d, books = weight[GROUPS], weight[D], weight[BOOK_COUNT]
    codes = octets(weight[CODES], weight[CODE_BYTES]).reshape((groups, weight[ROWS]))
    turned = floats(weight[BOOKS], books * d * ENTRIES).reshape((books, d, ENTRIES))
    largest = floats(weight[LARGEST], books * d).reshape((books, d))
    sources = integers(weight[SOURCES], groups * 2).reshape((groups, 2))
    return codes, turned, largest, sources


@_jit
def _tables(weight, place, work):  # type: ignore[no-untyped-def]
    """The part of the shared memory that holds the tables and scales of one product."""
    planes = len(work.planes)
    groups = weight[GROUPS]
    blocks = (groups + BLOCK - 1) // BLOCK
    width = planes * ENTRIES
    tables = work.tables[place, : groups * width].reshape((1, groups, width))
    return tables, work.scales[place, :blocks].reshape((1, blocks))


@_jit
def prepare(weight, place, x, work, inputs, thread, threads):  # type: ignore[no-untyped-def]
    """Write this thread's share of the tables of a product.

    Args:
        weight: row of the table.
        place: index of the product among those that share their inputs.
        x: float32 ``[C]``.
        work: memory that all threads share, see ``step.Work``.
        inputs: memory of this thread, float32.
        thread: index of the thread.
        threads: size of the team.

    Returns:
        Whether there are tables, for which the team has to meet.
    """
    if weight[KIND] != LEARNED:
        return False
    core_inputs(weight, x, inputs)
    _, turned, largest, sources = _learned(weight)
    tables, scales = _tables(weight, place, work)
    blocks = scales.shape[1]
    first, last = thread * blocks // threads, (thread + 1) * blocks // threads
    row = inputs[: weight[WIDTH]].reshape((1, weight[WIDTH]))
    lut_tables_jit.tabulate(row, turned, largest, sources, tables, scales, work.planes, first, last)
    return True


@_jit
def multiply(weight, place, x, out, work, inputs, first, last):  # type: ignore[no-untyped-def]
    """Write rows of the product of a weight and ``x`` to float32 ``[1, R or more]``, with bias.

    Args:
        weight: row of the table.
        place: index of the product among those that share their inputs; see ``prepare``.
        x: float32 ``[C]``.
        out: float32 ``[1, R]``, for learned codebooks rounded up to whole tiles.
        work: memory that all threads share, see ``step.Work``.
        inputs: memory of this thread, float32.
        first: first tile.
        last: past-the-end tile.
    """
    rows, cols, kind = weight[ROWS], weight[COLS], weight[KIND]
    begin, end = first * TILE, min(last * TILE, rows)
    if end <= begin:
        return
    if kind == DENSE:
        dense = floats(weight[CODES], rows * cols).reshape((rows, cols))
        for r in range(begin, end):
            out[0, r] = _dot(dense[r], x)
    elif kind == BFLOAT16:
        short = words(weight[CODES], rows * cols).reshape((rows, cols))
        for r in range(begin, end):
            out[0, r] = _dot_of_words(short[r], x)
    elif kind == TRELLIS:
        core_inputs(weight, x, inputs)
        count = weight[OUTLIER_COUNT]
        trellis_jit.multiply_tiles(
            octets(weight[CODES], weight[CODE_BYTES]),
            integers(weight[QUADS], weight[QUAD_COUNT] * 9).reshape((weight[QUAD_COUNT], 9)),
            work.books,
            inputs[: weight[WIDTH]].reshape((1, weight[WIDTH])),
            integers(weight[OUTLIERS], 2 * count).reshape((2, count)),
            floats(weight[OUTLIER_VALUES], count),
            out[:, :rows],
            work.sizes,
            first,
            last,
        )
    else:
        codes, _, _, _ = _learned(weight)
        tables, scales = _tables(weight, place, work)
        lanes = 32 * len(work.narrow[0])
        stop = min(last * TILE, (rows + lanes - 1) // lanes * lanes)
        lut_jit.add_up(codes, tables, scales, out, work.wide, work.narrow, begin, stop)
    if weight[ROW_SCALE] != 0:
        scale = floats(weight[ROW_SCALE], rows)
        for r in range(begin, end):
            out[0, r] *= scale[r]
    if weight[BIAS] != 0:
        bias = floats(weight[BIAS], rows)
        for r in range(begin, end):
            out[0, r] += bias[r]


@_jit
def row(weight, index, out, work, core):  # type: ignore[no-untyped-def]
    """Write one row of a weight, float32 ``[C]``: an entry of an embedding.

    Args:
        weight: row of the table.
        index: row of the weight.
        out: float32 ``[C]``.
        work: memory that all threads share, see ``step.Work``.
        core: memory of this thread, float32 ``[WIDTH or more]``.
    """
    rows, cols, kind = weight[ROWS], weight[COLS], weight[KIND]
    if kind == DENSE:
        out[:] = floats(weight[CODES], rows * cols)[index * cols : (index + 1) * cols]
        return
    if kind == BFLOAT16:
        short = words(weight[CODES], rows * cols)[index * cols : (index + 1) * cols]
        for c in range(cols):
            out[c] = np.uint32(np.uint32(short[c]) << np.uint32(16)).view(np.float32)
        return
    core[:] = 0
    if kind == TRELLIS:
        _trellis_row(weight, index, core, work.books)
    else:
        codes, turned, _, sources = _learned(weight)
        for g in range(len(codes)):
            for i in range(weight[D]):
                core[sources[g, 1] + i] += turned[sources[g, 0], i, codes[g, index]]
    factor = np.float32(1)
    if weight[ROW_SCALE] != 0:
        factor = floats(weight[ROW_SCALE], rows)[index]
    for c in range(cols):
        core[c] *= factor
    if weight[COLUMN_SCALE] != 0:
        scale = floats(weight[COLUMN_SCALE], cols)
        for c in range(cols):
            core[c] *= scale[c]
    if weight[ORDER] != 0:
        order = integers(weight[ORDER], cols)
        for c in range(cols):
            out[order[c]] = core[c]
    else:
        out[:] = core[:cols]


@_jit
def _trellis_row(weight, index, core, books):  # type: ignore[no-untyped-def]
    """Write one row of the core of a trellis code: the bits before the row's end are its window."""
    stream = octets(weight[CODES], weight[CODE_BYTES])
    starts = integers(weight[STARTS], weight[GROUPS])
    rates = integers(weight[RATES], weight[GROUPS])
    tile, within = index // TILE, index % TILE
    for g in range(weight[GROUPS]):
        rate = rates[g]
        if rate == 0:
            continue
        start = starts[g] + tile * (TILE // 8) * rate
        end = (within + 1) * rate
        window = 0
        length = LOW_WINDOW if rate <= LOW_RATES else HIGH_WINDOW
        for bit in range(max(0, end - length), end):
            window = 2 * window + ((stream[start + bit // 8] >> (7 - bit % 8)) & 1)
        core[2 * g] = books[rate, window, 0]
        core[2 * g + 1] = books[rate, window, 1]
    count = weight[OUTLIER_COUNT]
    places = integers(weight[OUTLIERS], 2 * count).reshape((2, count))
    values = floats(weight[OUTLIER_VALUES], count)
    n = np.searchsorted(places[0], index)
    while n < count and places[0, n] == index:
        core[places[1, n]] += values[n]
        n += 1
