"""The transformers quantizer ``dpq``: loads artifacts through ``from_pretrained``.

Written for transformers 5: the modules are swapped while the model is on the meta device; parameter
names then equal the stored names, so the loader needs no conversion, and it keeps the stored dtype
of codebooks and scales because the swapped-in parameters have it, whatever ``dtype`` is asked for.
"""

from __future__ import annotations

# This module is imported when transformers is (registration.py), so it may import it: TID253.
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.activations import ACT2FN  # noqa: TID253
from transformers.quantizers.auto import (  # noqa: TID253
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer  # noqa: TID253
from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: TID253

from dpq_core.artifact import MANIFEST_NAME, Artifact
from dpq_core.errors import ArtifactError
from dpq_core.runtime import config
from dpq_core.runtime.swap import check_loaded
from dpq_core.spec import QuantSpec
from dpq_llama import swap
from dpq_llama.registration import marked

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

QUANT_METHOD = "dpq"


class DPQConfig(QuantizationConfigMixin):
    """``quantization_config`` of an artifact.

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
        quant_method: str = QUANT_METHOD,
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

    def spec_of(self) -> dict[str, QuantSpec]:
        """The spec of every quantized weight.

        Raises:
            ArtifactError: a spec or an index is not valid.
        """
        return config.spec_of(self.specs, self.tensors)


class DPQQuantizer(HfQuantizer):
    """Swaps quantized Linear and Embedding modules in before the weights are read."""

    quantization_config: DPQConfig

    requires_calibration = True  # quantizing is `dpq compress`, not from_pretrained(dense model)

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The first hook that sees the model's config.

        AutoModel with ``dtype=None`` clears the config's dtype; transformers then takes that of
        the first stored tensor, which is a float16 codebook here.
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
        """Check the stored tensors against the config, then swap the modules (on meta).

        Raises:
            ArtifactError: something stored is damaged, missing or of another size.
        """
        weights = swap.swap_in(model, self.quantization_config.spec_of())
        files = [Path(file) for file in checkpoint_files or ()]
        if files and (files[0].parent / MANIFEST_NAME).is_file():
            Artifact.open(files[0].parent)
        if files:
            swap.check_stored(model, weights, files)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Check the loaded values; freeze, because a graph would keep every decoded weight.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
        """
        check_loaded(model)
        model.requires_grad_(False)
        if not type(model).is_remote_code() and hasattr(model.config, "auto_map"):
            del model.config.auto_map  # save_pretrained does not copy the file it points to

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


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = DPQConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = DPQQuantizer
for _name, _activation in list(ACT2FN.items()):
    ACT2FN[marked(_name)] = _activation
