"""Loading of scenes from ``builtin:NAME``, ``.dpq`` artifacts and other splat files."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch
from torch import Tensor

from dpq_core.artifact import ArtifactFile
from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_gaussian.formats import NATIVE, Loaded, convert, read_scene
from dpq_gaussian.formats.coordinates import turned_origin
from dpq_gaussian.formats.ply_variants import origin_of
from dpq_gaussian.scene import Scene, bounded
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
    """Loads a scene together with what else its file says.

    Infinite opacities and flat scales have finite values then (``scene.bounded``), and positions
    far from 0 are relative to ``Loaded.origin``.
    """
    path = locate(source)
    if path.suffix == ArtifactFile.SUFFIX:
        from dpq_gaussian.codec import SceneFile

        file = SceneFile(path)
        p, given = file.parameters, axes or NATIVE
        return Loaded(
            scene=convert(file.whole(), given, NATIVE),
            format="dpq",
            coordinates=given,
            antialiased=p.antialiased,
            flat=p.flat,
            origin=turned_origin(p.origin, given, NATIVE),
        )
    return _usable(read_scene(path, axes=axes))


def _usable(loaded: Loaded) -> Loaded:
    """The same with finite values where they mean something, and with positions near 0."""
    scene, changes = bounded(loaded.scene)
    notes, origin = [*loaded.notes, *changes], loaded.origin
    if not any(origin):
        origin = origin_of(scene.positions, scene.log_scales)
        if any(origin):
            near = np.empty(scene.positions.shape, np.float32)
            for axis in range(3):
                near[:, axis] = scene.positions[:, axis].astype(np.float64) - origin[axis]
            step = float(np.spacing(np.float32(np.abs(origin).max())))
            scene = dataclasses.replace(scene, positions=near)
            notes.append(
                f"its float32 positions around {max(map(abs, origin)):,.0f} have steps of "
                f"{step:.3g}: what is finer was lost before"
            )
    if any(origin):
        shown = ", ".join(f"{value:,.0f}" for value in origin)
        notes.append(f"positions are kept relative to the origin ({shown})")
    return dataclasses.replace(loaded, scene=scene, origin=origin, notes=tuple(notes))


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
