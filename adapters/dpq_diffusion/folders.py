"""The layout of a diffusers folder: its index, its components and their safetensors files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core.errors import SourceError
from dpq_hf.sources import PIPELINE_INDEX, config_of, files_of_index, is_pipeline, read_json

BUILTIN = Path(__file__).parent / "builtin"

CONFIG = "config.json"
STEMS = ("diffusion_pytorch_model", "model")
"""Stem of the weight files in diffusers' own and in transformers' components."""

ORIGINAL_SUFFIXES = (".pt", ".pth", ".ckpt")

SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors")
"""Files that are copied into an artifact as they are."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A folder with a config and weights.

    Attributes:
        folder: folder of the component.
        config: the content of its ``config.json``.
        stem: name of its weight files without variant: ``diffusion_pytorch_model`` or ``model``.
        files: its weight files.
        promised: names of the tensors in its index of shards; empty without an index.
    """

    folder: Path
    config: Mapping[str, Any]
    stem: str
    files: tuple[Path, ...]
    promised: frozenset[str]


def has_class_transformer(folder: Path) -> bool:
    """Whether a pipeline's denoiser, or a component alone, is a transformer of classes (DiT)."""
    config = config_of(folder / "transformer" if is_pipeline(folder) else folder)
    named = config.get("_class_name") in ("DiTTransformer2DModel", "Transformer2DModel")
    takes_text = config.get("caption_channels") or config.get("cross_attention_dim")
    return named and config.get("num_embeds_ada_norm") is not None and not takes_text


def components_of(folder: Path) -> tuple[str, ...]:
    """The names of a pipeline's components with weights, in the order of ``model_index.json``.

    Raises:
        SourceError: the index is unreadable, or a component that it names is not there.
    """
    names = []
    for name, value in read_json(folder / PIPELINE_INDEX).items():
        is_component = isinstance(value, list) and len(value) == 2 and None not in value
        if name.startswith("_") or not is_component or not re.fullmatch(r"\w+", name):
            continue
        if not (folder / name).is_dir():
            raise SourceError(f"{folder}: component {name!r} of {PIPELINE_INDEX} is missing")
        if any(p.suffix in (".safetensors", ".bin") for p in (folder / name).iterdir()):
            names.append(name)
    return tuple(names)


def component(folder: Path) -> Component:
    """Find the weight files of a component, of several variants the plain one.

    Raises:
        SourceError: there are none in safetensors, a shard is missing, or the config is unreadable.
    """
    config = read_json(folder / CONFIG)
    for stem in STEMS:
        for file in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
            if (folder / file).is_file():
                return Component(
                    folder=folder,
                    config=config,
                    stem=stem,
                    files=(folder / file,),
                    promised=frozenset(),
                )
            for index in (f"{file}.index.json", file.replace(".safetensors", _FP16_INDEX)):
                if (folder / index).is_file():
                    files, promised = files_of_index(folder, folder / index)
                    return Component(
                        folder=folder,
                        config=config,
                        stem=stem,
                        files=tuple(files),
                        promised=promised,
                    )
    pickles = any(folder.glob("*.bin"))
    raise SourceError(
        f"{folder}: only pickled weights (.bin), which dpq never opens; convert once with "
        "DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)"
        if pickles
        else f"{folder}: no weights ({', '.join(f'{stem}.safetensors' for stem in STEMS)})"
    )


_FP16_INDEX = ".safetensors.index.fp16.json"
"""End of the name of an fp16 index, in which diffusers puts the variant behind ``index``."""


def side_files(folder: Path, compressed: Mapping[str, Component]) -> dict[str, Path]:
    """The files that belong to a pipeline beside what is compressed, as relative name -> path.

    Of components that are not compressed, the weights of one variant; never pickles or code.
    """
    from dpq_core.artifact import MANIFEST_NAME

    result: dict[str, Path] = {}
    folders = [folder] if "" in compressed else [folder, *_folders(folder)]
    for place in folders:
        name = "" if place == folder else place.name
        weights = None if name in compressed or not name else _weights_of(place)
        for path in sorted(place.iterdir()):
            if not path.is_file() or path.suffix not in SIDE_SUFFIXES or path.name == MANIFEST_NAME:
                continue
            if _is_weight(path.name) and (weights is None or path not in weights):
                continue
            if name in compressed and path.name == CONFIG:
                continue  # written anew
            # Loaders look for the plain variant unless they are told otherwise.
            plain = path.name.replace(".fp16.safetensors", ".safetensors")
            plain = plain.replace(".index.fp16.json", ".index.json")
            result[f"{name}/{plain}" if name else plain] = path
    for path in sorted(folder.glob("LICENSE*")):
        result[path.name] = path
    return result


def _folders(folder: Path) -> list[Path]:
    """Folders of the parts that the pipeline's index names: models, tokenizers, scheduler."""
    names = (
        n for n, value in read_json(folder / PIPELINE_INDEX).items() if isinstance(value, list)
    )
    return sorted(folder / name for name in names if (folder / name).is_dir())


def _weights_of(folder: Path) -> set[Path]:
    """The weight files of a component that is copied as it is, and their index."""
    if not (folder / CONFIG).is_file():
        return set()
    part = component(folder) if any(folder.glob("*.safetensors")) or _pickled(folder) else None
    if part is None:
        return set()
    return {*part.files, *(folder.glob("*.safetensors.index*.json") if part.promised else ())}


def _pickled(folder: Path) -> bool:
    return any(folder.glob("*.bin"))


def _is_weight(name: str) -> bool:
    return name.endswith(".safetensors") or ".safetensors.index" in name
