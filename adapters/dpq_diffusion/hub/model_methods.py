"""Methods of the base class of diffusers' models that have to know quantized weights."""

from __future__ import annotations

# This module is imported when diffusers is (registration.py), so it may import it: TID253.
from collections.abc import Callable
from typing import Any

from diffusers.models.modeling_utils import ModelMixin  # noqa: TID253

from dpq_hf.library_methods import count_quantized_weights, wrap_method
from dpq_hf.saved_state import forget_dense
from dpq_hf.stored_config import StoredConfig


def register() -> None:
    """Wrap ``num_parameters`` and ``save_pretrained``."""
    count_quantized_weights(ModelMixin)
    wrap_method(ModelMixin, "save_pretrained", _with_fitting_config)


def _with_fitting_config(save: Callable[..., Any]) -> Callable[..., Any]:
    """A ``save_pretrained`` whose config leaves out the layers that have become dense.

    The config is written before the quantizer is asked for the state.
    """

    def save_pretrained(self: Any, *arguments: Any, **options: Any) -> Any:
        config = getattr(getattr(self, "hf_quantizer", None), "quantization_config", None)
        if isinstance(config, StoredConfig):
            layers = dict(self.named_modules(remove_duplicate=False))
            names = list(config.tensors)
            forget_dense(config, {name: layers.get(name.removesuffix(".weight")) for name in names})
        return save(self, *arguments, **options)

    return save_pretrained
