"""Methods of the libraries' model classes that have to know quantized weights.

The libraries count parameters and save models by methods of a base class, without a hook for
quantizers; so these methods are wrapped when an adapter registers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from dpq_core.runtime import PQEmbedding, PQWeight


def count_quantized_weights(kind: type[Any]) -> None:
    """Let ``num_parameters`` of a base class count the weights, not the codebooks that they are in.

    What is trained is counted as it is: the parts of a quantized weight that take gradients.
    """

    def wrap(original: Callable[..., int]) -> Callable[..., int]:
        def num_parameters(
            self: nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False
        ) -> int:
            count = original(self, only_trainable, exclude_embeddings)
            if only_trainable:
                return count
            tables = {id(m.weight) for m in self.modules() if isinstance(m, PQEmbedding)}
            for weight in self.modules():
                if isinstance(weight, PQWeight):
                    count -= sum(part.numel() for part in weight.parameters())
                    count += 0 if exclude_embeddings and id(weight) in tables else weight.numel()
            return count

        return num_parameters

    wrap_method(kind, "num_parameters", wrap)


def count_in_transformers() -> None:
    """Let ``PreTrainedModel.num_parameters`` count quantized weights."""
    from transformers import PreTrainedModel

    count_quantized_weights(PreTrainedModel)


def accept_dicts(quantizers: type[Any], config: type[Any]) -> None:
    """Let ``from_pretrained`` take a dict where it takes an object of ``config``.

    Args:
        quantizers: class of transformers that compares a given config with the model's own.
        config: class of configs, with the name of its ``method``.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def merge_quantization_configs(stored: Any, given: Any) -> Any:
            if isinstance(given, dict) and given.get("quant_method") == config.method:
                given = config(**given)
            return original(stored, given)

        return merge_quantization_configs

    wrap_method(quantizers, "merge_quantization_configs", wrap, of=config.method)


def wrap_method(
    kind: type[Any],
    name: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    of: str = "",
) -> None:
    """Replace a method of a class by what ``wrap`` makes of it, once.

    Args:
        kind: the class.
        name: of the method.
        wrap: is given the function of an ordinary method, or the bound one of a class method.
        of: who wraps, where several do.
    """
    original = getattr(kind, name)
    wrappers: frozenset[str] = getattr(original, "_dpq_wrappers", frozenset())
    if of in wrappers:
        return
    wrapped: Any = functools.wraps(original)(wrap(original))
    wrapped._dpq_wrappers = wrappers | {of}
    static = isinstance(inspect.getattr_static(kind, name), classmethod | staticmethod)
    setattr(kind, name, staticmethod(wrapped) if static else wrapped)
