"""Entropy coding of integer symbols with context models: constriction's ANS, decoded by numba.

A symbol is coded with the frequency table of its context: its *group*, which the caller derives
from what is already decoded (a class of importance, the coefficient's index), and a bin of the
running mean of the symbols before it, which follows the local level along a spatial order. Every
table has its own ANS coder, so that the library can encode each in one call. Contexts with similar
statistics share a table where that saves bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_core.artifact.entropy import varint
from dpq_core.errors import ArtifactError, SpecError

Ints = npt.NDArray[np.integer]

MAX_SYMBOL = 1 << 24
MIN_PRECISION, MAX_PRECISION = 12, 16
MAX_GROUPS = 1024
MAX_BINS = 64
MAX_TABLES = 4096
MAX_LUT_BYTES = 64 << 20

SHIFT = 1
"""Shift of the running mean, which moves by half of the difference to each new symbol."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Frequencies of the symbols of one or more contexts.

    Attributes:
        symbols: int32 ``[n]``, ascending.
        frequencies: int64 ``[n]``, positive, their sum a power of two.
    """

    symbols: Ints
    frequencies: Ints


@dataclass(frozen=True, kw_only=True)
class Model:
    """The context model of a stream of symbols, which a decoder needs.

    Attributes:
        precision: the frequencies of every table sum to ``2 ** precision``.
        scale: int64 ``[G]``: factor of the symbols of a group in the running mean.
        start: the running mean before the first symbol of a sequence, in 1/16.
        thresholds: int64 ``[B - 1]``: bounds of the bins of the running mean, in 1/16.
        context: uint16 ``[G, B]``: the table of each context.
        tables: at least one.
    """

    precision: int
    scale: Ints
    start: int
    thresholds: Ints
    context: Ints
    tables: tuple[Table, ...]

    @property
    def low(self) -> int:
        """The smallest symbol of any table."""
        return min(int(t.symbols[0]) for t in self.tables)

    @property
    def high(self) -> int:
        """The largest symbol of any table."""
        return max(int(t.symbols[-1]) for t in self.tables)

    def encode(self, symbols: Ints, groups: Ints) -> bytes:
        """Code one sequence; ``decode`` is the inverse.

        Args:
            symbols: integers ``[n]``, each in the table of its context.
            groups: integers ``[n]``, below G.

        Raises:
            SpecError: a symbol is in no table of its context.
        """
        from constriction import stream

        used = self._tables_used(symbols, groups)
        order = np.argsort(used, kind="stable")
        bounds = np.searchsorted(used[order], np.arange(len(self.tables) + 1))
        ordered = np.asarray(symbols)[order]
        words = []
        for table, first, last in zip(self.tables, bounds[:-1], bounds[1:], strict=True):
            ranks = np.searchsorted(table.symbols, ordered[first:last]).astype(np.int32)
            symbols_of = table.symbols[np.minimum(ranks, len(table.symbols) - 1)]
            if not np.array_equal(symbols_of, ordered[first:last]):
                raise SpecError("a symbol is not in the table of its context")
            coder = stream.stack.AnsCoder()
            if len(ranks) and len(table.symbols) > 1:
                # One less than each frequency: constriction gives every symbol one unit itself.
                units = (table.frequencies << (24 - self.precision)) - 1
                model = stream.model.Categorical(units.astype(np.float64), perfect=False)
                coder.encode_reverse(ranks, model)
            words.append(coder.get_compressed().astype("<u4"))
        head = varint.pack(len(w) for w in words)
        return head + b"".join(w.tobytes() for w in words)

    def _tables_used(self, symbols: Ints, groups: Ints) -> Ints:
        from dpq_core.kernels.cpu import entropy

        out = np.empty(len(symbols), np.uint16)
        context = np.ascontiguousarray(self.context, np.uint16)
        entropy.tables_of(
            symbols, groups, self.scale, self.start, SHIFT, self.thresholds, context, out
        )
        return out


class Decoder:
    """A model prepared for decoding: its look-up tables are built once for all sequences."""

    def __init__(self, model: Model) -> None:
        """Build the look-up tables."""
        from dpq_core.kernels.cpu.entropy import pack_entries

        self.model = model
        tables = model.tables
        sizes = np.array([len(t.symbols) for t in tables])
        self._first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._entries = np.concatenate(
            [
                pack_entries(t.symbols, np.cumsum(t.frequencies) - t.frequencies, t.frequencies)
                for t in tables
            ]
        )
        self._lut = np.stack(
            [np.repeat(np.arange(len(t.symbols), dtype=np.uint16), t.frequencies) for t in tables]
        )

    def decode(self, data: bytes | memoryview, groups: Ints, where: str) -> npt.NDArray[np.int32]:
        """The symbols of one sequence: int32 ``[n]`` for groups ``[n]``, all below G.

        Raises:
            ArtifactError: the data are truncated, too long or damaged.
        """
        from dpq_core.kernels.cpu import entropy

        model = self.model
        reader = varint.Reader(data, where)
        counts = [reader.take(len(data)) for _ in model.tables]
        if sum(counts) * 4 != len(rest := reader.rest()):
            raise ArtifactError(f"{where}: the words of its coders do not fill it")
        out = np.empty(len(groups), np.int32)
        whole = entropy.decode(
            np.frombuffer(rest, "<u4").astype(np.uint32, copy=False),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            groups,
            model.scale,
            model.start,
            SHIFT,
            model.thresholds,
            np.ascontiguousarray(model.context, np.uint16),
            self._lut,
            self._entries,
            self._first,
            model.precision,
            out,
        )
        if not whole:
            raise ArtifactError(f"{where}: damaged, its symbols do not end where its data do")
        return out
