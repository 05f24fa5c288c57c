"""A scene as a checkpoint: its attributes are the tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_gaussian.loading import load_scene, locate


class SceneCheckpoint(Checkpoint):
    """The attributes of a scene by name; the file stays mapped where its format allows."""

    def __init__(self, source: str) -> None:
        """Open the scene.

        Raises:
            SourceError: there is no such scene, or it cannot be read.
        """
        self.source = source
        self._scene = load_scene(source)
        arrays = self._scene.arrays()
        self.tensors = {k: TensorInfo(tuple(v.shape), torch.float32) for k, v in arrays.items()}
        self.side_files = {}
        stat = locate(source).stat()
        text = f"{len(self._scene)} {self._scene.sh_degree} {stat.st_size} {stat.st_mtime_ns}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def read(self, name: str) -> Tensor:
        """A copy of one attribute.

        Raises:
            SourceError: there is no such attribute.
        """
        if name not in self.tensors:
            raise SourceError(f"{self.source}: there is no attribute {name!r}")
        return torch.tensor(self._scene.arrays()[name])
