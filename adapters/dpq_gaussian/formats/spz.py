"""Niantic's .spz: versions 2 and 3 (one gzip stream) and 4 (one zstd stream per attribute)."""

from __future__ import annotations

import importlib
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from dpq_core.errors import SourceError
from dpq_gaussian.formats import spz_planes
from dpq_gaussian.formats.coordinates import NATIVE, SYSTEMS, convert
from dpq_gaussian.formats.loaded import Loaded, check_claim, parsing
from dpq_gaussian.formats.spz_planes import Layout
from dpq_gaussian.formats.stream import SceneStream

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")
"""Magic, version, count, degree, fractional bits, flags; then nothing (v2, v3) or streams (v4)."""

HEADER_4 = struct.Struct("<4sIIBBBBI12x")
"""Version 4 adds where its table of contents starts."""

ANTIALIASED, EXTENDED = 1, 2
"""Flags."""

COORDINATES = "rub"
"""Axes of the stored values by the specification: x right, y up, z back."""

AXES_EXTENSION = 0xADBE0003
"""Type of the extension record that names other axes (SPZ_ADOBE_coordinate_system)."""

RATIO = 1032
"""Deflate cannot expand a byte to more; zstd can, but packed scenes come nowhere near."""

ZSTD_LEVEL = 12
"""Of the streams of version 4: twice as slow as gzip, and as small as zstd gets but for 2 %."""

MAX_WINDOW = 8 << 20
"""Bytes of history that a zstd frame may ask a reader to keep (RFC 8878, section 3.1.1.1.2)."""

MAX_EXTENSIONS = 1 << 20
"""Bytes of extension records that are looked at."""


def read(path: Path, coordinates: str | None) -> Loaded:
    """Decode a scene into the axes of ``Scene``.

    Args:
        path: the file.
        coordinates: the axes it is in; None takes what it says, else RUB.

    Raises:
        SourceError: unknown version, degree 4, truncated, or more than its header says.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        layout, flags, planes, records = _read_gzip(path, data)
    else:
        layout, flags, planes, records = _read_zstd(path, data)
    declared = _declared(path, records) if flags & EXTENDED else None
    axes = coordinates or declared or COORDINATES
    scene = convert(spz_planes.decode(planes, layout), axes, NATIVE, in_place=True)
    note = (
        f"taken to be in {axes.upper()} axes (the specification's) and turned into those of a "
        ".ply; if it was made without that turn and is upside down, say that it is in rdf"
    )
    return Loaded(
        scene=scene,
        format="spz",
        coordinates=axes,
        antialiased=bool(flags & ANTIALIASED),
        notes=() if coordinates or declared else (note,),
    )


def write(
    file: BinaryIO, stream: SceneStream, antialiased: bool, version: int = 3
) -> tuple[str, ...]:
    """Writes version 3, which more readers know, or 4; the chunks must be in the file's axes.

    Returns:
        Notes for the user: what was clipped or moved.

    Raises:
        SourceError: the scene is too large for 24-bit positions, or zstandard is not installed.
    """
    planes, layout, notes = spz_planes.encode(stream, version)
    flags = ANTIALIASED if antialiased else 0
    fields = (MAGIC, version, layout.count, layout.degree, layout.fraction, flags)
    if version == 3:
        packer = zlib.compressobj(level=6, wbits=31)  # 31: a gzip wrapper, without a time stamp
        for part in (HEADER.pack(*fields, 0), *(plane.tobytes() for plane in planes)):
            file.write(packer.compress(part))
        file.write(packer.flush())
        return notes
    zstandard = _zstandard("write version 4 of .spz")
    streams = [plane.tobytes() for plane in planes if plane.size]
    packed = [zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(stream) for stream in streams]
    file.write(HEADER_4.pack(*fields, len(streams), HEADER_4.size))
    for data, content in zip(packed, streams, strict=True):
        file.write(struct.pack("<QQ", len(data), len(content)))
    for data in packed:
        file.write(data)
    return notes


def _zstandard(purpose: str) -> Any:
    """The module ``zstandard``.

    Raises:
        SourceError: it is not installed.
    """
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise SourceError(f"zstandard is needed to {purpose}: pip install zstandard") from None


def _layout(path: Path, fields: tuple[int, ...], room: int) -> Layout:
    """Check version, count and degree against the bytes there are before trusting them."""
    version, count, degree, fraction = fields
    if degree > 3:
        raise SourceError(f"{path}: harmonics of degree {degree}; up to 3 are supported")
    if fraction > 30:
        raise SourceError(f"{path}: {fraction} fractional bits in a 24-bit position")
    layout = Layout(version=version, count=count, degree=degree, fraction=fraction)
    check_claim(path, count, sum(layout.sizes), room)
    return layout


def _read_gzip(path: Path, data: bytes) -> tuple[Layout, int, list[bytes], bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    with parsing(path, ".spz"):
        head = unpacker.decompress(data, HEADER.size)
    if len(head) < HEADER.size or head[:4] != MAGIC:
        raise SourceError(f"{path}: a gzip file, but not of .spz (unpack a .ply.gz first)")
    _, version, count, degree, fraction, flags, _ = HEADER.unpack(head)
    if version not in (2, 3):
        raise SourceError(f"{path}: .spz version {version} in gzip; 2 and 3 are known")
    layout = _layout(path, (version, count, degree, fraction), RATIO * len(data))
    with parsing(path, ".spz"):
        body = unpacker.decompress(unpacker.unconsumed_tail, sum(layout.sizes))
        rest = unpacker.decompress(unpacker.unconsumed_tail, MAX_EXTENSIONS)
    if len(body) < sum(layout.sizes) or not unpacker.eof:
        fault = "has more data than its header says" if len(rest) else "truncated"
        raise SourceError(f"{path}: {fault} ({count:,} Gaussians)")
    if unpacker.unused_data or (rest and not flags & EXTENDED):
        raise SourceError(f"{path}: has more data than its header says ({count:,} Gaussians)")
    ends = [sum(layout.sizes[: i + 1]) for i in range(len(layout.sizes))]
    view = memoryview(body)
    planes = [view[end - size : end] for size, end in zip(layout.sizes, ends, strict=True)]
    return layout, flags, planes, rest  # type: ignore[return-value]


def _read_zstd(path: Path, data: bytes) -> tuple[Layout, int, list[bytes], bytes]:
    if len(data) < HEADER_4.size:
        raise SourceError(f"{path}: truncated .spz header")
    _, version, count, degree, fraction, flags, streams, table = HEADER_4.unpack_from(data)
    if version != 4:
        raise SourceError(f"{path}: .spz version {version}; 2, 3 and 4 are known")
    layout = _layout(path, (version, count, degree, fraction), RATIO * len(data))
    sizes = [size for size in layout.sizes if size]  # degree 0 has no stream of harmonics
    at = table + 16 * streams
    if streams != len(sizes) or table < HEADER_4.size or at > len(data):
        raise SourceError(f"{path}: damaged .spz table of contents")
    entries = list(struct.iter_unpack("<QQ", data[table:at]))
    if [entry[1] for entry in entries] != sizes or at + sum(e[0] for e in entries) != len(data):
        raise SourceError(f"{path}: truncated, or its table of contents is wrong")
    planes = []
    for packed, size in entries:
        planes.append(_unzstd(path, data[at : at + packed], size))
        at += packed
    planes += [b""] * (len(layout.sizes) - len(planes))
    return layout, flags, planes, data[HEADER_4.size : table][:MAX_EXTENSIONS]


def _unzstd(path: Path, data: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes out of one zstd frame, whatever the frame claims."""
    zstandard = _zstandard(f"read {path}, an .spz of version 4")
    with parsing(path, ".spz"):
        claimed = zstandard.get_frame_parameters(data).content_size  # allocated as it stands
        if claimed not in (size, zstandard.CONTENTSIZE_UNKNOWN):
            raise SourceError(f"{path}: a stream claims {claimed:,} bytes instead of {size:,}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=max(size, MAX_WINDOW))
        out = bytes(unpacker.decompress(data, max_output_size=size))
    if len(out) != size:
        raise SourceError(f"{path}: a stream has {len(out):,} bytes instead of {size:,}")
    return out


def _declared(path: Path, records: bytes) -> str | None:
    """The axes that an extension record (type, length, payload) names, if there is one."""
    at = 0
    while at + 8 <= len(records):
        kind, length = struct.unpack_from("<II", records, at)
        if kind == AXES_EXTENSION and length == 4 and at + 12 <= len(records):
            (value,) = struct.unpack_from("<I", records, at + 8)
            if value == 0:
                return None
            if value > len(SYSTEMS):
                raise SourceError(f"{path}: z-up axes (system {value}) are not supported")
            return str(SYSTEMS[value - 1])
        at += 8 + length
    return None
