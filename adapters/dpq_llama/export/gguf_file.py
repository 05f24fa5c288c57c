"""A model as a GGUF file, which llama.cpp runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpq_core.artifact.files import replacing
from dpq_core.errors import AdapterError, SourceError, SpecError
from dpq_core.plugin.results import Export
from dpq_core.run import Run
from dpq_llama.export.gguf_settings import GGUFSettings, gguf_settings, interleave
from dpq_llama.export.gguf_tokens import GGUFTokens, gguf_tokens
from dpq_llama.export.source import DenseSource
from dpq_llama.options import ExportOptions
from dpq_llama.source.loading import has_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "BF16": 32,
}
"""``general.file_type`` of files whose matrices are of a type (``LlamaFileType``)."""

_DENSE = ("F32", "F16", "BF16")
_COARSE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_BLOCK_COLUMNS = 32
_QUANTIZATION_VERSION = 2
_CHUNK = 1 << 22
"""Numbers that are quantized at a time, so that temporary arrays stay small."""


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file: its name there, its name in the model, its shape and its type."""

    name: str
    original: str
    shape: tuple[int, ...]
    type: str


def write_gguf(
    source: str, model: DenseSource, out: Path, options: ExportOptions, run: Run
) -> Export:
    """Write one GGUF file; one tensor is in memory at a time.

    Matrices have the type that ``options`` name, vectors are float32. The embedding and the head
    are Q8_0 where the others have 4 or 5 bits, and matrices whose columns are no multiple of 32
    are F16 where the others are quantized.

    Args:
        source: what the user named, for its tokenizer.
        model: the dense tensors of ``source``.
        out: the file, which appears whole or not at all.
        options: type of the weights, and the name of the pre-tokenizer.
        run: its progress counts bytes of tensors.

    Raises:
        AdapterError: the package gguf is not installed.
        SourceError: llama.cpp cannot run the model or its tokenizer, or a tensor has no place.
        SpecError: values are too large for the type.
        ArtifactError: a tensor is damaged, or the disk refused.
    """
    gguf = _package()
    settings = gguf_settings(model.config, model.name)
    notes = list(settings.notes)
    tokens = None
    if has_tokenizer(source):
        tokenizer = load_tokenizer(source)
        tokens = gguf_tokens(tokenizer, settings.vocabulary, options.pre_tokenizer)
    else:
        notes.append("the model has no tokenizer, so the file has none")
    entries = list(_entries(gguf, model, settings, options.type))
    if other := [entry.name for entry in entries if entry.type == "F16" != options.type]:
        notes.append(f"{len(other)} matrices whose columns are no multiple of 32 are F16")
    with replacing(out) as partial:
        writer = gguf.GGUFWriter(partial, settings.architecture)
        _add_settings(writer, model.name, settings, options.type)
        _add_tokens(writer, tokens)
        for entry in entries:
            nbytes = _nbytes(gguf, entry)
            kind = gguf.GGMLQuantizationType[entry.type]
            writer.add_tensor_info(
                entry.name, entry.shape, np.dtype(np.float32), nbytes, raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        try:
            for done, data in _tensors(gguf, model, settings, entries):
                run.progress("export", done, model.nbytes)
                writer.write_tensor_data(data)
        finally:
            writer.close()
    run.progress("export", model.nbytes, model.nbytes)
    return Export(files=(out,), notes=tuple(notes))


def _package() -> Any:
    """The package gguf.

    Raises:
        AdapterError: the package is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise AdapterError(
            "writing a GGUF file needs the package 'gguf': pip install 'dpq[gguf]'"
        ) from None
    return gguf


def _entries(gguf: Any, model: DenseSource, settings: GGUFSettings, kind: str) -> Iterator[_Entry]:
    """The tensors of the file, in the order of the model."""
    architecture = next(
        arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == settings.architecture
    )
    names = gguf.get_tensor_name_map(architecture, settings.layers)
    if settings.rope_factors is not None:
        yield _Entry("rope_freqs.weight", "", settings.rope_factors.shape, "F32")
    for original, info in model.tensors.items():
        name = names.get_name(original, try_suffixes=(".weight", ".bias"))
        if (
            name is None
            or len(info.shape) > 2
            or (original.endswith(".bias") and ".bias" not in name)
        ):
            raise SourceError(f"{model.name}: tensor {original!r} has no place in a GGUF file")
        yield _Entry(name, original, info.shape, _type_of(name, info.shape, kind))


def _type_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of one tensor where the matrices of a file are of type ``kind``."""
    if len(shape) < 2:
        return "F32"
    if kind in _DENSE:
        return kind
    if shape[-1] % _BLOCK_COLUMNS:
        return "F16"
    wide = name in ("token_embd.weight", "output.weight")
    return "Q8_0" if wide and kind in _COARSE else kind


def _nbytes(gguf: Any, entry: _Entry) -> int:
    """Bytes of one tensor in the file."""
    columns, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[entry.type]]
    return int(np.prod(entry.shape, dtype=np.int64)) // int(columns) * int(nbytes)


def _tensors(
    gguf: Any, model: DenseSource, settings: GGUFSettings, entries: list[_Entry]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The data of every tensor, with the bytes of the model that came before it."""
    done = 0
    for entry in entries:
        if not entry.original:
            yield done, settings.rope_factors  # type: ignore[misc]  # the only tensor of its own
            continue
        dense = model.read(entry.original).to(torch.float32).numpy()
        if settings.heads and ".attn_q." in entry.name:
            dense = interleave(dense, settings.heads[0])
        elif settings.heads and ".attn_k." in entry.name:
            dense = interleave(dense, settings.heads[1])
        yield done, _encoded(gguf, dense, entry)
        done += model.tensors[entry.original].nbytes


def _encoded(gguf: Any, dense: NDArray[np.float32], entry: _Entry) -> NDArray[Any]:
    """A dense tensor in the type of its entry, quantized some rows at a time."""
    kind = gguf.GGMLQuantizationType[entry.type]
    rows = max(1, _CHUNK // max(1, dense.shape[-1])) if dense.ndim == 2 else len(dense)
    parts = []
    for first in range(0, len(dense), rows):
        part = dense[first : first + rows]
        if entry.type == "F16" and np.abs(part).max(initial=0) > np.finfo(np.float16).max:
            raise SpecError(
                f"tensor {entry.original!r} has values beyond those of F16; choose BF16 or F32",
                option="type",
                value=entry.type,
            )
        parts.append(gguf.quants.quantize(np.ascontiguousarray(part), kind))
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _add_settings(writer: Any, name: str, settings: GGUFSettings, kind: str) -> None:
    """Add the name and the settings of the model."""
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind not in _DENSE:
        writer.add_quantization_version(_QUANTIZATION_VERSION)
    for key, value in settings.values.items():
        full = f"{settings.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)


def _add_tokens(writer: Any, tokens: GGUFTokens | None) -> None:
    """Add the tokenizer, or that there is none."""
    if tokens is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(list(tokens.tokens))
    writer.add_token_types(list(tokens.types))
    if tokens.merges:
        writer.add_token_merges(list(tokens.merges))
    if tokens.scores:
        writer.add_token_scores(list(tokens.scores))
    for name, number in tokens.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    for name, flag in tokens.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    if tokens.chat_template:
        writer.add_chat_template(tokens.chat_template)
