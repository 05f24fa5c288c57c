"""Original checkpoints (pickles), converted once to diffusers folders of safetensors.

What comes out is kept in the user's cache under the files' hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dpq_core.artifact.files import hash_file
from dpq_core.errors import SourceError
from dpq_diffusion.convert import dit as dit_keys
from dpq_diffusion.convert import ldm
from dpq_diffusion.convert import ldm_unet as ldm_keys
from dpq_diffusion.convert.conversion import Conversion, ConvertedComponent, write_conversion
from dpq_diffusion.convert.ldm_settings import LdmSettings, yaml_beside
from dpq_diffusion.convert.state_dicts import state_dict
from dpq_diffusion.folders import CONFIG, SIDE_SUFFIXES
from dpq_hf.sources import read_json

CONVERSION = 2
"""Version of the conversion, raised when it changes so that older results in caches are ignored."""


def converted(path: Path) -> Path:
    """The folder of a converted original checkpoint, made now or taken from the cache.

    What the checkpoint lacks is taken from beside it: the config of an LDM (YAML), the folders
    ``tokenizer/`` (LDM text-to-image, Stable Diffusion 1) and ``vae/`` (DiT).

    Raises:
        SourceError: it is not a plain state dict, or of a model that is not known here.
    """
    settings = yaml_beside(path)
    companions = {name: _files(path.parent / name) for name in ("tokenizer", "vae")}
    digest = hashlib.sha256(_sha256(path).encode())
    beside = [file for files in companions.values() for file in files]
    for file in beside if settings is None else [settings, *beside]:
        digest.update(f"{file.name} {_sha256(file)}".encode())
    folder = _cache() / f"{path.stem}-{digest.hexdigest()[:24]}-v{CONVERSION}"
    if folder.is_dir():
        return folder
    tensors = state_dict(path)
    try:
        if dit_keys.is_dit(tensors):
            conversion = _dit(tensors, companions["vae"])
        elif ldm_keys.is_ldm(tensors):
            conversion = ldm.convert(tensors, LdmSettings.read(settings), companions["tokenizer"])
        else:
            raise SourceError(
                f"{path}: neither a DiT nor an LDM (it begins with {next(iter(tensors))!r}); "
                "convert it with the scripts of diffusers, and give the folder"
            )
    except (KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: not a complete checkpoint ({reason})") from None
    write_conversion(folder, conversion)
    return folder


def _dit(tensors: Mapping[str, Tensor], vae: list[Path]) -> Conversion:
    """The conversion of a DiT: a pipeline where there is an autoencoder, else the transformer."""
    part = ConvertedComponent(config=dit_keys.config_of(tensors), weights=dit_keys.rename(tensors))
    config = next((file for file in vae if file.name == CONFIG), None)
    if config is None:
        return Conversion(parts={"": part})
    kind = str(read_json(config).get("_class_name"))
    scheduler = ConvertedComponent(
        config={"_class_name": "DDIMScheduler", "clip_sample": False}
    )  # linear betas
    return Conversion(
        pipeline="DiTPipeline",
        parts={"transformer": part, "scheduler": scheduler},
        settings={"vae": ["diffusers", kind]},
        files={f"vae/{file.name}": file for file in vae},
    )


def _files(folder: Path) -> list[Path]:
    """The files beside a checkpoint that may be copied: no pickles, no code."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in SIDE_SUFFIXES)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpq" / "converted"


def _sha256(path: Path) -> str:
    try:
        return hash_file(path, lambda count: None)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
