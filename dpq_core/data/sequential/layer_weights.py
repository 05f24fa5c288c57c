"""LayerWeights: the weights of the layers in the model, original first and quantized later."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import Quantizer
from dpq_core.data.sequential.segments import Segment
from dpq_core.data.sequential.targets import TargetWeight
from dpq_core.data.streamed_blocks import StreamedBlocks
from dpq_core.data.task import CalibrationTask
from dpq_core.errors import ArtifactError
from dpq_core.tensor.pq_tensor import PQTensor


class LayerWeights:
    """The weights of the layers in the model, each the decoded one once it is quantized.

    Where blocks are read as they run, a finished block gets its decoded weights from the store
    whenever it is read again.

    Attributes:
        modules: path of a layer -> its module.
    """

    def __init__(
        self,
        task: CalibrationTask,
        targets: Mapping[str, TargetWeight],
        quantizer: Quantizer,
        store: BlockStore,
    ) -> None:
        """Find the modules of the layers.

        Args:
            task: its student has the layers.
            targets: path of a layer -> the weight to be quantized.
            quantizer: restores finished tensors.
            store: where these are.
        """
        model = task.student
        self.modules = {path: model.get_submodule(path) for path in targets}
        self._targets, self._quantizer, self._store = targets, quantizer, store
        self._streamed = task.streamed or StreamedBlocks(model, {}, lambda _: {})

    def __getitem__(self, path: str) -> Tensor:
        """The weight of a layer as it is now, in memory."""
        weight = self.modules[path].weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def install(self, path: str, pq: PQTensor) -> None:
        """Give a layer the decoded weight, as it will be stored."""
        weight = self[path]
        weight.copy_(pq.decode(weight.dtype))

    def hold(self, segment: Segment) -> AbstractContextManager[None]:
        """Within the ``with`` block, a segment's weights stay in memory once they are read."""
        return self._streamed.hold(segment.block)

    def load(self, segment: Segment) -> None:
        """Read the weights of a segment into memory, unless they are there."""
        self._streamed.load(segment.block)

    def keep_finished(self, segment: Segment) -> None:
        """Decode the weights of a finished segment whenever its block is read from now on."""
        decode = functools.partial(self._decode, segment)
        self._streamed.change_when_loaded(segment.block, decode)

    def restore(self, segment: Segment) -> None:
        """Put the weights of a segment that an earlier run has finished in place.

        Raises:
            ArtifactError: the store cannot be read, or has another tensor.
        """
        names = {self._targets[path].name for path in segment.paths}
        for name in self._store.segments[segment.name]:
            if name not in names:
                raise ArtifactError(
                    f"{self._store.folder}: {segment.name!r} has another tensor {name!r} than this "
                    "run; delete it to start over"
                )
        if not all(self[path].is_meta for path in segment.paths):
            self.load(segment)
            self._decode(segment)
        self.keep_finished(segment)

    def _decode(self, segment: Segment) -> None:
        paths = {self._targets[path].name: path for path in segment.paths}
        for name, tensor in self._store.restored(segment.name):
            self.install(paths[name], self._quantizer.restore(name, tensor.parts))
