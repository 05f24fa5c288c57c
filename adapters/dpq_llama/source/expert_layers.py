"""Experts with a Linear for each matrix that is compressed, in place of one parameter for all.

Each of these layers sees the tokens that are routed to its expert, so that statistics of its inputs
can be collected as for every other layer. The outputs are those of transformers' own classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpq_core.data.statistics.layer_inputs import RoutedLinear
from dpq_core.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dpq_hf.checkpoint_names import Assembly
    from dpq_llama.source.checkpoint import LlamaCheckpoint

_BATCHED = "Llama4TextExperts"
"""Name of the class whose experts get all tokens, those of other experts as zeros."""


def projections_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the two parameters of a module of experts, in the order of their use.

    Empty for a module that is none, or whose way of routing is not known.
    """
    gated = getattr(module, "has_gate", True if type(module).__name__ == _BATCHED else None)
    if gated is None:
        return ()
    names = ("gate_up_proj" if gated else "up_proj", "down_proj")
    weights = [getattr(module, name, None) for name in names]
    return names if all(isinstance(w, Tensor) and w.ndim == 3 for w in weights) else ()


def matrices_of_experts(
    checkpoint: LlamaCheckpoint, assembly: Assembly
) -> list[list[tuple[str, int]]] | None:
    """The tensors that make up the matrix ``[outputs, inputs]`` of each expert.

    They are found by joining small tensors that tell where every value goes.

    Returns:
        For each expert the name of every tensor and its number of outputs, from the first output to
        the last; None where a tensor is not some outputs with all their inputs.
    """
    shapes = {name: checkpoint.tensors[name].shape for name in assembly.places}
    if any(len(shape) != 2 for shape in shapes.values()):
        return None
    rows, cols = (math.gcd(*(shape[axis] for shape in shapes.values())) for axis in (0, 1))
    small: dict[str, Tensor] = {}
    name_of: dict[int, str] = {}
    used = 0
    for name, shape in shapes.items():
        size = (2 * shape[0] // rows, 3 * shape[1] // cols)
        small[name] = torch.arange(used, used + math.prod(size)).view(size)
        name_of[used] = name
        used += math.prod(size)
    try:
        made = assembly.join(checkpoint.model, small.__getitem__, checkpoint.transposed)
    except SourceError:
        return None
    stack = made[assembly.parameter]
    if len(made) != 1 or stack.ndim != 3:
        return None
    if checkpoint.transposed & shapes.keys():
        stack = stack.mT
    experts = [_names_in(matrix, small, name_of) for matrix in stack]
    if not all(experts):
        return None
    return [[(name, shapes[name][0]) for name in names] for names in experts]


def _names_in(
    matrix: Tensor, small: Mapping[str, Tensor], name_of: Mapping[int, str]
) -> tuple[str, ...]:
    """The tensors one above the other that a matrix consists of; empty where it is none of such."""
    names: list[str] = []
    first = 0
    while first < len(matrix):
        name = name_of.get(int(matrix[first, 0]))
        part = None if name is None else small[name]
        if name is None or part is None or not torch.equal(matrix[first : first + len(part)], part):
            return ()
        names.append(name)
        first += len(part)
    return tuple(names)


def split_experts(
    model: PreTrainedModel, path: str, matrices: Mapping[str, list[list[tuple[str, int]]]]
) -> Iterator[tuple[str, str]]:
    """Give a module of experts a Linear for each of its matrices.

    Args:
        model: changed in place; its weights may be on the meta device.
        path: path of the module, one of which ``projections_of`` knows the parameters.
        matrices: name of each parameter -> what ``matrices_of_experts`` returned.

    Yields:
        The name of the weight of a new layer, and the tensor of the checkpoint that it is.
    """
    module = model.get_submodule(path)
    transposed = getattr(module, "is_transposed", type(module).__name__ == _BATCHED)
    for leaf, experts in matrices.items():
        stack: Tensor = getattr(module, leaf).detach()
        layers = nn.ModuleList()
        for number, (parts, weight) in enumerate(zip(experts, stack, strict=True)):
            layers.append(nn.ModuleList())
            sizes = [size for _, size in parts]
            pieces = torch.split(weight.T if transposed else weight, sizes)
            for place, ((tensor, _), piece) in enumerate(zip(parts, pieces, strict=True)):
                layers[number].append(_linear(piece))  # type: ignore[operator]
                yield f"{path}.{leaf}.{number}.{place}.weight", tensor
        module.__dict__.pop(leaf, None)
        module._parameters.pop(leaf, None)
        setattr(module, leaf, layers)
    kind: Any = type(module)
    forward = _Batched if kind.__name__ == _BATCHED else _Routed
    module.__class__ = type(kind.__name__, (forward, kind), {"__module__": kind.__module__})


def _linear(weight: Tensor) -> RoutedLinear:
    rows, cols = weight.shape
    linear = RoutedLinear(cols, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


def _outputs(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The outputs of layers with the same input, one beside the other."""
    return torch.cat([layer(x) for layer in layers], dim=-1)


class _Routed(nn.Module):
    """Experts whose tokens are given by number; every expert runs, if only with no token."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Hidden states ``[tokens, hidden]``, experts of each token and their weights."""
        module: Any = self
        first = module.gate_up_proj if module.has_gate else module.up_proj
        output = torch.zeros_like(hidden_states)
        for expert in range(len(first)):
            token, place = torch.where(top_k_index == expert)
            values = _outputs(first[expert], hidden_states[token])
            if module.has_bias:
                biases = "gate_up_proj_bias" if module.has_gate else "up_proj_bias"
                values = values + getattr(module, biases)[expert]
            values = module._apply_gate(values) if module.has_gate else module.act_fn(values)
            values = _outputs(module.down_proj[expert], values)
            if module.has_bias:
                values = values + module.down_proj_bias[expert]
            if module.has_post_expert_norm:
                values = module.post_expert_norm(values)
            values = values * top_k_weights[token, place, None]
            output.index_add_(0, token, values.to(output.dtype))
        return output


class _Batched(nn.Module):
    """Experts that each get all tokens, those of other experts as zeros, which are left out."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states ``[experts * tokens, hidden]``, each already times its router's score."""
        module: Any = self
        output = torch.zeros_like(hidden_states)
        tokens = len(hidden_states) // len(module.down_proj)
        for expert, rows in enumerate(torch.split(hidden_states, tokens)):
            token = rows.any(dim=-1).nonzero()[:, 0]
            gate, up = _outputs(module.gate_up_proj[expert], rows[token]).chunk(2, dim=-1)
            values = _outputs(module.down_proj[expert], up * module.act_fn(gate))
            output.index_add_(0, expert * tokens + token, values)
        return output
