"""Layers: which tensors of a decoder-only language model are compressed, asked of its own class.

Compressed are the weights of every ``nn.Linear`` and ``Conv1D`` of the decoder, of its experts, its
token embeddings and its output head. Positional embeddings, routers, norms and biases stay dense,
and so do heads for other tasks and everything in front of the decoder (a vision tower).
"""

from __future__ import annotations

# Only modules that need transformers import this one: TID253.
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D  # noqa: TID253

from dpq_core.tensor.partition import Layout
from dpq_hf.checkpoint_names import CheckpointNames

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUTER_SHARE = 4
"""A Linear called a gate is a router where it has this many times fewer outputs than inputs."""


class DecoderLayers:
    """The layers of a decoder-only language model, found on an instance of its class.

    Attributes:
        names: places of a checkpoint's tensors in the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look at the modules of ``model``, which may be on the meta device."""
        self.names = CheckpointNames(model)
        paths = {module: path for path, module in model.named_modules()}
        decoder = _decoder_path(model)
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._layouts: dict[str, Layout] = {}
        self._embeddings: set[str] = set()
        self._transposed: set[str] = set()
        for module, path in paths.items():
            if module is not head and not _within(path, decoder):
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{leaf}" if path else leaf
                layout = _layout(module, path, leaf, parameter)
                if layout is not None:
                    self._layouts[name] = layout
                    if _is_transposed(module):
                        self._transposed.add(name)
                    if module is head or layout is Layout.EMBEDDING:
                        self._embeddings.add(name)

    def layout_of(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        """The layout of a tensor of the checkpoint as a matrix; None where it stays dense."""
        place = self.names.place(name)
        fits = place is not None and len(shape) == 2 and 0 not in shape
        return self._layouts.get(place.parameter) if place is not None and fits else None

    def is_stack(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor holds the weights of all experts of a layer, ``[E, R, C]``."""
        place = self.names.place(name)
        return (
            place is not None
            and place.parameter in self._layouts
            and len(shape) == 3
            and 0 not in shape
        )

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix of the checkpoint is ``[inputs, outputs]``, as Conv1D has it."""
        place = self.names.place(name)
        return place is not None and place.parameter in self._transposed

    def embeddings_among(self, names: Iterable[str]) -> tuple[str, ...]:
        """The tensors of a checkpoint that are token embeddings or the output head."""
        places = {name: self.names.place(name) for name in names}
        return tuple(
            n for n, place in places.items() if place and place.parameter in self._embeddings
        )


def _within(path: str, parent: str) -> bool:
    return parent == "" or path == parent or path.startswith(f"{parent}.")


def _layout(module: nn.Module, path: str, leaf: str, parameter: nn.Parameter) -> Layout | None:
    """The layout of a parameter as a matrix or as a stack of matrices; None keeps it dense."""
    name = path.rpartition(".")[2]
    if isinstance(module, nn.Embedding):
        return Layout.EMBEDDING if leaf == "weight" and _holds_tokens(module, name) else None
    if isinstance(module, nn.Linear | Conv1D):
        return Layout.LINEAR if leaf == "weight" and not _is_router(parameter, name) else None
    of_experts = "experts" in f"{path} {type(module).__name__}".lower() and "bias" not in leaf
    if of_experts and parameter.ndim == 3 and not isinstance(module, _CONVOLUTIONS):
        return Layout.LINEAR
    return None


def _is_transposed(module: nn.Module) -> bool:
    """Whether the weights of a module are ``[..., inputs, outputs]``."""
    of_class = isinstance(module, Conv1D) or type(module).__name__ == "Llama4TextExperts"
    return of_class or getattr(module, "is_transposed", False) is True


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _holds_tokens(module: nn.Embedding, name: str) -> bool:
    """Whether an embedding is of tokens, not of positions or token types."""
    return not any(word in name for word in ("position", "pos_emb", "wpe", "type", "rotary"))


def _is_router(weight: Tensor, name: str) -> bool:
    """Whether a Linear chooses experts: few weights, on which much depends."""
    few = _ROUTER_SHARE * weight.shape[0] <= weight.shape[1]
    return "router" in name or (name.endswith("gate") and few)


def _decoder_path(model: PreTrainedModel) -> str:
    """Path of the decoder: of the model's text part, or of the model without its head."""
    inner = model.get_decoder()  # type: ignore[no-untyped-call]
    if isinstance(inner, nn.Linear):  # some models call their head so
        inner = model.base_model
    paths = {module: path for path, module in model.named_modules()}
    path: str = paths[inner]
    return path


def blocks_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Paths of the decoder layers of a model, in their order.

    They are the list of modules in the decoder that is as long as the config says, nearest to it.
    """
    decoder = _decoder_path(model)
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _within(path, decoder)
    ]
    if not lists:
        return ()
    count: int = model.config.get_text_config().num_hidden_layers
    path, layers = max(lists, key=lambda found: (len(found[1]) == count, -found[0].count(".")))
    return tuple(f"{path}.{number}" for number in range(len(layers)))
