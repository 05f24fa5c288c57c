"""TensorPolicy: the part of an adapter that decides which tensors are compressed, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout


class TensorPolicy(Protocol):
    """The part of an adapter that a plan needs; see ``dpq_core.plugin.adapter``."""

    @property
    def name(self) -> str:
        """The adapter's name, which the manifest holds."""

    def layouts(self, checkpoint: Checkpoint) -> Mapping[str, Layout]:
        """The layout as a matrix of every tensor that is compressed; the others stay dense."""

    def weights_names(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """The stem of the weight files of each component."""

    def overrides(self, spec: QuantSpec, checkpoint: Checkpoint) -> tuple[Override, ...]:
        """The adapter's rules for sensitive tensors."""

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """The hidden axes whose units can be reordered."""

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """The files to write beside the weights: relative path -> content."""
