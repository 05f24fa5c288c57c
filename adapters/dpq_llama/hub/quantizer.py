"""The transformers quantizer ``dpq``: loads artifacts of language models by ``from_pretrained``.

``DPQConfig(bits=2)`` quantizes an uncompressed model while it is loaded.
"""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpq_core.artifact import MANIFEST_NAME, Artifact
from dpq_core.errors import ArtifactError
from dpq_core.runtime import swap
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_hf.transformers_quantizer import TransformersConfig, TransformersQuantizer, register
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.hub.registration import MARK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPQConfig(TransformersConfig):
    """``quantization_config`` of an artifact, or the wish to quantize: ``DPQConfig(bits=2)``."""

    method = "dpq"


class DPQQuantizer(TransformersQuantizer):
    """Replaces the modules of a decoder by quantized ones before the weights are read."""

    mark = MARK
    policy = LlamaAdapter()
    quantization_config: DPQConfig

    def check_stored(self, model: PreTrainedModel, files: list[Path]) -> None:
        """Compare the manifest and the headers of the weight files with the model.

        transformers only logs missing tensors and leaves them random; here they are errors.

        Raises:
            ArtifactError: a file is unreadable, or a tensor is missing or of another shape or
                dtype.
        """
        if (files[0].parent / MANIFEST_NAME).is_file():
            Artifact.open(files[0].parent)
        stored = swap.check_files(self.quantized_weights, files)
        present = self._parameters_of(model, stored)
        present |= model.all_tied_weights_keys.keys()
        optional = model._keys_to_ignore_on_load_missing or ()
        for name in _own_parameters(model):
            if name not in present and not any(re.search(p, name) for p in optional):
                raise ArtifactError(f"tensor {name!r} is missing from the weight files")

    def _parameters_of(self, model: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> set[str]:
        """Names in the model of all that the weight files hold."""
        present: set[str] = set()
        dense: list[str] = []
        for key in stored:
            name, _, part = key.rpartition(".")
            quantized = name in self.quantized_weights
            place = self.names.place(name if quantized else key)
            if place is not None and place.is_whole:
                present.add(f"{place.parameter}.{part}" if quantized else place.parameter)
            elif place is not None and key not in self.assembled.tensors:
                dense.append(key)
        for assembly in self.names.assemblies(dense).values():
            present |= assembly.join(
                model, lambda key: torch.empty(stored[key].shape, device="meta")
            ).keys()
        return present

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        super()._process_model_after_weight_loading(model)
        if not type(model).is_remote_code() and hasattr(model.config, "auto_map"):
            del model.config.auto_map  # save_pretrained does not copy the file it points to


def _own_parameters(model: PreTrainedModel) -> Iterator[str]:
    """Names of the parameters of the decoder and of the language-model head.

    Heads for other tasks may be new.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    paths = [path for path, module in model.named_modules() if module is head]
    whole = model.base_model is model
    own = (f"{model.base_model_prefix}.", *(f"{path}." for path in paths))
    return (name for name in model.state_dict() if whole or name.startswith(own))


register(DPQConfig, DPQQuantizer)
