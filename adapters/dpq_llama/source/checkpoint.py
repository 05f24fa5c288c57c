"""Uncompressed Llama checkpoints: folders, ``builtin:NAME`` and hub ids; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpq_core.artifact import MANIFEST_NAME
from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint
from dpq_hf import sources
from dpq_hf.sources import files_of_index, read_json
from dpq_llama.families.llama import BASE_PREFIX, expected_tensors, has_head

BUILTIN = Path(__file__).parent.parent / "builtin"
"""Folder of the models that ship with this adapter."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

SIDE_FILES = (
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "merges.txt",
    "NOTICE*",
    "special_tokens_map.json",
    "tokenizer*",
    "USE_POLICY*",
    "vocab.json",
)
"""Files (shell patterns) that are copied into an artifact as they are."""


class LlamaCheckpoint(SafetensorsCheckpoint):
    """An uncompressed Llama checkpoint.

    Attributes:
        folder: where its files are.
        config: the content of its ``config.json``.
    """

    folder: Path
    config: dict[str, Any]


def open_checkpoint(source: str) -> LlamaCheckpoint:
    """Open an uncompressed checkpoint without reading its tensors.

    Raises:
        SourceError: the checkpoint does not exist, is damaged or incomplete, or is not an
            uncompressed Llama.
    """
    folder = locate(source)
    config = read_config(folder)
    _check_config(folder, config)
    files, indexed_names = _weight_files(folder)
    checkpoint = LlamaCheckpoint(source, files, _side_files(folder))
    checkpoint.folder, checkpoint.config = folder, config
    for name in sorted(indexed_names - set(checkpoint.tensors)):
        raise SourceError(f"{folder / INDEX}: tensor {name!r} is in none of the shards")
    for name in [n for n in checkpoint.tensors if n.endswith("rotary_emb.inv_freq")]:
        del checkpoint.tensors[name]  # derived from the config; transformers computes it
    _drop_tied_head(checkpoint)
    _check_tensors(checkpoint)
    return checkpoint


def locate(source: str) -> Path:
    """The local folder of a source; a hub id is downloaded (or found in the cache).

    Raises:
        SourceError: there is no such folder, builtin model or repository.
        ArtifactError: the folder is an artifact that is only half-written.
    """
    patterns = [CONFIG, MANIFEST_NAME, "model*.safetensors", INDEX, *SIDE_FILES]
    folder = sources.locate(source, builtin=BUILTIN, marker=CONFIG, patterns=patterns)
    if not folder.is_dir():
        raise SourceError(f"{source}: a file; give the model's folder instead")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        SourceError: the file is missing, too large or not a JSON object.
    """
    if not (folder / CONFIG).is_file():
        hint = "; convert Meta's original format with transformers' convert_llama_weights_to_hf.py"
        original = (folder / "params.json").is_file()
        raise SourceError(
            f"{folder}: no {CONFIG}, so not a Hugging Face model folder" + hint * original
        )
    return read_json(folder / CONFIG)


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != "llama":
        raise SourceError(
            f"{folder / CONFIG}: model_type is {model_type!r}, this adapter reads 'llama' only"
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise SourceError(
            f"{folder}: already quantized (quant_method {method!r}); compress the original instead"
        )


def _weight_files(folder: Path) -> tuple[list[Path], frozenset[str]]:
    """The weight files, and the names of tensors in the index (none without an index)."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], frozenset()
    if not (folder / INDEX).is_file():
        pickles = any(folder.glob("pytorch_model*.bin"))
        raise SourceError(
            f"{folder}: only pickled weights (pytorch_model.bin), which dpq never opens; convert "
            "once: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
            if pickles
            else f"{folder}: no {WEIGHTS} and no {INDEX}"
        )
    return files_of_index(folder, folder / INDEX)


def _side_files(folder: Path) -> dict[str, Path]:
    paths = sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern)})
    return {
        path.name: path
        for path in paths
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".py", ".pt", ".pth")
    }


def _drop_tied_head(checkpoint: LlamaCheckpoint) -> None:
    """Drop the stored copy of a tied head; where it differs, note that the model is not tied.

    transformers does the same: it ties only weights that are equal.
    """
    names, config = checkpoint.tensors, checkpoint.config
    embedding = next((n for n in names if n.endswith("embed_tokens.weight")), None)
    if not config.get("tie_word_embeddings", False) or embedding is None:
        return
    if "lm_head.weight" in names:
        if checkpoint.read("lm_head.weight").equal(checkpoint.read(embedding)):
            del checkpoint.tensors["lm_head.weight"]
        else:
            checkpoint.config = {**config, "tie_word_embeddings": False}


def _check_tensors(checkpoint: LlamaCheckpoint) -> None:
    """Refuse a checkpoint without a tensor of the config, or with one of another shape."""
    where = checkpoint.folder
    headless = "embed_tokens.weight" in checkpoint.tensors  # a LlamaModel
    try:
        expected = expected_tensors(checkpoint.config, prefix="" if headless else BASE_PREFIX)
    except ValueError as error:
        raise SourceError(f"{where / CONFIG}: not a valid Llama config ({error})") from None
    if headless or not has_head(checkpoint.config) or checkpoint.config.get("tie_word_embeddings"):
        expected.pop("lm_head.weight", None)
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            raise SourceError(f"{where}: tensor {name!r} is missing from the weights")
        if info.shape != shape:
            raise SourceError(
                f"{where}: tensor {name!r} is {list(info.shape)}, the config asks for {list(shape)}"
            )
