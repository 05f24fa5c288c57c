"""Reading of any splat file, whose format is detected from its content or its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dpq_core.errors import SourceError
from dpq_gaussian.formats import compressed_ply, coordinates, ply, ply_header, sog, splat, spz
from dpq_gaussian.formats.loaded import Loaded
from dpq_gaussian.suffixes import ELSEWHERE, READABLE


def read_scene(path: str | Path, *, axes: str | None = None) -> Loaded:
    """Read a splat file of any known format into the conventions of ``Scene``.

    A binary float32 .ply stays on the disk: the arrays are read-only views into the mapped file.
    Values are not judged here; see ``check_values``.

    Args:
        path: .ply, .compressed.ply, .splat, .spz or .sog.
        axes: the axes the file is in, e.g. ``rub``; None takes the format's own: RUB for .spz
            unless it says otherwise, RDF for all others.

    Raises:
        SourceError: it is missing, damaged, hostile, of an unknown version, or no splat file.
        SpecError: there are no such axes.
    """
    path = Path(path)
    axes = None if axes is None else coordinates.parse_axes(axes)
    try:
        loaded = _read(path, axes)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    if loaded.format == "spz" or axes is None:
        return loaded
    scene = coordinates.convert(loaded.scene, axes, coordinates.NATIVE)
    origin = coordinates.turned_origin(loaded.origin, axes, coordinates.NATIVE)
    return dataclasses.replace(loaded, scene=scene, coordinates=axes, origin=origin)


def _read(path: Path, axes: str | None) -> Loaded:
    if path.is_dir():
        raise SourceError(f"{path}: a folder, not a splat file ({', '.join(READABLE)})")
    with path.open("rb") as file:
        start = file.read(4)
    if start[:3] == b"ply":
        header = ply_header.read_header(path)
        if compressed_ply.is_compressed(header):
            return compressed_ply.read(path, header)
        return ply.read(path, header)
    if start == spz.MAGIC or start[:2] == b"\x1f\x8b":
        return spz.read(path, axes)
    if start == b"PK\x03\x04":
        return sog.read(path)
    suffix = path.suffix.lower()
    if suffix == ".splat":
        return splat.read(path)
    if suffix in READABLE:
        raise SourceError(f"{path}: damaged: it does not start like a {suffix} file")
    advice = "; convert it to .ply first, e.g. with splat-transform" if suffix in ELSEWHERE else ""
    raise SourceError(f"{path}: not a splat file ({', '.join(READABLE)}){advice}")
