"""The dense tensors, config and files of a language model, compressed or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_hf.checkpoint_names import SLICE
from dpq_llama.hub.registration import MARK
from dpq_llama.source.checkpoint import locate, open_checkpoint, read_config, side_files
from dpq_llama.source.loading import is_dpq


@dataclass(frozen=True, kw_only=True)
class DenseSource:
    """A language model whose tensors are decoded one at a time.

    Attributes:
        name: name of the uncompressed model, without folders.
        config: content of its ``config.json``, without what dpq added.
        side_files: tokenizer, licence and other files, by name.
        tensors: shape and dtype of every tensor, in storage order.
        read: function that gives the dense tensor of a name.
    """

    name: str
    config: Mapping[str, Any]
    side_files: Mapping[str, Path]
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all dense tensors."""
        return sum(info.nbytes for info in self.tensors.values())


def open_source(source: str) -> DenseSource:
    """Open an artifact or an uncompressed model without reading its tensors.

    Raises:
        SourceError: there is no such model, or it lost its manifest.
        ArtifactError: the artifact is damaged.
    """
    folder = locate(source)
    config = read_config(folder)
    if not Artifact.is_artifact(folder):
        if is_dpq(config):
            raise SourceError(
                f"{folder}: saved by transformers, without dpq.json; load it there and save what "
                "model.dequantize() gives"
            )
        checkpoint = open_checkpoint(source)
        transposed = checkpoint.transposed
        infos, read = _as_in_model(checkpoint.tensors, checkpoint.read, transposed)
        name = _short(source)
        config = checkpoint.config
    else:
        artifact = Artifact.open(folder, adapter="llama")
        entries = {name: artifact.entry(name) for name in artifact.names()}
        stored = {name: TensorInfo(e.shape, e.torch_dtype) for name, e in entries.items()}
        transposed = frozenset(config.get("quantization_config", {}).get("transposed", ()))
        infos, read = _as_in_model(stored, artifact.read, transposed)
        name = _short(artifact.manifest.source)
        added = ("auto_map", "quantization_config")
        config = {k: v for k, v in MARK.remove_from_json(config).items() if k not in added}
    tensors, read = _with_stacks(infos, read)
    return DenseSource(
        name=name, config=config, side_files=side_files(folder), tensors=tensors, read=read
    )


def _short(source: str) -> str:
    """The last part of a path, of a hub id or of ``builtin:NAME``."""
    return PurePath(source.removeprefix("builtin:").partition("@")[0]).name or "model"


def _as_in_model(
    tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor], transposed: Collection[str]
) -> tuple[dict[str, TensorInfo], Callable[[str], Tensor]]:
    """Transpose the matrices that dpq stores as ``[outputs, inputs]``, unlike the model."""
    infos = {
        name: TensorInfo(info.shape[::-1], info.dtype) if name in transposed else info
        for name, info in tensors.items()
    }
    return infos, lambda name: read(name).T.contiguous() if name in transposed else read(name)


def _with_stacks(
    tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor]
) -> tuple[dict[str, TensorInfo], Callable[[str], Tensor]]:
    """Join the matrices ``NAME.0``, ``NAME.1``, ... of experts to ``NAME [E, R, C]``.

    dpq keeps one matrix per expert where the checkpoint has one tensor for all of them.
    """
    parts: dict[str, list[str]] = {}
    for name in tensors:
        match = SLICE.fullmatch(name)
        parts.setdefault(match[1] if match else name, []).append(name)
    joined: dict[str, TensorInfo] = {}
    for name, members in parts.items():
        info = tensors[members[0]]
        is_stack = members != [name]
        joined[name] = TensorInfo((len(members), *info.shape), info.dtype) if is_stack else info

    def read_joined(name: str) -> Tensor:
        members = parts[name]
        if members == [name]:
            return read(name)
        info = joined[name]
        stack = torch.empty(info.shape, dtype=info.dtype)
        for index in range(len(members)):
            stack[index] = read(f"{name}.{index}")
        return stack

    return joined, read_joined
