"""Quantization of a loaded model in place, for ``quantization_config=DPQConfig(bits=2)``.

The whole dense model is in memory; `dpq compress` needs its largest tensor.
"""

from __future__ import annotations

from torch import Tensor, nn

from dpq_core.errors import SpecError
from dpq_core.methods.quantize import quantize
from dpq_core.planning.plan import make_plan
from dpq_core.planning.policy import TensorPolicy
from dpq_core.runtime import PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo


class LoadedModel(Checkpoint):
    """The parameters of a model in memory as a checkpoint; a shared parameter appears once."""

    def __init__(self, model: nn.Module) -> None:
        """List the parameters of ``model``."""
        self.model = model
        self.source, self.side_files, self.fingerprint = type(model).__name__, {}, ""
        self.tensors = {
            name: TensorInfo(tuple(parameter.shape), parameter.dtype)
            for name, parameter in model.named_parameters()
        }

    def read(self, name: str) -> Tensor:
        """The value of a parameter, not copied."""
        return self.model.get_parameter(name).detach()


def quantize_loaded(
    model: nn.Module, policy: TensorPolicy, spec: QuantSpec
) -> dict[str, QuantSpec]:
    """Replace every module that `dpq compress` would compress, with the same codes.

    Hidden units keep their order: a spec that would store them in another order is used without
    that.

    Args:
        model: dense and in memory, changed in place.
        policy: which tensors are quantized, and which need other settings.
        spec: of all other tensors.

    Returns:
        Name of every quantized weight -> its spec.

    Raises:
        SpecError: a weight is not in memory or holds NaN, or the spec does not fit it.
    """
    loaded = LoadedModel(model)
    spec_of: dict[str, QuantSpec] = {}
    weights: dict[str, PQWeight] = {}
    for tensor in make_plan(loaded, policy, spec):
        own_spec = tensor.standalone_spec
        if own_spec is None or tensor.partition is None:
            continue
        dense = loaded.read(tensor.name)
        if dense.device.type == "meta":
            raise SpecError(
                f"{tensor.name!r} is offloaded, but a dense model is quantized in memory: leave "
                "out device_map, or compress the model first with `dpq compress`"
            )
        pq = quantize(dense, tensor.partition, own_spec, tensor.name).pq
        weight = swap.swap_in(model, tensor.name.removesuffix(".weight"), own_spec)
        weight.load_state_dict(pq.parts())
        spec_of[tensor.name], weights[tensor.name] = own_spec, weight
    decoded = swap.decode_pending(model)
    return {name: spec for name, spec in spec_of.items() if weights[name] not in decoded}
