"""The tables of docs/methods.md, from all records of suites/methods.py.

python benchmarks/methods_tables.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import write_part
from record import RESULTS

FREE, DATA = "l2", "ldlq+icm"
"""The two assignments that every method is measured with; others have rows of their own."""

DETAIL = 2.0
"""The budget that has a table of its own, with bytes and seconds."""

TITLES = {
    "tiny-llama": "Perplexity of held-out text, lower is better",
    "tiny-dit": "PSNR in dB to the uncompressed model's images, higher is better",
}

Row = Mapping[str, Any]
Cells = dict[tuple[str, str, float], Row]
"""Method, assignment and budget -> record."""


def read_cells(folder: Path) -> dict[str, Cells]:
    """The newest record of every cell, by model."""
    models: dict[str, Cells] = {}
    for line in (folder / "methods.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        spec = record["spec"]
        cells = models.setdefault(spec["model"], {})
        cells[spec["method"], spec["assignment"], spec["bits"]] = record
    return dict(sorted(models.items(), reverse=True))


def text_of(folder: Path) -> str:
    """Everything between the two marks."""
    parts: list[str] = []
    for model, cells in read_cells(folder).items():
        parts += [f"### builtin:{model}", "", *about(model, cells), ""]
        parts += [*overview(cells), ""]
        if any(bits == DETAIL for _, _, bits in cells):
            parts += [f"**At {DETAIL:g} bits per weight**, with bytes and time:", ""]
            parts += [*detail(cells), ""]
    return "\n".join(parts)


def about(model: str, cells: Cells) -> Iterator[str]:
    """What the numbers of one model are."""
    records = list(cells.values())
    last = next((r for r in reversed(records) if r["spec"]["assignment"] == DATA), records[-1])
    spec, known = last["spec"], last["results"]["uncompressed"]
    fills = [row["results"]["bits_per_weight"] / bits for (_, _, bits), row in cells.items()]
    yield f"{TITLES[model]}: {spec['task']}."
    if known is not None:
        yield f"Uncompressed: {known:.2f}."
    yield f"Statistics: {spec['statistics']}."
    yield (
        f"Every cell takes {min(fills):.1%} to {max(fills):.1%} of its budget. "
        "**Bold**: the best of a column."
    )


def overview(cells: Cells) -> Iterator[str]:
    """One row per method, and per budget the metric without and with data."""
    columns = [(bits, how) for bits in sorted({b for _, _, b in cells}) for how in (FREE, DATA)]
    shown = [key for key in columns if any(cell[1:] == key[::-1] for cell in cells)]
    yield "| method | " + " | ".join(f"{bits:g} bits, `{how}`" for bits, how in shown) + " |"
    yield "|---" + "|---:" * len(shown) + "|"
    best = {key: _best(cells, *key) for key in shown}
    for method in _methods(cells):
        row = [_score(cells.get((method, how, bits)), best[bits, how]) for bits, how in shown]
        yield f"| {method} | " + " | ".join(row) + " |"


def detail(cells: Cells) -> Iterator[str]:
    """Every cell of one budget, the best first."""
    mine = {key: row for key, row in cells.items() if key[2] == DETAIL}
    higher = _higher(next(iter(mine.values())))
    order = sorted(mine, key=lambda key: _value(mine[key]), reverse=higher)
    yield "| method | assignment | bytes | bits per weight | metric | CPU seconds |"
    yield "|---|---|---:|---:|---:|---:|"
    for method, how, bits in order:
        row = mine[method, how, bits]
        found = row["results"]
        yield (
            f"| {method} | {how} | {found['nbytes']:,} | {found['bits_per_weight']:.3f} "
            f"| {_value(row):.2f} | {found['cpu_seconds']:.0f} |"
        )


def _methods(cells: Cells) -> list[str]:
    """Those with columns of their own, the best at ``DETAIL`` first."""
    found = dict.fromkeys(method for method, how, _ in cells if how in (FREE, DATA))
    sign = -1 if _higher(next(iter(cells.values()))) else 1

    def place(method: str) -> float:
        row = cells.get((method, DATA, DETAIL))
        return float("inf") if row is None else sign * _value(row)

    return sorted(found, key=place)


def _best(cells: Cells, bits: float, how: str) -> float:
    values = {_value(row): row for (_, h, b), row in cells.items() if (h, b) == (how, bits)}
    pick = max if _higher(next(iter(values.values()))) else min
    return pick(values)


def _value(record: Row) -> float:
    return float(record["results"][record["spec"]["metric"]])


def _higher(record: Row) -> bool:
    return bool(record["spec"]["metric"] == "psnr_dB")


def _score(record: Row | None, best: float) -> str:
    if record is None:
        return "-"
    value = _value(record)
    text = f"{value:.2f}" if value < 1000 else f"{value:.2g}"
    return f"**{text}**" if value == best else text


def main() -> None:
    """Write the part of the page between the marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    folder = parser.parse_args().results
    write_part("methods.md", "methods_tables.py", text_of(folder))


if __name__ == "__main__":
    main()
