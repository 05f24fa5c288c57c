"""The Inria .ply: read as views into the mapped file, written row by row."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError
from dpq_gaussian.formats import ply_variants
from dpq_gaussian.formats.loaded import NO_ORIGIN, Loaded, Origin, check_claim, parsing
from dpq_gaussian.formats.ply_header import ASCII, DTYPES, FLOATS, Element, Header
from dpq_gaussian.formats.ply_variants import DOUBLE
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.scene import SH_REST, FloatArray, Scene

NORMALS = ("nx", "ny", "nz")
"""In every Inria file, always zero."""

FIELDS = {
    "positions": ("x", "y", "z"),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "rotations": ("rot_0", "rot_1", "rot_2", "rot_3"),
    "opacity_logits": ("opacity",),
    "sh_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
}

MIP = "SplatRenderMode: mip"
"""Comment of a scene trained for anti-aliased rendering, as Brush and splat-transform have it."""

FLAT = "SplatRenderMode: 2dgs"
"""Comment of a scene of flat discs."""

MOST_DEGREE = 10
"""Highest degree of harmonics of which the first three bands are read."""


def read(path: Path, header: Header) -> Loaded:
    """Reads a scene; float32 little-endian columns are views, the others float32 copies.

    Raises:
        SourceError: it is a mesh, a point cloud or moves in time, is truncated, or of an unknown
            layout.
    """
    vertex = _vertex(path, header)
    rest, notes = _rest(path, vertex)
    rows = load(path, header)["vertex"]
    fields = ply_variants.fields(FIELDS, vertex)
    arrays = {name: _columns(rows, names, (len(names),)) for name, names in fields.items()}
    arrays["opacity_logits"] = arrays["opacity_logits"][:, 0]
    arrays["sh_rest"] = _columns(rows, rest, (len(rest) // 3, 3))
    used = {name for names in fields.values() for name in names}
    used |= {name for name in vertex.properties if _is_splat(name, [])}
    origin = NO_ORIGIN
    if {vertex.properties[name] for name in "xyz"} & set(DOUBLE):
        places, log_scales = [rows[name] for name in "xyz"], arrays["log_scales"]
        stored = ply_variants.stored_origin(header.comments)
        arrays["positions"], origin = ply_variants.near_origin(places, log_scales, stored)
    for change in (ply_variants.coloured, ply_variants.filtered, ply_variants.flattened):
        arrays, names, more = change(arrays, rows, vertex)
        used |= names
        notes += more
    extra = [name for name in vertex.properties if name not in used]
    others = [f"element {e.name}" for e in header.elements if e is not vertex]
    told = [name for name in (*extra, *others) if name not in NORMALS]
    more_told = f" and {len(told) - 20} more" if len(told) > 20 else ""
    if told:
        listed = ", ".join(told[:20])
        notes += (f"left out what is not part of a splat scene: {listed}{more_told}",)
    marked = _antialiased(header.comments)
    mip = ply_variants.FILTER in vertex.properties
    return Loaded(
        scene=Scene(**arrays),
        format="ply",
        antialiased=mip if marked is None else marked,
        flat="scale_2" not in vertex.properties or FLAT.lower() in map(str.lower, header.comments),
        origin=origin,
        ignored=(*extra, *others),
        notes=notes,
    )


def load(path: Path, header: Header) -> dict[str, npt.NDArray[Any]]:
    """Element -> structured rows, mapped read-only where the file is binary.

    Elements with lists, and what comes after them, are left out.
    """
    if header.encoding == ASCII:
        return _load_text(path, header)
    order: Literal["<", ">"] = "<" if "little" in header.encoding else ">"
    elements: dict[str, npt.NDArray[Any]] = {}
    at = path.stat().st_size - header.body
    for element in header.elements:
        if element.has_list and element.count:
            break
        kinds = [(n, DTYPES[kind]) for n, kind in element.properties.items() if kind in DTYPES]
        layout = np.dtype(kinds).newbyteorder(order)
        if element.count and layout.itemsize:
            with parsing(path, ".ply"):
                rows = np.memmap(path, layout, "r", offset=at, shape=(element.count,))
        else:
            rows = np.zeros(element.count if layout.itemsize else 0, layout)  # type: ignore[assignment]
        elements[element.name] = rows
        at += element.count * layout.itemsize
    return elements


def _load_text(path: Path, header: Header) -> dict[str, npt.NDArray[Any]]:
    """Rows of a text file, through plyfile, which wants headers in plain ASCII."""
    lines = ["ply", f"format {ASCII} 1.0"]
    for element in header.elements:
        lines.append(f"element {element.name} {element.count}")
        lines += element.lines
    with path.open("rb") as file, parsing(path, ".ply"):
        from plyfile import PlyData

        file.seek(-header.body, io.SEEK_END)
        head = "\n".join([*lines, "end_header", ""]).encode("ascii")
        return {e.name: e.data for e in PlyData.read(io.BytesIO(head + file.read())).elements}


def write(
    file: BinaryIO,
    stream: SceneStream,
    *,
    antialiased: bool = False,
    flat: bool = False,
    origin: Origin = NO_ORIGIN,
) -> None:
    """Writes the layout of the Inria code: 62 float32 per Gaussian at degree 3.

    With an origin, positions are in the world, as float64.
    """
    rest = 3 * SH_REST[stream.sh_degree]
    names = [*FIELDS["positions"], *NORMALS, *FIELDS["sh_dc"]]
    names += [*(f"f_rest_{i}" for i in range(rest)), "opacity"]
    names += [*FIELDS["log_scales"], *FIELDS["rotations"]]
    wide = "xyz" if any(origin) else ""
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {MIP}"] if antialiased else []
    lines += [f"comment {FLAT}"] if flat else []
    lines += [ply_variants.origin_comment(origin)] if wide else []
    kinds = ["double" if name in wide else "float" for name in names]
    lines += [f"element vertex {stream.count}"]
    lines += [f"property {kind} {name}" for kind, name in zip(kinds, names, strict=True)]
    file.write("\n".join([*lines, "end_header", ""]).encode())
    for scene in stream.chunks:
        n = len(scene)
        rows = np.zeros((n, len(names)), dtype="<f4")
        rows[:, 0:3] = scene.positions
        rows[:, 6:9] = scene.sh_dc
        rows[:, 9 : 9 + rest] = scene.sh_rest.transpose(0, 2, 1).reshape(n, rest)
        rows[:, -8] = scene.opacity_logits
        rows[:, -7:-4] = scene.log_scales
        rows[:, -4:] = scene.rotations
        if not wide:
            file.write(rows.data)
            continue
        places = (scene.positions.astype("<f8") + np.array(origin)).view(np.uint8)
        file.write(np.hstack([places, rows[:, 3:].view(np.uint8)]).tobytes())


def _vertex(path: Path, header: Header) -> Element:
    """Checks that the vertex element holds splats, and returns it."""
    faces = header.element("face")
    if faces is not None and faces.count:
        raise SourceError(f"{path}: a mesh ({faces.count:,} faces), not a splat scene")
    vertex = header.element("vertex")
    if vertex is None:
        raise SourceError(f"{path}: has no vertex element, so it is not a splat scene")
    lists = [e.name for e in header.elements if e.has_list and (e.count or e is vertex)]
    if lists:
        raise SourceError(f"{path}: list properties in {', '.join(lists)}: not a splat scene")
    ply_variants.refuse_moving(path, vertex)
    required = [n for names in ply_variants.fields(FIELDS, vertex).values() for n in names]
    missing = [name for name in required if name not in vertex.properties]
    if missing:
        raise SourceError(
            f"{path}: not a splat scene: lacks the properties {', '.join(missing)} "
            f"(it has {', '.join(list(vertex.properties)[:12]) or 'none'})"
        )
    check_claim(path, vertex.count, 0, 0)
    numbers = {n: kind for n, kind in vertex.properties.items() if _is_splat(n, required)}
    wrong = [f"{kind} {name}" for name, kind in numbers.items() if kind not in FLOATS]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise SourceError(
            f"{path}: quantized properties are not supported: {', '.join(wrong[:8])}{more}"
        )
    return vertex


def _is_splat(name: str, required: list[str]) -> bool:
    return name in required or re.fullmatch(r"f_rest_\d+", name) is not None


def _rest(path: Path, vertex: Element) -> tuple[list[str], tuple[str, ...]]:
    """Names of the higher harmonics ``[M * 3]``, coefficient by coefficient, and notes.

    The file counts channel by channel: f_rest_0 to f_rest_(M-1) are red. Bands beyond the third
    are left out.
    """
    present = {name for name in vertex.properties if _is_splat(name, [])}
    degrees = {3 * ((d + 1) ** 2 - 1): d for d in range(MOST_DEGREE + 1)}
    count = len(present)
    if count not in degrees or present != {f"f_rest_{i}" for i in range(count)}:
        counts = [3 * m for m in SH_REST.values()]
        raise SourceError(
            f"{path}: {count} f_rest properties; a scene has f_rest_0 to f_rest_(n-1) "
            f"with n = {', '.join(map(str, counts))} (degree 0 to 3)"
        )
    m, kept = count // 3, min(count // 3, SH_REST[3])
    notes: tuple[str, ...] = ()
    if kept < m:
        bands = "band 4" if degrees[count] == 4 else f"bands 4 to {degrees[count]}"
        notes = (f"harmonics of degree {degrees[count]}: {bands} dropped, degree 3 is kept",)
    return [f"f_rest_{channel * m + i}" for i in range(kept) for channel in range(3)], notes


def _columns(rows: npt.NDArray[Any], names: Any, shape: tuple[int, ...]) -> FloatArray:
    """Properties as float32 ``[N, *shape]``, as a view where their places allow it."""
    n = len(rows)
    if not len(names):
        return np.zeros((n, *shape), dtype=np.float32)
    kinds = {rows.dtype[name] for name in names}
    places = np.array([rows.dtype.fields[name][1] for name in names]).reshape(shape)  # type: ignore[index]
    steps = _steps(places)
    if kinds == {np.dtype("<f4")} and np.dtype("<f4").isnative and steps is not None:
        view: FloatArray = np.lib.stride_tricks.as_strided(
            rows[names[0]], (n, *shape), (rows.strides[0], *steps), writeable=False
        )
        return view
    copy = np.empty((n, len(names)), dtype=np.float32)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite; checked later
        for i, name in enumerate(names):
            copy[:, i] = rows[name]
    return copy.reshape(n, *shape)


def _steps(places: npt.NDArray[np.int64]) -> tuple[int, ...] | None:
    """Strides in bytes, where the places of the properties are evenly spaced along each axis."""
    steps = []
    for axis in range(places.ndim):
        gaps = np.unique(np.diff(places, axis=axis))
        if len(gaps) > 1:
            return None
        steps.append(int(gaps[0]) if len(gaps) else 0)
    return tuple(steps)


def _antialiased(comments: tuple[str, ...]) -> bool | None:
    """The last of ``SplatRenderMode: mip|default`` (Brush) or ``antialiased 1|0`` (Postshot)."""
    marks = {MIP.lower(): True, "antialiased 1": True, "antialiased 0": False}
    marks |= {"splatrendermode: default": False, FLAT.lower(): False}
    marked = [marks[c.lower()] for c in comments if c.lower() in marks]
    return marked[-1] if marked else None
