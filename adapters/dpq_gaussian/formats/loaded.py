"""The result of reading a scene file, and the error handling that readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpq_core.errors import DPQError, SourceError
from dpq_gaussian.scene import Scene

Origin = tuple[float, float, float]
NO_ORIGIN: Origin = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The scene of a file, with its format, axes and notes.

    Attributes:
        scene: the Gaussians, in the axes of ``Scene`` (right, down, forward).
        format: ``ply``, ``compressed.ply``, ``splat``, ``spz``, ``sog``, ``ksplat`` or ``glb``.
        coordinates: the axes that the file was taken to be in, e.g. ``rub``.
        antialiased: the file says that it was trained for anti-aliased rendering (Mip-Splatting).
        flat: the file says that its Gaussians are flat discs (2D Gaussian Splatting).
        origin: the place in the world of the scene's zero, in the axes of ``Scene``: positions far
            from 0 are relative to it, because float32 would round them.
        ignored: properties and elements of the file that are not part of ``scene``.
        notes: one line each, for the user: what to know about this reading.
    """

    scene: Scene
    format: str
    coordinates: str = "rdf"
    antialiased: bool = False
    flat: bool = False
    origin: Origin = NO_ORIGIN
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def relative_to(self, origin: Origin) -> Loaded:
        """The same with positions relative to another origin, where it has one of its own.

        A scene without an origin may already be relative to that one: nothing in most files tells.
        """
        if self.origin in (NO_ORIGIN, origin) or origin == NO_ORIGIN:
            return self
        moved = self.scene.positions + (np.array(self.origin) - np.array(origin))
        scene = dataclasses.replace(self.scene, positions=moved.astype(np.float32))
        return dataclasses.replace(self, scene=scene, origin=origin)


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged or hostile file into one line.

    Raises:
        SourceError: instead of any other exception that is not one of dpq's.
    """
    try:
        yield
    except (DPQError, ImportError):
        raise
    except Exception as error:  # zip, WebP and PLY libraries raise nearly anything on such files
        cause = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path}: not a readable {what} file: {cause[:200]}") from error


def check_claim(path: Path, count: int, least: int, present: int) -> None:
    """Refuse a header that promises more than the file can hold, before anything is allocated.

    Args:
        path: the file, for the message.
        count: Gaussians that the header promises.
        least: bytes that so many Gaussians take at the very least.
        present: bytes that there are, or that can come out of them.

    Raises:
        SourceError: there are too few bytes, or no Gaussians.
    """
    if count < 1:
        raise SourceError(f"{path}: holds no Gaussians (its header says {count})")
    if least > present:
        raise SourceError(
            f"{path}: truncated, or its header is wrong: {count:,} Gaussians need "
            f"{least:,} bytes, there are at most {present:,}"
        )
