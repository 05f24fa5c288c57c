"""Axes: a flip of the axes leaves the picture as it was, harmonics and rotations included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from splat_files import SPLATS, changed, make_scene

from dpq_core.errors import SourceError, SpecError
from dpq_gaussian.formats import SYSTEMS, convert, read_scene, turned_like, write_scene


def colours(scene, directions):
    """View-dependent part of the colour, from the polynomials of the Inria rasteriser."""
    x, y, z = directions.T.astype(float)
    basis = [
        -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x,
        1.0925484305920792 * x * y, -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * z * z - x * x - y * y),
        -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
        0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
        -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]  # fmt: skip
    return np.einsum("kd,nkc->ndc", np.stack(basis), scene.sh_rest)


def covariances(scene):
    w, x, y, z = (scene.rotations / np.linalg.norm(scene.rotations, axis=1)[:, None]).T.astype(
        float
    )
    turn = np.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        axis=1,
    ).reshape(-1, 3, 3)  # fmt: skip
    scaled = turn * np.exp(scene.log_scales.astype(float))[:, None, :]
    return scaled @ scaled.transpose(0, 2, 1)


@pytest.mark.parametrize("target", SYSTEMS)
def test_every_flip_keeps_the_picture(target):
    """Seen from flipped directions, the flipped scene looks the same; mirrors too."""
    scene = make_scene(20)
    found = convert(scene, "rdf", target)
    signs = np.array([1.0 if a == b else -1.0 for a, b in zip("rdf", target, strict=True)])
    flip = np.diag(signs)
    assert np.array_equal(found.positions, scene.positions * signs)
    assert covariances(found) == pytest.approx(flip @ covariances(scene) @ flip)
    directions = np.random.default_rng(0).standard_normal((50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert colours(found, directions * signs) == pytest.approx(colours(scene, directions))
    for name in ("opacity_logits", "sh_dc", "log_scales"):
        assert np.array_equal(getattr(found, name), getattr(scene, name))
    back = convert(found, target, "rdf")
    assert all(np.array_equal(a, back.arrays()[name]) for name, a in scene.arrays().items())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_every_degree_is_flipped(degree):
    whole, part = make_scene(5, 3), make_scene(5, degree)
    part = changed(part, sh_rest=whole.sh_rest[:, : part.sh_rest.shape[1]])
    flipped = convert(part, "rdf", "rub").sh_rest
    assert np.array_equal(flipped, convert(whole, "rdf", "rub").sh_rest[:, : flipped.shape[1]])


def test_axes_that_agree_copy_nothing():
    scene = make_scene()
    assert convert(scene, "RDF", "rdf") is scene


def test_in_place_flips_the_arrays_themselves():
    scene = make_scene()
    before = scene.positions.copy()
    found = convert(scene, "rub", "rdf", in_place=True)
    assert found.positions is scene.positions
    assert np.array_equal(scene.positions, before * [1, -1, -1])


def test_unknown_axes():
    with pytest.raises(SpecError, match="unknown coordinates 'rbu'; choose from ldb"):
        convert(make_scene(), "rbu", "rdf")
    with pytest.raises(SpecError, match="choose from ldb, rdb"):
        write_scene(make_scene(), "nowhere.spz", "spz", axes="up")


def test_spz_is_rub_unless_told_otherwise(tmp_path):
    scene = make_scene()
    write_scene(scene, tmp_path / "rub.spz", "spz")
    write_scene(scene, tmp_path / "rdf.spz", "spz", axes="rdf")
    loaded = read_scene(tmp_path / "rub.spz")
    assert loaded.coordinates == "rub"
    assert "RUB" in loaded.notes[0]
    assert np.abs(loaded.scene.positions - scene.positions).max() < 1e-3
    wrong = read_scene(tmp_path / "rdf.spz").scene
    assert np.abs(wrong.positions * [1, -1, -1] - scene.positions).max() < 1e-3
    told = read_scene(tmp_path / "rdf.spz", axes="rdf")
    assert (told.coordinates, told.notes) == ("rdf", ())
    assert np.abs(told.scene.positions - scene.positions).max() < 1e-3


@pytest.mark.parametrize("to", ["ply", "splat"])
def test_other_formats_are_rdf_unless_told_otherwise(tmp_path, to):
    scene = make_scene()
    written = write_scene(scene, tmp_path / f"a.{to}", to, axes="rub")
    assert "written in RUB axes" in written.notes[-1]
    plain = read_scene(tmp_path / f"a.{to}").scene
    assert np.array_equal(plain.positions, scene.positions * np.float32([1, -1, -1]))
    loaded = read_scene(tmp_path / f"a.{to}", axes="rub")
    assert loaded.coordinates == "rub"
    assert np.array_equal(loaded.scene.positions, scene.positions)


@pytest.mark.parametrize("seed", range(5))
def test_like_finds_the_orientation(seed):
    scene = make_scene(3000, degree=0, seed=seed)
    places = scene.positions * np.float32([1, 1, 0.2]) + np.float32([0, 0.4, 0.1])
    scene = changed(scene, positions=places)
    noisy = changed(scene, positions=places + np.float32(0.01) * make_scene(3000, 0, 9).positions)
    assert turned_like(noisy, scene) is noisy
    turned = convert(noisy, "rdf", "rub")
    assert np.allclose(turned_like(turned, scene).positions, noisy.positions)
    few = noisy.take(slice(0, None, 7))
    assert turned_like(few, scene) is few
    nowhere = changed(scene, positions=np.full_like(places, math.nan))
    with pytest.raises(SourceError, match="no orientation"):
        turned_like(nowhere, scene)


@pytest.mark.needs_data("splats/amaebi_78k_sh3.ply", "splats/amaebi.spz")
def test_an_spz_and_its_ply():
    """amaebi_78k_sh3.ply was made from amaebi.spz with the turn of the specification."""
    ply = read_scene(SPLATS / "amaebi_78k_sh3.ply").scene
    loaded = read_scene(SPLATS / "amaebi.spz")
    assert loaded.antialiased
    for name in ("positions", "log_scales", "sh_dc", "sh_rest"):
        assert np.array_equal(getattr(loaded.scene, name), getattr(ply, name)), name
    assert np.abs(loaded.scene.rotations - ply.rotations).max() < 1e-5
    inside = np.abs(ply.opacity_logits) < 9  # opacity 1 has no logit; the .ply stops at 1 - 1e-4
    gaps = np.abs(loaded.scene.opacity_logits - ply.opacity_logits)
    assert gaps[inside].max() < 1e-4
    raw = read_scene(SPLATS / "amaebi.spz", axes="rdf").scene
    assert np.array_equal(turned_like(raw, ply).sh_rest, ply.sh_rest)
