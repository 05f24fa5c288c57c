"""An uncompressed model whose decoder blocks are read from its checkpoint as they run.

Everything outside the blocks is loaded by transformers, and so are the blocks' buffers. The weights
of the blocks are read by dpq, with the same values. Conv1D and fused experts become Linear modules,
one for each matrix that is compressed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpq_core.data.sequential.targets import within
from dpq_core.data.streamed_blocks import StreamedBlocks
from dpq_hf import conv1d
from dpq_hf.checkpoint_names import Assembly
from dpq_llama.families.layers import blocks_of
from dpq_llama.source.architecture import loadable_class
from dpq_llama.source.checkpoint import CONFIG, LlamaCheckpoint
from dpq_llama.source.expert_layers import matrices_of_experts, projections_of, split_experts
from dpq_llama.source.loading import load_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class StreamedModel:
    """An uncompressed model whose decoder blocks are read as they run.

    Attributes:
        model: the model.
        blocks: its decoder blocks, whose weights are not in memory yet.
        tensors: name of a parameter of the model, or of the class of its checkpoint -> the tensor
            of the checkpoint that it is, transposed or not.
    """

    model: PreTrainedModel
    blocks: StreamedBlocks
    tensors: Mapping[str, str]


def load_streamed(
    checkpoint: LlamaCheckpoint, device: torch.device, dtype: str, *, head: bool
) -> StreamedModel:
    """Load an uncompressed model, all but the weights of its decoder blocks.

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
    reader.use_linear_modules(model)
    blocks = StreamedBlocks(model, reader.weights, reader.read)
    return StreamedModel(model=model, blocks=blocks, tensors=reader.tensors)


class _BlockReader:
    """Reads the weights of decoder blocks from a checkpoint.

    Attributes:
        weights: path of a block -> name of a parameter in the model -> its shape, on the meta
            device.
        tensors: as in ``StreamedModel``.
    """

    def __init__(self, checkpoint: LlamaCheckpoint) -> None:
        """Find the tensors that each parameter is made of; nothing is read."""
        self.weights: dict[str, dict[str, nn.Parameter]] = {}
        self._checkpoint = checkpoint
        self._prefix = f"{checkpoint.model.base_model_prefix}."
        self.tensors = checkpoint.stored_names()
        self._linear: set[str] = set()  # parameters of Linear modules that were Conv1D or experts
        self._assemblies: dict[str, Assembly] = {}
        for assembly in checkpoint.layers.names.assemblies(checkpoint.tensors).values():
            made = assembly.join(checkpoint.model, self._empty, checkpoint.transposed)
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

    def use_linear_modules(self, model: PreTrainedModel) -> None:
        """Replace Conv1D, and experts whose matrices are known, by Linear modules."""
        for path in conv1d.conv1d_paths(model):
            conv1d.to_linear(model, path)
            weight = f"{path}.weight"
            self._replace(weight, {weight: model.get_parameter(weight)})
        for path, module in list(model.named_modules()):
            matrices = {leaf: self._matrices(f"{path}.{leaf}") for leaf in projections_of(module)}
            known = {leaf: experts for leaf, experts in matrices.items() if experts is not None}
            if not matrices or len(known) < len(matrices):
                continue
            layers = dict(split_experts(model, path, known))
            self.tensors |= layers
            for leaf in known:
                prefix = f"{path}.{leaf}"
                self._replace(
                    prefix,
                    {n: model.get_parameter(n) for n in layers if n.startswith(f"{prefix}.")},
                )

    def _matrices(self, name: str) -> list[list[tuple[str, int]]] | None:
        stored = self._stored_name(name)
        assembly = None if stored is None else self._assemblies.get(stored)
        return None if assembly is None else matrices_of_experts(self._checkpoint, assembly)

    def _replace(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Read other parameters in place of one, if that is read with its block."""
        self._linear |= parameters.keys()
        for weights in self.weights.values():
            old = weights.pop(name, None)
            if old is None:
                continue
            for new, parameter in parameters.items():
                empty = torch.empty(parameter.shape, dtype=old.dtype, device="meta")
                weights[new] = nn.Parameter(empty, requires_grad=False)

    def read(self, path: str) -> Mapping[str, Tensor]:
        """The weights of a block, by their names in the model."""
        values: dict[str, Tensor] = {}
        joined: dict[str, Tensor] = {}
        for name, empty in self.weights[path].items():
            stored = self._stored_name(name)
            assert stored is not None  # take_out() has seen to it
            if name in self._linear:
                value = self._checkpoint.read(self.tensors[stored])
            elif stored in self.tensors:
                value = self._checkpoint.read_stored(self.tensors[stored])
            else:
                if stored not in joined:
                    joined |= self._assemblies[stored].join(
                        self._checkpoint.model, self._checkpoint.read, self._checkpoint.transposed
                    )
                value = joined.pop(stored)
            values[name] = value.to(self._device, empty.dtype).contiguous()
        return values

    def _stored_name(self, name: str) -> str | None:
        """Name in the checkpoint's own class of a parameter of the model, which may lack a head."""
        for other in (name, f"{self._prefix}{name}", name.removeprefix(self._prefix)):
            if other in self.tensors or other in self._assemblies:
                return other
        return None

    def _empty(self, name: str) -> Tensor:
        return torch.empty(self._checkpoint.tensors[name].shape, device="meta")
