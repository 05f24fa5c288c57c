"""The header of a .ply file, checked against the size of the file before plyfile reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dpq_core.errors import SourceError

MAX_HEADER = 1 << 20
"""Bytes in which a header must end."""

ASCII = "ascii"
ENCODINGS = (ASCII, "binary_little_endian", "binary_big_endian")

# Both spellings of the PLY description: the old C names and the sized ones.
DTYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
"""PLY type -> NumPy's name of it."""

SIZES = {kind: int(name[1]) for kind, name in DTYPES.items()}
"""PLY type -> bytes."""

FLOATS = ("float", "float32", "double", "float64")


@dataclass(frozen=True)
class Element:
    """One element of a header.

    Attributes:
        name: e.g. ``vertex``.
        count: rows that the header promises.
        properties: name -> PLY type, in order; the type of a list is ``list``.
        lines: the header lines of its properties.
    """

    name: str
    count: int
    properties: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @property
    def has_list(self) -> bool:
        """Whether its rows have no fixed size."""
        return "list" in self.properties.values()


@dataclass(frozen=True)
class Header:
    """The parsed header of a .ply file.

    Attributes:
        encoding: one of ``ENCODINGS``.
        elements: in the order of the file.
        comments: the text of the comment lines.
        body: bytes after the header.
    """

    encoding: str
    elements: tuple[Element, ...]
    comments: tuple[str, ...]
    body: int

    def element(self, name: str) -> Element | None:
        """The element called ``name``."""
        return next((e for e in self.elements if e.name == name), None)


def read_header(path: Path) -> Header:
    """Parse the header; allocates nothing that depends on its numbers.

    Raises:
        SourceError: it is malformed, or promises more than the file holds.
    """
    with path.open("rb") as file:
        lines = _lines(path, file)
        end = file.tell()
    elements: list[Element] = []
    comments: list[str] = []
    encoding = ""
    for line in lines:
        words = line.split()
        try:
            if words[:1] == ["format"]:
                encoding = words[1]
            elif words[:1] == ["element"]:
                elements.append(_element(words, elements))
            elif words[:1] == ["property"]:
                _add_property(elements[-1], words)
            elif words[:1] == ["comment"]:
                comments.append(line[len("comment") :].strip())
            elif words and words[0] != "obj_info":
                raise ValueError
        except (IndexError, ValueError):
            raise SourceError(f"{path}: malformed .ply header line {line[:80]!r}") from None
    if encoding not in ENCODINGS:
        raise SourceError(f"{path}: .ply format {encoding!r} is not one of {', '.join(ENCODINGS)}")
    header = Header(encoding, tuple(elements), tuple(comments), path.stat().st_size - end)
    _check_size(path, header)
    return header


def _lines(path: Path, file: BinaryIO) -> list[str]:
    """The lines between ``ply`` and ``end_header``; the file stands at the body then."""
    lines: list[str] = []
    while file.tell() < MAX_HEADER:
        line = file.readline(MAX_HEADER)
        if not line.endswith(b"\n"):
            break
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text == "end_header":
            return lines[1:]
        lines.append(text)
    raise SourceError(f"{path}: the .ply header does not end (no end_header line)")


def _element(words: list[str], before: list[Element]) -> Element:
    _, name, count = words
    if not 0 <= int(count) < 1 << 63 or any(e.name == name for e in before):
        raise ValueError
    return Element(name, int(count), {})


def _add_property(element: Element, words: list[str]) -> None:
    name, kind = words[-1], words[1]
    is_list = kind == "list" and len(words) == 5 and words[2] in SIZES and words[3] in SIZES
    if name in element.properties or not (is_list or (len(words) == 3 and kind in SIZES)):
        raise ValueError
    element.properties[name] = kind
    element.lines.append(" ".join(words))


def _check_size(path: Path, header: Header) -> None:
    """A list is at least its count, a number in text at least a digit and a separator."""
    least = 0
    for element in header.elements:
        if header.encoding == ASCII:
            row = 2 * len(element.properties)
        else:
            row = sum(SIZES.get(kind, 1) for kind in element.properties.values())
        least += element.count * row
    slack = 1 if header.encoding == ASCII else 0  # the last line may lack its end
    if least > header.body + slack:
        rows = " and ".join(f"{e.count:,} of {e.name}" for e in header.elements)
        raise SourceError(
            f"{path}: truncated, or its header is wrong: it promises {rows}, at least "
            f"{least:,} bytes, but {header.body:,} follow"
        )
