"""Hooks of ``from_pretrained`` that quantizers of diffusers and of transformers share.

A mixin: the library's base class, which calls the hooks, comes behind it. No library is imported
here.
"""

from __future__ import annotations

from typing import Any

from dpq_core.errors import SpecError
from dpq_core.runtime import swap
from dpq_core.runtime.weight import PQWeight
from dpq_hf.stored_config import StoredConfig


class LoadingHooks:
    """The hooks that do the same in every library.

    Attributes:
        quantization_config: of the model that is loaded.
        quantized_weights: name of each quantized weight -> the module put in its place, which the
            library fills from the weight files.
    """

    quantization_config: StoredConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin with nothing replaced; the arguments are those of the library's base class."""
        super().__init__(*args, **kwargs)
        self.quantized_weights: dict[str, PQWeight] = {}

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse what would fail later, in the first forward pass.

        Raises:
            SpecError: weights are to stay on the disk. The libraries leave buffers there for good,
                and codes are buffers.
        """
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise SpecError(
                "device_map: quantized weights cannot be offloaded to the disk; they are small, so "
                "keep them in memory, or let the library offload them to the CPU"
            )

    def check_wish(self, *, pre_quantized: bool) -> None:
        """Refuse a dense model without the bits by which it is to be quantized.

        Raises:
            SpecError: the config does not say how to quantize the dense model.
        """
        if not pre_quantized and self.quantization_config.bits is None:
            raise SpecError(
                "this model is not quantized: DPQConfig(bits=...) says how it should be"
            )

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Check the loaded values, and freeze them: a graph would keep every decoded weight.

        Weights of modules that have no quantized counterpart become dense, and are saved so.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
        """
        swap.check_loaded(model)
        decoded = swap.decode_pending(model)
        for name, weight in self.quantized_weights.items():
            if weight in decoded:
                self.quantization_config.forget(name)
        self.quantized_weights = {}
        model.requires_grad_(False)
        return model

    @property
    def is_trainable(self) -> bool:
        """True: adapters can be trained around the weights, which stay as they are."""
        return True
