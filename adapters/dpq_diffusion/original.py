"""Original checkpoints (pickles) turned into diffusers folders of safetensors, once.

The only place of dpq that opens a pickle: ``weights_only`` admits tensors and plain containers,
nothing that could run code. What comes out is kept in the user's cache under the file's hash.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpq_core.artifact.files import hash_file
from dpq_core.artifact.header import Slot, encode
from dpq_core.errors import SourceError
from dpq_diffusion import dit_keys, ldm_keys
from dpq_diffusion.folders import CONFIG, STEMS

CONVERSION = 1
"""Raised whenever the conversion changes, so that old results are not found any more."""

_WRAPPERS = ("ema", "state_dict", "model")
"""Keys under which trainers put the weights, the best first."""


def converted(path: Path) -> Path:
    """The folder of safetensors that an original checkpoint gives, made now or found in the cache.

    Raises:
        SourceError: it is not a plain state dict, or of a model that is not known here.
    """
    folder = _cache() / f"{path.stem}-{_sha256(path)[:24]}-v{CONVERSION}"
    if folder.is_dir():
        return folder
    tensors = state_dict(path)
    try:
        if dit_keys.is_dit(tensors):
            config = dit_keys.config_of(tensors)
            weights = dit_keys.rename(tensors)
        elif ldm_keys.is_ldm(tensors):
            config = ldm_keys.config_of(tensors)
            weights = ldm_keys.rename(tensors, config)
        else:
            raise SourceError(
                f"{path}: neither a DiT nor an LDM with spatial transformers (it begins with "
                f"{next(iter(tensors))!r}); convert it with the scripts of diffusers, and give the "
                "folder"
            )
    except (KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: not a complete checkpoint ({reason})") from None
    _publish(folder, config, weights)
    return folder


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint by name; mapped, not read.

    Raises:
        SourceError: it is not readable, holds more than data, or no state dict.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DiT's trainer stores its own
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251 - tensors only, see above
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        unsafe = "weights_only" in reason.lower() or "unsupported" in reason.lower()
        raise SourceError(
            f"{path}: holds more than tensors, so dpq does not open it; save its state dict alone"
            if unsafe
            else f"{path}: not a readable checkpoint ({reason[:120]})"
        ) from None
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found:
        raise SourceError(f"{path}: no state dict in it, but {type(found).__name__}")
    wrong = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise SourceError(f"{path}: not a plain state dict, {wrong[0]!r} is not a tensor")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _publish(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write beside ``folder`` and rename: it exists only when whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _write(partial / f"{STEMS[0]}.safetensors", weights)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, weights: Mapping[str, Tensor]) -> None:
    """One safetensors file, a tensor in memory at a time."""
    slots, end = [], 0
    for name, tensor in weights.items():
        slots.append(Slot(name, tensor.dtype, tuple(tensor.shape), end, end + tensor.nbytes))
        end += tensor.nbytes
    with path.open("wb") as file:
        file.write(encode(slots))
        for tensor in weights.values():
            flat = tensor.contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpq" / "converted"


def _sha256(path: Path) -> str:
    try:
        return hash_file(path, lambda count: None)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
