"""Loading of scenes from ``builtin:NAME``, ``.dpq`` artifacts and other splat files."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dpq_core.artifact import ArtifactFile
from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_gaussian.formats import NATIVE, Loaded, convert, read_scene
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.sources import locate


def load_scene(source: str, *, axes: str | None = None) -> Scene:
    """Loads the Gaussians of any source, in the conventions of ``Scene``.

    Args:
        source: ``builtin:NAME``, a .dpq file, or any file that ``read_scene`` knows.
        axes: the axes of the source, e.g. ``rdf``; None takes its format's own.

    Raises:
        SourceError: there is no such source, or it is damaged or no splat scene.
        ArtifactError: a .dpq file is damaged.
    """
    return load(source, axes=axes).scene


def load(source: str, *, axes: str | None = None) -> Loaded:
    """Loads a scene together with what else its file says."""
    path = locate(source)
    if path.suffix == ArtifactFile.SUFFIX:
        from dpq_gaussian.codec import SceneFile

        file = SceneFile(path)
        scene = convert(file.whole(), axes or NATIVE, NATIVE)
        mip = file.parameters.antialiased
        return Loaded(scene=scene, format="dpq", coordinates=axes or NATIVE, antialiased=mip)
    return read_scene(path, axes=axes)


class SceneCheckpoint(Checkpoint):
    """A scene as a checkpoint whose tensors are its attributes, mapped where possible."""

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
