"""The transformers quantizer ``dpq``: loads artifacts of Llama models through ``from_pretrained``.

``DPQConfig(bits=2)`` quantizes an uncompressed model while it is loaded.
"""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpq_core.artifact import MANIFEST_NAME, Artifact
from dpq_core.errors import ArtifactError
from dpq_core.runtime import swap
from dpq_hf.transformers_quantizer import TransformersConfig, TransformersQuantizer, register
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.families.llama import BASE_PREFIX
from dpq_llama.hub.registration import MARK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPQConfig(TransformersConfig):
    """``quantization_config`` of an artifact, or the wish to quantize: ``DPQConfig(bits=2)``."""

    method = "dpq"


class DPQQuantizer(TransformersQuantizer):
    """Replaces the modules of a Llama by quantized ones before the weights are read."""

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
        stored_names = {name.removeprefix(BASE_PREFIX) for name in stored}
        for name in model.state_dict():
            short = name.removeprefix(BASE_PREFIX)
            needed = short.startswith(("embed_tokens.", "layers.", "norm.", "lm_head."))
            if needed and short not in stored_names and name not in model.all_tied_weights_keys:
                raise ArtifactError(f"tensor {name!r} is missing from the weight files")

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        super()._process_model_after_weight_loading(model)
        if not type(model).is_remote_code() and hasattr(model.config, "auto_map"):
            del model.config.auto_map  # save_pretrained does not copy the file it points to

    def make_dense(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Replace every quantized module by a dense one, and tie the head by name again."""
        super().make_dense(model, dtype)
        model.__dict__.pop("_tied_weights_keys", None)
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


register(DPQConfig, DPQQuantizer)
