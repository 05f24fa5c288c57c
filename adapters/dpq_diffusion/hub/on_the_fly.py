"""Quantizes a loaded model in place: ``from_pretrained(quantization_config=DPQConfig(bits=2))``.

For trying things out. The whole dense model is in memory; `dpq compress` needs its largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dpq_core.methods.quantize import quantize
from dpq_core.planning.plan import make_plan
from dpq_core.runtime import PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_diffusion.source.checkpoint import copied_modules


@dataclass
class _Loaded(Checkpoint):
    """The parameters of a model; those of a shared module appear once."""

    model: nn.Module

    def __post_init__(self) -> None:
        self.source, self.side_files, self.fingerprint = type(self.model).__name__, {}, ""
        self.tensors = {
            name: TensorInfo(tuple(p.shape), p.dtype) for name, p in self.model.named_parameters()
        }

    def read(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()


def quantize_model(
    model: nn.Module, spec: QuantSpec
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Replace every module that `dpq compress` would compress, with the same result.

    Returns:
        The spec of every quantized weight, and path of a copied module -> path of its original.

    Raises:
        SpecError: a weight holds NaN, or the spec does not fit it.
    """
    from dpq_diffusion.adapter import DiffusionAdapter

    shared = copied_modules(_Loaded(model))
    for copy, original in shared.items():
        swap.replace(model, copy, model.get_submodule(original))
    loaded = _Loaded(model)
    specs: dict[str, QuantSpec] = {}
    waiting: dict[str, PQWeight] = {}
    for tensor in make_plan(loaded, DiffusionAdapter(), spec):
        own = tensor.own_spec  # a loaded model keeps the order of its hidden units
        if own is None or tensor.partition is None:
            continue
        pq = quantize(loaded.read(tensor.name), tensor.partition, own, tensor.name).pq
        weight = swap.swap_in(model, tensor.name.removesuffix(".weight"), own)
        weight.load_state_dict(pq.parts())
        specs[tensor.name], waiting[tensor.name] = own, weight
    dense = swap.settle(model)
    return {name: spec for name, spec in specs.items() if waiting[name] not in dense}, shared
