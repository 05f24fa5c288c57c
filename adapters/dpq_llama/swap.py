"""Swaps the modules of a transformers model for their quantized counterparts, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpq_core.checkpoint import SafetensorsCheckpoint
from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_core.layout import Layout
from dpq_core.partition import Partition
from dpq_core.pq_tensor import PQTensor, expected_parts
from dpq_core.runtime import PQEmbedding, PQLinear, PQWeight
from dpq_core.spec import QuantSpec
from dpq_llama.registration import unmarked

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
        module = model.get_submodule(path)
        if isinstance(module, nn.Embedding):
            weights[name] = _empty_weight(name, module.weight, Layout.EMBEDDING, spec)
            swapped: nn.Module = PQEmbedding(weights[name], module.padding_idx, module.weight.dtype)
        elif isinstance(module, nn.Linear):
            weights[name] = _empty_weight(name, module.weight, Layout.LINEAR, spec)
            swapped = PQLinear(weights[name], module.bias)
        else:
            raise ArtifactError(f"quantization_config: {name!r} is no Linear or Embedding weight")
        _replace(model, path, swapped)
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


def _empty_weight(name: str, dense: Tensor, layout: Layout, spec: QuantSpec) -> PQWeight:
    try:
        partition = Partition.of(tuple(dense.shape), layout, spec)
    except SpecError as error:
        raise ArtifactError(f"quantization_config: {name!r}: {error}") from None
    return PQWeight(
        partition,
        codebook_dtype=getattr(torch, spec.codebook_dtype),
        row_scale=spec.row_scale,
        device=dense.device,
    )


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
    dense: dict[PQWeight, nn.Parameter] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, PQLinear | PQEmbedding):
            if module.weight not in dense:
                value = module.weight.decode(dtype)
                dense[module.weight] = nn.Parameter(value, requires_grad=False)
            _replace(model, path, _dense(module, dense[module.weight]))
    model.__dict__.pop("_tied_weights_keys", None)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.config.hidden_act = unmarked(model.config.hidden_act)


def _dense(module: PQLinear | PQEmbedding, weight: nn.Parameter) -> nn.Module:
    rows, cols = weight.shape
    result: nn.Linear | nn.Embedding
    if isinstance(module, PQEmbedding):
        result = nn.Embedding(rows, cols, module.padding_idx, device="meta")
    else:
        result = nn.Linear(cols, rows, bias=False, device="meta")
        result.register_parameter("bias", module.bias)
    result.weight = weight
    return result


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def check_stored(
    model: PreTrainedModel, weights: Mapping[str, PQWeight], files: Iterable[Path]
) -> None:
    """Hold the headers of the weight files against the model, before anything is read.

    transformers only logs missing tensors and leaves them random; here they are errors.

    Raises:
        ArtifactError: a file is unreadable, or a tensor is missing or of another shape or dtype.
    """
    try:
        stored = SafetensorsCheckpoint("artifact", list(files)).tensors
    except SourceError as error:
        raise ArtifactError(str(error)) from None
    for name, weight in weights.items():
        parts = expected_parts(
            weight.partition, codebook_dtype=weight.dtype, row_scale=weight.row_scale is not None
        )
        for part, (dtype, shape) in parts.items():
            info = stored.get(f"{name}.{part}")
            if info is None:
                raise ArtifactError(f"tensor '{name}.{part}' is missing from the weight files")
            if (info.dtype, info.shape) != (dtype, shape):
                raise ArtifactError(
                    f"tensor '{name}.{part}' is {info.dtype} {list(info.shape)}, the config asks "
                    f"for {dtype} {list(shape)}"
                )
    found = {name.removeprefix(BASE_PREFIX) for name in stored}
    for name in model.state_dict():
        short = name.removeprefix(BASE_PREFIX)
        ours = short.startswith(("embed_tokens.", "layers.", "norm.", "lm_head."))
        if ours and short not in found and name not in model.all_tied_weights_keys:
            raise ArtifactError(f"tensor {name!r} is missing from the weight files")


def check_loaded(model: nn.Module) -> None:
    """Check the values of all quantized weights that are in memory.

    Raises:
        ArtifactError: a code is out of range, or a codebook or scale is not finite.
    """
    for path, module in model.named_modules():
        if isinstance(module, PQWeight) and module.device.type != "meta":
            parts = {name: value.detach() for name, value in module.state_dict().items()}
            try:
                PQTensor.from_parts(module.partition, torch.float32, parts)
            except ArtifactError as error:
                raise ArtifactError(f"{path}: {error}") from None
