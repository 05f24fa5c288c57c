"""Uncompressed language models: folders, ``builtin:NAME`` and hub ids; safetensors only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.artifact import MANIFEST_NAME
from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint, TensorInfo
from dpq_hf import sources
from dpq_hf.sources import complete_shards, files_of_index, read_json, refuse_adapter, variant_of
from dpq_llama.source.architecture import meta_model, model_class, typed_config
from dpq_llama.source.fp8 import BlockScaledWeights, is_fp8

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dpq_llama.families.layers import DecoderLayers

BUILTIN = Path(__file__).parent.parent / "builtin"
"""Folder of the models that ship with this adapter."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

SIDE_FILES = (
    "*.jinja",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
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
    """An uncompressed checkpoint of a decoder-only language model.

    The weights of all experts of a layer, where they are stored as one tensor ``NAME [E, R, C]``,
    appear as one matrix per expert: ``NAME.0``, ``NAME.1``, ... A weight that the model holds as
    ``[inputs, outputs]`` (Conv1D, the experts of Llama 4) appears as ``[outputs, inputs]``.

    Attributes:
        folder: where its files are.
        config: the content of its ``config.json``.
        model: the model of its class on the meta device.
        layers: the layers of that model.
        transposed: names of the matrices that appear transposed.
    """

    folder: Path
    config: dict[str, Any]
    model: PreTrainedModel
    layers: DecoderLayers
    transposed: frozenset[str] = frozenset()
    _slices: Mapping[str, tuple[str, int]] = MappingProxyType({})
    _fp8: BlockScaledWeights | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether the weights are stored as block-scaled 8-bit floats."""
        return self._fp8 is not None

    def build(self, folder: Path, config: dict[str, Any]) -> None:
        """Build the model that the config describes, and cut stacks of experts into matrices."""
        from dpq_llama.families.layers import DecoderLayers

        if is_fp8(config):
            self._fp8 = BlockScaledWeights(config, self.tensors)
            self.tensors = self._fp8.tensors
            config = {key: config[key] for key in config if key != "quantization_config"}
        self.folder, self.config = folder, config
        self.model = meta_model(config, folder / CONFIG)
        self.layers = DecoderLayers(self.model)
        slices = dict(self._slices)
        tensors: dict[str, TensorInfo] = {}
        for name, info in self.tensors.items():
            if not self.layers.is_stack(name, info.shape):
                tensors[name] = info
                continue
            for index in range(info.shape[0]):
                slices[f"{name}.{index}"] = (name, index)
                tensors[f"{name}.{index}"] = TensorInfo(info.shape[1:], info.dtype)
        if not self.transposed:
            self.transposed = frozenset(filter(self.layers.is_transposed, tensors))
            for name in self.transposed:
                tensors[name] = TensorInfo(tensors[name].shape[::-1], tensors[name].dtype)
        self.tensors, self._slices = tensors, slices

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, on the CPU; of a stack of experts, only one is read."""
        values = self.read_stored(name)
        return values.T.contiguous() if name in self.transposed else values

    def read_stored(self, name: str) -> Tensor:
        """The tensor called ``name`` as the model has it, transposed or not."""
        stack, index = self._slices.get(name, (name, None))
        if self._fp8 is not None:
            values = self._fp8.read(stack, super().read)
            return values if index is None else values[index].clone()
        return super().read(name) if index is None else self.read_slice(stack, index)

    def stored_names(self) -> dict[str, str]:
        """Name of every parameter that is stored as it is -> name of the tensor that holds it."""
        places = {name: self.layers.names.place(name) for name in self.tensors}
        return {place.parameter: name for name, place in places.items() if place and place.is_whole}


def open_checkpoint(source: str) -> LlamaCheckpoint:
    """Open an uncompressed checkpoint without reading its tensors.

    Raises:
        SourceError: the checkpoint does not exist, is damaged or incomplete, or is not an
            uncompressed decoder-only language model that transformers knows.
    """
    folder = locate(source)
    config = read_config(folder)
    _refuse_quantized(folder, config)
    typed = typed_config(config, folder / CONFIG)
    model_class(typed, str(folder / CONFIG))
    files, indexed_names = _weight_files(folder)
    checkpoint = LlamaCheckpoint(source, files, side_files(folder))
    for name in sorted(indexed_names - set(checkpoint.tensors)):
        raise SourceError(f"{folder / INDEX}: tensor {name!r} is in none of the shards")
    checkpoint.build(folder, config)
    _drop_unused(checkpoint)
    _drop_tied_copies(checkpoint)
    _check_tensors(checkpoint)
    if not any(checkpoint.layers.layout_of(n, i.shape) for n, i in checkpoint.tensors.items()):
        raise SourceError(
            f"{folder}: {type(checkpoint.model).__name__} has no Linear, Conv1D, Embedding or "
            "expert weights in its decoder, so there is nothing to compress"
        )
    return checkpoint


def locate(source: str) -> Path:
    """The local folder of a source; a hub id is downloaded (or found in the cache).

    Raises:
        SourceError: there is no such folder, builtin model or repository.
        ArtifactError: the folder is an artifact that is only half-written.
    """
    patterns = [CONFIG, MANIFEST_NAME, "README.md", "model*.safetensors", INDEX, *SIDE_FILES]
    folder = sources.locate(source, builtin=BUILTIN, marker=CONFIG, patterns=patterns)
    if not folder.is_dir():
        hint = (
            "; quantized already: make a folder of it first, by AutoModelForCausalLM"
            f".from_pretrained(FOLDER, gguf_file={folder.name!r}).save_pretrained(NEW)"
        )
        gguf = folder.suffix == ".gguf"
        raise SourceError(f"{source}: a file; give the model's folder instead" + hint * gguf)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        SourceError: the file is missing, too large or not a JSON object.
    """
    if not (folder / CONFIG).is_file():
        hint = "; convert Meta's original format with transformers' convert_llama_weights_to_hf.py"
        original = (folder / "params.json").is_file()
        refuse_adapter(folder)
        raise SourceError(
            f"{folder}: no {CONFIG}, so not a Hugging Face model folder" + hint * original
        )
    return read_json(folder / CONFIG)


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None and not is_fp8(config):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise SourceError(
            f"{folder}: already quantized (quant_method {method!r}); compress the original instead"
        )


def _weight_files(folder: Path) -> tuple[list[Path], frozenset[str]]:
    """The weight files, and the names of tensors in the index (none without an index)."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], frozenset()
    if not (folder / INDEX).is_file():
        if shards := complete_shards(folder):
            return shards, frozenset()
        if variant := variant_of(folder):
            return [folder / f"model.{variant}.safetensors"], frozenset()
        pickles = any(folder.glob("pytorch_model*.bin"))
        raise SourceError(
            f"{folder}: only pickled weights (pytorch_model.bin), which dpq never opens; convert "
            "once: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
            if pickles
            else f"{folder}: no {WEIGHTS} and no {INDEX}"
        )
    return files_of_index(folder, folder / INDEX)


def side_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that belong to the model beside its config and weights, by name."""
    paths = sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern)})
    return {
        path.relative_to(folder).as_posix(): path
        for path in paths
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".py", ".pt", ".pth")
    }


def _drop_unused(checkpoint: LlamaCheckpoint) -> None:
    """Drop the tensors that transformers does not read: buffers of old versions, further heads."""
    patterns = checkpoint.model._keys_to_ignore_on_load_unexpected or ()
    unused = re.compile("|".join([r"rotary_emb\.inv_freq$", *patterns]))
    for name in [n for n in checkpoint.tensors if unused.search(n)]:
        if checkpoint.layers.names.place(name) is None:
            del checkpoint.tensors[name]


def _drop_tied_copies(checkpoint: LlamaCheckpoint) -> None:
    """Drop the stored copy of a tied head; where it differs, note that the model is not tied.

    transformers does the same: it ties only weights that are equal.
    """
    stored = checkpoint.stored_names()
    for copy, original in dict(checkpoint.model.all_tied_weights_keys).items():
        name, first = stored.get(copy), stored.get(original)
        if name is None or first is None:
            continue
        if checkpoint.read(name).equal(checkpoint.read(first)):
            del checkpoint.tensors[name]
            continue
        config = {**checkpoint.config, "tie_word_embeddings": False}
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
        checkpoint.build(checkpoint.folder, config)
        return


def _check_tensors(checkpoint: LlamaCheckpoint) -> None:
    """Refuse a checkpoint without a tensor of the model, or with one of another shape."""
    where, stored = checkpoint.folder, checkpoint.stored_names()
    shapes = {
        name: checkpoint.tensors[tensor].shape[:: -1 if tensor in checkpoint.transposed else 1]
        for name, tensor in stored.items()
    }
    shapes |= _joined_shapes(checkpoint)
    optional = set(checkpoint.model.all_tied_weights_keys) | _optional(checkpoint, stored)
    for name, shape in checkpoint.layers.names.shapes.items():
        if name not in shapes:
            if name not in optional:
                raise SourceError(f"{where}: tensor {name!r} is missing from the weights")
        elif shapes[name] != shape:
            raise SourceError(
                f"{where}: tensor {stored.get(name, name)!r} is {list(shapes[name])}, the config "
                f"asks for {list(shape)}"
            )


def _joined_shapes(checkpoint: LlamaCheckpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that transformers makes of several tensors, by name."""

    def empty(name: str) -> Tensor:
        return torch.empty(checkpoint.tensors[name].shape, device="meta")

    shapes: dict[str, tuple[int, ...]] = {}
    for assembly in checkpoint.layers.names.assemblies(checkpoint.tensors).values():
        try:
            made = assembly.join(checkpoint.model, empty, checkpoint.transposed)
        except SourceError as error:
            raise SourceError(f"{checkpoint.folder}: {error}") from None
        shapes |= {name: tuple(value.shape) for name, value in made.items()}
    return shapes


def _optional(checkpoint: LlamaCheckpoint, stored: dict[str, str]) -> set[str]:
    """Parameters that may be missing: the head of a decoder saved alone, and what a class names."""
    model, prefix = checkpoint.model, f"{checkpoint.model.base_model_prefix}."
    patterns = model._keys_to_ignore_on_load_missing or ()
    optional = {n for n in checkpoint.layers.names.shapes if any(re.search(p, n) for p in patterns)}
    if not any(name.startswith(prefix) for name in stored.values()):
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        optional |= {n for n, m in model.named_parameters() if head and m is head.weight}
    return optional
