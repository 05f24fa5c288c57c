"""Parts of the pages in docs/ that scripts write."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def write_part(page: str, script: str, text: str) -> None:
    """Put ``text`` between the two marks that a page has for ``benchmarks/SCRIPT``."""
    begin = f"<!-- written by benchmarks/{script} -->"
    end = f"<!-- end of what benchmarks/{script} writes -->"
    path = DOCS / page
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
