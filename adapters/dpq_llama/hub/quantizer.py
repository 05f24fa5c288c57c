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
from dpq_hf.pretrained import DtypeConfig, EagerLoader
from dpq_llama.hub import swap
from dpq_llama.hub.registration import GUARD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANT_METHOD = "dpq"


class DPQConfig(DtypeConfig, QuantizationConfigMixin):
    """``quantization_config`` of an artifact."""

    def __init__(self, *, quant_method: str = QUANT_METHOD, **values: Any) -> None:
        super().__init__(**values)
        self.quant_method = quant_method  # type: ignore[assignment]  # an enum of their own


class DPQQuantizer(EagerLoader, HfQuantizer):
    """Swaps quantized Linear and Embedding modules in before the weights are read."""

    quantization_config: DPQConfig

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
        self.waiting = weights

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        super()._process_model_after_weight_loading(model)
        if not type(model).is_remote_code() and hasattr(model.config, "auto_map"):
            del model.config.auto_map  # save_pretrained does not copy the file it points to

    def swap_out(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Replace every quantized module by a dense one, and take the mark out of the config."""
        swap.swap_out(model, dtype)


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = DPQConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = DPQQuantizer
GUARD.enter(ACT2FN)
