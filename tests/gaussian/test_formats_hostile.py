"""Damaged and hostile files of every format: one line, little memory, nothing else."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from splat_files import (
    columns,
    make_scene,
    sog_parts,
    spz_bytes,
    write_compressed,
    write_ply,
    write_sog,
)

from dpq_core.errors import SourceError
from dpq_gaussian.formats import Loaded, check_values, read_scene, sog, write_scene

HAS_ZSTD = importlib.util.find_spec("zstandard") is not None
needs_zstd = pytest.mark.skipif(not HAS_ZSTD, reason="needs zstandard")
if HAS_ZSTD:
    import zstandard

NAMES = {
    "ply": "a.ply",
    "big.ply": "b.ply",
    "ascii.ply": "c.ply",
    "compressed.ply": "a.compressed.ply",
    "splat": "a.splat",
    "spz2": "a.spz",
    "spz3": "b.spz",
    "sog": "a.sog",
    "sog1": "b.sog",
} | ({"spz4": "c.spz"} if HAS_ZSTD else {})

MEGABYTES = 24
"""Most that reading one of the small files below may take."""


class Wholes(dict[str, bytes]):
    """Kind -> content of a file; hypothesis prints it with every failing example."""

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> Wholes:
    """One small sound file of every format."""
    folder: Path = tmp_path_factory.mktemp("wholes")
    scene = make_scene(12, degree=1)
    write_scene(scene, folder / "a.ply", "ply")
    write_ply(folder / "b.ply", columns(scene), byte_order=">")
    write_ply(folder / "c.ply", columns(scene), text=True)
    write_compressed(folder / "a.compressed.ply", 12)
    write_scene(scene, folder / "a.splat", "splat")
    (folder / "a.spz").write_bytes(spz_bytes(scene, 2))
    (folder / "b.spz").write_bytes(spz_bytes(scene, 3))
    write_sog(folder / "a.sog", sog_parts(12))
    write_sog(folder / "b.sog", sog_parts(12, version=1))
    if HAS_ZSTD:
        (folder / "c.spz").write_bytes(spz_bytes(scene, 4))
    return Wholes({kind: (folder / name).read_bytes() for kind, name in NAMES.items()})


def test_a_failing_example_is_short(wholes):
    """Beyond 30,000 characters hypothesis warns, which would hide what failed."""
    assert len(repr(wholes)) < 100


def attempt(path: Path, content: bytes) -> Loaded | str:
    """Read it: a scene of the right shapes, or the one line of the error."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        loaded = read_scene(path)
        peak = tracemalloc.get_traced_memory()[1]
    except SourceError as error:
        peak = tracemalloc.get_traced_memory()[1]
        message = str(error)
        assert "\n" not in message
        assert str(path) in message
        assert len(message) < 1500
        return message
    finally:
        tracemalloc.stop()
        assert peak < MEGABYTES << 20
    try:
        check_values(loaded.scene, "x")
    except SourceError as error:
        return str(error)
    return loaded


@pytest.mark.parametrize("kind", NAMES)
def test_the_whole_files_are_sound(wholes, tmp_path, kind):
    assert isinstance(attempt(tmp_path / NAMES[kind], wholes[kind]), Loaded)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(st.booleans(), st.integers(0, 2**20), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_flipped_bytes(wholes, tmp_path, kind, changes):
    content = bytearray(wholes[kind])
    for early, place, byte in changes:
        # The first bytes decide most: half of the changes go there.
        content[place % (min(64, len(content)) if early else len(content))] = byte
    attempt(tmp_path / NAMES[kind], bytes(content))


def zstd_frame(data: bytes, *, level: int = 3) -> bytes:
    """A frame that does not say how much it holds: its window is that of the level."""
    packer = zstandard.ZstdCompressor(level=level).compressobj()
    return packer.compress(data) + packer.flush()


@needs_zstd
def test_a_zstd_frame_is_not_believed_what_it_holds(wholes, tmp_path):
    """Byte 132 is the descriptor of the first frame: at 128 it claims to hold 100,664,161 bytes."""
    content = bytearray(wholes["spz4"])
    content[132] = 128
    found = attempt(tmp_path / "c.spz", bytes(content))
    assert "a stream claims 100,664,161 bytes instead of 108" in found


@needs_zstd
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (zstd_frame(bytes(9)), None),  # a window of 2 MB is usual
        (zstd_frame(bytes(9), level=22), "Frame requires too much memory"),  # 128 MB
        (zstd_frame(bytes(10)), "not a readable .spz file"),
        (zstd_frame(bytes(8)), "a stream has 8 bytes instead of 9"),
        (zstd_frame(bytes(32 << 20)), "not a readable .spz file"),
        (b"", "not a readable .spz file"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", "a stream claims 4 bytes instead of 9"),
    ]
    if HAS_ZSTD
    else [],
    ids=["whole", "window", "long", "short", "bomb", "empty", "skippable"],
)
def test_zstd_frames(tmp_path, frame, message):
    rest = [zstandard.compress(bytes(size)) for size in (1, 3, 3, 4)]
    frames, sizes = [frame, *rest], (9, 1, 3, 3, 4)
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
    table = (struct.pack("<QQ", len(f), n) for f, n in zip(frames, sizes, strict=True))
    found = attempt(tmp_path / "a.spz", b"".join([head, *table, *frames]))
    assert isinstance(found, Loaded) if message is None else message in found


@pytest.mark.parametrize("kind", NAMES)
def test_truncations(wholes, tmp_path, kind):
    whole = wholes[kind]
    cuts = {*range(0, min(len(whole), 200)), *range(0, len(whole), 1 + len(whole) // 200)}
    for length in sorted(cuts):
        found = attempt(tmp_path / NAMES[kind], whole[:length])
        kept = isinstance(found, Loaded) and length % 32 == 0 and kind == "splat"
        assert isinstance(found, str) or kept or kind == "ascii.ply", length


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    start=st.sampled_from([b"", b"ply\n", b"NGSP", b"\x1f\x8b\x08", b"PK\x03\x04", b"PK\x05\x06"]),
    rest=st.binary(max_size=300),
    suffix=st.sampled_from([".ply", ".splat", ".spz", ".sog", ".bin"]),
)
@example(start=b"ply\n", rest=b"format ascii 1.0\nproperty float x\nend_header\n", suffix=".ply")
def test_noise(tmp_path, start, rest, suffix):
    attempt(tmp_path / f"a{suffix}", start + rest)


def spz(count: int, body: bytes, *, version=3, degree=0, fraction=12, flags=0) -> bytes:
    head = struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, fraction, flags, 0)
    return gzip.compress(head + body, mtime=0)


def named(value: object) -> str:
    """An id of a test: its message, for a file would be no readable one."""
    return value if isinstance(value, str) else "file"


def bomb(head: bytes, megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(head)] + [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


ONE = bytes(20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spz(2**32 - 1, ONE), "4,294,967,295 Gaussians need 85,899,345,900 bytes"),
        (spz(0, b""), "holds no Gaussians"),
        (spz(2, ONE), "truncated (2 Gaussians)"),
        (spz(1, ONE + b"!"), "more data than its header says (1 Gaussians)"),
        (spz(1, ONE) + b"!", "more data than its header says (1 Gaussians)"),
        (spz(1, ONE, version=1), ".spz version 1 in gzip; 2 and 3 are known"),
        (spz(1, ONE, version=9), ".spz version 9 in gzip"),
        (spz(1, ONE, degree=4), "harmonics of degree 4"),
        (spz(1, ONE, fraction=200), "200 fractional bits"),
        (bomb(spz(1, ONE)[:0] + gzip.decompress(spz(1, ONE)), 64), "more data than its header"),
        (gzip.compress(b"ply\n" + bytes(100), mtime=0), "unpack a .ply.gz first"),
        (gzip.compress(b"x", mtime=0), "a gzip file, but not of .spz"),
        (b"\x1f\x8b" + bytes(50), "not a readable .spz file"),
        (b"NGSP" + bytes(10), "truncated .spz header"),
        (b"NGSP" + struct.pack("<I", 5) + bytes(30), ".spz version 5; 2, 3 and 4 are known"),
        (
            struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 2**31, 3, 12, 0, 6, 32),
            "2,147,483,648 Gaussians need",
        ),
        (
            struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 2**31),
            "damaged .spz table of contents",
        ),
        (
            struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32) + bytes(80),
            "its table of contents is wrong",
        ),
    ],
    ids=named,
)
def test_spz_refusals(tmp_path, content, message):
    assert message in attempt(tmp_path / "a.spz", content)


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def with_meta(change) -> dict:
    parts = sog_parts(12)
    change(parts["meta.json"])
    return parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=3), ".sog version 3; 1 and 2 are known"),
        (lambda m: m.update(version=[]), ".sog version []"),
        (lambda m: m.update(count=10**12), "1,000,000,000,000 Gaussians need"),
        (lambda m: m.update(count=17), "has 16 pixels for 17 Gaussians"),
        (lambda m: m.update(count=-1), "holds no Gaussians"),
        (lambda m: m.update(count=3.5), "count in meta.json is not a whole number"),
        (lambda m: m.update(count=True), "count in meta.json is not a whole number"),
        (lambda m: m.pop("means"), "meta.json lacks means"),
        (lambda m: m["sh0"].pop("codebook"), "meta.json lacks sh0.codebook"),
        (lambda m: m["sh0"].update(codebook=[0.0] * 255), "not a list of 256 numbers"),
        (lambda m: m["sh0"].update(codebook=["x"] * 256), "not a list of 256 numbers"),
        (lambda m: m["sh0"].update(codebook=[float("nan")] * 256), "not a list of 256 numbers"),
        (lambda m: m["means"].update(mins=[0, 0]), "means.mins in meta.json is not a list of 3"),
        (lambda m: m["quats"].update(files=[]), "names no file 1 of quats"),
        (lambda m: m["quats"].update(files="quats.webp"), "names no file 1 of quats"),
        (lambda m: m["quats"].update(files=["../../etc/passwd"]), "There is no item named"),
        (lambda m: m["quats"].update(files=["meta.json"]), "not a WebP image"),
        (lambda m: m["quats"].update(files=["scales.webp"]), "quaternions have no tag"),
        (lambda m: m["shN"].update(bands=2), "a palette of harmonics 192 pixels wide"),
        (lambda m: m["shN"].update(files=["sh0.webp"] * 2), "palette of harmonics 4 pixels wide"),
        (
            lambda m: m["shN"].update(files=["shN_centroids.webp", "sh0.webp"]),
            "a label beyond the palette",
        ),
    ],
)
def test_sog_refusals(tmp_path, change, message):
    path = write_sog(tmp_path / "a.sog", with_meta(change))
    assert message in attempt(path, path.read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(x=b""), "There is no item named 'meta.json'"),
        (archive(**{"meta.json": b"[]"}), "meta.json is not an object"),
        (archive(**{"meta.json": b"{"}), "not a readable .sog file"),
        (archive(**{"meta.json": b"[" * 100_000}), "not a readable .sog file"),
        (archive(**{"meta.json": bytes(64 << 20)}), "unpacks to more than 4,194,304 bytes"),
    ],
    ids=["no meta", "list", "half", "deep", "bomb"],
)
def test_sog_archives(tmp_path, content, message):
    assert message in attempt(tmp_path / "a.sog", content)


def test_a_sog_with_a_picture_bomb(tmp_path):
    """A constant plane of many pixels takes few bytes."""
    parts = sog_parts(12) | {"quats.webp": np.zeros((3000, 3000, 4), dtype=np.uint8)}
    path = write_sog(tmp_path / "a.sog", parts)
    assert path.stat().st_size < 50_000
    assert "3000 x 3000 pixels, more than" in attempt(path, path.read_bytes())
    inner = archive(**{"meta.json": json.dumps(sog_parts(12)["meta.json"]).encode()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("meta.json", json.dumps(sog_parts(12)["meta.json"]))
        file.writestr("means_l.webp", bytes(64 << 20))
    assert "means_l.webp unpacks to more than" in attempt(path, path.read_bytes())
    assert "There is no item named 'means_l.webp'" in attempt(path, inner)


def riff(kind: bytes, body: bytes) -> bytes:
    """A WebP file of one chunk."""
    chunk = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


SIDE = 16_383
SIDES = SIDE - 1 | SIDE - 1 << 14


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (riff(b"VP8X", bytes(4) + 2 * (SIDE - 1).to_bytes(3, "little")), "16383 x 16383 pixels"),
        (riff(b"VP8L", b"\x2f" + SIDES.to_bytes(4, "little")), "16383 x 16383 pixels"),
        (riff(b"VP8 ", bytes(6) + struct.pack("<HH", SIDE, SIDE)), "16383 x 16383 pixels"),
        (riff(b"ANIM", bytes(10)), "a WebP image that begins with b'ANIM'"),
        (riff(b"VP8L", b""), "not a readable .sog file"),
        (b"RIFF", "not a WebP image"),
        (b"", "not a WebP image"),
    ],
    ids=["canvas", "lossless", "lossy", "other", "cut", "start", "empty"],
)
def test_a_webp_plane_is_not_believed_its_size(tmp_path, monkeypatch, plane, message):
    """Opening an image allocates its canvas twice, so its header is looked at before."""
    from PIL import Image

    opened = Image.open

    def small(file, **options):
        assert message == "not a readable .sog file"
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", small)
    path = write_sog(tmp_path / "a.sog", sog_parts(12) | {"means_l.webp": plane})
    assert message in attempt(path, path.read_bytes())


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_the_size_of_a_webp_image_is_that_of_the_decoder(lossless, alpha):
    from PIL import Image

    stream = io.BytesIO()
    picture = np.full((13, 300, 4), 200, np.uint8)
    Image.fromarray(picture if alpha else picture[..., :3]).save(stream, "WEBP", lossless=lossless)
    assert sog._webp_size(stream.getvalue()) == (300, 13)


def test_a_sog_member_that_is_packed_in_another_way(tmp_path):
    path = tmp_path / "a.sog"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("meta.json", bytes(1 << 20))
    assert "meta.json is neither stored nor deflated" in attempt(path, path.read_bytes())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.splat", bytes(33), "33 bytes are not a multiple of 32"),
        ("a.splat", b"", "holds no Gaussians"),
        ("a.sog", b"no zip", "damaged: it does not start like a .sog file"),
        ("a.ply", b"solid", "damaged: it does not start like a .ply file"),
        ("a.png", b"\x89PNG", "not a splat file (.ply, .compressed.ply, .splat, .spz, .sog)"),
        ("a.ksplat", b"\0\0\0\0", "convert it to .ply first, e.g. with splat-transform"),
    ],
)
def test_other_refusals(tmp_path, name, content, message):
    assert message in attempt(tmp_path / name, content)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"no.ply: No such file or directory"):
        read_scene(tmp_path / "no.ply")
    with pytest.raises(SourceError, match="a folder, not a splat file"):
        read_scene(tmp_path)


def compressed(tmp_path: Path, old: bytes, new: bytes) -> str:
    path = write_compressed(tmp_path / "a.compressed.ply", 300, 1)
    content = path.read_bytes()
    assert old in content
    found = attempt(path, content.replace(old, new, 1))
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"element chunk 2", b"element chunk 1", "1 chunks for 300 Gaussians, not 2"),
        (b"element chunk 2", b"element other 2", "0 chunks for 300 Gaussians, not 2"),
        (b"element sh 300", b"element sh 299", "not the layout of a compressed.ply"),
        (b"property uchar f_rest_0", b"property uchar f_rest_9", "not the layout of a compressed"),
        (b"property float max_scale_x", b"property float mix_scale_x", "not the layout of"),
        (b"property uint packed_scale", b"property int packed_scale", "not the layout of"),
        (b"element vertex 300", b"element vertex 0", "holds no Gaussians"),
        (b"element vertex 300", b"element vertex 999999999999", "promises 2 of chunk and 999,999"),
    ],
)
def test_compressed_ply_refusals(tmp_path, old, new, message):
    assert message in compressed(tmp_path, old, new)
