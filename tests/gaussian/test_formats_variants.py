"""Variants of scenes that people have: 2D, 4D, filtered, coloured, in the world, of degree 4."""

from __future__ import annotations

import numpy as np
import pytest
from splat_files import SH_C0, changed, columns, make_scene, write_ply

from dpq_core.errors import SourceError
from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.export import export
from dpq_gaussian.formats import check_values, read_scene
from dpq_gaussian.loading import load
from dpq_gaussian.options import ExportOptions

WORLD = np.array([4_100_000.0, 652_000.0, 120.0])


def test_mip_splattings_filter_is_folded_in(tmp_path):
    """As create_fused_ply of Mip-Splatting writes it (arXiv 2311.16493, eq. 9)."""
    scene = make_scene()
    deviation = np.random.default_rng(1).uniform(0.001, 0.3, 50).astype(np.float32)
    path = write_ply(tmp_path / "a.ply", columns(scene) | {"filter_3D": deviation})
    loaded = read_scene(path)
    squares = np.exp(scene.log_scales.astype(float)) ** 2
    grown = squares + deviation[:, None].astype(float) ** 2
    assert np.allclose(loaded.scene.log_scales, np.log(np.sqrt(grown)), atol=1e-5)
    ratio = np.sqrt(squares.prod(axis=1) / grown.prod(axis=1))
    opacity = ratio / (1 + np.exp(-scene.opacity_logits.astype(float)))
    assert np.allclose(1 / (1 + np.exp(-loaded.scene.opacity_logits)), opacity, atol=1e-5)
    assert loaded.antialiased
    assert loaded.notes == ("Mip-Splatting's filter_3D is folded into scales and opacities",)
    assert "filter_3D" not in loaded.ignored


@pytest.mark.parametrize(
    "names", [["trbf_center", "trbf_scale"], ["motion_0", "motion_1"], ["t", "scale_t", "rot_r_0"]]
)
def test_scenes_that_move_are_refused_by_name(tmp_path, names):
    scene = make_scene()
    more = dict.fromkeys(names, scene.opacity_logits)
    path = write_ply(tmp_path / "a.ply", columns(scene) | more)
    with pytest.raises(SourceError, match=rf"a 4D scene.*\(.*{names[-1]}"):
        read_scene(path)


def test_2d_gaussians_have_a_flat_third_axis(tmp_path):
    scene = make_scene()
    values = {name: column for name, column in columns(scene).items() if name != "scale_2"}
    path = write_ply(tmp_path / "a.ply", values)
    loaded = read_scene(path)
    assert loaded.flat
    assert np.array_equal(loaded.scene.log_scales[:, :2], scene.log_scales[:, :2])
    thickness = loaded.scene.log_scales[:, 2] - scene.log_scales[:, :2].min(axis=1)
    assert np.allclose(thickness, np.log(1e-4), atol=1e-5)
    check_values(loaded.scene, "x")
    # The mark goes into a .dpq and out of it.
    compress_file(GaussianAdapter(), str(path), tmp_path / "a.dpq")
    assert load(str(tmp_path / "a.dpq")).flat
    export(str(tmp_path / "a.dpq"), "ply", ExportOptions(), Run(), tmp_path / "b.ply")
    assert b"comment SplatRenderMode: 2dgs" in (tmp_path / "b.ply").read_bytes()
    assert read_scene(tmp_path / "b.ply").flat
    notes = export(str(path), "spz", ExportOptions(), Run(), tmp_path / "b.spz").notes
    assert ".spz cannot say that the Gaussians are flat (2D)" in notes


def test_flat_and_opaque_gaussians_are_read(tmp_path):
    scene = make_scene()
    scene.log_scales[3, 1] = -np.inf
    scene.log_scales[4] = -np.inf
    scene.opacity_logits[[5, 6]] = np.inf, -np.inf
    loaded = load(str(write_ply(tmp_path / "a.ply", columns(scene))))
    check_values(loaded.scene, "x")
    assert loaded.notes == (
        "bounded 2 infinite opacities",
        "2 flat Gaussians (a log scale of -inf) made nearly flat",
    )
    expected = scene.log_scales[3, [0, 2]].min() + np.log(1e-4)
    assert loaded.scene.log_scales[3, 1] == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(loaded.scene.log_scales[3, [0, 2]], scene.log_scales[3, [0, 2]])
    assert (loaded.scene.log_scales[4] == -20).all()
    assert loaded.scene.opacity_logits[[5, 6]] == pytest.approx([13.8155, -13.8155], abs=1e-3)
    compress_file(GaussianAdapter(), str(tmp_path / "a.ply"), tmp_path / "a.dpq")


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_colours_in_place_of_harmonics(tmp_path, kind):
    scene = make_scene(degree=0)
    values = {k: v for k, v in columns(scene).items() if not k.startswith("f_dc")}
    top = np.iinfo(kind).max if kind != "f4" else 1
    levels = np.random.default_rng(0).uniform(0, top, (50, 3)).astype(kind)
    values |= {name: levels[:, axis] for axis, name in enumerate(("red", "green", "blue"))}
    loaded = read_scene(write_ply(tmp_path / "a.ply", values))
    assert np.allclose(0.5 + SH_C0 * loaded.scene.sh_dc, levels / top, atol=1e-6)
    assert loaded.notes == ("colour from red, green and blue (no f_dc)",)


@pytest.mark.parametrize("degree", [4, 5])
def test_bands_beyond_the_third_are_dropped(tmp_path, degree):
    scene = make_scene(degree=3)
    m = (degree + 1) ** 2 - 1
    rest = np.random.default_rng(0).normal(size=(50, m, 3)).astype(np.float32)
    values = columns(changed(scene, sh_rest=scene.sh_rest[:, :0]))
    values |= {f"f_rest_{i}": rest[:, i % m, i // m] for i in range(3 * m)}
    loaded = read_scene(write_ply(tmp_path / "a.ply", values))
    assert np.array_equal(loaded.scene.sh_rest, rest[:, :15])
    bands = "band 4" if degree == 4 else "bands 4 to 5"
    assert loaded.notes == (f"harmonics of degree {degree}: {bands} dropped, degree 3 is kept",)
    assert loaded.ignored == ("nx", "ny", "nz")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("comment", ["größe 1 µm, 写真".encode(), "gr\xf6\xdfe".encode("latin-1")])
def test_comments_in_any_writing(tmp_path, comment, text):
    scene = make_scene()
    path = write_ply(tmp_path / "a.ply", columns(scene), text=text)
    path.write_bytes(path.read_bytes().replace(b"element", b"comment " + comment + b"\nelement", 1))
    assert np.array_equal(read_scene(path).scene.sh_rest, scene.sh_rest)


def geo_referenced(path, kind="f8", n=200):
    scene = make_scene(n)
    values = columns(scene)
    for axis, name in enumerate("xyz"):
        values[name] = scene.positions[:, axis].astype(np.float64) + WORLD[axis]
    return write_ply(path, values, kind=kind), scene


def test_geo_referenced_doubles_keep_their_precision(tmp_path):
    path, scene = geo_referenced(tmp_path / "a.ply")
    loaded = load(str(path))
    assert any(loaded.origin)
    back = loaded.scene.positions.astype(np.float64) + np.array(loaded.origin)
    assert np.abs(back - (scene.positions + WORLD)).max() < 1e-6
    assert any("relative to the origin" in note for note in loaded.notes)
    # Through a .dpq, and back into the world as float64.
    compress_file(GaussianAdapter(), str(path), tmp_path / "a.dpq")
    restored = load(str(tmp_path / "a.dpq"))
    assert restored.origin == loaded.origin
    export(str(tmp_path / "a.dpq"), "ply", ExportOptions(), Run(), tmp_path / "b.ply")
    assert b"property double x" in (tmp_path / "b.ply").read_bytes()
    again = load(str(tmp_path / "b.ply"))
    assert again.origin == loaded.origin
    assert np.array_equal(again.scene.positions, restored.scene.positions)
    spz = export(str(path), "spz", ExportOptions(), Run(), tmp_path / "b.spz")
    assert any("relative to the origin" in note for note in spz.notes)
    assert not any("fractional bits" in note for note in spz.notes)


def test_what_float32_has_lost_is_said(tmp_path):
    path, scene = geo_referenced(tmp_path / "a.ply", kind="f4")
    loaded = load(str(path))
    assert any("steps of 0.5" in note or "steps of 0.25" in note for note in loaded.notes)
    back = loaded.scene.positions.astype(np.float64) + np.array(loaded.origin)
    assert np.array_equal(back, (scene.positions.astype(float) + WORLD).astype(np.float32))


def test_doubles_near_zero_have_no_origin(tmp_path):
    scene = make_scene(200)
    assert load(str(write_ply(tmp_path / "a.ply", columns(scene), kind="f8"))).origin == (0, 0, 0)


def test_cameras_move_with_the_origin():
    camera = Camera(
        width=8, height=8, fx=8, fy=8, cx=4, cy=4,
        rotation=np.eye(3)[[1, 2, 0]], translation=np.array([1.0, 2.0, 3.0]),
    )  # fmt: skip
    point = np.array([0.5, -1.0, 2.0])
    moved = camera.relative_to(WORLD)
    seen = camera.rotation @ (point + WORLD) + camera.translation
    assert np.allclose(moved.rotation @ point + moved.translation, seen)
