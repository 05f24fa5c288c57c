"""Fitting of context models: bins of the running mean, and contexts that share a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpq_core.artifact.entropy.coding import (
    MAX_PRECISION,
    MAX_SYMBOL,
    MAX_TABLES,
    MIN_PRECISION,
    SHIFT,
    Ints,
    Model,
    Table,
)
from dpq_core.errors import SpecError

_SAMPLE = 1 << 20
"""Approximate number of symbols from which the bins of the running mean are chosen."""

_TABLE_BITS, _ENTRY_BITS = 80, 11
"""Bits of a table and of each of its symbols in the file, for deciding which tables to merge."""


def fit(
    sequences: Sequence[tuple[Ints, Ints]],
    *,
    groups: int,
    bins: int = 1,
    scale: Ints | None = None,
) -> Model:
    """The model that codes some sequences in the fewest bytes, with the model's size counted.

    Args:
        sequences: symbols ``[n]`` and groups ``[n]`` of each sequence.
        groups: number of groups G.
        bins: number of bins of the running mean; 1 ignores it.
        scale: int64 ``[G]``; ones by default.

    Raises:
        SpecError: a symbol is beyond +-2^24, or there are too many different ones.
    """
    scale = np.ones(groups, np.int64) if scale is None else np.asarray(scale, np.int64)
    used = [(s, g) for s, g in sequences if len(s)]
    if not used:
        empty = Table(symbols=np.zeros(1, np.int32), frequencies=np.array([1 << MIN_PRECISION]))
        return Model(
            precision=MIN_PRECISION,
            scale=scale,
            start=0,
            thresholds=np.zeros(0, np.int64),
            context=np.zeros((groups, 1), np.uint16),
            tables=(empty,),
        )
    start, thresholds = _levels(used, scale, bins)
    alphabet, counts = _count(used, groups, scale, start, thresholds)
    merged, table_of = _merge(counts, len(used))
    precision = _precision(merged)
    return Model(
        precision=precision,
        scale=scale,
        start=start,
        thresholds=thresholds,
        context=table_of.reshape(groups, -1).astype(np.uint16),
        tables=tuple(_table(alphabet, row, precision) for row in merged),
    )


def _means(symbols: Ints, groups: Ints, scale: Ints, start: int) -> npt.NDArray[np.int64]:
    """The running mean before each symbol of a sequence."""
    from dpq_core.kernels.cpu import entropy

    mean = np.empty(len(symbols), np.int64)
    entropy.means(symbols, groups, scale, start, SHIFT, mean)
    return mean


def _levels(used: Sequence[tuple[Ints, Ints]], scale: Ints, bins: int) -> tuple[int, Ints]:
    """The start of the running mean, and bounds that cut its values into equal shares."""
    total = sum(len(s) for s, _ in used)
    step = -(-total // _SAMPLE)
    values = [np.asarray(s[::step], np.int64) * scale[g[::step]] for s, g in used]
    start = int(np.median(np.concatenate(values))) << 4
    if bins == 1:
        return start, np.zeros(0, np.int64)
    means = np.concatenate([_means(s, g, scale, start)[::step] for s, g in used])
    inner = np.quantile(means, np.arange(1, bins) / bins, method="lower")
    return start, np.unique(inner.astype(np.int64))


def _count(
    used: Sequence[tuple[Ints, Ints]], groups: int, scale: Ints, start: int, thresholds: Ints
) -> tuple[Ints, Ints]:
    """The alphabet, ascending, and the count of each symbol in each context ``[G*B, n]``."""
    low, high = min(int(s.min()) for s, _ in used), max(int(s.max()) for s, _ in used)
    if max(-low, high) > MAX_SYMBOL:
        raise SpecError(f"symbols beyond +-{MAX_SYMBOL} cannot be coded; use a larger step")
    seen = np.zeros(high - low + 1, bool)
    for s, _ in used:
        seen[np.asarray(s, np.int64) - low] = True
    alphabet = np.flatnonzero(seen) + low
    if len(alphabet) > 1 << MAX_PRECISION:
        raise SpecError(
            f"{len(alphabet)} different symbols are too many to code; use a larger step"
        )
    ranks, width = np.cumsum(seen) - 1, len(alphabet)
    bins = len(thresholds) + 1
    counts = np.zeros(groups * bins * width, np.int64)
    for s, g in used:
        context = np.asarray(g, np.int64) * bins
        if bins > 1:
            context += np.searchsorted(thresholds, _means(s, g, scale, start), side="right")
        place = context * width + ranks[np.asarray(s, np.int64) - low]
        counts += np.bincount(place, minlength=len(counts))
    return alphabet.astype(np.int32), counts.reshape(-1, width)


def _cost(counts: npt.NDArray[np.float64], sequences: int) -> npt.NDArray[np.float64]:
    """Size in bits of tables with counts ``[..., n]`` and of the symbols that they code."""
    total = counts.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_symbol = np.where(counts > 0, counts * np.log2(counts), 0).sum(-1)
        whole = np.where(total > 0, total * np.log2(total), 0)
    entries = (counts > 0).sum(-1)
    overhead = _TABLE_BITS + 24 * (sequences - 1)
    bits: npt.NDArray[np.float64] = (
        whole - by_symbol + _ENTRY_BITS * entries + overhead * (total > 0)
    )
    return bits


def _merge(counts: Ints, sequences: int) -> tuple[Ints, Ints]:
    """Tables int64 ``[T, n]`` and the table of each context, merged while that saves bits."""
    used = np.flatnonzero(counts.sum(1))
    tables = counts[used].astype(np.float64)
    member = np.zeros(len(counts), np.int64)
    member[used] = np.arange(len(used))
    cost = _cost(tables, sequences)
    gain = np.full((len(tables), len(tables)), -np.inf)
    for i in range(1, len(tables)):
        gain[i, :i] = cost[i] + cost[:i] - _cost(tables[i] + tables[:i], sequences)
    alive = np.ones(len(tables), bool)
    while (gain.size and gain.max() > 0) or alive.sum() > MAX_TABLES:
        i, j = divmod(int(gain.argmax()), len(tables))
        tables[j] += tables[i]
        alive[i] = False
        member[member == i] = j
        gain[i, :] = gain[:, i] = -np.inf
        cost[j] = _cost(tables[j], sequences)
        others = np.flatnonzero(alive & (np.arange(len(tables)) != j))
        new = cost[j] + cost[others] - _cost(tables[j] + tables[others], sequences)
        gain[np.maximum(j, others), np.minimum(j, others)] = new
    place = np.cumsum(alive) - 1
    return tables[alive].astype(np.int64), place[member]


def _precision(tables: Ints) -> int:
    """Bits of the frequencies: four more than the largest alphabet needs."""
    largest = int((tables > 0).sum(1).max())
    return min(MAX_PRECISION, max(MIN_PRECISION, largest.bit_length() + 3))


def _table(alphabet: Ints, counts: Ints, precision: int) -> Table:
    """Frequencies in proportion to the counts, at least one each, of sum ``2 ** precision``."""
    at = np.flatnonzero(counts)
    exact = counts[at] * ((1 << precision) / counts.sum())
    frequencies = np.maximum(1, np.floor(exact)).astype(np.int64)
    missing = (1 << precision) - int(frequencies.sum())
    if missing > 0:  # fewer than there are symbols
        frequencies[np.argsort(frequencies - exact, kind="stable")[:missing]] += 1
    while missing < 0:  # many symbols were raised to one: take from the largest
        largest = int(frequencies.argmax())
        taken = min(-missing, max(1, int(frequencies[largest]) // 2))
        frequencies[largest] -= taken
        missing += taken
    return Table(symbols=alphabet[at], frequencies=frequencies)
