"""An uncompressed model whose decoder blocks are read from its checkpoint as they run.

Everything outside the blocks is loaded by transformers, and so are the blocks' buffers. The weights
of the blocks are read by dpq, with the same values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpq_core.data.sequential.targets import within
from dpq_core.data.streamed_blocks import StreamedBlocks
from dpq_hf.checkpoint_names import Assembly
from dpq_llama.families.layers import blocks_of
from dpq_llama.source.architecture import loadable_class
from dpq_llama.source.checkpoint import CONFIG, LlamaCheckpoint
from dpq_llama.source.loading import load_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_streamed(
    checkpoint: LlamaCheckpoint, device: torch.device, dtype: str, *, head: bool
) -> tuple[PreTrainedModel, StreamedBlocks]:
    """An uncompressed model, and its decoder blocks, whose weights are not in memory yet.

    Args:
        checkpoint: the model's.
        device: where the model runs.
        dtype: dtype of its weights.
        head: with the language-model head, or the decoder alone.
    """
    kind = loadable_class(checkpoint.config, checkpoint.folder / CONFIG, head=head)
    reader = _BlockReader(checkpoint)

    def init(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        kind.__init__(model, *args, **kwargs)
        reader.take_out(model)

    hollow = type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})
    model = load_class(hollow, checkpoint.folder, device, dtype)
    model.__class__ = kind
    reader.choose_dtypes(model, device)
    return model, StreamedBlocks(model, reader.weights, reader.read)


class _BlockReader:
    """Reads the weights of decoder blocks from a checkpoint.

    Attributes:
        weights: path of a block -> name of a parameter in the model -> its shape, on the meta
            device.
    """

    def __init__(self, checkpoint: LlamaCheckpoint) -> None:
        """Find the tensors that each parameter is made of; nothing is read."""
        self.weights: dict[str, dict[str, nn.Parameter]] = {}
        self._checkpoint = checkpoint
        self._prefix = f"{checkpoint.model.base_model_prefix}."
        self._tensors = checkpoint.stored_names()
        self._assemblies: dict[str, Assembly] = {}
        for assembly in checkpoint.layers.names.assemblies(checkpoint.tensors).values():
            made = assembly.join(checkpoint.model, self._empty)
            self._assemblies |= dict.fromkeys(made, assembly)
        self._device = torch.device("cpu")

    def take_out(self, model: PreTrainedModel) -> None:
        """Take the weights out of the blocks of a model on the meta device, before it is loaded.

        What other parts of the model share stays. The library has neither to read the others, which
        are no parameters meanwhile, nor to fill them with random values.
        """
        named = list(model.named_parameters(remove_duplicate=False))
        uses = Counter(id(parameter) for _, parameter in named)
        tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
        for path in blocks_of(model):
            weights = self.weights[path] = {}
            for name, parameter in named:
                shared = uses[id(parameter)] > 1 or name in tied
                if not within(name, path) or shared or self._stored_name(name) is None:
                    continue
                owner, _, leaf = name.rpartition(".")
                module = model.get_submodule(owner)
                weights[name] = parameter
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
                del module._parameters[leaf]
                module.__dict__[leaf] = parameter
        lists = {path.rpartition(".")[0].rpartition(".")[2] for path in self.weights}
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        patterns = {rf"(^|\.){re.escape(name)}\.\d+\." for name in lists}
        model._keys_to_ignore_on_load_unexpected = {*ignored, *patterns}

    def choose_dtypes(self, model: PreTrainedModel, device: torch.device) -> None:
        """Give the weights the device and the dtypes that the library would give them."""
        self._device = device
        strict = model._get_dtype_plan(model.dtype)
        for weights in self.weights.values():
            for name in weights:
                exact = any(f".{part}." in f".{name}." for part in strict)
                dtype = torch.float32 if exact else model.dtype
                empty = torch.empty(weights[name].shape, dtype=dtype, device="meta")
                weights[name] = nn.Parameter(empty, requires_grad=False)

    def read(self, path: str) -> Mapping[str, Tensor]:
        """The weights of a block, by their names in the model."""
        values: dict[str, Tensor] = {}
        joined: dict[str, Tensor] = {}
        for name, empty in self.weights[path].items():
            stored = self._stored_name(name)
            assert stored is not None  # take_out() has seen to it
            if stored in self._tensors:
                value = self._checkpoint.read(self._tensors[stored])
            else:
                if stored not in joined:
                    joined |= self._assemblies[stored].join(
                        self._checkpoint.model, self._checkpoint.read
                    )
                value = joined.pop(stored)
            values[name] = value.to(self._device, empty.dtype).contiguous()
        return values

    def _stored_name(self, name: str) -> str | None:
        """Name in the checkpoint's own class of a parameter of the model, which may lack a head."""
        for other in (name, f"{self._prefix}{name}", name.removeprefix(self._prefix)):
            if other in self._tensors or other in self._assemblies:
                return other
        return None

    def _empty(self, name: str) -> Tensor:
        return torch.empty(self._checkpoint.tensors[name].shape, device="meta")
