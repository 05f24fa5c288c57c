"""PQWeight: the stored parts of one quantized weight, as a module that decodes on demand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpq_core.device import is_traced
from dpq_core.runtime import operators
from dpq_core.runtime.decoding import Decodable
from dpq_core.runtime.stand_in import StandIn
from dpq_core.spec import QuantSpec
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.packing import UnpackedCache
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import PQTensor, expected_parts, stored_values


class PQWeight(Decodable, StandIn):
    """A quantized weight in place of the dense ``weight`` parameter of a module.

    Its state dict holds exactly the stored parts (``codes``, ``codebooks``, ``row_scale``, ...), so
    the names in a model equal the names in an artifact. Integers are buffers; codebooks, pools and
    scales are trainable (see ``make_trainable``). No forward pass changes any of them.
    """

    def __init__(
        self,
        partition: Partition,
        spec: QuantSpec,
        *,
        device: torch.device | str | None = None,
        dense_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate uninitialised parts, which a checkpoint loader fills."""
        super().__init__(dense_dtype)
        self.partition = partition
        self.spec = spec
        for name, (dtype, shape) in expected_parts(partition, spec).items():
            empty = torch.empty(shape, dtype=dtype, device=device)
            if dtype.is_floating_point:
                self.register_parameter(name, nn.Parameter(empty))
            else:
                self.register_buffer(name, empty)
        self._unpacked = UnpackedCache()
        self._kind = operators.kind_of(partition, spec)

    @classmethod
    def from_pq(cls, pq: PQTensor) -> PQWeight:
        """A module that holds the parts of ``pq`` (shared, not copied)."""
        weight = cls(pq.partition, pq.spec, device="meta", dense_dtype=pq.dtype)
        weight.load_state_dict(pq.parts(), assign=True)
        return weight

    def parts(self) -> dict[str, Tensor]:
        """The current parts by name."""
        return {**self._parameters, **self._buffers}  # type: ignore[dict-item]  # none is None

    def operands(self) -> tuple[list[Tensor], str, str]:
        """The parts, their names and the kind of this weight, as the operators take them."""
        parts = self.parts()
        return list(parts.values()), ",".join(parts), self._kind

    def needs_operator(self) -> bool:
        """Whether torch traces what is done with the weight, and no part of it is trained."""
        return is_traced() and not self.is_trained()

    def pq(self, dtype: torch.dtype = torch.float32) -> PQTensor:
        """The parts as they are stored, rounded to the dtypes of the spec and checked.

        Args:
            dtype: dtype of the dense weight.

        Raises:
            ArtifactError: a value is not finite in its stored dtype.
        """
        parts = {name: part.detach() for name, part in self.parts().items()}
        learned = not self.partition.row_bits
        if learned and "codebook_scale" not in parts and self.spec.codebook_dtype == "int8":
            name = "pool" if self.partition.pool else "codebooks"
            parts[name], parts["codebook_scale"] = to_int8(parts[name])
        expected = expected_parts(self.partition, self.spec)
        parts = {name: part.to(expected[name][0]) for name, part in parts.items()}
        return PQTensor.from_parts(self.partition, self.spec, dtype, parts)

    def make_trainable(self) -> None:
        """Make codebooks (or pool) and scales float32 parameters that require gradients.

        Integer codebooks become floats; ``pq`` rounds them again.
        """
        if self.spec.codebook_dtype == "int8" and "codebook_scale" in self._parameters:
            name = "pool" if self.partition.pool else "codebooks"
            values = stored_values(self.partition, self.parts()).detach()
            delattr(self, name)
            delattr(self, "codebook_scale")
            self.register_parameter(name, nn.Parameter(values))
        for name, part in self._parameters.items():
            if part is not None:
                setattr(self, name, nn.Parameter(part.detach().float()))

    def sizes(self) -> str:
        """Sizes of codes and codebooks in one line, which ``print(model)`` shows."""
        p = self.partition
        if p.row_bits:
            return f"trellis, {p.row_bits / p.cols:.3g} bits, K={p.K}"
        stages = f"stages={p.stages}, " if p.stages > 1 else ""
        pool = f", pool={p.pool}" if p.pool else ""
        return f"{stages}d={p.d}, K={p.K}, codebooks={p.codebooks}{pool}"

    def forward(self, use: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Call ``use(*inputs)`` while the parts are on their device.

        Libraries that offload weights (accelerate) load the tensors of a module for its forward
        pass only, so every caller that decodes this weight does it in here.
        """
        return use(*inputs)

    @property
    def is_constant(self) -> bool:
        """Whether no gradient goes to what the weight is decoded from."""
        return not self.requires_grad and "core_chunks" not in vars(self)

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        return self.codes.device
