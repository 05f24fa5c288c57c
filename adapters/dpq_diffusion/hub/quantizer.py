"""The diffusers quantizer ``dpq``: loads artifacts through ``from_pretrained``.

The modules are swapped while the model is on the meta device; parameter names then equal the
stored names. diffusers casts every floating tensor to the dtype asked for, codebooks included; so
the parts of quantized weights are put in place here, in the dtype in which they are stored.
"""

from __future__ import annotations

# This module is imported when diffusers is (registration.py), so it may import it: TID253.
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from diffusers.quantizers.auto import (  # noqa: TID253
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from diffusers.quantizers.base import DiffusersQuantizer  # noqa: TID253
from diffusers.quantizers.quantization_config import QuantizationConfigMixin  # noqa: TID253
from torch import Tensor, nn

from dpq_core.errors import ArtifactError
from dpq_core.runtime import PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_core.tensor.pq_tensor import PARTS
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.source.checkpoint import copied_modules
from dpq_hf.loading_hooks import LoadingHooks
from dpq_hf.quantize_loaded import LoadedModel, quantize_loaded
from dpq_hf.saved_state import stored_state
from dpq_hf.stored_config import StoredConfig


class Method(StrEnum):
    """diffusers reads ``quant_method.value``."""

    DPQ = "dpq"


class DPQConfig(StoredConfig, QuantizationConfigMixin):
    """``quantization_config`` of one component of an artifact, or a wish: ``DPQConfig(bits=2)``.

    Attributes:
        shared: path of a module that is a copy of another -> path of that other.
    """

    def __init__(
        self,
        *,
        shared: dict[str, str] | None = None,
        quant_method: str = Method.DPQ,
        **values: Any,
    ) -> None:
        """Take over the values of a ``config.json``, or ``bits`` alone.

        Raises:
            ArtifactError: a value is not valid.
            SpecError: there is no preset of so many bits.
        """
        super().__init__(**values)
        self.quant_method = Method.DPQ  # type: ignore[assignment]  # their enum is closed
        self.shared = {} if shared is None else shared
        if not isinstance(self.shared, dict):
            raise ArtifactError("quantization_config: shared is not an object")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for ``config.json``."""
        return {**super().to_dict(), "quant_method": self.quant_method.value}

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from the defaults; the base class calls it but lacks it."""
        return self.to_dict()


class DPQQuantizer(LoadingHooks, DiffusersQuantizer):
    """Swaps quantized Linear, Conv2d and Embedding modules in before the weights are read."""

    quantization_config: DPQConfig

    use_keep_in_fp32_modules = True  # what the model wants in float32 stays so, codebooks apart

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        """Swap the modules, and let copies of a module be that module (on the meta device).

        Raises:
            ArtifactError: the config does not fit the model.
            SpecError: the model is dense, and the config does not say how to quantize it.
        """
        self.check_wish(pre_quantized=self.pre_quantized)
        for copy, original in self.quantization_config.shared.items():
            try:
                swap.set_module(model, copy, model.get_submodule(original))
            except (AttributeError, TypeError):
                raise ArtifactError(
                    f"quantization_config: cannot share {original!r} as {copy!r}"
                ) from None
        for name, spec in self.quantization_config.spec_of().items():
            self.quantized_weights[name] = swap.swap_in(model, name.removesuffix(".weight"), spec)

    def update_missing_keys(self, model: Any, missing: list[str], prefix: str) -> list[str]:
        """Copies are not stored; anything else that is missing would stay without a value.

        Raises:
            ArtifactError: a tensor is missing.
        """
        missing_names = sorted(name for name in missing if not self._is_copy(name))
        if missing_names:
            raise ArtifactError(
                f"{type(model).__name__}: tensor {missing_names[0]!r} is missing from the weight "
                "files"
            )
        return []

    def _is_copy(self, name: str) -> bool:
        return any(name.startswith(f"{copy}.") for copy in self.quantization_config.shared)

    def check_if_quantized_param(
        self, model: Any, param_value: Tensor, param_name: str, *_: Any, **__: Any
    ) -> bool:
        """Whether the tensor is a part of a quantized weight."""
        return _weight_of(model, param_name) is not None

    def check_quantized_param_shape(self, param_name: str, current: Tensor, loaded: Tensor) -> bool:
        """Called where a part has another shape than the config asks for.

        Raises:
            ArtifactError: always.
        """
        raise ArtifactError(
            f"tensor {param_name!r} is {list(loaded.shape)}, the config asks for "
            f"{list(current.shape)}"
        )

    def create_quantized_param(  # type: ignore[override]  # theirs is (*args, **kwargs)
        self,
        model: Any,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device,
        state_dict: Mapping[str, Tensor],
        *_: Any,
        **__: Any,
    ) -> None:
        """Put a part in place as it is stored; ``param_value`` has been cast already.

        Raises:
            ArtifactError: it is stored in another dtype than the config asks for.
        """
        weight, part = _weight_of(model, param_name), param_name.rpartition(".")[2]
        assert weight is not None
        value, placeholder = state_dict[param_name], getattr(weight, part)
        if value.dtype != placeholder.dtype:
            raise ArtifactError(
                f"tensor {param_name!r} is {value.dtype}, the config asks for {placeholder.dtype}"
            )
        value = value.to(target_device)
        trainable = value.is_floating_point()  # else a buffer, as PQWeight has it
        setattr(weight, part, nn.Parameter(value, False) if trainable else value)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Quantize what is dense, check what is not, and freeze all.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
            SpecError: a dense weight holds NaN.
        """
        if not self.pre_quantized:
            self._quantize(model)
        return super()._process_model_after_weight_loading(model)

    def _quantize(self, model: Any) -> None:
        """Quantize a dense model, and make the config that of the result."""
        config = self.quantization_config
        assert config.bits is not None
        config.shared = copied_modules(LoadedModel(model))
        for copy, original in config.shared.items():
            swap.set_module(model, copy, model.get_submodule(original))
        spec = QuantSpec.preset(config.bits)
        config.describe(quantize_loaded(model, DiffusionAdapter(), spec))

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that ``save_pretrained`` writes: shared modules once, parts by their specs."""
        state = {name: value for name, value in state_dict.items() if not self._is_copy(name)}
        return stored_state(state, self.quantization_config.spec_of()), {}

    def _dequantize(self, model: Any) -> Any:
        swap.swap_out(model, model.dtype)
        return model

    def get_cuda_warm_up_factor(self) -> int:
        """Codes are an eighth of what the allocator would reserve for dense weights."""
        return 8

    @property
    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the codes and codebooks as they were loaded."""
        return True


def _weight_of(model: nn.Module, name: str) -> PQWeight | None:
    path, _, part = name.rpartition(".")
    if part not in PARTS:
        return None
    module = model.get_submodule(path)
    return module if isinstance(module, PQWeight) else None


AUTO_QUANTIZATION_CONFIG_MAPPING[Method.DPQ.value] = DPQConfig
AUTO_QUANTIZER_MAPPING[Method.DPQ.value] = DPQQuantizer
