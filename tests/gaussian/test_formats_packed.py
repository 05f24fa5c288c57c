"""The packed formats against slow, independent encoders and decoders."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from splat_files import (
    SH_C0,
    changed,
    make_scene,
    sog_parts,
    spz_bytes,
    write_compressed,
    write_sog,
)

from dpq_core.errors import SourceError
from dpq_gaussian.formats import Target, read_scene, write_scene
from dpq_gaussian.formats.loaded import Loaded

needs_zstd = pytest.mark.skipif(
    importlib.util.find_spec("zstandard") is None, reason="needs zstandard"
)


def angle(a, b) -> float:
    """Largest angle in degrees between the rotations of two scenes."""
    p, q = (s.rotations.astype(float) for s in (a, b))
    dots = np.abs((p * q).sum(axis=1))
    cosine = dots / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
    return float(np.degrees(2 * np.arccos(np.minimum(cosine, 1.0))).max())


def gap(a, b, name: str) -> float:
    return float(np.abs(getattr(a, name).astype(float) - getattr(b, name)).max(initial=0.0))


def opacity(scene):
    return 1 / (1 + np.exp(-scene.opacity_logits.astype(float)))


def test_splat_keeps_what_it_can(tmp_path):
    scene = make_scene(1000)
    written = write_scene(scene, tmp_path / "a.splat", "splat")
    assert written.nbytes == 32_000
    assert written.notes == (
        ".splat has no view-dependent colour: spherical harmonics of degree 3 dropped",
        "clipped to what .splat can hold: color of 2 Gaussians",
    )
    found = read_scene(tmp_path / "a.splat").scene
    assert found.sh_degree == 0
    assert gap(scene, found, "positions") == 0.0
    assert gap(scene, found, "log_scales") < 1e-6
    assert angle(scene, found) < 1.0
    assert np.abs(opacity(scene) - opacity(found)).max() <= 0.5 / 255 + 1e-6
    inside = np.abs(scene.sh_dc * SH_C0) < 0.5  # colours outside [0, 1] are cut
    assert np.abs(scene.sh_dc - found.sh_dc)[inside].max() <= 0.5 / 255 / SH_C0 + 1e-6


def test_splat_bytes_of_one_gaussian(tmp_path):
    """The record of the format's description, by hand."""
    scene = make_scene(1, degree=0)
    scene = changed(
        scene,
        positions=np.array([[1.0, -2.0, 0.5]], dtype=np.float32),
        log_scales=np.log(np.array([[0.25, 0.5, 2.0]], dtype=np.float32)),
        rotations=np.array([[2.0, 0.0, -2.0, 0.0]], dtype=np.float32),
        opacity_logits=np.zeros(1, dtype=np.float32),
        sh_dc=np.array([[0.0, 9.0, -9.0]], dtype=np.float32),
    )
    write_scene(scene, tmp_path / "a.splat", "splat")
    data = (tmp_path / "a.splat").read_bytes()
    assert np.frombuffer(data[:24], "<f4").tolist() == [1.0, -2.0, 0.5, 0.25, 0.5, 2.0]
    assert list(data[24:]) == [128, 255, 0, 128, 219, 128, 37, 128]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [2, 3, 4])
def test_spz_is_read(tmp_path, version, degree):
    """As far apart as the format's steps allow, for a file of another encoder."""
    if version == 4:
        pytest.importorskip("zstandard")
    scene = make_scene(degree=degree)
    path = tmp_path / "a.spz"
    path.write_bytes(spz_bytes(scene, version))
    loaded = read_scene(path, axes="rdf")
    found = loaded.scene
    assert (loaded.format, loaded.coordinates, loaded.antialiased) == ("spz", "rdf", False)
    assert gap(scene, found, "positions") <= 0.5 / 4096
    assert gap(scene, found, "log_scales") <= 0.5 / 16 + 1e-6
    assert gap(scene, found, "sh_dc") <= 0.5 / 255 / 0.15 + 1e-6
    assert gap(scene, found, "sh_rest") <= (8.5 if degree > 1 else 4.5) / 128 + 1e-6
    assert np.abs(opacity(scene) - opacity(found)).max() <= 0.5 / 255 + 1e-6
    assert angle(scene, found) < (12.0 if version == 2 else 0.3)  # why there is a version 3


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz_is_written_like_another_encoder_writes_it(tmp_path, degree):
    import gzip

    scene = make_scene(500, degree=degree)
    write_scene(scene, tmp_path / "a.spz", "spz", axes="rdf")
    ours = np.frombuffer(gzip.decompress((tmp_path / "a.spz").read_bytes()), dtype=np.uint8)
    theirs = np.frombuffer(gzip.decompress(spz_bytes(scene, 3)), dtype=np.uint8)
    assert len(ours) == len(theirs)
    # Float32 against Python's float: a value on the border between levels may differ.
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("to", ["splat", "spz"])
def test_a_scene_of_the_format_survives_it_unchanged(tmp_path, to):
    write_scene(make_scene(300), tmp_path / "a", to)
    first = read_scene((tmp_path / "a").rename(tmp_path / f"a.{to}")).scene
    write_scene(first, tmp_path / f"b.{to}", to)
    second = read_scene(tmp_path / f"b.{to}").scene
    for name, array in first.arrays().items():
        bound = 1e-2 if name == "rotations" else 1e-6
        assert gap(first, second, name) <= bound, name
        assert array.dtype == np.float32


def test_spz_of_a_wide_scene_has_fewer_fractional_bits(tmp_path):
    """24 bits with 12 after the point end at 2048; other writers overflow there."""
    scene = make_scene()
    wide = changed(scene, positions=scene.positions * 20_000)
    written = write_scene(wide, tmp_path / "a.spz", "spz")
    assert np.abs(wide.positions).max() == pytest.approx(94_612, abs=1)
    assert "far positions: 6 fractional bits instead of 12" in written.notes
    assert gap(wide, read_scene(tmp_path / "a.spz").scene, "positions") <= 0.5 / 64
    huge = changed(scene, positions=scene.positions * 1e8)
    with pytest.raises(SourceError, match=r"a scene of size 4\.\d+e\+08 does not fit in .spz"):
        write_scene(huge, tmp_path / "b.spz", "spz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.spz"]


def test_one_flyaway_does_not_coarsen_an_spz(tmp_path):
    """It is moved to the border along its ray from the scene's middle, smaller in proportion."""
    scene = make_scene()
    scene.positions[7] = 4e6, -2e6, 0.0
    written = write_scene(scene, tmp_path / "a.spz", "spz")
    moved = [note for note in written.notes if note.startswith("moved")]
    assert moved == [
        "moved 1 Gaussians far outside of the scene to the border of what spz holds (+-2,048), "
        "smaller in proportion"
    ]
    found = read_scene(tmp_path / "a.spz").scene
    others = np.arange(50) != 7
    assert gap(scene.take(others), found.take(others), "positions") <= 0.5 / 4096
    assert found.positions[7] == pytest.approx([2048, -1024, 0], abs=2)
    shrunk = scene.log_scales[7] + np.log(2048 / 4e6)
    assert np.abs(found.log_scales[7] - np.maximum(shrunk, -10)).max() < 0.1


def test_what_spz_clips_is_counted_by_name(tmp_path):
    scene = make_scene()
    scene.sh_dc[3, 1] = -20.0
    scene.sh_rest[[4, 5], 2, 0] = 30.0
    scene.log_scales[6] = 50.0
    written = write_scene(scene, tmp_path / "a.spz", "spz")
    assert written.notes[-1] == (
        "clipped to what spz can hold: color of 1, scales of 1, harmonics of 2 Gaussians"
    )
    assert not any(
        "clipped" in note for note in write_scene(make_scene(), tmp_path / "b.spz", "spz").notes
    )


@needs_zstd
def test_spz_version_4_holds_what_version_3_does(tmp_path):
    scene = make_scene(300)
    write_scene(scene, tmp_path / "a.spz", "spz")
    write_scene(scene, tmp_path / "b.spz", "spz", target=Target(spz_version=4, antialiased=True))
    one, other = read_scene(tmp_path / "a.spz"), read_scene(tmp_path / "b.spz")
    assert (tmp_path / "b.spz").read_bytes()[:8] == b"NGSP\x04\0\0\0"
    assert other.antialiased
    for name in one.scene.arrays():
        assert gap(one.scene, other.scene, name) == 0, name


def test_spz_flags(tmp_path):
    scene = make_scene()
    write_scene(scene, tmp_path / "a.spz", "spz", antialiased=True)
    assert read_scene(tmp_path / "a.spz").antialiased
    axes = (0xADBE0003).to_bytes(4, "little") + (4).to_bytes(4, "little")
    other = (0xADBE0002).to_bytes(4, "little") + (2).to_bytes(4, "little") + b"xy"
    path = tmp_path / "b.spz"
    for value, name in [(6, "rdf"), (4, "rub"), (0, "rub"), (8, "ruf")]:
        path.write_bytes(spz_bytes(scene, 3, 2, other + axes + value.to_bytes(4, "little")))
        loaded = read_scene(path)
        assert loaded.coordinates == name
        assert bool(loaded.notes) is (value == 0)
    path.write_bytes(spz_bytes(scene, 3, 2, axes + (12).to_bytes(4, "little")))
    with pytest.raises(SourceError, match="z-up axes"):
        read_scene(path)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_compressed_ply_against_a_slow_decoder(tmp_path, degree):
    from plyfile import PlyData

    path = write_compressed(tmp_path / "a.compressed.ply", 300, degree)
    loaded = read_scene(path)
    found, data = loaded.scene, PlyData.read(str(path))
    assert loaded.format == "compressed.ply"
    for i in (0, 1, 255, 256, 299):
        word = {k: int(data["vertex"][f"packed_{k}"][i]) for k in ("position", "rotation", "scale")}
        chunk = {k: float(data["chunk"][k][i // 256]) for k in data["chunk"].data.dtype.names}
        for key, middle, got in (
            ("position", "", found.positions),
            ("scale", "scale_", found.log_scales),
        ):
            parts = word[key] >> 21, word[key] >> 11 & 1023, word[key] & 2047
            for axis, part, top in zip("xyz", parts, (2047, 1023, 2047), strict=True):
                low, high = chunk[f"min_{middle}{axis}"], chunk[f"max_{middle}{axis}"]
                value = low + (high - low) * part / top
                assert got[i]["xyz".index(axis)] == pytest.approx(value, abs=1e-6)
        rest = [(word["rotation"] >> s & 1023) / 1023 - 0.5 for s in (20, 10, 0)]
        rest = [value * math.sqrt(2) for value in rest]
        largest = math.sqrt(max(0.0, 1 - sum(value * value for value in rest)))
        rest.insert(word["rotation"] >> 30, largest)
        assert found.rotations[i] == pytest.approx(rest, abs=1e-6)
        m = found.sh_rest.shape[1]
        for k in range(3 * m):
            level = int(data["sh"][f"f_rest_{k}"][i])
            share = {0: 0.0, 255: 1.0}.get(level, (level + 0.5) / 256)
            assert found.sh_rest[i, k % m, k // m] == pytest.approx(8 * share - 4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bands", [0, 1, 2, 3])
def test_sog_against_a_slow_decoder(tmp_path, bands, version):
    parts = sog_parts(60, bands, version=version)
    meta = parts["meta.json"]
    found = read_scene(write_sog(tmp_path / "a.sog", parts)).scene
    assert (len(found), found.sh_degree) == (60, bands)
    planes = {k: v.reshape(-1, 4) for k, v in parts.items() if k != "meta.json"}

    def value(part: str, level: int, channel: int) -> float:
        if version == 2:
            return meta[part]["codebook"][level]
        low, high = meta[part]["mins"][channel], meta[part]["maxs"][channel]
        return low + (high - low) * level / 255

    for i in (0, 7, 59):
        for axis in range(3):
            word = int(planes["means_l.webp"][i, axis]) + 256 * int(planes["means_u.webp"][i, axis])
            low, high = meta["means"]["mins"][axis], meta["means"]["maxs"][axis]
            x = low + (high - low) * word / 65535
            x = math.copysign(math.exp(abs(x)) - 1, x)
            assert found.positions[i, axis] == pytest.approx(x, rel=1e-5)
            level = int(planes["scales.webp"][i, axis])
            assert found.log_scales[i, axis] == pytest.approx(value("scales", level, axis))
            level = int(planes["sh0.webp"][i, axis])
            assert found.sh_dc[i, axis] == pytest.approx(value("sh0", level, axis))
        alpha = int(planes["sh0.webp"][i, 3])
        logit = math.log(alpha / (255 - alpha)) if version == 2 else value("sh0", alpha, 3)
        assert found.opacity_logits[i] == pytest.approx(logit, rel=1e-4)
        pixel = [int(level) for level in planes["quats.webp"][i]]
        rest = [(2 * level / 255 - 1) / math.sqrt(2) for level in pixel[:3]]
        largest = math.sqrt(max(0.0, 1 - sum(v * v for v in rest)))
        rest.insert(pixel[3] - 252, largest)
        assert found.rotations[i] == pytest.approx(rest, abs=1e-6)
        if bands:
            label, m = int(planes["shN_labels.webp"][i, 0]), found.sh_rest.shape[1]
            palette = parts["shN_centroids.webp"]
            for k in range(m):
                for channel in range(3):
                    level = int(palette[label // 64, label % 64 * m + k, channel])
                    if version == 2:
                        expected = meta["shN"]["codebook"][level]
                    else:
                        expected = -0.5 + 1.25 * level / 255
                    assert found.sh_rest[i, k, channel] == pytest.approx(expected, rel=1e-5)


def test_a_scene_file_is_known_by_its_content(tmp_path):
    """Whatever it is called; only .splat has nothing but its name."""
    write_scene(make_scene(), tmp_path / "a.ply", "ply")
    write_scene(make_scene(), tmp_path / "a.spz", "spz")
    write_sog(tmp_path / "a.sog", sog_parts())
    write_compressed(tmp_path / "a.compressed.ply")
    for name in ("ply", "spz", "sog", "compressed.ply"):
        path = (tmp_path / f"a.{name}").rename(tmp_path / f"{name}.data")
        loaded = read_scene(path)
        assert isinstance(loaded, Loaded)
        assert loaded.format == name


def test_splat_scales_that_are_no_scales(tmp_path):
    """Zero becomes tiny; negative too; NaN (signalling or not) stays for check_values."""
    path = tmp_path / "a.splat"
    write_scene(make_scene(4, degree=0), path, "splat")
    rows = bytearray(path.read_bytes())
    words = [0.0, -1.0, np.inf, 0x7FA00000]
    for i, word in enumerate(words):
        data = np.uint32(word) if isinstance(word, int) else np.float32(word)
        rows[32 * i + 12 : 32 * i + 16] = data.tobytes()
    path.write_bytes(rows)
    found = read_scene(path).scene.log_scales[:, 0]
    assert found[:3] == pytest.approx([-87.3365, -87.3365, 88.7228], abs=1e-3)
    assert math.isnan(found[3])
