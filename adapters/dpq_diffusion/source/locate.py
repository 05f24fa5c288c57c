"""The local folder of a source: a path, a hub id, a builtin model or an original checkpoint."""

from __future__ import annotations

from pathlib import Path

from dpq_core.artifact import MANIFEST_NAME
from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import find_local
from dpq_diffusion.folders import BUILTIN, CONFIG, INDEX, ORIGINAL_SUFFIXES, STEMS
from dpq_hf.sources import download, is_hub_id


def locate(source: str) -> Path:
    """The local folder of a source; a hub id is downloaded, an original checkpoint converted.

    Raises:
        SourceError: there is no such folder, file, builtin model or repository.
        ArtifactError: it is an artifact that is only half-written.
    """
    path = find_local(source, BUILTIN, INDEX)
    if path is None:
        if Path(source).suffix in ORIGINAL_SUFFIXES or not is_hub_id(source):
            raise SourceError(f"{source}: no such file or folder, and not a hub id (owner/name)")
        return _download(source)
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{source}: weights without a config; give their folder with {CONFIG}, or make one of "
            "a single-file checkpoint: PIPELINE.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if path.suffix not in ORIGINAL_SUFFIXES:
        raise SourceError(
            f"{source}: a file; give a diffusers folder, a DiT .pt or an LDM .ckpt instead"
        )
    from dpq_diffusion.convert.original import converted

    return converted(path)


def _download(source: str) -> Path:
    # Weights of single-file releases lie at the top; those of the pipeline in its folders.
    patterns = [INDEX, MANIFEST_NAME, CONFIG, "*/*.json", "*/*.txt", "*/*.model", "LICENSE*"]
    patterns += [f"{folder}{stem}*.safetensors" for stem in STEMS for folder in ("", "*/")]
    return download(source, patterns)
