"""Reading of the tensors of pickled checkpoints.

The only place of dpq that opens a pickle: ``weights_only`` admits tensors and plain containers,
nothing that could run code. Names that trainers leave in their files stand for nothing here.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import SourceError

_WRAPPERS = ("ema", "state_dict", "model")
"""Keys under which trainers put the weights, the best first."""


class _IgnoredObject:
    """A stand-in for any class of a trainer: it takes everything and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """A stand-in for ``collections.defaultdict``, which torch does not fill."""
    return {}


_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
_CALLBACKS = ("early_stopping.EarlyStopping", "model_checkpoint.ModelCheckpoint")
_OMEGACONF = (
    "base.ContainerMetadata",
    "base.Metadata",
    "dictconfig.DictConfig",
    "listconfig.ListConfig",
    "nodes.AnyNode",
)
_TRAINERS = (
    *(f"{library}.callbacks.{name}" for library in _LIGHTNING for name in _CALLBACKS),
    *(f"omegaconf.{name}" for name in _OMEGACONF),
    "typing.Any",
)
"""What PyTorch Lightning, which CompVis trains with, stores beside the weights."""

_PLAIN = (bool, dict, float, int, list, str, tuple)

_ADMITTED: list[Any] = [
    argparse.Namespace,  # of DiT's trainer
    (_empty_dict, "collections.defaultdict"),
    *((kind, f"builtins.{kind.__name__}") for kind in _PLAIN),
    *((_IgnoredObject, name) for name in _TRAINERS),
]


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint by name, mapped into memory where its format allows.

    Raises:
        SourceError: it is not readable, holds more than data, or no state dict.
    """
    try:
        content = _load(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        unsafe = "weights_only" in reason.lower() or "unsupported" in reason.lower()
        raise SourceError(
            f"{path}: holds more than tensors, so dpq does not open it; save its state dict alone"
            if unsafe
            else f"{path}: not a readable checkpoint ({reason[:120]})"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise SourceError(f"{path}: no state dict in it, but {type(content).__name__}")
    wrong = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise SourceError(f"{path}: not a plain state dict, {wrong[0]!r} is not a tensor")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _load(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # since torch 1.6; older files can only be read
    if not mapped:
        with path.open("rb") as file:
            if file.read(1) != pickle.PROTO:
                raise ValueError("neither a zip file nor a pickle")
    with torch.serialization.safe_globals(_ADMITTED):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)  # noqa: TID251 - tensors only, see above
