"""Report and Table: the result of a job as JSON values and as tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: title above the table.
        columns: headings, aligned to the right with a leading ``>``; empty where the rows are
            names and values.
        rows: one value per column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def __str__(self) -> str:
        """The table as plain text, with two spaces between columns."""
        heads = [column.removeprefix(">") for column in self.columns]
        lines = [[_cell(value) for value in row] for row in self.rows]
        if heads:
            lines.insert(0, heads)
        count = max(map(len, lines), default=0)
        widths = [
            max((len(line[i]) for line in lines if i < len(line)), default=0) for i in range(count)
        ]
        right = [i < len(self.columns) and self.columns[i].startswith(">") for i in range(count)]
        shown = [
            "  ".join(
                cell.rjust(widths[i]) if right[i] else cell.ljust(widths[i])
                for i, cell in enumerate(line)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *shown] if self.title else shown)


def facts(title: str, *rows: tuple[str, object]) -> Table:
    """A table of names and values, without headings."""
    return Table(title, (), rows)


class Report(ABC):
    """The result of a job."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """The tables of the report."""

    def remarks(self) -> tuple[str, ...]:
        """The lines below the tables."""
        return ()

    def table(self) -> str:
        """The tables and the lines below them as plain text."""
        return "\n\n".join([*map(str, self.tables()), *self.remarks()])


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
