"""Windows of tokens for calibration: from text files, or from a data set of `datasets`."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import SourceError, SpecError
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.texts import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = (".txt", ".gz")
"""Files that are taken from a folder."""

_PIECE = 16
"""Characters of a piece of text per token of context: about four windows."""

_BUFFER = 1024
"""Rows of a data set among which the next one is drawn."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What calibration reads.

    Attributes:
        ids: int64 ``[validation + train, context]``, those for validation first.
        validation: how many of them are for validation only.
        what: where they are from, for people.
    """

    ids: Tensor
    validation: int
    what: str

    @property
    def train(self) -> int:
        """Windows to train on."""
        return len(self.ids) - self.validation

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of their roles."""
        digest = hashlib.sha256(f"{self.validation} {tuple(self.ids.shape)}".encode())
        digest.update(self.ids.cpu().numpy().tobytes())
        return digest.hexdigest()


def read_windows(
    options: CalibrateOptions, tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> Windows:
    """Windows from ``--texts`` or ``--dataset``, drawn by the seed.

    Validation gets the first ones, which are in other documents (or elsewhere in a long one).

    Raises:
        SourceError: a text or the data set cannot be read.
        SpecError: there is too little text.
    """
    if options.texts:
        pieces, what = _pieces(options.texts, _PIECE * context, seed), "text files"
    else:
        pieces, what = _rows(options.dataset, seed), f"data set {options.dataset}"
    wanted = options.validation_windows + options.samples
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer(piece, return_attention_mask=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if len(ids) >= wanted * context:
            break
    found = min(wanted, len(ids) // context)
    if found < options.validation_windows + options.batch:
        raise SpecError(
            f"{what}: {len(ids):,} tokens fill {found} windows of --context {context}, at least "
            f"{options.validation_windows} are needed for validation and {options.batch} for a "
            "batch; give more text or a shorter --context"
        )
    windows = torch.tensor(ids[: found * context], dtype=torch.int64).view(found, context)
    return Windows(ids=windows, validation=options.validation_windows, what=what)


def _pieces(patterns: tuple[str, ...], length: int, seed: int) -> Iterator[str]:
    """Pieces of at most ``length`` characters of all files, in random order."""
    texts = [read_text(path) for path in _files(patterns)]
    places = [(n, start) for n, text in enumerate(texts) for start in range(0, len(text), length)]
    if not any(text.strip() for text in texts):
        raise SourceError(f"{', '.join(patterns)}: the text is empty")
    for place in np.random.default_rng(seed).permutation(len(places)):
        number, start = places[place]
        yield texts[number][start : start + length]


def _files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that are meant, each once, sorted.

    Raises:
        SourceError: nothing is there.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = {p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file()}
            problem = f"no {' or '.join(_SUFFIXES)} file in this folder"
        elif path.is_file():
            files, problem = {path}, ""
        else:
            matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
            files = {match for match in matches if match.is_file()}
            problem = "no such file or folder, and no file matches it as a pattern"
        if not files:
            raise SourceError(f"--texts {pattern}: {problem}")
        found |= files
    return sorted(found)


def _rows(dataset: str, seed: int) -> Iterator[str]:
    """Texts of a data set's rows, in random order.

    Raises:
        SpecError: `datasets` is not installed, or the name has too many parts.
        SourceError: there is no such data set, or it has no such column.
    """
    name, *parts = dataset.split(":")
    if len(parts) > 3:
        raise SpecError(f"--dataset {dataset}: write ID[:config[:split[:column]]]")
    config, split, column = (*parts, "", "", "")[:3]
    try:
        from datasets import load_dataset  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SpecError("--dataset needs the datasets library: pip install datasets") from None
    try:
        rows = load_dataset(name, config or None, split=split or "train", streaming=True)
        for row in rows.shuffle(seed=seed, buffer_size=_BUFFER):
            column = column or _text_column(row, dataset)
            yield _text(row, column, dataset)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"--dataset {dataset}: cannot be read ({reason})") from None


def _text_column(row: dict[str, Any], dataset: str) -> str:
    """``text``, or the only column of strings."""
    columns = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in columns:
        return "text"
    if len(columns) != 1:
        raise SourceError(
            f"--dataset {dataset}: say which column is the text: {', '.join(columns) or 'none is'}"
            f" ({dataset.split(':')[0]}:config:split:column)"
        )
    return columns[0]


def _text(row: dict[str, Any], column: str, dataset: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise SourceError(
            f"--dataset {dataset}: no text in column {column!r}; its columns: {', '.join(row)}"
        )
    return value
