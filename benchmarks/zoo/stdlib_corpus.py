"""Code corpus for the built-in tiny model: the Python standard library, split by module.

The held-out modules, their test files and their near-duplicates never enter the training split,
so perplexity on the held-out text measures generalisation and not recall.
"""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HELD_OUT = (
    "calendar.py",
    "colorsys.py",
    "configparser.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "queue.py",
    "sched.py",
    "shelve.py",
    "textwrap.py",
)
"""Whole modules that make up the held-out text, in the order in which they are joined."""

NEAR_DUPLICATES = (
    "asyncio/queues.py",
    "idlelib/idle_test/test_calltip.py",
    "multiprocessing/queues.py",
    "numbers.py",
    "test/test_asyncio/test_queues.py",
)
"""Files that share code or wording with a held-out module: in neither split."""

SKIPPED_FOLDERS = ("site-packages", "__pycache__", "encodings", "lib2to3/tests", "ensurepip")
SKIPPED_FILES = ("pydoc_data/topics.py", "html/entities.py")

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
VOCAB_SIZE = 4096

MAX_BYTES = 400_000
MAX_LINE = 1_000
MAX_NON_ASCII = 0.05
MAX_NUMERIC = 0.12

_NUMERIC = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\b0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Corpus:
    """The two splits of the corpus.

    Attributes:
        train: Training documents by path relative to the library folder.
        heldout: Held-out documents by path relative to the library folder.
    """

    train: dict[str, str]
    heldout: dict[str, str]

    def heldout_text(self) -> str:
        """Returns the held-out modules as one text, separated by an empty line."""
        return "\n".join(self.heldout.values())


def is_teaching(text: str) -> bool:
    """Tells source code apart from tables and encoded data.

    Args:
        text: The content of one source file.

    Returns:
        True if the file is short enough, has no very long line, and is mostly neither non-ASCII
        characters nor numbers and escapes.
    """
    if not text.strip() or len(text.encode()) > MAX_BYTES:
        return False
    if max(map(len, text.splitlines())) > MAX_LINE:
        return False
    non_ascii = sum(not char.isascii() for char in text)
    numeric = sum(map(len, _NUMERIC.findall(text)))
    return non_ascii <= MAX_NON_ASCII * len(text) and numeric <= MAX_NUMERIC * len(text)


def load_corpus(root: Path | None = None) -> Corpus:
    """Reads the library folder and splits it by module.

    Args:
        root: Library folder; the running Python's standard library if None.

    Returns:
        The training and held-out documents, each sorted by path.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    excluded = {*HELD_OUT, *NEAR_DUPLICATES, *map(_test_file, HELD_OUT), *SKIPPED_FILES}
    train = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in excluded or _in_skipped_folder(name):
            continue
        text = _read_utf8(path)
        if text is not None and is_teaching(text):
            train[name] = text
    return Corpus(train, {name: (root / name).read_text("utf-8") for name in HELD_OUT})


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Trains a byte-level BPE tokenizer with separate digits.

    Args:
        texts: The training documents.

    Returns:
        A tokenizer that encodes any text without loss and adds no special token by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Encodes documents into one token stream.

    Args:
        tokenizer: The trained tokenizer.
        texts: The documents, encoded in this order.

    Returns:
        Token ids as uint16, each document followed by the end-of-text token.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids: list[np.ndarray] = []
    for text in texts:
        ids.append(np.array([*tokenizer.encode(text).ids, end], dtype=np.uint16))
    return np.concatenate(ids)


def _test_file(module: str) -> str:
    return f"test/test_{module}"


def _in_skipped_folder(name: str) -> bool:
    return any(f"/{folder}/" in f"/{name}" for folder in SKIPPED_FOLDERS)


def _read_utf8(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None
