"""Small scenes, and slow independent writers of the splat formats that dpq only reads."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from repo import ROOT

from dpq_gaussian.scene import SH_REST, Scene

SPLATS = ROOT.parent / "shared" / "data" / "splats"

SH_C0 = 0.28209479177387814


def make_scene(n: int = 50, degree: int = 3, seed: int = 0) -> Scene:
    """A random scene whose values every format can hold."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return Scene(
        positions=normal(n, 3, scale=2.0),
        log_scales=normal(n, 3) - np.float32(4.0),
        rotations=normal(n, 4),
        opacity_logits=normal(n, scale=2.0),
        sh_dc=normal(n, 3, scale=0.5),
        sh_rest=normal(n, SH_REST[degree], 3, scale=0.2),
    )


def changed(scene: Scene, **arrays: Any) -> Scene:
    """A copy of the scene with other arrays."""
    return Scene(**{**scene.arrays(), **arrays})


def columns(scene: Scene) -> dict[str, Any]:
    """Property of an Inria .ply -> values."""
    m = scene.sh_rest.shape[1]
    found = {name: scene.positions[:, i] for i, name in enumerate("xyz")}
    found |= {name: np.zeros(len(scene), dtype=np.float32) for name in ("nx", "ny", "nz")}
    found |= {f"f_dc_{i}": scene.sh_dc[:, i] for i in range(3)}
    found |= {f"f_rest_{i}": scene.sh_rest[:, i % m, i // m] for i in range(3 * m)}
    found["opacity"] = scene.opacity_logits
    found |= {f"scale_{i}": scene.log_scales[:, i] for i in range(3)}
    return found | {f"rot_{i}": scene.rotations[:, i] for i in range(4)}


def write_ply(
    path: Path,
    values: dict[str, Any],
    *,
    kind: str = "f4",
    byte_order: str = "<",
    text: bool = False,
    more: tuple[Any, ...] = (),
) -> Path:
    """Any vertex columns through plyfile."""
    from plyfile import PlyData, PlyElement

    kinds = [(name, v.dtype if v.dtype.kind != "f" else kind) for name, v in values.items()]
    rows = np.empty(len(next(iter(values.values()))), dtype=kinds)
    for name, column in values.items():
        rows[name] = column
    elements = [PlyElement.describe(rows, "vertex"), *more]
    PlyData(elements, text=text, byte_order=byte_order).write(str(path))
    return path


def spz_bytes(scene: Scene, version: int, flags: int = 0, extra: bytes = b"") -> bytes:
    """Gaussian by gaussian, from the description in the format's README; axes as they are."""
    planes: list[bytearray] = [bytearray() for _ in range(6)]
    for i in range(len(scene)):
        for p in scene.positions[i]:
            planes[0] += (round(float(p) * 4096) & 0xFFFFFF).to_bytes(3, "little")
        planes[1].append(_level(255 / (1 + math.exp(-float(scene.opacity_logits[i])))))
        planes[2] += bytes(_level(float(c) * 0.15 * 255 + 127.5) for c in scene.sh_dc[i])
        planes[3] += bytes(_level((float(s) + 10) * 16) for s in scene.log_scales[i])
        planes[4] += _spz_rotation([float(q) for q in scene.rotations[i]], version)
        for k, harmonics in enumerate(scene.sh_rest[i]):
            step = 8 if k < 3 else 16
            for c in harmonics:
                level = (round(float(c) * 128) + 128 + step // 2) // step * step
                planes[5].append(min(max(level, 0), 255))
    head = struct.pack("<4sIIBBB", b"NGSP", version, len(scene), scene.sh_degree, 12, flags)
    if version < 4:
        return gzip.compress(head + b"\0" + b"".join(planes) + extra, mtime=0)
    import zstandard

    streams = [bytes(plane) for plane in planes if plane]
    packed = [zstandard.ZstdCompressor().compress(stream) for stream in streams]
    head += struct.pack("<BI12x", len(streams), 32 + len(extra))
    sizes = zip(packed, streams, strict=True)
    table = b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in sizes)
    return head + extra + table + b"".join(packed)


def _level(value: float) -> int:
    return min(max(math.floor(value + 0.5), 0), 255)


def _spz_rotation(wxyz: list[float], version: int) -> bytes:
    length = math.sqrt(sum(q * q for q in wxyz))
    w, x, y, z = (q / length for q in wxyz)
    if version == 2:
        sign = -1 if w < 0 else 1
        return bytes(_level(sign * q * 127.5 + 127.5) for q in (x, y, z))
    xyzw = [x, y, z, w]
    largest = max(range(4), key=lambda i: abs(xyzw[i]))
    word = largest
    for i in range(4):
        if i != largest:
            negative = (xyzw[i] < 0) != (xyzw[largest] < 0)
            size = math.floor(511 * abs(xyzw[i]) / math.sqrt(0.5) + 0.5)
            word = word << 10 | negative << 9 | size
    return word.to_bytes(4, "little")


def write_compressed(path: Path, n: int = 300, degree: int = 1, seed: int = 0) -> Path:
    """A compressed.ply of random words, in PlayCanvas' layout."""
    from plyfile import PlyData, PlyElement

    rng = np.random.default_rng(seed)
    names = [f"{e}_{w}{a}" for w in ("", "scale_") for e in ("min", "max") for a in "xyz"]
    names += [f"{end}_{c}" for end in ("min", "max") for c in "rgb"]
    chunks = np.zeros(-(-n // 256), dtype=[(name, "f4") for name in names])
    for name in names:
        chunks[name] = rng.uniform(1, 2, len(chunks)) * (1 if name.startswith("max") else -1)
    words = ("position", "rotation", "scale", "color")
    rows = np.zeros(n, dtype=[(f"packed_{word}", "u4") for word in words])
    for word in words:
        rows[f"packed_{word}"] = rng.integers(0, 1 << 32, n)
    elements = [PlyElement.describe(chunks, "chunk"), PlyElement.describe(rows, "vertex")]
    if degree:
        kinds = [(f"f_rest_{i}", "u1") for i in range(3 * SH_REST[degree])]
        sh = np.zeros(n, dtype=kinds)
        for name, _ in kinds:
            sh[name] = rng.integers(0, 256, n)
        elements.append(PlyElement.describe(sh, "sh"))
    PlyData(elements, byte_order="<").write(str(path))
    return path


def sog_parts(n: int = 60, bands: int = 1, seed: int = 0, version: int = 2) -> dict[str, Any]:
    """Random planes and meta.json of a .sog: name -> levels or object."""
    rng = np.random.default_rng(seed)
    side = math.isqrt(n - 1) + 1

    def plane(width: int = side, height: int = side) -> Any:
        return rng.integers(0, 256, (height, width, 4), dtype=np.uint8)

    def book(*shape: int) -> list[float]:
        return sorted(rng.normal(size=shape or 256).tolist())

    planes = {name: plane() for name in ("means_l", "means_u", "scales", "quats", "sh0")}
    planes["quats"][..., 3] = rng.integers(252, 256, (side, side))
    files = {name: [f"{name}.webp"] for name in ("scales", "quats", "sh0")}
    means = {"mins": [-1.0, -2.0, -3.0], "maxs": [1.0, 2.0, 0.5]}
    meta: dict[str, Any] = {
        "means": means | {"files": ["means_l.webp", "means_u.webp"]},
        "scales": {"files": files["scales"]},
        "quats": {"files": files["quats"]},
        "sh0": {"files": files["sh0"]},
    }
    if bands:
        planes["shN_centroids"] = plane(64 * SH_REST[bands], 2)
        planes["shN_labels"] = plane()
        planes["shN_labels"][..., 0] %= 128
        planes["shN_labels"][..., 1] = 0
        meta["shN"] = {"files": ["shN_centroids.webp", "shN_labels.webp"]}
    if version == 2:
        meta |= {"version": 2, "count": n}
        meta["scales"]["codebook"], meta["sh0"]["codebook"] = book(), book()
        if bands:
            meta["shN"] |= {"count": 128, "bands": bands, "codebook": book()}
    else:
        meta["means"]["shape"] = [n, 3]
        meta["scales"] |= {"mins": [-9.0, -8.0, -7.0], "maxs": [-2.0, -1.0, 0.0]}
        meta["sh0"] |= {"mins": [-1.0, -2.0, -1.5, -5.0], "maxs": [1.0, 2.0, 1.5, 6.0]}
        if bands:
            meta["shN"] |= {"mins": -0.5, "maxs": 0.75}
    return {"meta.json": meta} | {f"{name}.webp": p for name, p in planes.items()}


def write_sog(path: Path, parts: dict[str, Any]) -> Path:
    """Zip the parts; WebP losslessly, RGB under alpha 0 kept."""
    from PIL import Image

    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            if isinstance(part, bytes):
                data = part
            elif isinstance(part, dict):
                data = json.dumps(part).encode()
            else:
                stream = io.BytesIO()
                Image.fromarray(part, "RGBA").save(stream, "WEBP", lossless=True, exact=True)
                data = stream.getvalue()
            archive.writestr(name, data)
    return path
