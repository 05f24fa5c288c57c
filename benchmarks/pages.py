"""Parts of the pages in docs/ that scripts write."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def with_part(page: str, script: str, text: str) -> str:
    """A page with ``text`` between the two marks that it has for ``benchmarks/SCRIPT``."""
    begin = f"<!-- written by benchmarks/{script} -->"
    end = f"<!-- end of what benchmarks/{script} writes -->"
    before, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def write_part(page: str, script: str, text: str) -> None:
    """Put ``text`` between the two marks that a page has for ``benchmarks/SCRIPT``."""
    (DOCS / page).write_text(with_part(page, script, text), encoding="utf-8")
