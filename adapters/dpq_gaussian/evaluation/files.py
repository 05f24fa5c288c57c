"""The files of an evaluation: their Gaussians, bytes and seconds."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpq_core.run import Progress, Run, silent
from dpq_gaussian.formats import WRITABLE, Loaded, write_scene
from dpq_gaussian.formats.coordinates import turned_like
from dpq_gaussian.formats.loaded import NO_ORIGIN, Origin
from dpq_gaussian.loading import load
from dpq_gaussian.scene import Scene, check_values
from dpq_gaussian.scene.sources import locate

_REPEAT_BELOW = 20.0  # seconds: the first reading may have compiled kernels


@dataclass(frozen=True, kw_only=True)
class EvaluatedFile:
    """A scene read from a file, with its size and reading time.

    Attributes:
        source: as the user named it.
        scene: its Gaussians, in memory, turned to where the original lies.
        format: ``dpq``, ``ply``, ``spz``, ...
        antialiased: the file says that it was trained for anti-aliased rendering.
        nbytes: on disk.
        seconds: from the file to the arrays.
        notes: one line each, for the user.
        origin: the place in the world that its positions are relative to.
    """

    source: str
    scene: Scene
    format: str
    antialiased: bool
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    origin: Origin = NO_ORIGIN


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The seconds of one encoding, and what was timed."""

    seconds: float
    protocol: str


def read_file(
    source: str,
    progress: Progress = silent,
    *,
    axes: str = "",
    like: EvaluatedFile | None = None,
) -> EvaluatedFile:
    """Reads one file and times the reading.

    Args:
        source: ``builtin:NAME``, a .dpq or a splat file.
        progress: told what is read.
        axes: axes of the file; empty: its format's, or turned to lie like ``like``.
        like: the original.

    Raises:
        SourceError: it is missing, damaged, or has unusable values.
        ArtifactError: a .dpq file is damaged.
    """
    progress(f"reading {source}", 0, 1)
    loaded, seconds = _timed(source, axes)
    if seconds < _REPEAT_BELOW:
        loaded, again = _timed(source, axes)
        seconds = min(seconds, again)
    progress(f"reading {source}", 1, 1)
    if like is not None:
        loaded = loaded.relative_to(like.origin)
    scene, notes = loaded.scene, [f"{source}: {note}" for note in loaded.notes]
    check_values(scene, source)
    if like is not None and not axes and loaded.format not in ("dpq", "ply"):
        scene = turned_like(scene, like.scene)
        turned = f"{source}: turned by 180 degrees about x, to lie like {like.source}"
        notes = [turned] if scene is not loaded.scene else []  # instead of guesses about its axes
    return EvaluatedFile(
        source=source,
        scene=scene,
        format=loaded.format,
        antialiased=loaded.antialiased,
        nbytes=locate(source).stat().st_size,
        seconds=seconds,
        notes=tuple(notes),
        origin=loaded.origin,
    )


def encode_seconds(
    subject: EvaluatedFile, original: EvaluatedFile, preset: str, run: Run
) -> Encoding | None:
    """Times the encoding of the original in a file's format; None where dpq only reads it."""
    started = time.perf_counter()
    if subject.format == "dpq":
        from dpq_gaussian.compress import pack
        from dpq_gaussian.options import CompressOptions

        pack(original.source, CompressOptions(preset=preset), run)
        what = f"{original.source} packed with preset {preset}"
    elif subject.format in WRITABLE:
        with tempfile.TemporaryDirectory(prefix="dpq-encode-") as folder:
            write_scene(original.scene, Path(folder) / "scene", subject.format)
        what = f"{original.source} written as {subject.format} by dpq"
    else:
        return None
    return Encoding(seconds=time.perf_counter() - started, protocol=what)


def _timed(source: str, axes: str) -> tuple[Loaded, float]:
    """Reads a file into memory, also where it would be mapped, and times that."""
    started = time.perf_counter()
    loaded = load(source, axes=axes or None)
    arrays = {name: np.ascontiguousarray(a) for name, a in loaded.scene.arrays().items()}
    loaded = Loaded(**{**vars(loaded), "scene": Scene(**arrays)})
    return loaded, time.perf_counter() - started
