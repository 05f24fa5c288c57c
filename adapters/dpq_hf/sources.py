"""Model folders in the layout of Hugging Face libraries: hub ids, downloads, JSON files, shards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import find_local

PIPELINE_INDEX = "model_index.json"
"""The file that makes a folder a pipeline of diffusers."""

_MAX_JSON_BYTES = 64 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_SHARD = re.compile(r"[\w][\w.-]*\.safetensors")


def is_hub_id(source: str) -> bool:
    """Whether ``source`` has the form of a hub id: ``[owner/]name[@revision]``."""
    return bool(_HUB_ID.fullmatch(source))


def locate(source: str, *, builtin: Path, marker: str, patterns: Sequence[str]) -> Path:
    """The local folder or file of a source; a hub id is downloaded (or found in the cache).

    Args:
        source: a path, ``builtin:NAME`` or a hub id.
        builtin: folder of the models that ship with an adapter, each in a folder of its own.
        marker: a file that each of them has.
        patterns: shell patterns of the files that are needed of a hub id.

    Raises:
        SourceError: there is no such folder, file, builtin model or repository.
        ArtifactError: the source is an artifact that is only half-written.
    """
    path = find_local(source, builtin, marker)
    if path is not None:
        return path
    if not is_hub_id(source):
        raise SourceError(f"{source}: no such file or folder, and not a hub id (owner/name)")
    return download(source, patterns)


def download(source: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub id, downloaded or from the cache.

    Args:
        source: as ``is_hub_id`` accepts it.
        patterns: shell patterns of the files that are needed.

    Raises:
        SourceError: the repository does not exist, needs permission, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = source.partition("@")
    where = f"{source}: no such folder, and as a hub id it"
    allowed = list(patterns)
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=allowed))
    except GatedRepoError:
        raise SourceError(f"{where} is gated: accept its terms, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise SourceError(f"{where} does not exist or is private (`hf auth login`)") from None
    except RevisionNotFoundError:
        raise SourceError(f"{where} has no revision {revision!r}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise SourceError(f"{where} is not in the cache, and the hub cannot be reached") from None
    except HFValidationError:
        raise SourceError(f"{where} is not valid (owner/name)") from None
    except (HfHubHTTPError, OSError) as error:
        raise SourceError(f"{where} cannot be downloaded ({type(error).__name__})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that holds one JSON object.

    Raises:
        SourceError: the file is missing, too large or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise SourceError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}: not readable JSON ({reason})") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: not a JSON object")
    return value


def config_of(folder: Path) -> Mapping[str, Any]:
    """The content of a folder's ``config.json``; empty where there is none that can be read."""
    try:
        return read_json(folder / "config.json")
    except SourceError:
        return {}


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline of diffusers: several models and how they work together."""
    return (folder / PIPELINE_INDEX).is_file()


def files_of_index(folder: Path, index: Path) -> tuple[list[Path], frozenset[str]]:
    """The weight files that a ``*.safetensors.index.json`` names, and the tensors in them.

    Raises:
        SourceError: the index is unreadable, points out of the folder, or a file is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index}: no weight_map")
    files: dict[str, Path] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise SourceError(f"{index}: {name!r} points to {shard!r}, not a file of this folder")
        files[shard] = folder / shard
        if not files[shard].is_file():
            raise SourceError(f"{folder}: shard {shard} is missing; download the model again")
    return [files[shard] for shard in sorted(files)], frozenset(weight_map)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter of peft and no model.

    Raises:
        SourceError: it does.
    """
    if (folder / "adapter_config.json").is_file():
        raise SourceError(
            f"{folder}: an adapter of peft without its model; merge it first: "
            "PeftModel.from_pretrained(MODEL, ADAPTER).merge_and_unload().save_pretrained(NEW)"
        )


def variant_of(folder: Path) -> str | None:
    """The only variant of the weights that a folder has, as in ``model.fp16.safetensors``.

    None where there are plain weights, or none; a variant is loaded by ``variant=``.

    Raises:
        SourceError: there are several.
    """
    if (folder / "model.safetensors").is_file():
        return None
    found = sorted(path.name.split(".")[1] for path in folder.glob("model.*.safetensors"))
    if len(found) > 1:
        raise SourceError(
            f"{folder}: the variants {', '.join(found)} and no plain weights; keep the one to "
            "be read in a folder of its own"
        )
    return found[0] if found else None


def complete_shards(folder: Path) -> list[Path]:
    """The shards of a folder without an index, in their order; none where one is missing."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    return shards if [shard.name for shard in shards] == names else []
