"""What dpq's quantizers for ``from_pretrained`` share: from ``quantization_config`` to a model.

These are mixins: the base class of the library that calls the hooks comes behind them. No library
is imported here.
"""

from __future__ import annotations

from typing import Any

import torch

from dpq_core.errors import ArtifactError, SpecError
from dpq_core.runtime import swap
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import QuantSpec
from dpq_hf import stored_config as stored


class StoredConfig:
    """``quantization_config`` of an artifact.

    Attributes:
        version: of the config.
        specs: the distinct specs, as ``QuantSpec.to_json`` writes them.
        tensors: name of a quantized weight -> index into ``specs``.
    """

    def __init__(
        self,
        specs: list[dict[str, Any]],
        tensors: dict[str, int],
        version: object,
        unknown: dict[str, Any],
    ) -> None:
        stored.check_keys(version, unknown)
        self.version = version
        self.specs = specs
        self.tensors = tensors

    def spec_of(self) -> dict[str, QuantSpec]:
        """The spec of every quantized weight.

        Raises:
            ArtifactError: a spec or an index is not valid.
        """
        return stored.spec_of(self.specs, self.tensors)


class DtypeConfig(StoredConfig):
    """A config that also knows the dtype of the uncompressed model, as torch calls it."""

    def __init__(
        self,
        *,
        specs: list[dict[str, Any]],
        tensors: dict[str, int],
        dtype: str,
        version: int = stored.CONFIG_VERSION,
        **unknown: Any,
    ) -> None:
        super().__init__(specs, tensors, version, unknown)
        self.dtype = dtype
        if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise ArtifactError(f"quantization_config: unknown dtype {dtype!r}")


class Loader:
    """Hooks that do the same in every library.

    Attributes:
        waiting: name of a quantized weight -> what was swapped in for it.
    """

    quantization_config: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: dict[str, PQWeight] = {}

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse what would fail later, in the first forward pass.

        Raises:
            SpecError: weights are to stay on the disk; the libraries leave buffers there for good,
                and codes are buffers.
        """
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise SpecError(
                "device_map: quantized weights cannot be offloaded to the disk; they are small, so "
                "keep them in memory, or let the library offload them to the CPU"
            )

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Check the loaded values; freeze, because a graph would keep every decoded weight.

        Weights of modules that have no quantized counterpart become dense, and are saved so.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
        """
        swap.check_loaded(model)
        dense = swap.settle(model)
        for name, weight in self.waiting.items():
            if weight in dense:
                del self.quantization_config.tensors[name]
        self.waiting = {}
        model.requires_grad_(False)
        return model

    @property
    def is_trainable(self) -> bool:
        """Trainers must not update a model whose codes are fixed; see `dpq calibrate`."""
        return False


class EagerLoader(Loader):
    """Hooks for a library that calls ``is_serializable()`` and keeps the stored dtypes itself.

    It keeps those of codebooks and scales because the swapped-in parameters have them, whatever
    ``dtype`` is asked for.
    """

    requires_calibration = True  # quantizing is `dpq compress`, not from_pretrained(dense model)

    def update_attn_implementation(self, config: Any) -> Any:
        """The first hook that sees the model's config: without a dtype the stored one is meant.

        The library would take that of the first stored tensor, which is a float16 codebook.
        """
        if config.dtype is None:
            config.dtype = getattr(torch, self.quantization_config.dtype)
        return config

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the codes and codebooks as they were loaded."""
        return True

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """Make the model dense; the library passes the dtype in its config, maybe by name."""
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.swap_out(model, wanted or model.dtype)
        return model

    def swap_out(self, model: Any, dtype: torch.dtype) -> None:
        """Replace every quantized module by a dense one, and undo what else tells them apart."""
        swap.swap_out(model, dtype)
