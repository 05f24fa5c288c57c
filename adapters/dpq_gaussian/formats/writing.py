"""Writing of splat files, which appear complete or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpq_core.artifact.files import replacing
from dpq_core.errors import REPLACE, SourceError, SpecError
from dpq_core.nearest import nearest
from dpq_gaussian.formats import ply, splat, spz
from dpq_gaussian.formats.coordinates import NATIVE, convert, parse_axes, turned_origin
from dpq_gaussian.formats.loaded import NO_ORIGIN, Origin
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.scene import Scene, check_values

WRITABLE = ("ply", "splat", "spz")
"""Formats of ``write_scene``."""

AXES = {"ply": NATIVE, "splat": NATIVE, "spz": spz.COORDINATES}
"""The axes in which a format is by its specification, or by custom."""

SPZ_VERSIONS = (3, 4)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A written file, with its size and notes.

    Attributes:
        path: where it is.
        nbytes: its size.
        notes: one line each, for the user: what the format does not keep.
    """

    path: Path
    nbytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """How a scene is written.

    Attributes:
        axes: the axes of the file; None takes the format's: RUB for spz, RDF for the others.
        antialiased: mark the scene as trained for anti-aliased rendering, where a format can.
        flat: mark it as one of flat discs (2D Gaussian Splatting), where a format can.
        origin: place of the scene's zero in the world, where positions are relative to one.
        spz_version: 3, or 4, which fewer readers know.
    """

    axes: str | None = None
    antialiased: bool = False
    flat: bool = False
    origin: Origin = NO_ORIGIN
    spz_version: int = 3


def write_scene(
    scene: Scene | SceneStream,
    path: str | Path,
    to: str,
    *,
    overwrite: bool = False,
    axes: str | None = None,
    antialiased: bool = False,
    target: Target | None = None,
) -> Written:
    """Writes a scene; .spz takes 76 bytes of memory per Gaussian beyond it, others little.

    Args:
        scene: whole, or a stream of chunks (then its values are checked as they pass).
        path: the new file; its folder must exist.
        to: ``ply`` (Inria's layout, exact), ``splat`` or ``spz``.
        overwrite: replace a file there.
        axes: as in ``Target``, where none is given.
        antialiased: as in ``Target``, where none is given.
        target: axes, marks and version of the file.

    Raises:
        SourceError: ``path`` exists, a value is NaN, infinite or a quaternion without length, or
            the scene does not fit in the format. Nothing is written then.
        SpecError: there is no such format, or no such axes.
        ArtifactError: the operating system refused, e.g. the disk is full; nothing is left behind.
    """
    path = Path(path)
    if to not in WRITABLE:
        hint = nearest(to, WRITABLE, most=1)
        raise SpecError(f"cannot write {to!r}; {hint}formats: {', '.join(WRITABLE)}")
    target = target or Target(axes=axes, antialiased=antialiased)
    system = AXES[to] if target.axes is None else parse_axes(target.axes)
    if isinstance(scene, Scene):
        check_values(scene, str(path))
        stream = SceneStream.of(scene)
    else:
        stream = scene.checked(str(path))
    chunks = (convert(chunk, NATIVE, system) for chunk in stream.chunks)
    stream = SceneStream(count=stream.count, sh_degree=stream.sh_degree, chunks=chunks)
    notes = _notes(stream.sh_degree, to, system, target)
    _check_place(path, overwrite)
    with replacing(path) as partial, partial.open("wb") as file:
        if to == "ply":
            origin = turned_origin(target.origin, NATIVE, system)
            marks = target.antialiased, target.flat
            ply.write(file, stream, antialiased=marks[0], flat=marks[1], origin=origin)
        elif to == "splat":
            notes += splat.write(file, stream)
        else:
            notes += spz.write(file, stream, target.antialiased, target.spz_version)
    return Written(path=path, nbytes=path.stat().st_size, notes=notes)


def _notes(degree: int, to: str, system: str, target: Target) -> tuple[str, ...]:
    notes = []
    if to == "splat" and degree:
        notes.append(
            f".splat has no view-dependent colour: spherical harmonics of degree {degree} dropped"
        )
    if to == "splat" and target.antialiased:
        notes.append(".splat cannot say that the scene is for anti-aliased rendering")
    if to in ("splat", "spz") and target.flat:
        notes.append(f".{to} cannot say that the Gaussians are flat (2D)")
    if to == "spz":
        notes.append("spz rounds colour, scale, opacity to 8 bits and harmonics to 4 or 5")
    if any(target.origin):
        shown = ", ".join(f"{value:,.0f}" for value in turned_origin(target.origin, NATIVE, system))
        if to == "ply":
            notes.append(f"positions are in the world, as float64 (around {shown})")
        else:
            notes.append(f".{to} holds positions relative to the origin ({shown}): add it yourself")
    if system != NATIVE:
        notes.append(
            f"written in {system.upper()} axes; a viewer that takes it to be like a .ply shows it "
            "upside down: write rdf for that one"
        )
    return tuple(notes)


def _check_place(path: Path, overwrite: bool) -> None:
    """Refuse a place where no new file can be written."""
    if path.is_dir():
        raise SourceError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise SourceError(f"{path}: exists already", REPLACE)
    if not path.parent.is_dir():
        raise SourceError(f"{path}: the folder {path.parent} does not exist")
