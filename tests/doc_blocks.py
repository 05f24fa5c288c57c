"""Code blocks of the documentation, as the tests run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^( *)```(.*)$")
REASON = re.compile(r"<!-- not run: (.+) -->")
FILE = re.compile(r"<!-- file: (\S+) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: line of the opening fence, from 1.
        language: the first word after the fence.
        text: what is between the fences.
        not_run: the reason given by ``<!-- not run: reason -->`` on the line before.
        file: the name given by ``<!-- file: NAME -->`` on the line before: the block is that file.
    """

    line: int
    language: str
    text: str
    not_run: str | None = None
    file: str | None = None


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a Markdown file, in order."""
    found: list[Block] = []
    before, opened, body = "", None, []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened = (number, fence[2].strip().partition(" ")[0], before)
            body = []
        elif fence and opened is not None:
            start, language, comment = opened
            reason, file = REASON.search(comment), FILE.search(comment)
            found.append(
                Block(
                    line=start,
                    language=language,
                    text="\n".join(body) + "\n",
                    not_run=reason and reason[1],
                    file=file and file[1],
                )
            )
            opened = None
        elif opened is not None:
            body.append(line)
        if line.strip():
            before = line
    if opened is not None:
        raise ValueError(f"{path}: the block opened in line {opened[0]} is never closed")
    return found


def commands(block: Block) -> list[str]:
    """The lines of a shell block, continued lines joined, comments and blanks dropped."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
