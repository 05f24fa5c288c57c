"""Converted checkpoints, components or whole pipelines, and writing them as diffusers folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpq_core.artifact.files import making_folder
from dpq_core.artifact.header import Slot, encode, tensor_bytes
from dpq_diffusion.folders import CONFIG, STEMS
from dpq_hf.sources import PIPELINE_INDEX


@dataclass(frozen=True, kw_only=True)
class ConvertedComponent:
    """One component of a converted checkpoint.

    Attributes:
        config: content of its config file.
        weights: its tensors; none for a scheduler.
        library: library of its class, as ``model_index.json`` names it.
        kind: name of its class.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    library: str = "diffusers"
    kind: str = ""

    @property
    def class_name(self) -> str:
        """The name of its class: ``kind``, or the class of a diffusers config."""
        return self.kind or str(self.config["_class_name"])


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted checkpoint: a pipeline, or a component on its own.

    Attributes:
        parts: component -> what it is; "" is a component on its own.
        pipeline: class of the pipeline; empty for a component on its own.
        settings: further entries of ``model_index.json``.
        files: relative path -> file that is copied.
    """

    parts: Mapping[str, ConvertedComponent]
    pipeline: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    def index(self) -> dict[str, Any]:
        """The content of ``model_index.json``."""
        parts = {name: [part.library, part.class_name] for name, part in self.parts.items()}
        return {"_class_name": self.pipeline, **self.settings, **parts}


def write_conversion(folder: Path, conversion: Conversion) -> None:
    """Write a converted checkpoint to ``folder``, which appears only when it is complete."""
    with making_folder(folder) as partial:
        if conversion.pipeline:
            _write_json(partial / PIPELINE_INDEX, conversion.index())
        for name, part in conversion.parts.items():
            _write_part(partial / name, part)
        for relative, path in conversion.files.items():
            (partial / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / relative)


def _write_part(folder: Path, part: ConvertedComponent) -> None:
    folder.mkdir(exist_ok=True)
    scheduler = "Scheduler" in part.class_name
    _write_json(folder / ("scheduler_config.json" if scheduler else CONFIG), part.config)
    if not scheduler:
        stem = STEMS[0] if "_class_name" in part.config else STEMS[1]
        _write_tensors(folder / f"{stem}.safetensors", part.weights)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, with one tensor in memory at a time."""
    slots, end = [], 0
    for name, tensor in weights.items():
        slots.append(Slot(name, tensor.dtype, tuple(tensor.shape), end, end + tensor.nbytes))
        end += tensor.nbytes
    with path.open("wb") as file:
        file.write(encode(slots))
        for tensor in weights.values():
            file.write(tensor_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
