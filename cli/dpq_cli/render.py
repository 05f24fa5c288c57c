"""What people see (stderr, by rich) and what machines read (stdout, JSON)."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from dpq_core.jobs.report import Report, Table

LOG_WIDTH = 140
"""Columns when stderr is a file or a pipe: tensor names stay whole."""


def console() -> Console:
    """A console on stderr."""
    from rich.console import Console

    fixed = sys.stderr.isatty() or "COLUMNS" in os.environ
    return Console(stderr=True, width=None if fixed else LOG_WIDTH, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a column whose heading starts with ``>`` is aligned to the right."""
    view = _new_table(title)
    for column in columns:
        right = column.startswith(">")
        view.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        view.add_row(*(_cell(value) for value in row))
    console().print(view)


def facts(title: str, rows: Iterable[Sequence[object]]) -> None:
    """Print a table of names and values, without a heading row."""
    view = _new_table(title, show_header=False)
    view.add_column(style="bold")
    view.add_column(overflow="fold")
    for name, value in rows:
        view.add_row(_cell(name), _cell(value))
    console().print(view)


def note(text: str) -> None:
    """Print one line for people, as it is."""
    console().print(text, markup=False, soft_wrap=True)


def report(report: Report, as_json: bool, *, more: Sequence[Table] = ()) -> None:
    """Show a report: its JSON on stdout, or its tables and remarks for people.

    Args:
        report: of a job.
        as_json: whether JSON is wanted.
        more: further tables for people.
    """
    if as_json:
        emit_json(report.to_json())
        return
    for one in (*report.tables(), *more):
        if one.columns:
            table(one.title, one.columns, one.rows)
        else:
            facts(one.title, one.rows)
    for line in report.remarks():
        note(line)


def emit_json(data: Any) -> None:
    """Print machine output on stdout; infinity and NaN, which JSON lacks, become strings."""
    text = json.dumps(_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    typer.echo(text)


def _jsonable(value: Any) -> Any:
    """``inf``, ``-inf`` and ``nan`` as text, in every depth; ``float()`` reads them back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def _new_table(title: str, **options: Any) -> RichTable:
    from rich import box
    from rich.table import Table

    return Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, **options)


def _cell(value: object) -> str:
    from rich.markup import escape

    return escape("-" if value is None else str(value))
