"""The Inria .ply: read through plyfile as views into the mapped file, written row by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError
from dpq_gaussian.formats.loaded import Loaded, check_claim, parsing
from dpq_gaussian.formats.ply_header import FLOATS, Element, Header
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


def read(path: Path, header: Header) -> Loaded:
    """Read a scene; float32 little-endian columns are views, the others float32 copies.

    Raises:
        SourceError: it is a mesh or a point cloud, truncated, or of an unknown layout.
    """
    vertex = _vertex(path, header)
    rest = _rest(path, vertex)
    rows = load(path)["vertex"]
    arrays = {name: _columns(rows, names, (len(names),)) for name, names in FIELDS.items()}
    arrays["opacity_logits"] = arrays["opacity_logits"][:, 0]
    arrays["sh_rest"] = _columns(rows, rest, (len(rest) // 3, 3))
    used = {*(name for names in FIELDS.values() for name in names), *rest}
    extra = [name for name in vertex.properties if name not in used]
    others = [f"element {e.name}" for e in header.elements if e is not vertex]
    told = [name for name in (*extra, *others) if name not in NORMALS]
    more = f" and {len(told) - 20} more" if len(told) > 20 else ""
    note = f"left out what is not part of a splat scene: {', '.join(told[:20])}{more}"
    return Loaded(
        scene=Scene(**arrays),
        format="ply",
        antialiased=_antialiased(header.comments),
        ignored=(*extra, *others),
        notes=(note,) if told else (),
    )


def load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Element -> structured rows, mapped read-only where the file is binary."""
    with parsing(path, ".ply"):
        from plyfile import PlyData

        return {e.name: e.data for e in PlyData.read(str(path), mmap="r").elements}


def write(file: BinaryIO, stream: SceneStream, antialiased: bool) -> None:
    """Write the layout of the Inria code: 62 float32 per Gaussian at degree 3."""
    rest = 3 * SH_REST[stream.sh_degree]
    names = [*FIELDS["positions"], *NORMALS, *FIELDS["sh_dc"]]
    names += [*(f"f_rest_{i}" for i in range(rest)), "opacity"]
    names += [*FIELDS["log_scales"], *FIELDS["rotations"]]
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {MIP}"] if antialiased else []
    lines += [f"element vertex {stream.count}", *(f"property float {n}" for n in names)]
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
        file.write(rows.data)


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
    required = [name for names in FIELDS.values() for name in names]
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


def _rest(path: Path, vertex: Element) -> list[str]:
    """Names of the higher harmonics ``[M * 3]``, coefficient by coefficient.

    The file counts channel by channel: f_rest_0 to f_rest_(M-1) are red.
    """
    present = {name for name in vertex.properties if _is_splat(name, [])}
    counts = [3 * m for m in SH_REST.values()]
    if len(present) not in counts or present != {f"f_rest_{i}" for i in range(len(present))}:
        raise SourceError(
            f"{path}: {len(present)} f_rest properties; a scene has f_rest_0 to f_rest_(n-1) "
            f"with n = {', '.join(map(str, counts))} (degree 0 to 3)"
        )
    m = len(present) // 3
    return [f"f_rest_{channel * m + i}" for i in range(m) for channel in range(3)]


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


def _antialiased(comments: tuple[str, ...]) -> bool:
    """The last of ``SplatRenderMode: mip|default`` (Brush) or ``antialiased 1|0`` (Postshot)."""
    marks = {MIP.lower(): True, "antialiased 1": True, "antialiased 0": False}
    marks |= {"splatrendermode: default": False, "splatrendermode: 2dgs": False}
    marked = [marks[c.lower()] for c in comments if c.lower() in marks]
    return bool(marked) and marked[-1]
