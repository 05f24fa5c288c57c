"""The pinhole camera with its pose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError

Vectors = npt.NDArray[np.float64]

MAX_SIDE = 1 << 14
"""Pixels; a picture of 16,384 x 16,384 takes 5 GB of float32."""
_ORTHONORMAL = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera in COLMAP's convention: x right, y down, z forward.

    The centre of the first pixel is at (0.5, 0.5); a point X of the world is seen at
    ``fx x / z + cx, fy y / z + cy`` with ``(x, y, z) = rotation X + translation``.

    Attributes:
        width: width of the picture, in pixels.
        height: height of the picture, in pixels.
        fx: focal length in pixels, horizontally.
        fy: focal length in pixels, vertically.
        cx: principal point in pixels.
        cy: principal point in pixels.
        rotation: float64 ``[3, 3]``, world to camera.
        translation: float64 ``[3]``, world to camera.
        name: name of the view.
        image: its photograph, if there is one.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rotation: Vectors
    translation: Vectors
    name: str = ""
    image: Path | None = None

    def __post_init__(self) -> None:
        """Check sizes and numbers.

        Raises:
            SourceError: the camera cannot exist.
        """
        who = f"camera {self.name!r}"
        rotation = np.asarray(self.rotation, np.float64)
        translation = np.asarray(self.translation, np.float64)
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise SourceError(
                f"{who}: {self.width} x {self.height} pixels; 1 to {MAX_SIDE} can be drawn"
            )
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise SourceError(f"{who}: its pose is not a 3x3 rotation and a translation")
        numbers = (self.fx, self.fy, self.cx, self.cy, *rotation.flat, *translation)
        if not np.isfinite(numbers).all():
            raise SourceError(f"{who}: NaN or infinity in its pose or lens")
        if min(self.fx, self.fy) <= 0:
            raise SourceError(f"{who}: focal lengths must be above 0, not {self.fx}, {self.fy}")
        wrong = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if wrong > _ORTHONORMAL or np.linalg.det(rotation) < 0:
            raise SourceError(f"{who}: its rotation is not a rotation")

    @property
    def centre(self) -> Vectors:
        """Where the camera stands in the world, float64 ``[3]``."""
        centre: Vectors = -self.rotation.T @ self.translation
        return centre

    def relative_to(self, origin: Sequence[float]) -> Camera:
        """The same view of a scene whose positions are relative to a place in the world ``[3]``."""
        moved = self.translation + self.rotation @ np.asarray(origin, np.float64)
        return dataclasses.replace(self, translation=moved)

    def resized(self, width: int, height: int) -> Camera:
        """The same view in another number of pixels."""
        x, y = width / self.width, height / self.height
        return dataclasses.replace(
            self,
            width=width,
            height=height,
            fx=self.fx * x,
            fy=self.fy * y,
            cx=self.cx * x,
            cy=self.cy * y,
        )

    def scaled(self, factor: float) -> Camera:
        """The same view with sides ``factor`` times as long, rounded to whole pixels."""
        return self.resized(max(1, round(self.width * factor)), max(1, round(self.height * factor)))
