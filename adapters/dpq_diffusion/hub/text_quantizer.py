"""The transformers quantizer ``dpq_component``: text encoders inside diffusion pipelines."""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
import re
from typing import TYPE_CHECKING

from dpq_core.errors import ArtifactError
from dpq_diffusion.hub.files import TEXT_METHOD
from dpq_diffusion.hub.registration import MARK
from dpq_hf.transformers_quantizer import TransformersConfig, TransformersQuantizer, register

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPQComponentConfig(TransformersConfig):
    """``quantization_config`` of a text encoder."""

    method = TEXT_METHOD


class DPQComponentQuantizer(TransformersQuantizer):
    """Replaces the modules of a text encoder by quantized ones before the weights are read."""

    mark = MARK
    quantization_config: DPQComponentConfig

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        _check_complete(model)
        super()._process_model_after_weight_loading(model)


def _check_complete(model: PreTrainedModel) -> None:
    """Refuse a model with tensors that were in no file; transformers only logs such a thing.

    It marks what it has read. Tied weights are read under another name, and some models list what
    they can do without.

    Raises:
        ArtifactError: a tensor is missing.
    """
    tied = model.all_tied_weights_keys
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    absent = {
        name: not getattr(parameter, "_is_hf_initialized", False)
        for name, parameter in model.named_parameters()
    }
    if all(absent.values()):
        return  # a version of transformers that does not mark them
    for name in absent:
        spared = name in tied or any(re.search(pattern, name) for pattern in optional)
        if absent[name] and not spared:
            raise ArtifactError(f"tensor {name!r} is missing from the weight files")


register(DPQComponentConfig, DPQComponentQuantizer)
