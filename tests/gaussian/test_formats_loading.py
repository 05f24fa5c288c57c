"""Sources: builtin scenes, .dpq artifacts and the files of others, through one door."""

from __future__ import annotations

import numpy as np
import pytest
from splat_files import make_scene

from dpq_core.errors import SourceError
from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian import loading
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.codec import decode_scene
from dpq_gaussian.export import export
from dpq_gaussian.formats import WRITABLE, convert, read_scene, write_scene
from dpq_gaussian.options import EXPORTS, ExportOptions
from dpq_gaussian.scene import sources as scene_sources


@pytest.fixture
def artifact(tmp_path) -> str:
    """A compressed scene."""
    write_scene(make_scene(), tmp_path / "s.ply", "ply")
    compress_file(GaussianAdapter(), str(tmp_path / "s.ply"), tmp_path / "a.dpq")
    return str(tmp_path / "a.dpq")


def test_a_dpq_is_decoded(artifact):
    decoded = decode_scene(artifact)
    found = loading.load_scene(artifact)
    assert np.array_equal(found.positions, decoded.positions)
    turned = loading.load_scene(artifact, axes="rub")
    assert np.array_equal(turned.sh_rest, convert(decoded, "rub", "rdf").sh_rest)


def test_other_files_are_read(tmp_path):
    write_scene(make_scene(), tmp_path / "a.spz", "spz")
    found = loading.load(str(tmp_path / "a.spz"), axes="rub")
    assert (found.format, found.coordinates) == ("spz", "rub")


def test_builtin_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_sources, "BUILTIN", tmp_path)
    (tmp_path / "garden").mkdir()
    write_scene(make_scene(), tmp_path / "garden" / "scene.ply", "ply")
    assert len(loading.load_scene("builtin:garden")) == 50
    with pytest.raises(SourceError, match="did you mean builtin:garden"):
        loading.load_scene("builtin:gardn")


def test_what_is_not_there(tmp_path):
    for name in ("no.ply", "no.dpq"):
        with pytest.raises(SourceError, match=f"{name}: no such file"):
            loading.load_scene(str(tmp_path / name))


def test_export_of_a_dpq(artifact, tmp_path):
    assert EXPORTS == WRITABLE
    decoded = decode_scene(artifact)
    for to in EXPORTS:
        out = tmp_path / f"b.{to}"
        done = export(artifact, to, ExportOptions(), Run(), out)
        assert done.files == (out,)
        assert np.abs(read_scene(out).scene.positions - decoded.positions).max() < 1e-3


def test_export_keeps_the_mark_of_antialiased_scenes(tmp_path):
    write_scene(make_scene(), tmp_path / "a.spz", "spz", antialiased=True)
    done = export(str(tmp_path / "a.spz"), "ply", ExportOptions(), Run(), tmp_path / "b.ply")
    assert read_scene(tmp_path / "b.ply").antialiased
    assert "RUB" in done.notes[0]
