"""Draws which room of the engine imports which: docs/images/rooms.svg.

Run it (or `make docs`) after an import between rooms was added; tests/test_site.py says when.
"""

from __future__ import annotations

import ast
import colorsys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAWING = ROOT / "docs" / "images" / "rooms.svg"

ROOMS = (
    "spec",
    "kernels",
    "tensor",
    "artifact",
    "runtime",
    "methods",
    "data",
    "planning",
    "calibrate",
    "plugin",
    "jobs",
)
"""In the order of docs/architecture.md: each imports rooms above it only."""

ROW, LEFT, WIDTH = 44, 150, 640
"""Pixels: height of a row, end of the names, width of the drawing."""


def imports() -> set[tuple[str, str]]:
    """Pairs of an importing and an imported room."""
    return {
        (room, other)
        for room in ROOMS
        for path in (ROOT / "dpq_core" / room).rglob("*.py")
        for other in _needed(path) - {room}
    }


def _needed(path: Path) -> set[str]:
    """The rooms that a file imports: at the top, in functions and for types."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "dpq_core" and len(p) > 1 and p[1] in ROOMS}


def drawing() -> str:
    """The SVG: rooms from top to bottom, an arc for each pair that imports."""
    height = ROW * len(ROOMS) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="15">',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for room, other in sorted(imports()):
        parts.append(_arc(ROOMS.index(room), ROOMS.index(other)))
    for index, room in enumerate(ROOMS):
        y = _middle(index)
        parts.append(f'<circle cx="{LEFT + 14}" cy="{y}" r="6" fill="{_colour(index)}"/>')
        parts.append(f'<text x="{LEFT}" y="{y + 5}" text-anchor="end">{room}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _arc(start: int, end: int) -> str:
    """From the importing room on the right to the imported one above it."""
    first, last, x = _middle(start), _middle(end), LEFT + 22
    reach = x + 40 * abs(start - end) + 20
    title = f"<title>{ROOMS[start]} imports {ROOMS[end]}</title>"
    return (
        f'<path d="M{x} {first} C{reach} {first} {reach} {last} {x} {last}" fill="none" '
        f'stroke="{_colour(start)}" stroke-width="1.6" stroke-opacity="0.75">{title}</path>'
    )


def _middle(index: int) -> int:
    return 8 + ROW * index + ROW // 2


def _colour(index: int) -> str:
    red, green, blue = colorsys.hls_to_rgb(index / len(ROOMS), 0.42, 0.6)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def update() -> None:
    """Write the drawing where it is not what the tree says."""
    if not DRAWING.exists() or DRAWING.read_text() != drawing():
        DRAWING.write_text(drawing())


if __name__ == "__main__":
    update()
