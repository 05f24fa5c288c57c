"""Plan: the spec of each tensor of a model, and exactly how many bytes that takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_core.tensor.hidden_axes import HiddenAxis
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import Part, expected_parts


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """The spec of one tensor, or that it is kept, and the bytes that follow.

    Attributes:
        name: name of the tensor.
        info: shape and dtype of the tensor.
        spec: spec by which it is stored; None when it is kept.
        partition: all sizes of the stored tensor; None when it is kept.
        axis: the hidden axis that its columns are, where that axis is reordered instead of storing
            a permutation.
    """

    name: str
    info: TensorInfo
    spec: QuantSpec | None = None
    partition: Partition | None = None
    axis: HiddenAxis | None = None

    @property
    def standalone_spec(self) -> QuantSpec | None:
        """The spec of the tensor by itself: ``permute`` in place of a reordered hidden axis."""
        if self.spec is None or self.axis is None:
            return self.spec
        return self.spec.replace(permute=True)

    def with_reordered_axis(self, axis: HiddenAxis | None) -> TensorPlan:
        """The plan with the permutation, if there is one, replaced by a reordered hidden axis."""
        if axis is None or self.spec is None or not self.spec.permute:
            return self
        return replace(self, spec=self.spec.replace(permute=False), axis=axis)

    def stored(self) -> dict[str, Part]:
        """Dtype and shape of every stored tensor, by name (FORMAT.md: ``X.codes`` or ``X``)."""
        if self.spec is None or self.partition is None:
            return {self.name: (self.info.dtype, self.info.shape)}
        parts = expected_parts(self.partition, self.spec)
        return {f"{self.name}.{part}": value for part, value in parts.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that will be stored for the tensor, headers apart."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.stored().values())


@dataclass(frozen=True)
class Plan:
    """The plans of all tensors of a checkpoint, in its order."""

    tensors: tuple[TensorPlan, ...]

    def __iter__(self) -> Iterator[TensorPlan]:
        """The tensors in storage order."""
        return iter(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per weight over the whole model, kept tensors included."""
        return 8 * self.nbytes / sum(t.info.numel for t in self.tensors)
