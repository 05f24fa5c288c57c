"""Gaussians far outside of the scene: exact themselves, and no harm to the others (G12)."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from splat_files import changed, make_scene

from dpq_core.errors import ArtifactError
from dpq_core.jobs.compress_file import compress_file
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.codec import decode_scene, encode, iter_chunks
from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.outliers import RADII, Outliers, outliers_from_bytes, robust_cube
from dpq_gaussian.codec.parameters import parameters_from_json, parameters_to_json
from dpq_gaussian.formats import write_scene
from dpq_gaussian.policy import PRESETS
from dpq_gaussian.scene import Scene

FAR = {7: (4e6, -1.0, 2.0), 100: (1e30, 1e30, -1e30), 333: (0.0, -3e4, 0.0)}


def with_flyaways(n: int = 500) -> Scene:
    scene = make_scene(n)
    for index, place in FAR.items():
        scene.positions[index] = place
    return scene


def encoded(scene: Scene):
    return encode(scene, np.ones(len(scene), np.float32), PRESETS["balanced"])


def test_flyaways_are_exact_and_the_others_as_if_they_were_not_there() -> None:
    scene = with_flyaways()
    others = np.setdiff1d(np.arange(500), list(FAR))
    coded, plain = encoded(scene), encoded(make_scene(500).take(others))
    (back,) = UnwrittenScene(coded)
    place = {int(index): at for at, index in enumerate(coded.order)}
    for index in FAR:
        assert (back.positions[place[index]] == scene.positions[index]).all()
    near = [place[int(index)] for index in others]
    moved = np.abs(back.positions[near].astype(float) - scene.positions[others]).max()
    assert moved <= 1.01 * plain.parameters.cube[3] / 2 ** (plain.parameters.depth_least + 1)
    assert coded.parameters.cube == plain.parameters.cube
    assert coded.parameters.outliers == 3
    assert coded.nbytes < plain.nbytes + 200


def test_a_scene_without_flyaways_has_no_trace_of_them() -> None:
    coded = encoded(make_scene(500))
    assert list(coded.whole) == ["models"]
    assert "outliers" not in parameters_to_json(coded.parameters)
    # 2 % of the Gaussians at 500 radii are part of the scene.
    scene = make_scene(500)
    scene.positions[:10] *= 500
    assert not len(robust_cube(scene.positions, scene.log_scales)[2])


def test_a_file_gives_them_back_whole_and_in_chunks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dpq_gaussian.codec.encoding.CHUNK", 128)
    monkeypatch.setattr("dpq_gaussian.codec.decoding.CHUNK", 128)
    monkeypatch.setattr("dpq_gaussian.compress.CHUNK", 128)
    scene = with_flyaways()
    write_scene(scene, tmp_path / "a.ply", "ply")
    report = compress_file(GaussianAdapter(), str(tmp_path / "a.ply"), tmp_path / "a.dpq")
    back = decode_scene(tmp_path / "a.dpq")
    chunks = [chunk.positions for chunk in iter_chunks(tmp_path / "a.dpq")]
    assert len(chunks) == 4
    assert np.array_equal(np.concatenate(chunks), back.positions)
    for place in FAR.values():
        assert (back.positions == np.array(place, np.float32)).all(axis=1).sum() == 1
    attributes = {a.name: a.streams for a in report.manifest.attributes}
    assert attributes["positions"] == ("positions", "paths", "outliers")
    assert report.manifest.streams["outliers"].bytes < 60


def test_equal_positions_and_planes_are_coded() -> None:
    scene = make_scene(500)
    for positions in (scene.positions * 0 + 5, scene.positions * np.float32([1, 1, 0])):
        (back,) = UnwrittenScene(encoded(changed(scene, positions=positions)))
        assert np.isfinite(back.positions).all()
    lone = scene.positions * 0
    lone[0] = 1e6  # all others share one place
    coded = encoded(changed(scene, positions=lone))
    (back,) = UnwrittenScene(coded)
    assert np.abs(back.positions[coded.order != 0]).max() < 1e-2
    assert (back.positions[coded.order == 0] == 1e6).all()


def record(step: int, byte: bytes = b"\0") -> bytes:
    return struct.pack("<I", step) + 12 * byte


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "does not hold 2 outliers"),
        (lambda data: b"", "does not hold 2 outliers"),
        (lambda data: b"y" + data[1:], "damaged"),
        (lambda data: zlib.compress(zlib.decompress(data) + b"more"), "does not hold 2 outliers"),
        (lambda data: zlib.compress(bytes(32)), "an impossible outlier"),
        (lambda data: record(1) + record(2, b"\xff"), "an impossible outlier"),
        (lambda data: record(1) + record(100), "an impossible outlier"),
    ],
)
def test_damaged_outliers_are_refused(change, message: str) -> None:
    whole = Outliers(indices=np.array([0, 49]), positions=np.ones((2, 3), np.float32))
    data = whole.to_bytes()
    read = outliers_from_bytes(data, 2, 50, "x")
    assert np.array_equal(read.indices, whole.indices)
    assert np.array_equal(read.positions, whole.positions)
    made = change(data)
    with pytest.raises(ArtifactError, match=message):
        outliers_from_bytes(zlib.compress(made) if len(made) == 32 else made, 2, 50, "x")
    with pytest.raises(ArtifactError, match="51 outliers among 50 Gaussians"):
        outliers_from_bytes(data, 51, 50, "x")


def test_marks_of_the_manifest() -> None:
    p = encoded(make_scene(60)).parameters
    marked = dataclasses.replace(p, outliers=3, origin=(4.1e6, 0.0, -2.0), flat=True)
    assert parameters_from_json(parameters_to_json(marked), "x") == marked
    assert set(parameters_to_json(marked)) - set(parameters_to_json(p)) == {
        "outliers", "origin", "flat"
    }  # fmt: skip
    for name, value in (("outliers", -1), ("origin", [1e99, 0, 0]), ("flat", 1)):
        with pytest.raises(ArtifactError, match=name):
            parameters_from_json({**parameters_to_json(p), name: value}, "x")


def test_the_limit() -> None:
    """Nothing is apart in a cube of up to 2 x RADII radii."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(-1, 1, (1000, 3)).astype(np.float32)
    scales = np.full((1000, 3), -9, np.float32)
    for factor, apart in ((0.9, 0), (2.5, 1)):
        positions[5] = factor * RADII, 0, 0
        assert len(robust_cube(positions, scales)[2]) == apart
