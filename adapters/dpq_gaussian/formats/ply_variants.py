"""Variants of the Inria .ply: 2D and 4D splats, Mip-Splatting's filter, colours, the world."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError
from dpq_gaussian.formats.levels import SH_C0
from dpq_gaussian.formats.loaded import NO_ORIGIN, Origin
from dpq_gaussian.formats.ply_header import FLOATS, Element
from dpq_gaussian.scene import FloatArray
from dpq_gaussian.scene.extent import extent_of, typical_size
from dpq_gaussian.scene.values import flat_log_scales

DOUBLE = ("double", "float64")

FILTER = "filter_3D"
"""Mip-Splatting's (Yu et al. 2024, arXiv 2311.16493, eq. 9) standard deviation of the filter that
bounds each Gaussian's frequency."""

COLOURS = ("red", "green", "blue")

_MOVING = re.compile(r"(trbf|motion|omega)_.+|scale_t|t_scale|rot_r_\d")
"""Properties of Gaussians that move: of SpacetimeGaussians (trbf, motion, omega) and 4DGS."""

_ORIGIN = "origin"

Arrays = dict[str, FloatArray]
Change = tuple[Arrays, set[str], tuple[str, ...]]
"""Arrays of the scene, properties that were used, and notes."""


def fields(usual: Mapping[str, tuple[str, ...]], vertex: Element) -> dict[str, tuple[str, ...]]:
    """Attribute -> properties of a scene, without those that a variant has in another form."""
    names = dict(usual)
    if "scale_2" not in vertex.properties and "scale_1" in vertex.properties:
        names["log_scales"] = names["log_scales"][:2]
    if _has_colours(vertex):
        del names["sh_dc"]
    return names


def refuse_moving(path: Path, vertex: Element) -> None:
    """Refuses Gaussians that move in time.

    Raises:
        SourceError: they do.
    """
    moving = [name for name in vertex.properties if _MOVING.fullmatch(name)]
    if moving:
        more = f" and {len(moving) - 6} more" if len(moving) > 6 else ""
        raise SourceError(
            f"{path}: a 4D scene, whose Gaussians move in time ({', '.join(moving[:6])}{more}); "
            "only still scenes are supported: export one moment of it"
        )


def _has_colours(vertex: Element) -> bool:
    """Whether colours stand in place of the constant harmonics."""
    names = vertex.properties
    return "f_dc_0" not in names and all(name in names for name in COLOURS)


def coloured(arrays: Arrays, rows: npt.NDArray[Any], vertex: Element) -> Change:
    """Takes the constant harmonics from colours, where there are none."""
    if not _has_colours(vertex):
        return arrays, set(), ()
    colours = np.empty((len(rows), 3), dtype=np.float32)
    for axis, name in enumerate(COLOURS):
        kind = rows.dtype[name]
        whole = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
        colours[:, axis] = rows[name] / whole
    note = "colour from red, green and blue (no f_dc)"
    return (
        {**arrays, "sh_dc": (colours - np.float32(0.5)) / np.float32(SH_C0)},
        set(COLOURS),
        (note,),
    )


def filtered(arrays: Arrays, rows: npt.NDArray[Any], vertex: Element) -> Change:
    """Folds Mip-Splatting's 3D filter into scales and opacities.

    Variances grow by the filter's, and opacity falls by the root of the ratio of determinants, as
    arXiv 2311.16493, eq. 9 has it. A flat scale (-inf) of a filtered Gaussian becomes the filter's.
    """
    if vertex.properties.get(FILTER) not in FLOATS:
        return arrays, set(), ()
    deviation = np.abs(np.asarray(rows[FILTER], dtype=np.float64))[:, None]
    logs = arrays["log_scales"].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        grown = 0.5 * np.logaddexp(2 * logs, 2 * np.log(deviation))
        ratios = np.where(np.isneginf(grown), 0.0, logs - grown)
        share = np.exp(ratios.sum(axis=1))  # root of the ratio of determinants
        opacity = share / (1 + np.exp(-arrays["opacity_logits"].astype(np.float64)))
        logits = np.log(opacity) - np.log1p(-opacity)
    changed = {
        "log_scales": grown.astype(np.float32),
        "opacity_logits": logits.astype(np.float32),
    }
    note = f"Mip-Splatting's {FILTER} is folded into scales and opacities"
    return {**arrays, **changed}, {FILTER}, (note,)


def flattened(arrays: Arrays, rows: npt.NDArray[Any], vertex: Element) -> Change:
    """Adds a flat third axis to the Gaussians of a 2D scene."""
    logs = arrays["log_scales"]
    if logs.shape[1] == 3:
        return arrays, set(), ()
    whole = np.full((len(rows), 3), -np.inf, dtype=np.float32)
    whole[:, :2] = logs
    note = "a scene of 2D Gaussians (no scale_2): their third axis is flat"
    return {**arrays, "log_scales": flat_log_scales(whole)}, set(), (note,)


def near_origin(
    places: Sequence[npt.NDArray[Any]], log_scales: FloatArray, stored: Origin | None
) -> tuple[FloatArray, Origin]:
    """Float32 positions ``[N, 3]`` of float64 ones, and the origin that they are relative to.

    Args:
        places: x, y and z, each ``[N]``.
        log_scales: of the Gaussians ``[N, 2]`` or ``[N, 3]``.
        stored: the origin that the file names.
    """
    positions = np.stack(places, axis=1).astype(np.float64)
    origin = stored or origin_of(positions, log_scales)
    with np.errstate(over="ignore", invalid="ignore"):
        return (positions - np.array(origin)).astype(np.float32), origin


def origin_of(positions: npt.NDArray[np.floating], log_scales: FloatArray) -> Origin:
    """A place in whole numbers to which positions should be relative; zeros where none is needed.

    One is needed where float32 has steps around the scene of more than a sixteenth of a Gaussian's
    size, or than 1/8192 of the scene's radius.
    """
    extent = extent_of(positions, log_scales)
    farthest = float(np.abs(extent.middle).max())
    if not farthest < 1e15:
        return NO_ORIGIN
    step = float(np.spacing(np.float32(farthest)))
    size = typical_size(log_scales)
    if step <= extent.radius / 8192 and (step <= size / 16 or size == 0):
        return NO_ORIGIN
    if extent.radius * 16 > farthest:  # relative to its own middle it would be as coarse
        return NO_ORIGIN
    x, y, z = (float(round(value)) for value in extent.middle)
    return x, y, z


def origin_comment(origin: Origin) -> str:
    """The header line that names the origin of float64 positions."""
    return f"comment {_ORIGIN} {' '.join(repr(value) for value in origin)}"


def stored_origin(comments: tuple[str, ...]) -> Origin | None:
    """The origin that the comments of a file name, if they do."""
    for comment in comments:
        words = comment.split()
        if words[:1] == [_ORIGIN] and len(words) == 4:
            try:
                x, y, z = map(float, words[1:])
            except ValueError:
                continue
            if all(math.isfinite(value) and abs(value) < 1e15 for value in (x, y, z)):
                return x, y, z
    return None
