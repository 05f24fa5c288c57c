"""Context models as bytes, written and read with every check (FORMAT.md, E)."""

from __future__ import annotations

import numpy as np

from dpq_core.artifact.entropy import varint
from dpq_core.artifact.entropy.coding import (
    MAX_BINS,
    MAX_GROUPS,
    MAX_LUT_BYTES,
    MAX_PRECISION,
    MAX_SYMBOL,
    MAX_TABLES,
    MIN_PRECISION,
    Model,
    Table,
)
from dpq_core.artifact.entropy.varint import Reader
from dpq_core.errors import ArtifactError

MAX_SCALE = 1 << 24
MAX_MEAN = 1 << 56


def to_bytes(model: Model) -> bytes:
    """The model as bytes; ``from_reader`` is the inverse."""
    parts = [
        varint.pack([model.precision, len(model.scale), *model.scale]),
        varint.pack_signed([model.start]),
        varint.pack([len(model.thresholds)]),
        varint.pack_signed(np.diff(model.thresholds, prepend=0)),
        varint.pack([len(model.tables), *model.context.reshape(-1)]),
    ]
    for table in model.tables:
        first, gaps = int(table.symbols[0]), np.diff(table.symbols) - 1
        parts.append(varint.pack([len(table.symbols)]))
        parts.append(varint.pack_signed([first]))
        parts.append(varint.pack(gaps))
        parts.append(varint.pack(table.frequencies[:-1]))  # the last one follows from the sum
    return b"".join(parts)


def from_reader(reader: Reader, where: str) -> Model:
    """Read one model from a reader.

    Raises:
        ArtifactError: truncated, or a size, symbol or frequency that the format does not allow.
    """
    precision = reader.take(MAX_PRECISION)
    groups = reader.take(MAX_GROUPS)
    if precision < MIN_PRECISION or groups < 1:
        raise ArtifactError(f"{where}: precision {precision} or {groups} groups are too few")
    scale = np.array([reader.take(MAX_SCALE) for _ in range(groups)], np.int64)
    start = reader.take_signed(MAX_MEAN)
    count = reader.take(MAX_BINS - 1)
    thresholds = np.cumsum([reader.take_signed(MAX_MEAN) for _ in range(count)]).astype(np.int64)
    if count and (np.diff(thresholds) <= 0).any():
        raise ArtifactError(f"{where}: the bounds of its bins do not ascend")
    tables = reader.take(MAX_TABLES)
    if tables < 1 or (tables << precision) * 2 > MAX_LUT_BYTES:
        raise ArtifactError(f"{where}: {tables} tables of {precision} bits are not allowed")
    context = [reader.take(tables - 1) for _ in range(groups * (count + 1))]
    return Model(
        precision=precision,
        scale=scale,
        start=start,
        thresholds=thresholds,
        context=np.array(context, np.uint16).reshape(groups, count + 1),
        tables=tuple(_table(reader, precision, where) for _ in range(tables)),
    )


def _table(reader: Reader, precision: int, where: str) -> Table:
    size = reader.take(1 << precision)
    if size < 1:
        raise ArtifactError(f"{where}: a table has no symbols")
    symbols = [reader.take_signed(MAX_SYMBOL)]
    for _ in range(size - 1):
        symbols.append(symbols[-1] + 1 + reader.take(2 * MAX_SYMBOL))
    frequencies = [reader.take(1 << precision) for _ in range(size - 1)]
    frequencies.append((1 << precision) - sum(frequencies))
    if symbols[-1] > MAX_SYMBOL or min(frequencies) < 1:
        raise ArtifactError(f"{where}: a table's symbols or frequencies are out of range")
    return Table(symbols=np.array(symbols, np.int32), frequencies=np.array(frequencies, np.int64))
