"""The words in which two texts differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

_WORDS = re.compile(r"\s+|[^\s]+")


@dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Attributes:
        text: its words and spaces.
        differs: whether the other text lacks them here.
    """

    text: str
    differs: bool


def differences(before: str, after: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both texts in pieces, word by word, with those marked that the other text lacks."""
    one, other = _WORDS.findall(before), _WORDS.findall(after)
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(a=one, b=other, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        for words, marked in ((one[a:b], pieces[0]), (other[c:d], pieces[1])):
            if words:
                marked.append(Piece("".join(words), tag != "equal"))
    return tuple(pieces[0]), tuple(pieces[1])
