"""The transformers quantizer ``dpq_component``: text encoders inside diffusion pipelines.

Written for transformers 5. The loader keeps the stored dtype of codebooks and scales because the
swapped-in parameters have it, whatever ``dtype`` is asked for.
"""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import (  # noqa: TID253
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer  # noqa: TID253
from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: TID253

from dpq_core.checkpoint import SafetensorsCheckpoint
from dpq_core.errors import ArtifactError, SourceError
from dpq_core.runtime import PQEmbedding, PQWeight, config, swap
from dpq_diffusion.files import TEXT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class DPQComponentConfig(QuantizationConfigMixin):
    """``quantization_config`` of a text encoder.

    Attributes:
        specs: the distinct specs, as ``QuantSpec.to_json`` writes them.
        tensors: name of a quantized weight -> index into ``specs``.
        dtype: of the uncompressed model, as torch calls it.
    """

    def __init__(
        self,
        *,
        specs: list[dict[str, Any]],
        tensors: dict[str, int],
        dtype: str,
        version: int = config.CONFIG_VERSION,
        quant_method: str = TEXT_METHOD,
        **unknown: Any,
    ) -> None:
        config.check_keys(version, unknown)
        self.quant_method = quant_method  # type: ignore[assignment]  # an enum of their own
        self.version = version
        self.specs = specs
        self.tensors = tensors
        self.dtype = dtype
        if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise ArtifactError(f"quantization_config: unknown dtype {dtype!r}")


class DPQComponentQuantizer(HfQuantizer):
    """Swaps quantized Linear and Embedding modules in before the weights are read."""

    quantization_config: DPQComponentConfig

    requires_calibration = True  # quantizing is `dpq compress`, not from_pretrained(dense model)

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The first hook that sees the model's config: without a dtype the stored one is meant.

        transformers would take that of the first stored tensor, a float16 codebook.
        """
        if config.dtype is None:
            config.dtype = getattr(torch, self.quantization_config.dtype)
        return config

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        *,
        checkpoint_files: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Swap the modules (on meta), and check the stored tensors against them.

        transformers only logs missing tensors and leaves them random; here they are errors.

        Raises:
            ArtifactError: something stored is damaged, missing or of another size.
        """
        specs = config.spec_of(self.quantization_config.specs, self.quantization_config.tensors)
        weights: dict[str, PQWeight] = {}
        for name, spec in specs.items():
            weights[name] = swap.swap_in(model, _path(model, name), spec)
        _dense_first(model)
        files = [Path(file) for file in checkpoint_files or ()]
        if files:
            try:
                stored = SafetensorsCheckpoint("artifact", files).tensors
            except SourceError as error:
                raise ArtifactError(str(error)) from None
            swap.check_stored(weights, stored)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Check the loaded values; freeze, because a graph would keep every decoded weight.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
        """
        swap.check_loaded(model)
        model.requires_grad_(False)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        swap.swap_out(model, dtype or model.dtype)
        return model

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the codes and codebooks as they were loaded."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Trainers must not update a model whose codes are fixed; see `dpq calibrate`."""
        return False


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
