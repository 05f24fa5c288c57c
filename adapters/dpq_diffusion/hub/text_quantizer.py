"""The transformers quantizer ``dpq_component``: text encoders inside diffusion pipelines.

Written for transformers 5.
"""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import ACT2FN  # noqa: TID253
from transformers.quantizers.auto import (  # noqa: TID253
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer  # noqa: TID253
from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: TID253

from dpq_core.errors import ArtifactError
from dpq_core.runtime import PQEmbedding, swap
from dpq_diffusion.hub.files import TEXT_METHOD
from dpq_diffusion.hub.text_guard import GUARD, unguard
from dpq_hf.pretrained import DtypeConfig, EagerLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPQComponentConfig(DtypeConfig, QuantizationConfigMixin):
    """``quantization_config`` of a text encoder."""

    def __init__(self, *, quant_method: str = TEXT_METHOD, **values: Any) -> None:
        super().__init__(**values)
        self.quant_method = quant_method  # type: ignore[assignment]  # an enum of their own


class DPQComponentQuantizer(EagerLoader, HfQuantizer):
    """Swaps quantized Linear and Embedding modules in before the weights are read."""

    quantization_config: DPQComponentConfig

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        *,
        checkpoint_files: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Swap the modules (on meta), and check the stored tensors against them.

        Raises:
            ArtifactError: something stored is damaged, missing or of another size.
        """
        for name, spec in self.quantization_config.spec_of().items():
            self.waiting[name] = swap.swap_in(model, _path(model, name), spec)
        _dense_first(model)
        if checkpoint_files:
            swap.check_files(self.waiting, [Path(file) for file in checkpoint_files])

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        _check_complete(model)
        super()._process_model_after_weight_loading(model)

    def swap_out(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Replace every quantized module by a dense one, and take the mark out of the config."""
        swap.swap_out(model, dtype)
        unguard(model.config)


def _check_complete(model: PreTrainedModel) -> None:
    """Refuse a model with tensors that were in no file; transformers only logs such a thing.

    It marks what it has read. Tied weights are read under another name, and some models say
    themselves what they can do without.

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


def _path(model: nn.Module, name: str) -> str:
    """Path of the module that holds a weight; transformers renames prefixes between versions."""
    path = name.removesuffix(".weight")
    modules = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for candidate in (path, path.removeprefix(prefix), prefix + path):
        if candidate in modules:
            return candidate
    return path.removeprefix("text_model.")  # CLIP until transformers 5.0


def _dense_first(model: nn.Module) -> None:
    """Put quantized tables behind their dense neighbours.

    transformers reads the dtype of a model from its first parameter; that must be the dtype of the
    activations, not that of a codebook.
    """
    for parent in list(model.modules()):
        tables = [n for n, child in parent.named_children() if isinstance(child, PQEmbedding)]
        for name in tables:
            parent._modules[name] = parent._modules.pop(name)


AUTO_QUANTIZATION_CONFIG_MAPPING[TEXT_METHOD] = DPQComponentConfig
AUTO_QUANTIZER_MAPPING[TEXT_METHOD] = DPQComponentQuantizer
GUARD.enter(ACT2FN)
