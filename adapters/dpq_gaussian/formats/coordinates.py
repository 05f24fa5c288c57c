"""Axis conventions of splat files, and conversion to those of ``Scene``."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpq_core.errors import SourceError, SpecError
from dpq_gaussian.formats.loaded import Origin
from dpq_gaussian.scene import Scene

NATIVE = "rdf"
"""Axes of ``Scene`` and of the Inria ``.ply``: x right, y down, z forward."""

SYSTEMS = tuple(x + y + z for z in "bf" for y in "du" for x in "lr")
"""x left|right, y down|up, z back|forward; in the order in which SPZ's extension counts them."""

GRID = 24
"""Cells per axis of the occupancy grid of ``turned_like``."""


def parse_axes(coordinates: str) -> str:
    """Checks a name of axes, such as ``rdf``, and returns it in lower case.

    Raises:
        SpecError: there is no such system.
    """
    name = coordinates.lower()
    if name not in SYSTEMS:
        raise SpecError(
            f"unknown coordinates {coordinates!r}; choose from {', '.join(SYSTEMS)} "
            "(x left or right, y down or up, z back or forward)"
        )
    return name


def convert(scene: Scene, source: str, target: str, *, in_place: bool = False) -> Scene:
    """Converts a scene to other axes by flipping some of them, which is exact.

    A basis function of the spherical harmonics is a polynomial in x, y, z whose terms all have the
    same parity per axis, so that a flip only changes signs (``_sh_signs``). A flip of y and z turns
    the quaternion's vector part likewise; a mirror flips it as a pseudovector.

    Args:
        scene: in the axes ``source``.
        source: e.g. ``rub``.
        target: e.g. ``rdf``.
        in_place: flip the scene's own arrays, which must be writable.

    Returns:
        ``scene`` itself where the systems agree.
    """
    signs = [
        1.0 if a == b else -1.0 for a, b in zip(parse_axes(source), parse_axes(target), strict=True)
    ]
    if min(signs) > 0:
        return scene
    x, y, z = signs
    factors: dict[str, Any] = {
        "positions": [x, y, z],
        "rotations": [1.0, y * z, x * z, x * y],
        "sh_rest": np.array(_sh_signs(x, y, z))[: scene.sh_rest.shape[1], None],
    }
    arrays = scene.arrays()
    for name, factor in factors.items():
        factor = np.asarray(factor, dtype=np.float32)
        out = arrays[name] if in_place else None
        arrays[name] = np.multiply(arrays[name], factor, out=out)
    return Scene(**arrays)


def turned_origin(origin: Origin, source: str, target: str) -> Origin:
    """Converts an origin to other axes."""
    x, y, z = (
        value if a == b else -value + 0.0
        for value, a, b in zip(origin, parse_axes(source), parse_axes(target), strict=True)
    )
    return x, y, z


def _sh_signs(x: float, y: float, z: float) -> list[float]:
    """Sign of the 15 basis functions of degree 1 to 3, in the order of the ``.ply``."""
    first = [y, z, x]
    second = [x * y, y * z, 1.0, x * z, 1.0]
    third = [y, x * y * z, y, z, x, z, x]
    return [*first, *second, *third]


def turned_like(scene: Scene, reference: Scene) -> Scene:
    """Turns a scene by 180 degrees about x if it then overlaps ``reference`` better.

    Files of one scene can differ by that turn: SPZ is RUB by its specification, but common
    converters store the axes of the ``.ply`` as they are, and nothing in the file tells.

    Raises:
        SourceError: neither of the scenes has a Gaussian at a finite place.
    """
    turned = convert(scene, "rub", NATIVE)
    low, high = np.nanquantile(_places(reference), (0.01, 0.99), axis=0)
    aim = _occupancy(_places(reference), low, high)
    fits = [np.minimum(aim, _occupancy(_places(s), low, high)).sum() for s in (scene, turned)]
    return turned if fits[1] > fits[0] else scene


def _places(scene: Scene) -> np.ndarray[Any, np.dtype[np.float64]]:
    places = scene.positions[:: max(1, len(scene) // 200_000)].astype(np.float64)
    places = places[np.isfinite(places).all(axis=1)]
    if not len(places):
        raise SourceError("a scene without a finite position has no orientation")
    return places


def _occupancy(places: Any, low: Any, high: Any) -> Any:
    """Share of the points in each cell ``[GRID ** 3]`` of a box, without those outside."""
    cells = np.floor((places - low) / np.maximum(high - low, 1e-12) * GRID)
    cells = cells[((cells >= 0) & (cells < GRID)).all(axis=1)].astype(np.int64)
    index = (cells[:, 0] * GRID + cells[:, 1]) * GRID + cells[:, 2]
    return np.bincount(index, minlength=GRID**3) / len(places)
