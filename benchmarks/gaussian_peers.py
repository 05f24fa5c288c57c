"""Codecs in use, each as a function that writes one file of a scene."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gaussian_sog import cluster, write_sog

from dpq_core.tensor.packing import pack, unpack
from dpq_gaussian.formats import read_scene, write_scene
from dpq_gaussian.scene import Scene

TOOL = "splat-transform"
"""npm install @playcanvas/splat-transform: compressed.ply, and .sog without harmonics."""

_VQ = {"sh_dc": 4096, "log_scales": 4096, "rotations": 4096}
"""Compact3D's run.sh: attribute -> codewords; those of the harmonics are 512."""


@dataclass(frozen=True)
class Peer:
    """A rival.

    Attributes:
        name: in the table.
        family: one line of the plot.
        suffix: of its files.
        write: scene, its .ply, new file.
        read: file -> scene.
    """

    name: str
    family: str
    suffix: str
    write: Callable[[Scene, Path, Path], None]
    read: Callable[[Path], Scene]


def peers(scene: Scene, palettes: tuple[int, ...], tool: str | None) -> Iterator[Peer]:
    """What can be measured of a scene on this machine."""
    zstd = shutil.which("zstd")
    if zstd:
        yield Peer("ply + zstd -19", "lossless", ".ply.zst", _zstd(zstd), _unzstd(zstd))
    yield Peer("SPZ v3 (written by dpq)", "SPZ", ".spz", _spz, lambda p: _read(p, "rdf"))
    if tool:
        yield Peer("compressed.ply", "compressed.ply", ".compressed.ply", _by(tool), _read)
        if not scene.sh_degree:
            yield Peer("SOG (splat-transform)", "SOG", ".sog", _by(tool), _read)
    if scene.sh_degree:
        for size in palettes:
            yield Peer(f"SOG, palette {size:,} (emulated)", "SOG", ".sog", _sog(size), _read)
        for size in (512, 4096):
            name = f"VQ as Compact3D, harmonics {size:,}"
            yield Peer(name, "VQ", ".npz", _vq(size), _unvq)
    else:
        yield Peer("SOG (emulated)", "SOG", ".sog", _sog(0), _read)
        yield Peer("VQ as Compact3D", "VQ", ".npz", _vq(0), _unvq)


def transform(tool: str, source: Path, out: Path) -> None:
    """Run splat-transform on the CPU."""
    command = [tool, "-w", "-g", "cpu", str(source), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)


def _read(path: Path, axes: str | None = None) -> Scene:
    return read_scene(path, axes=axes).scene


def _spz(scene: Scene, ply: Path, out: Path) -> None:
    write_scene(scene, out, "spz", axes="rdf", overwrite=True)


def _by(tool: str) -> Callable[[Scene, Path, Path], None]:
    return lambda scene, ply, out: transform(tool, ply, out)


def _sog(palette: int) -> Callable[[Scene, Path, Path], None]:
    return lambda scene, ply, out: write_sog(scene, out, palette)


def _zstd(tool: str) -> Callable[[Scene, Path, Path], None]:
    def write(scene: Scene, ply: Path, out: Path) -> None:
        subprocess.run([tool, "-q", "-f", "-19", str(ply), "-o", str(out)], check=True)

    return write


def _unzstd(tool: str) -> Callable[[Path], Scene]:
    def read(path: Path) -> Scene:
        plain = path.with_suffix("")
        subprocess.run([tool, "-q", "-f", "-d", str(path), "-o", str(plain)], check=True)
        return _read(plain)

    return read


def _vq(harmonics: int) -> Callable[[Scene, Path, Path], None]:
    """Plain vector quantization after training: positions and opacity stay float32."""
    sizes = _VQ | ({"sh_rest": harmonics} if harmonics else {})

    def write(scene: Scene, ply: Path, out: Path) -> None:
        parts = {"positions": scene.positions, "opacity_logits": scene.opacity_logits}
        for name, k in sizes.items():
            vectors = getattr(scene, name).reshape(len(scene), -1)
            centres, labels = cluster(vectors, k, seed=0)
            bits = (len(centres) - 1).bit_length()
            codes = pack(torch.from_numpy(labels)[None], bits)
            parts |= {f"{name}.centres": centres, f"{name}.codes": codes.numpy()}
        np.savez(out, **parts)

    return write


def _unvq(path: Path) -> Scene:
    with np.load(path) as parts:
        n = len(parts["positions"])
        found = {name: parts[name] for name in ("positions", "opacity_logits")}
        found["sh_rest"] = np.zeros((n, 0, 3), np.float32)
        for name in (*_VQ, "sh_rest"):
            if f"{name}.codes" not in parts:
                continue
            centres = parts[f"{name}.centres"]
            bits = (len(centres) - 1).bit_length()
            labels = unpack(torch.from_numpy(parts[f"{name}.codes"]), bits, n)[0].numpy()
            values = centres[labels]
            found[name] = values.reshape(n, -1, 3) if name == "sh_rest" else values
    return Scene(**found)
