"""Captioned grids of images, drawn as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpq_core.artifact.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = ImageFont | FreeTypeFont

_LEAST_CELL, _LARGEST_CELL = 84, 512  # pixels; images are enlarged by whole factors
_GAP, _MARGIN, _LABEL_WIDTH = 4, 12, 150
_TITLE_SIZE, _TEXT_SIZE, _NOTE_SIZE = 16, 13, 10
_PAPER, _INK, _FAINT = "white", "black", "#666666"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of images that belong together.

    Attributes:
        label: text to the left of them; empty: none.
        images: PNG files of equal size.
        notes: text below each image; empty: none.
        opens: whether a new group of rows starts here, at a distance from the row above.
    """

    label: str
    images: Sequence[Path]
    notes: Sequence[str] = ()
    opens: bool = True


def draw_grid(path: Path, caption: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a grid of rows below a caption; lines too long for it are wrapped.

    Args:
        path: PNG to write.
        caption: lines above the grid; the first is the title.
        rows: rows from top to bottom; at least one image in all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    title, text, note = (
        ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE, _NOTE_SIZE)
    )
    cell = _cell_size(rows)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    parts = [part for row in rows for part in row.label.split("\n")]
    longest = max(pen.textlength(part, font=text) for part in parts)
    labels = min(_LABEL_WIDTH, round(longest) + 2 * _MARGIN) if longest else 0
    columns = max(len(row.images) for row in rows)
    width = max(2 * _MARGIN + labels + columns * (cell[0] + _GAP), 480)
    heading = [
        (part, title if number == 0 else text)
        for number, line in enumerate(caption)
        for part in _wrapped(pen, line, title if number == 0 else text, width - 2 * _MARGIN)
    ]
    top = _MARGIN + sum(_height(font) for _, font in heading)
    height = top + sum(_row_height(row, cell) for row in rows) + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    y = _MARGIN
    for line, font in heading:
        pen.text((_MARGIN, y), line, fill=_INK, font=font)
        y += _height(font)
    for row in rows:
        y += _MARGIN if row.opens else _GAP
        if row.label:
            _write_block(pen, row.label, text, (_MARGIN, y, labels - _GAP, cell[1]))
        for column, source in enumerate(row.images):
            x = _MARGIN + labels + column * (cell[0] + _GAP)
            page.paste(_open(source, cell), (x, y))
            if row.notes:
                pen.text((x, y + cell[1] + 1), row.notes[column], fill=_FAINT, font=note)
        y += cell[1] + (_NOTE_SIZE + _GAP if row.notes else 0)
    with replacing(path) as partial:
        page.save(partial, format="PNG", optimize=True)


def _cell_size(rows: Sequence[Row]) -> tuple[int, int]:
    """The width and height of a cell: images enlarged by a whole factor, or shrunk where huge."""
    from PIL import Image

    first = next(path for row in rows for path in row.images)
    with Image.open(first) as image:
        width, height = image.size
    factor = max(1, -(-_LEAST_CELL // max(width, height)))
    if max(width, height) > _LARGEST_CELL:
        scale = _LARGEST_CELL / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))
    return width * factor, height * factor


def _open(path: Path, cell: tuple[int, int]) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        how = Image.Resampling.NEAREST if image.width <= cell[0] else Image.Resampling.LANCZOS
        return image.convert("RGB").resize(cell, how)


def _row_height(row: Row, cell: tuple[int, int]) -> int:
    distance = _MARGIN if row.opens else _GAP
    return distance + cell[1] + (_NOTE_SIZE + _GAP if row.notes else 0)


def _height(font: Font) -> int:
    return round(1.35 * float(getattr(font, "size", _TEXT_SIZE)))


def _write_block(pen: ImageDraw, text: str, font: Font, box: tuple[int, int, int, int]) -> None:
    """Write wrapped text into a box (left, top, width, height), vertically centred and cut off."""
    left, top, width, height = box
    lines = _wrapped(pen, text, font, width)
    most = max(1, height // _height(font))
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " ..."]
    y = top + (height - len(lines) * _height(font)) // 2
    for number, line in enumerate(lines):
        pen.text((left, y + number * _height(font)), line, fill=_INK, font=font)


def _wrapped(pen: ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """The lines of a text, none wider than ``width`` pixels; longer words are broken."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if pen.textlength(longer, font=font) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            while pen.textlength(line, font=font) > width and len(line) > 1:
                fits = max(1, int(len(line) * width / pen.textlength(line, font=font)))
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return lines
