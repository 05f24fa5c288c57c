"""PlayCanvas' .sog: a zip of meta.json and WebP planes, versions 1 and 2; read only."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.artifact.zip_members import open_member
from dpq_core.errors import SourceError
from dpq_gaussian.formats.levels import LOGIT_OF_LEVEL, Bytes, fill_largest
from dpq_gaussian.formats.loaded import Loaded, check_claim, parsing
from dpq_gaussian.scene import ROWS, SH_REST, FloatArray, Scene

MAX_META = 1 << 22
"""Bytes of meta.json; real ones have ten thousand."""

RATIO = 64
"""Gaussians per byte of the archive that are believed: 17 bytes of planes each, as densely as
deflate can pack anything. Real files take ten bytes for one."""

MAX_PALETTE = 1 << 16
"""Entries of the palette of harmonics: labels have 16 bits."""

PER_ROW = 64
"""Entries of the palette of harmonics in one row of its plane."""

FIRST_TAG = 252
"""Alpha of a quaternion's pixel: this plus the index of the largest component."""


@dataclass(frozen=True)
class Archive:
    """The parts of one scene, read by the names that meta.json gives and never unpacked.

    Attributes:
        path: the file.
        archive: opened.
        meta: content of meta.json.
    """

    path: Path
    archive: zipfile.ZipFile
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: Path, archive: zipfile.ZipFile) -> Archive:
        """Read meta.json."""
        meta = json.loads(_member(path, archive, "meta.json", MAX_META))
        if not isinstance(meta, dict):
            raise SourceError(f"{path}: meta.json is not an object")
        return cls(path, archive, meta)

    def entry(self, *keys: str) -> Any:
        """A value of meta.json."""
        value: Any = self.meta
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise SourceError(f"{self.path}: meta.json lacks {'.'.join(keys)}")
            value = value[key]
        return value

    def count(self, *keys: str) -> int:
        """A whole number of meta.json."""
        value = self.entry(*keys)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is not int:
            raise SourceError(f"{self.path}: {'.'.join(keys)} in meta.json is not a whole number")
        return value

    def numbers(self, *keys: str, least: int) -> npt.NDArray[np.float64]:
        """At least so many finite numbers of meta.json."""
        values = self.entry(*keys)
        values = values if isinstance(values, list) else [values]
        sound = [type(v) in (int, float) and abs(v) < 1e30 for v in values]  # NaN is not
        if len(values) < least or not all(sound):
            raise SourceError(
                f"{self.path}: {'.'.join(keys)} in meta.json is not a list of {least} numbers"
            )
        return np.array(values, dtype=np.float64)

    def plane(self, part: str, index: int, pixels: int) -> Bytes:
        """uint8 ``[pixels, 4]``: the first pixels of an image of at least so many."""
        levels = self.image(part, index, 4 * pixels + (1 << 16)).reshape(-1, 4)
        if len(levels) < pixels:
            raise SourceError(
                f"{self.path}: file {index + 1} of {part} has {len(levels):,} pixels "
                f"for {pixels:,} Gaussians"
            )
        return levels[:pixels]

    def image(self, part: str, index: int, most: int) -> Bytes:
        """uint8 ``[height, width, 4]`` of a WebP image of at most ``most`` pixels.

        Args:
            part: key of meta.json.
            index: which of its files.
            most: how many pixels are believed.
        """
        from PIL import Image

        files = self.entry(part, "files")
        if not isinstance(files, list) or len(files) <= index or type(files[index]) is not str:
            raise SourceError(f"{self.path}: meta.json names no file {index + 1} of {part}")
        data = _member(self.path, self.archive, files[index], 8 * most)
        width, height = _webp_size(data)  # opening allocates them
        if width * height > most:
            raise SourceError(
                f"{self.path}: {files[index]} has {width} x {height} pixels, more than {most:,}"
            )
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            return np.asarray(image.convert("RGBA"))


def read(path: Path) -> Loaded:
    """Decodes a .sog to a scene.

    Raises:
        SourceError: a part is missing, of a wrong size, damaged, or of an unknown version.
    """
    with parsing(path, ".sog"), zipfile.ZipFile(path) as archive:
        scene_archive = Archive.open(path, archive)
        version = scene_archive.meta.get("version", 1)  # version 1 did not say
        if version not in (1, 2):
            raise SourceError(f"{path}: .sog version {version!r}; 1 and 2 are known")
        count = (
            scene_archive.count("count") if version == 2 else scene_archive.count("means", "shape")
        )
        check_claim(path, count, count, RATIO * path.stat().st_size)
        scene = _scene(scene_archive, count, version == 1)
        antialiased = scene_archive.meta.get("model") == "antialiased" or bool(
            scene_archive.meta.get("antialias")
        )
    return Loaded(scene=scene, format="sog", antialiased=antialiased)


def _member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The bytes of one member, if there are no more than ``limit``."""
    with open_member(archive, name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise SourceError(f"{path}: {name} unpacks to more than {limit:,} bytes")
    return data


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that the first chunk of a WebP image claims (RFC 9649).

    Raises:
        ValueError: the file does not begin like a WebP image.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP image")
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":  # a canvas: 24 bits each, less one
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":  # lossless: a signature, then 14 bits each, less one
        fields = int.from_bytes(body[1:5], "little")
        return 1 + (fields & 0x3FFF), 1 + (fields >> 14 & 0x3FFF)
    if kind == b"VP8 ":  # lossy: six bytes of a key frame's start, then 14 bits each
        fields = int.from_bytes(body[6:10], "little")
        return fields & 0x3FFF, fields >> 16 & 0x3FFF
    raise ValueError(f"a WebP image that begins with {kind!r}")


def _scene(archive: Archive, n: int, first: bool) -> Scene:
    """Version 1 (``first``) lies between minima and maxima where version 2 has codebooks."""
    low, high = archive.plane("means", 0, n), archive.plane("means", 1, n)
    words = (low[:, :3] | high[:, :3].astype(np.uint16) << 8).astype(np.uint16)
    colours = archive.plane("sh0", 0, n)
    if first:
        scales = _between(archive, "scales", archive.plane("scales", 0, n)[:, :3])
        dc = _between(archive, "sh0", colours)
        logits = np.ascontiguousarray(dc[:, 3])
    else:
        scales = _book(archive, "scales")[archive.plane("scales", 0, n)[:, :3]]
        dc = _book(archive, "sh0")[colours[:, :3]]
        logits = LOGIT_OF_LEVEL[colours[:, 3]]
    return Scene(
        positions=_positions(archive, words),
        log_scales=scales,
        rotations=_rotations(archive.path, archive.plane("quats", 0, n)),
        opacity_logits=logits,
        sh_dc=np.ascontiguousarray(dc[:, :3]),
        sh_rest=_harmonics(archive, n, first),
    )


def _positions(archive: Archive, words: npt.NDArray[np.uint16]) -> FloatArray:
    """Inverse of sign(x) log(1 + abs(x)), which lies between minima and maxima."""
    low, high = (archive.numbers("means", end, least=3)[:3] for end in ("mins", "maxs"))
    positions = np.empty(words.shape, dtype=np.float32)
    span = np.where(high == low, 1.0, high - low)
    with np.errstate(over="ignore"):  # bounds too far apart give infinity: see check_values
        for start in range(0, len(words), ROWS):
            part = slice(start, start + ROWS)
            values = low + span * (words[part] / 65535.0)
            positions[part] = np.copysign(np.expm1(np.abs(values)), values)
    return positions


def _rotations(path: Path, levels: Bytes) -> FloatArray:
    """The three smaller components in 8 bits each, the index of the largest in alpha."""
    tags = levels[:, 3]
    if tags.min() < FIRST_TAG:
        raise SourceError(f"{path}: {int((tags < FIRST_TAG).sum()):,} quaternions have no tag")
    largest = (tags - FIRST_TAG).astype(np.intp)
    rotations = np.zeros((len(levels), 4), dtype=np.float32)
    rest = ((levels[:, :3] / 255.0 * 2.0 - 1.0) * math.sqrt(0.5)).astype(np.float32)
    rotations[np.arange(4)[None, :] != largest[:, None]] = rest.ravel()
    return fill_largest(rotations, largest)


def _harmonics(archive: Archive, n: int, first: bool) -> FloatArray:
    """float32 ``[N, M, 3]``: a palette entry for each Gaussian, 64 entries in a row of pixels."""
    if archive.meta.get("shN") is None:
        return np.zeros((n, 0, 3), dtype=np.float32)
    levels = archive.image("shN", 0, MAX_PALETTE * SH_REST[3])[..., :3]
    m, excess = divmod(levels.shape[1], PER_ROW)
    bands = {SH_REST[degree]: degree for degree in (1, 2, 3)}.get(m)
    if excess or bands is None or (not first and bands != archive.count("shN", "bands")):
        raise SourceError(f"{archive.path}: a palette of harmonics {levels.shape[1]} pixels wide")
    if first:
        low, high = (archive.numbers("shN", end, least=1)[0] for end in ("mins", "maxs"))
        book = (low + (high - low) * np.arange(256) / 255.0).astype(np.float32)
    else:
        book = _book(archive, "shN")
    labels = archive.plane("shN", 1, n)
    label = labels[:, 0] | labels[:, 1].astype(np.uint16) << 8
    palette = book[levels].reshape(-1, m, 3)
    if int(label.max()) >= len(palette):
        raise SourceError(f"{archive.path}: a label beyond the palette of harmonics")
    harmonics: FloatArray = palette[label]
    return harmonics


def _between(archive: Archive, part: str, levels: Bytes) -> FloatArray:
    width = levels.shape[1]
    low, high = (archive.numbers(part, end, least=width)[:width] for end in ("mins", "maxs"))
    return (low + (high - low) * (levels / 255.0)).astype(np.float32)


def _book(archive: Archive, part: str) -> FloatArray:
    """float32 ``[256]``: the value of each level."""
    return archive.numbers(part, "codebook", least=256)[:256].astype(np.float32)
