"""Windows of tokens for calibration: from text files, a data set, or the model's own text."""

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

from dpq_core.calibrate.distributed import Workers
from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_core.methods.quantize import tensor_seed
from dpq_core.run import Progress, Run, silent
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.loading import check_ids, has_tokenizer, load_tokenizer
from dpq_llama.source.texts import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SUFFIXES = (".txt", ".gz")
"""Files that are taken from a folder."""

SHIPPED = Path(__file__).with_name("text") / "mixed.txt.gz"
"""Prose in many languages, dialogue, code and mathematics; text/README.md tells its origin."""

_PIECE = 16
"""Characters of a piece of text per token of context: about four windows."""

_BUFFER = 1024
"""Rows of a data set among which the next one is drawn."""

_WINDOWS_AT_A_TIME = 32
"""Windows that the model writes at a time: they share the reading of the weights."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The tokens that calibration reads, for training and for validation.

    Attributes:
        ids: int64 ``[validation + train, context]``, those for validation first.
        validation: how many of them are for validation only.
        description: where they are from, for people.
    """

    ids: Tensor
    validation: int
    description: str

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


def windows_of(
    options: CalibrateOptions, uncompressed: PreTrainedModel, model: str, source: str, run: Run
) -> Windows:
    """The windows of text on the model's device; all processes read those of the first.

    Text is read where there is some: the user's, or else what ships with dpq. A model without a
    tokenizer reads what it writes itself.

    Raises:
        SourceError: a text, the data set or the tokenizer cannot be read.
        SpecError: there is too little text, or nothing to read it with.
    """
    if options.texts or options.dataset or (not options.generate and has_tokenizer(source)):
        windows = read_windows(options, load_tokenizer(source), options.context, run.seed)
    elif uncompressed.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise SpecError(
            "this model has no language-model head to write text with, and no tokenizer to read",
            Hint.of("give {} or {}, and the files of its tokenizer", texts=ANY, dataset=ANY),
        )
    else:
        validation = options.validation_windows
        count = validation + options.samples
        key = (model, str(uncompressed.device), count, options.context, run.seed)
        ids = run.reuse.get(
            "llama text",
            key,
            lambda: write_windows(uncompressed, count, options.context, run.seed, run.progress),
        )
        windows = Windows(ids=ids, validation=validation, description="the model's own text")
    check_ids(uncompressed, windows.ids)
    ids = windows.ids.to(uncompressed.device)
    Workers().agree([ids])
    return Windows(ids=ids, validation=windows.validation, description=windows.description)


def read_windows(
    options: CalibrateOptions, tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> Windows:
    """Windows of the user's texts or data set, else of the text that ships; drawn by the seed.

    The first are for validation; they come from other documents than those to train on, or from
    elsewhere in a long one.

    Raises:
        SourceError: a text or the data set cannot be read.
        SpecError: there is too little text.
    """
    if options.texts:
        pieces, description = _pieces(options.texts, _PIECE * context, seed), "text files"
    elif options.dataset:
        pieces = _rows(options.dataset, seed)
        description = f"data set {options.dataset}"
    else:
        pieces = _pieces((str(SHIPPED),), _PIECE * context, seed)
        description = "the calibration text that ships with dpq"
    most = options.validation_windows + options.samples
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer(piece, return_attention_mask=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if len(ids) >= most * context:
            break
    count = min(most, len(ids) // context)
    if count < options.validation_windows + options.batch_size:
        raise SpecError(
            f"{description}: {len(ids):,} tokens fill {count} windows of {context} tokens, "
            f"at least {options.validation_windows} are needed for validation and "
            f"{options.batch_size} for a batch",
            Hint.of("give more text or a shorter {}", context=ANY),
        )
    windows = torch.tensor(ids[: count * context], dtype=torch.int64).view(count, context)
    return Windows(ids=windows, validation=options.validation_windows, description=description)


@torch.no_grad()
def write_windows(
    model: PreTrainedModel, count: int, context: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Windows that the model itself writes, sampled at temperature 1 from its whole distribution.

    Each begins as a document does, or with a random token where the model has no such token; and
    what follows the end of a document is the beginning of another one.

    Args:
        model: uncompressed, with a head.
        count: windows.
        context: tokens of each.
        seed: of every draw.
        progress: called with tokens written and tokens to write.

    Returns:
        int64 ``[count, context]`` on the CPU.
    """
    ids = torch.empty(count, context, dtype=torch.int64)
    for first in range(0, count, _WINDOWS_AT_A_TIME):
        rows = ids[first : first + _WINDOWS_AT_A_TIME]
        generator = torch.Generator().manual_seed(tensor_seed(seed, f"window {first}"))
        begin, ends = _begin_token(model), _end_tokens(model)
        vocabulary: int = model.config.get_text_config().vocab_size
        rows[:, 0] = torch.randint(vocabulary, (len(rows),), generator=generator)
        if begin is not None:
            rows[:, 0] = begin
        cache: Any = None
        for position in range(1, context):
            progress("writing text", (first * context + position * len(rows)), count * context)
            last = rows[:, position - 1 : position].to(model.device)
            output = model(input_ids=last, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities = output.logits[:, -1].float().softmax(-1).cpu()
            rows[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            if begin is not None and begin not in ends:
                rows[torch.isin(rows[:, position - 1], ends), position] = begin
    progress("writing text", count * context, count * context)
    return ids


def _begin_token(model: PreTrainedModel) -> int | None:
    """The token that begins a document."""
    token = model.config.get_text_config().bos_token_id
    return token if isinstance(token, int) else None


def _end_tokens(model: PreTrainedModel) -> Tensor:
    """The tokens that end a document, int64 ``[n]``."""
    tokens = model.config.get_text_config().eos_token_id
    tokens = [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)
    return torch.tensor(tokens, dtype=torch.int64)


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
    """The text files that paths, folders and patterns name: each once, sorted.

    Raises:
        SourceError: one of them names no file.
    """
    files: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = {p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file()}
            problem = f"no {' or '.join(_SUFFIXES)} file in this folder"
        elif path.is_file():
            matches, problem = {path}, ""
        else:
            paths = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
            matches = {path for path in paths if path.is_file()}
            problem = "no such file or folder, and no file matches it as a pattern"
        if not matches:
            raise SourceError(problem, option="texts", value=pattern)
        files |= matches
    return sorted(files)


def _rows(dataset: str, seed: int) -> Iterator[str]:
    """Texts of a data set's rows, in random order.

    Raises:
        SpecError: `datasets` is not installed, or the name has too many parts.
        SourceError: there is no such data set, or it has no such column.
    """
    name, *parts = dataset.split(":")
    if len(parts) > 3:
        raise SpecError("write ID[:config[:split[:column]]]", option="dataset", value=dataset)
    config, split, column = (*parts, "", "", "")[:3]
    try:
        from datasets import load_dataset  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SpecError(
            "needs the datasets library: pip install datasets", option="dataset"
        ) from None
    try:
        rows = load_dataset(name, config or None, split=split or "train", streaming=True)
        for row in rows.shuffle(seed=seed, buffer_size=_BUFFER):
            column = column or _text_column(row, dataset)
            yield _text(row, column, dataset)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot be read ({reason})", option="dataset", value=dataset) from None


def _text_column(row: dict[str, Any], dataset: str) -> str:
    """The column that holds the text: ``text``, or the only column of strings."""
    columns = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in columns:
        return "text"
    if len(columns) != 1:
        raise SourceError(
            f"say which column is the text: {', '.join(columns) or 'none is'}"
            f" ({dataset.split(':')[0]}:config:split:column)",
            option="dataset",
            value=dataset,
        )
    return columns[0]


def _text(row: dict[str, Any], column: str, dataset: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise SourceError(
            f"no text in column {column!r}; its columns: {', '.join(row)}",
            option="dataset",
            value=dataset,
        )
    return value
