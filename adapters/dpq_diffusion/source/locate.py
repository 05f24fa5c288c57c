"""The local folder of a source: a path, a hub id, a builtin model or an original checkpoint."""

from __future__ import annotations

from pathlib import Path

from dpq_core.artifact import MANIFEST_NAME
from dpq_core.errors import SourceError
from dpq_diffusion.folders import BUILTIN, CONFIG, ORIGINAL_SUFFIXES, STEMS
from dpq_hf import sources
from dpq_hf.sources import PIPELINE_INDEX

_PATTERNS = (
    *(PIPELINE_INDEX, MANIFEST_NAME, CONFIG, "*/*.json", "*/*.txt", "*/*.model", "LICENSE*"),
    "README.md",  # its licence goes into the artifact's card
    *("*.jinja", "*/*.jinja"),  # chat templates of text encoders
    *(f"{folder}{stem}*.safetensors" for stem in STEMS for folder in ("", "*/")),
)
"""Files that are downloaded of a hub id: weights of a component lie at the top, those of a pipeline
in its folders."""


def locate(source: str) -> Path:
    """The local folder of a source; a hub id is downloaded, an original checkpoint converted.

    Raises:
        SourceError: there is no such folder, file, builtin model or repository.
        ArtifactError: it is an artifact that is only half-written.
    """
    if Path(source).suffix in ORIGINAL_SUFFIXES and not Path(source).expanduser().exists():
        raise SourceError(f"{source}: no such file or folder")  # though it looks like a hub id
    path = sources.locate(source, builtin=BUILTIN, marker=PIPELINE_INDEX, patterns=_PATTERNS)
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
