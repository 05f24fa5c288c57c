"""Methods of peft that look into a layer's weight, made to know quantized ones.

Adapters around a layer need nothing of it (a quantized layer is a layer of the kind that it
replaces). What is wrapped here asks for the type of the weight, or finds the table of tokens by the
shape of a parameter, or trains a copy of a whole layer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from dpq_hf.import_hook import run_after_import


def register() -> None:
    """Wrap the methods once peft is imported; now, if it is already."""
    run_after_import("peft.utils.integrations", _decode_for_peft)
    run_after_import("peft.utils.other", _train_dense_copies)
    run_after_import("peft.peft_model", _find_tables)


def _decode_for_peft() -> None:
    """Let ``dequantize_module_weight`` decode quantized weights, which DoRA asks for."""
    name = "dequantize_module_weight"
    original = getattr(sys.modules["peft.utils.integrations"], name)

    @functools.wraps(original)
    def dequantize_module_weight(module: Any) -> Any:
        from torch import nn

        from dpq_core.runtime import PQWeight

        if not isinstance(module.weight, PQWeight):
            return original(module)
        return nn.Parameter(module.weight.decode(), requires_grad=False)

    for path, module in list(sys.modules.items()):
        if path.startswith("peft.") and getattr(module, name, None) is original:
            setattr(module, name, dequantize_module_weight)


def _train_dense_copies() -> None:
    """Let the copies of whole layers that ``modules_to_save`` trains be dense."""
    from dpq_hf.library_methods import wrap_method

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Any, adapter_name: str, *arguments: Any, **options: Any) -> None:
            from dpq_core.runtime.layer import PQLayer

            original(self, adapter_name, *arguments, **options)
            for layer in self.modules_to_save[adapter_name].modules():
                if isinstance(layer, PQLayer):
                    layer.weight.data = layer.weight.data
                    layer.weight.requires_grad = adapter_name == self.active_adapter

        return update

    wrap_method(sys.modules["peft.utils.other"].ModulesToSaveWrapper, "update", wrap)


def _find_tables() -> None:
    """Let prompt methods find a quantized table of tokens under the name that they try first."""
    from dpq_hf.library_methods import wrap_method

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def _setup_prompt_encoder(self: Any, adapter_name: str) -> Any:
            from torch import nn

            from dpq_core.runtime import PQEmbedding

            base = self.base_model
            table = getattr(base, "get_input_embeddings", lambda: None)()
            if not isinstance(table, PQEmbedding) or hasattr(base, "embeddings"):
                return original(self, adapter_name)
            vars(base)["embeddings"] = nn.ModuleDict({"word_embeddings": table})
            try:
                return original(self, adapter_name)
            finally:
                del vars(base)["embeddings"]

        return _setup_prompt_encoder

    wrap_method(sys.modules["peft.peft_model"].PeftModel, "_setup_prompt_encoder", wrap)
