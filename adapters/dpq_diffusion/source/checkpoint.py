"""A pipeline opened for compression: chosen components as tensors, all the rest as files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpq_core.errors import ANY, Hint, SourceError
from dpq_core.tensor.checkpoint import Checkpoint, SafetensorsCheckpoint, TensorInfo
from dpq_diffusion.folders import CONFIG, Component, component, components_of, side_files
from dpq_diffusion.source.locate import locate
from dpq_hf.sources import PIPELINE_INDEX, is_pipeline

DENOISERS = ("transformer", "transformer_2", "unet", "prior")
"""Names of the component that is compressed by default."""

_COPY = re.compile(r"(transformer_blocks\.)(\d+)(\.norm1\.emb)\.(.+)")
"""diffusers' DiT keeps a copy of the timestep MLP and the class table in every block."""


@dataclass
class DiffusionCheckpoint(Checkpoint):
    """An uncompressed pipeline, or a single component on its own.

    Attributes:
        folder: folder of its files.
        components: name -> what is compressed; "" is a component folder opened on its own.
        weights: component -> stem of its weight files in the artifact.
        shared: component -> path of a module that is a copy -> path of the module it copies.
    """

    source: str
    folder: Path
    components: Mapping[str, Component]

    def __post_init__(self) -> None:
        """Read the headers of the weight files, and find the modules that are copies."""
        self._parts = {
            name: SafetensorsCheckpoint(self.source, list(part.files))
            for name, part in self.components.items()
        }
        self.weights = {
            name: f"{name}/{part.stem}" if name else part.stem
            for name, part in self.components.items()
        }
        self.shared: dict[str, dict[str, str]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._home: dict[str, tuple[str, str]] = {}
        digest = hashlib.sha256()
        for name, part in self._parts.items():
            self._check_complete(name, part)
            digest.update(f"{name} {part.fingerprint}\n".encode())
            self.shared[name] = copied_modules(part)
            for local, info in part.tensors.items():
                if not self._is_derived(name, local):
                    full = f"{name}/{local}" if name else local
                    self.tensors[full], self._home[full] = info, (name, local)
        self.side_files = side_files(self.folder, self.components)
        self.fingerprint = digest.hexdigest()

    def _check_complete(self, name: str, part: SafetensorsCheckpoint) -> None:
        """Refuse a component without tensors, or without those that its index names."""
        missing = set(self.components[name].promised) - set(part.tensors)
        if missing:
            where = self.components[name].folder
            raise SourceError(f"{where}: tensor {min(missing)!r} is in none of the shards")
        if not part.tensors:
            raise SourceError(f"{self.components[name].folder}: its weight files hold no tensors")

    def _is_derived(self, component: str, name: str) -> bool:
        """Whether the loader makes this tensor itself: a copy, or fixed sin-cos positions."""
        if any(name.startswith(f"{copy}.") for copy in self.shared[component]):
            return True
        config = self.components[component].config
        fixed = config.get("pos_embed_max_size") is None
        return fixed and name == "pos_embed.pos_embed" and "patch_size" in config

    def read(self, name: str) -> Tensor:
        """The tensor called ``component/name``, on the CPU; only this one is read."""
        component, local = self._home[name]
        return self._parts[component].read(local)


def open_checkpoint(source: str, names: Sequence[str] = ()) -> DiffusionCheckpoint:
    """Open what is to be compressed, without reading its tensors.

    Args:
        source: a diffusers folder (or a component's folder), a hub id, ``builtin:NAME``, or an
            original DiT ``.pt`` or LDM ``.ckpt``.
        names: components to compress; none means the denoiser.

    Raises:
        SourceError: it does not exist, is damaged, incomplete or compressed already, or has no such
            component.
    """
    folder = locate(source)
    if not is_pipeline(folder):
        return _open_component(source, folder, names)
    present = components_of(folder)
    chosen = tuple(names) or tuple(name for name in DENOISERS if name in present)
    if not chosen:
        raise SourceError(
            f"{folder}: no denoiser ({', '.join(DENOISERS)}) among {', '.join(present)}",
            Hint.of("choose with {}", components=ANY),
        )
    for name in chosen:
        if name not in present:
            raise SourceError(
                f"{folder}: no component {name!r} with weights; there are {', '.join(present)}"
            )
    parts = {name: component(folder / name) for name in present if name in chosen}
    for name, part in parts.items():
        _refuse_quantized(part.folder, part.config, name)
    return DiffusionCheckpoint(source, folder, parts)


def _open_component(source: str, folder: Path, names: Sequence[str]) -> DiffusionCheckpoint:
    if not (folder / CONFIG).is_file():
        raise SourceError(
            f"{folder}: neither {PIPELINE_INDEX} nor {CONFIG}, so not a diffusers folder"
        )
    if names:
        raise SourceError(
            f"{folder}: a single component, not a pipeline", Hint.of("leave out {}", components=ANY)
        )
    part = component(folder)
    if "_class_name" not in part.config:
        raise SourceError(f"{folder / CONFIG}: no _class_name, so not a component of diffusers")
    _refuse_quantized(folder, part.config, "it")
    return DiffusionCheckpoint(source, folder, {"": part})


def _refuse_quantized(folder: Path, config: Mapping[str, Any], name: str) -> None:
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else None
        raise SourceError(
            f"{folder / CONFIG}: {name} is already quantized (quant_method {method!r}); "
            "compress the original instead"
        )


def copied_modules(part: Checkpoint) -> dict[str, str]:
    """The modules of a DiT that are copies of block 0's embedding, as copy path -> original path.

    A module counts as a copy when all its tensors are there and equal; they are read two at a time.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in part.tensors:
        if match := _COPY.fullmatch(name):
            path = "".join(match.group(1, 2, 3))
            modules.setdefault(path, {})[match.group(4)] = name
    original = "transformer_blocks.0.norm1.emb"
    first = modules.pop(original, {})
    same = {path: True for path, names in modules.items() if names.keys() == first.keys()}
    for local, name in first.items():
        value = part.read(name)
        for path in same:
            same[path] = same[path] and part.read(modules[path][local]).equal(value)
    return {path: original for path, equal in same.items() if equal}
