"""Models and tokenizers loaded by transformers from any source, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dpq_core.artifact import Artifact
from dpq_core.device import resolve
from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_hf.sources import variant_of
from dpq_llama.source.architecture import loadable_class
from dpq_llama.source.checkpoint import CONFIG, INDEX, locate, open_checkpoint, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(source: str, device: str, dtype: str = "auto") -> PreTrainedModel:
    """The model of an artifact or of an uncompressed checkpoint, loaded for inference.

    Raises:
        SourceError: there is no such source, or the model is not a decoder-only language model.
        ArtifactError: the artifact is damaged.
    """
    folder = locate(source)
    if Artifact.is_artifact(folder):
        Artifact.open(folder, adapter="llama")
    elif not is_dpq(read_config(folder)):  # a model that transformers saved again has no manifest
        open_checkpoint(source)
    return load_folder(folder, resolve(device), dtype)


def load_folder(
    folder: Path, device: torch.device, dtype: str = "auto", *, head: bool = True
) -> PreTrainedModel:
    """The model in a folder that has been checked, with its language-model head or without."""
    chosen = loadable_class(read_config(folder), folder / CONFIG, head=head)
    return load_class(chosen, folder, device, dtype)


def load_class(kind: Any, folder: Path, device: torch.device, dtype: str) -> PreTrainedModel:
    """The model in a folder, loaded as a class of transformers."""
    with _no_progress_bar():
        model: PreTrainedModel = kind.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            local_files_only=True,
            variant=None if (folder / INDEX).is_file() else variant_of(folder),
        )
    return model


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a source.

    Raises:
        SourceError: the folder has no tokenizer, or the tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    folder = locate(source)
    if not has_tokenizer(source):
        raise SourceError(f"{folder}: no tokenizer.json or tokenizer.model, so text cannot be read")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{folder}: the tokenizer cannot be loaded ({reason})") from None
    return tokenizer


def check_ids(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Refuse ids of a text that the model has no embedding for.

    Raises:
        SourceError: the tokenizer has more tokens than the model's table.
    """
    table = model.get_input_embeddings()
    entries = getattr(table, "num_embeddings", None)
    if entries is not None and ids.numel() and int(ids.max()) >= entries:
        raise SourceError(
            f"the tokenizer writes token {int(ids.max())}, the model's table has {entries} "
            "entries: "
            "use the tokenizer that belongs to the model, or resize the table of the uncompressed "
            "model (resize_token_embeddings) and compress it again"
        )


def has_tokenizer(source: str) -> bool:
    """Whether a source comes with the files of a tokenizer."""
    folder = locate(source)
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def is_dpq(config: dict[str, Any]) -> bool:
    """Whether a config belongs to an artifact, or to one that transformers saved again."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "dpq"


def builtin_name(source: str) -> str | None:
    """NAME where the source is ``builtin:NAME`` or an artifact made of it, else None."""
    folder = None if source.startswith(BUILTIN_SCHEME) else locate(source)
    if folder is not None and Artifact.is_artifact(folder):
        source = Artifact.open(folder, adapter="llama").manifest.source
    is_builtin = source.startswith(BUILTIN_SCHEME)
    return source.removeprefix(BUILTIN_SCHEME) if is_builtin else None


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides the progress bar of transformers: dpq reports progress through ``Run``."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
