"""Files appear whole or not at all; unusable values are found, and can be repaired."""

from __future__ import annotations

import errno
import os
import resource
import signal

import numpy as np
import pytest
from splat_files import changed, columns, make_scene, write_ply

from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_gaussian.formats import SceneStream, check_values, read_scene, write_scene
from dpq_gaussian.scene import repaired

FORMATS = pytest.mark.parametrize("to", ["ply", "splat", "spz"])


def spoiled(name: str, index, value: float, n: int = 50):
    array = getattr(make_scene(n), name).copy()
    array[index] = value
    return changed(make_scene(n), **{name: array})


@FORMATS
def test_the_same_scene_gives_the_same_bytes(tmp_path, to):
    for name in ("a", "b"):
        write_scene(make_scene(300), tmp_path / name, to)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@FORMATS
def test_nothing_is_overwritten_unasked(tmp_path, to):
    path = tmp_path / f"a.{to}"
    path.write_text("mine")
    with pytest.raises(SourceError, match="exists already; use overwrite=True to replace it"):
        write_scene(make_scene(), path, to)
    assert path.read_text() == "mine"
    write_scene(make_scene(), path, to, overwrite=True)
    assert len(read_scene(path).scene) == 50
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="is a folder"):
        write_scene(make_scene(), tmp_path / "folder", to, overwrite=True)
    with pytest.raises(SourceError, match=r"the folder .*/no does not exist"):
        write_scene(make_scene(), tmp_path / "no" / "a", to)


def test_a_mapped_file_can_be_written_over_itself(tmp_path):
    path = write_ply(tmp_path / "a.ply", columns(make_scene(5000)))
    before = path.read_bytes()
    scene = read_scene(path).scene
    write_scene(scene, path, "ply", overwrite=True)
    assert path.read_bytes() == before
    assert np.array_equal(scene.positions, make_scene(5000).positions)


@FORMATS
def test_a_full_disk_leaves_nothing(tmp_path, to, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArtifactError, match="No space left"):
        write_scene(make_scene(), tmp_path / "a", to, overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "mine")]


@FORMATS
def test_a_limit_in_the_middle_of_writing_leaves_nothing(tmp_path, to):
    """A real failure of write(2)."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="too large"):
            write_scene(make_scene(500), tmp_path / "a", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format(tmp_path):
    with pytest.raises(SpecError, match="cannot write 'spzz'; did you mean spz"):
        write_scene(make_scene(), tmp_path / "a", "spzz")
    with pytest.raises(SpecError, match="formats: ply, splat, spz"):
        write_scene(make_scene(), tmp_path / "a", "sog")


@FORMATS
def test_a_stream_gives_the_bytes_of_the_whole(tmp_path, to):
    scene = make_scene(1000)
    cuts = [scene.take(slice(a, b)) for a, b in ((0, 1), (1, 700), (700, 1000))]
    write_scene(scene, tmp_path / "whole", to)
    stream = SceneStream(count=1000, sh_degree=3, chunks=iter(cuts))
    write_scene(stream, tmp_path / "stream", to)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "stream").read_bytes()


@FORMATS
@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([make_scene(10)], "10 Gaussians instead of 20"),
        ([make_scene(10), make_scene(10, degree=1)], "degree 1 instead of 3"),
        ([make_scene(10), spoiled("sh_dc", 2, np.nan, 10)], "from 10: unusable values"),
    ],
    ids=["short", "degree", "values"],
)
def test_a_wrong_stream_leaves_nothing(tmp_path, to, cuts, message):
    with pytest.raises(SourceError, match=message):
        write_scene(SceneStream(count=20, sh_degree=3, chunks=cuts), tmp_path / "a", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", list(make_scene(1).arrays()))
def test_values_that_mean_nothing_are_refused(tmp_path, name, value):
    scene = spoiled(name, [3, 40], value)
    with pytest.raises(SourceError) as caught:
        check_values(scene, "here.ply")
    assert str(caught.value) == (
        f"here.ply: unusable values among 50 Gaussians: {name} is NaN or infinite in 2 "
        "(first: 3); export the scene with repair=True, which drops them"
    )
    with pytest.raises(SourceError, match="unusable values"):
        write_scene(scene, tmp_path / "a.ply", "ply")
    assert list(tmp_path.iterdir()) == []


def test_quaternions_without_length_are_refused():
    scene = spoiled("rotations", 7, 0.0)
    scene.rotations[9] = 1e-20
    scene.positions[11] = np.nan
    with pytest.raises(SourceError) as caught:
        check_values(scene, "x")
    assert "positions is NaN or infinite in 1 (first: 11)" in str(caught.value)
    assert "rotations has length zero in 2 (first: 7)" in str(caught.value)


def test_faults_are_counted_over_chunks():
    scene = make_scene(150_000, degree=0)
    scene.positions[[70_000, 149_999], 1] = np.nan
    with pytest.raises(SourceError, match=r"infinite in 2 \(first: 70000\)"):
        check_values(scene, "x")


def test_sound_scenes_pass_and_empty_ones_do_not():
    check_values(make_scene(), "x")
    with pytest.raises(SourceError, match="x: holds no Gaussians"):
        check_values(make_scene(0), "x")


def test_repair():
    scene = make_scene()
    scene.opacity_logits[[1, 2]] = np.inf, -np.inf
    scene.positions[5, 0] = np.nan
    scene.rotations[6] = 0.0
    scene.opacity_logits[7] = np.nan
    found, notes = repaired(scene, "x")
    check_values(found, "x")
    assert notes == (
        "bounded 2 infinite opacities",
        "dropped 3 of 50 Gaussians: unusable values",
    )
    assert len(found) == 47
    assert found.opacity_logits[[1, 2]] == pytest.approx([13.8155, -13.8155], abs=1e-3)
    whole = make_scene()
    same, notes = repaired(whole, "x")
    assert (same, notes) == (whole, ())
    whole.positions[:] = np.nan
    with pytest.raises(SourceError, match="none of its 50 Gaussians is usable"):
        repaired(whole, "x")
