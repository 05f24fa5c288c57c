"""Swaps the modules of a transformers model for their quantized counterparts, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpq_core.errors import ArtifactError
from dpq_core.runtime import PQEmbedding, PQLinear, PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_llama.hub.registration import unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE_PREFIX = "model."
"""Prefix of the decoder's tensors in a model with a head; a bare LlamaModel has none."""


class TiedPQLinear(PQLinear):
    """An output head on the quantized weight of the embedding.

    The weight is not a submodule here: it stays one module with one name in the state dict, so
    that loading, moving and saving treat it once.
    """

    def __init__(self, weight: PQWeight) -> None:
        """Borrow ``weight`` ``[vocabulary, hidden]`` from the embedding."""
        nn.Module.__init__(self)
        self.__dict__["weight"] = weight
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states ``[..., hidden]`` -> logits, computed where the embedding is."""
        return super().forward(x.to(self.weight.device))


def swap_in(model: PreTrainedModel, specs: Mapping[str, QuantSpec]) -> dict[str, PQWeight]:
    """Replace every module named in ``specs``; its parts are allocated where the module was.

    Args:
        model: a Llama model on the meta device, in the dtype of its activations.
        specs: stored name of a weight -> its spec.

    Returns:
        Stored name -> the module that waits for its parts.

    Raises:
        ArtifactError: a name is not a Linear or Embedding weight of the model, or its spec does
            not fit.
    """
    weights: dict[str, PQWeight] = {}
    for name, spec in specs.items():
        path = _module_path(model, name)
        if path is None:
            continue
        weights[name] = swap.swap_in(model, path, spec)
    _tie(model)
    _norm_first(model)
    return weights


def _module_path(model: PreTrainedModel, name: str) -> str | None:
    """Path of the module that holds the weight; None for a head that this model lacks."""
    path = name.removesuffix(".weight")
    modules = dict(model.named_modules())
    for candidate in (path, path.removeprefix(BASE_PREFIX), BASE_PREFIX + path):
        if candidate in modules and name.endswith(".weight"):
            return candidate
    if name == "lm_head.weight":
        return None
    raise ArtifactError(f"quantization_config names {name!r}, which the model does not have")


def _tie(model: PreTrainedModel) -> None:
    """Let a tied head borrow the embedding's weight, in place of tying by parameter name."""
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not (isinstance(embedding, PQEmbedding) or isinstance(head, PQLinear)):
        return
    tied = bool(model.config.tie_word_embeddings)
    if tied and isinstance(embedding, PQEmbedding) and not isinstance(head, PQLinear):
        head = TiedPQLinear(embedding.weight)
        model.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    model._tied_weights_keys = {}
    model.all_tied_weights_keys = {}


def _norm_first(model: PreTrainedModel) -> None:
    """Put a parameter of the model's dtype before the float16 codebooks.

    transformers reads the dtype of a model from its first parameter, and writes it to the config
    on saving; that must be the dtype of the activations.
    """
    modules = model.base_model._modules
    for name in [name for name in modules if name != "norm"]:
        modules[name] = modules.pop(name)


def swap_out(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace every quantized module by a dense one of the decoded weight (the inverse)."""
    swap.swap_out(model, dtype)
    model.__dict__.pop("_tied_weights_keys", None)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.config.hidden_act = unmarked(model.config.hidden_act)


def check_stored(
    model: PreTrainedModel, weights: Mapping[str, PQWeight], files: Iterable[Path]
) -> None:
    """Hold the headers of the weight files against the model, before anything is read.

    transformers only logs missing tensors and leaves them random; here they are errors.

    Raises:
        ArtifactError: a file is unreadable, or a tensor is missing or of another shape or dtype.
    """
    stored = swap.check_files(weights, files)
    found = {name.removeprefix(BASE_PREFIX) for name in stored}
    for name in model.state_dict():
        short = name.removeprefix(BASE_PREFIX)
        ours = short.startswith(("embed_tokens.", "layers.", "norm.", "lm_head."))
        if ours and short not in found and name not in model.all_tied_weights_keys:
            raise ArtifactError(f"tensor {name!r} is missing from the weight files")
