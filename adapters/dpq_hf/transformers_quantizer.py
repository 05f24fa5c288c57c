"""The quantizer of transformers 5 that dpq's adapters subclass, from config to loaded model.

The modules are replaced while the model is on the meta device; parameter names then equal the
stored names, so the loader needs no conversion. It keeps the stored dtypes of codebooks and scales
because the parameters that wait for them have these dtypes, whatever ``dtype`` is asked for.
"""

from __future__ import annotations

# Only quantizer modules import this one, when transformers is imported, so it may do so: TID253.
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers.activations import ACT2FN  # noqa: TID253
from transformers.quantizers.auto import (  # noqa: TID253
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoHfQuantizer,
)
from transformers.quantizers.base import HfQuantizer  # noqa: TID253
from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: TID253

from dpq_core.errors import ArtifactError, SpecError
from dpq_core.planning.policy import TensorPolicy
from dpq_core.runtime import PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_hf import conv1d
from dpq_hf.activation_mark import ActivationMark
from dpq_hf.assembled_weights import AssembledWeights
from dpq_hf.checkpoint_names import CheckpointNames
from dpq_hf.library_methods import accept_dicts
from dpq_hf.loading_hooks import LoadingHooks
from dpq_hf.quantize_loaded import quantize_loaded
from dpq_hf.saved_state import forget_dense, stored_state
from dpq_hf.stored_config import DtypeConfig
from dpq_hf.tied_heads import retie_dense_head, tie_by_name, tie_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersConfig(DtypeConfig, QuantizationConfigMixin):
    """``quantization_config`` of a model of transformers.

    Attributes:
        method: the ``quant_method`` of the adapter.
    """

    method: ClassVar[str]

    def __init__(self, *, quant_method: str = "", **values: Any) -> None:
        """Take over the values of a ``config.json``, or ``bits`` alone."""
        super().__init__(**values)
        self.quant_method = quant_method or self.method  # type: ignore[assignment]  # their enum


class TransformersQuantizer(LoadingHooks, HfQuantizer):
    """Replaces Linear and Embedding modules by quantized ones before the weights are read.

    Attributes:
        mark: of the activations in the adapter's artifacts.
        policy: which tensors of a dense model are quantized while it is loaded; None where the
            adapter loads artifacts only.
        linear_conv1ds: paths of the modules that were Conv1D, and have the weights of a Linear.
    """

    mark: ClassVar[ActivationMark]
    policy: ClassVar[TensorPolicy | None] = None
    linear_conv1ds: Sequence[str] = ()
    quantization_config: TransformersConfig

    def validate_environment(self, *arguments: Any, **options: Any) -> None:
        """Refuse what would fail later, before the model is made.

        Raises:
            SpecError: weights are to stay on the disk, or a dense model cannot be quantized.
        """
        super().validate_environment(*arguments, **options)
        self.check_wish(pre_quantized=self.pre_quantized)
        if not self.pre_quantized and self.policy is None:
            raise SpecError("this model is not quantized: use `dpq compress`")

    def update_attn_implementation(self, config: Any) -> Any:
        """Take the mark off the attention, and give a model without a dtype the stored one.

        No other hook sees its config earlier.

        The library would take the dtype of the first stored tensor, which is a float16 codebook.
        """
        self.mark.hide_attention(config)
        if config.dtype is None and self.quantization_config.dtype is not None:
            config.dtype = getattr(torch, self.quantization_config.dtype)
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        """Replace the modules of an artifact's model, which is on the meta device.

        Raises:
            ArtifactError: something stored is damaged, missing or of another size.
        """
        self.names = CheckpointNames(model)
        self.linear_conv1ds = [
            place.parameter.removesuffix(".weight")
            for place in map(self.names.place, self.quantization_config.transposed)
            if place is not None and place.is_whole
        ]
        for path in self.linear_conv1ds:
            conv1d.to_linear(model, path)
        joined: dict[str, QuantSpec] = {}
        for name, spec in self.quantization_config.spec_of().items():
            place = self.names.place(name)
            if place is None or (place.is_whole and not place.parameter.endswith(".weight")):
                if not _is_foreign_head(model, name):
                    raise ArtifactError(
                        f"quantization_config names {name!r}, which the model does not have"
                    )
            elif place.is_whole:
                path = place.parameter.removesuffix(".weight")
                self.quantized_weights[name] = swap.swap_in(
                    model, path, spec, decoded=reads_weight(model, path)
                )
            else:
                joined[name] = spec
        files = [Path(file) for file in checkpoint_files or () if self.pre_quantized]
        config = self.quantization_config
        self.assembled = AssembledWeights(
            self.names, joined, config.shapes, config.transposed, files
        )
        self.assembled.take_out(model)
        finish_replacement(model)
        if files:
            self.check_stored(model, files)

    def update_weight_conversions(self, weight_conversions: list[Any], *_: Any) -> list[Any]:
        """Hide the tensors that the library would join or split before they are decoded."""
        return self.assembled.hide(weight_conversions)

    def check_stored(self, model: PreTrainedModel, files: list[Path]) -> None:
        """Compare the headers of the weight files with the model, before anything is read.

        Raises:
            ArtifactError: a file is unreadable, or a part is missing or of another shape or dtype.
        """
        swap.check_files(self.quantized_weights, files)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Quantize what is dense, check what is not, and freeze all.

        Raises:
            ArtifactError: a code is out of range, or a codebook is not finite.
            SpecError: a dense weight holds NaN.
        """
        if not self.pre_quantized:
            self._quantize(model)
        self.assembled.put_back(model)
        for name in self.assembled.names:  # they are dense now, and are saved so
            self.quantization_config.forget(name)
        super()._process_model_after_weight_loading(model)
        retie_dense_head(model)

    def _quantize(self, model: PreTrainedModel) -> None:
        """Quantize a dense model, and make its configs those of an artifact."""
        config = self.quantization_config
        assert config.bits is not None
        assert self.policy is not None
        config.dtype = str(model.dtype).removeprefix("torch.")
        self.linear_conv1ds = conv1d.conv1d_paths(model)
        for path in self.linear_conv1ds:
            conv1d.to_linear(model, path)
        config.transposed = [f"{path}.weight" for path in self.linear_conv1ds]
        config.describe(quantize_loaded(model, self.policy, QuantSpec.preset(config.bits)))
        finish_replacement(model)
        self.mark.add_to_config(model.config)

    def is_serializable(self) -> bool:
        """True: ``save_pretrained`` writes the codes and codebooks as they were loaded."""
        return True

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """The state that ``save_pretrained`` writes, after the config is made to fit it."""
        layers = dict(model.named_modules(remove_duplicate=False))
        path_of = {
            name: place.parameter.removesuffix(".weight")
            for name in self.quantization_config.tensors
            if (place := self.names.place(name)) is not None and place.is_whole
        }
        config = self.quantization_config
        forget_dense(config, {name: layers.get(path) for name, path in path_of.items()})
        retie_dense_head(model)
        specs = config.spec_of().items()
        spec_of = {f"{path_of[name]}.weight": spec for name, spec in specs if name in path_of}
        return stored_state(model.state_dict(), spec_of), {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> Any:
        """Make the model dense; the library passes the dtype in its config, maybe by name."""
        chosen = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.make_dense(model, chosen or model.dtype)
        return model

    def make_dense(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Replace every quantized module by a dense one, and take the marks out of the config."""
        swap.swap_out(model, dtype)
        for path in self.linear_conv1ds:
            conv1d.to_conv1d(model, path)
        self.mark.remove_from_config(model.config)
        tie_by_name(model)


def register(config: type[TransformersConfig], quantizer: type[TransformersQuantizer]) -> None:
    """Enter an adapter's quantizer and its marked activations in the tables of transformers."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[config.method] = config
    AUTO_QUANTIZER_MAPPING[config.method] = quantizer
    quantizer.mark.register_in(ACT2FN)
    accept_dicts(AutoHfQuantizer, config)


def reads_weight(model: nn.Module, path: str) -> bool:
    """Whether the class around a layer uses the layer's weight without calling the layer."""
    parent, _, layer = path.rpartition(".")
    kind: Any = type(model.get_submodule(parent))
    return f"self.{layer}.weight" in _source(kind)


@functools.cache
def _source(kind: Any) -> str:
    """The source text of a class; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def _is_foreign_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor is a head that this model lacks: a decoder alone, or one with another head.

    The base model alone is loaded from a model with a head and the other way round.
    """
    alone = model.base_model is model
    inside = name.startswith(f"{model.base_model_prefix}.")
    return name.endswith(_HEADS) or (alone and not inside)


_HEADS = ("lm_head.weight", "embed_out.weight")
"""Ends of the names of language-model heads."""


def finish_replacement(model: PreTrainedModel) -> None:
    """Tie the head and keep the model's dtype readable, once modules have been replaced."""
    tie_head(model)
    _dense_parameter_first(model)


def _dense_parameter_first(model: PreTrainedModel) -> None:
    """Move children so that the first parameter of the model is a dense one.

    transformers reads the dtype of a model from its first parameter, and writes it to the config on
    saving; that must be the dtype of the activations, not of a codebook.
    """
    base = model.base_model
    quantized = {id(p) for m in base.modules() if isinstance(m, PQWeight) for p in m.parameters()}
    if not quantized:
        return
    paths = [n for n, p in base.named_parameters() if id(p) not in quantized and _movable(base, n)]
    if not paths:
        return
    parent: nn.Module = base
    for child in min(paths, key=lambda path: path.count(".")).split(".")[:-1]:
        for name in [name for name in parent._modules if name != child]:
            parent._modules[name] = parent._modules.pop(name)
        parent = parent.get_submodule(child)


def _movable(base: nn.Module, path: str) -> bool:
    """Whether a parameter can come first without changing the order of a list of modules."""
    parent = base
    for child in path.split(".")[:-1]:
        ordered = isinstance(parent, nn.ModuleList | nn.Sequential)
        if ordered and child != next(iter(parent._modules)):
            return False
        parent = parent.get_submodule(child)
    return True
