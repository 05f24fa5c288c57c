"""Where a source is: what ships with an adapter, what lies on this machine, and neither."""

from __future__ import annotations

import pytest

from dpq_core.errors import ArtifactError, SourceError
from dpq_core.plugin.builtin import find_local


@pytest.fixture
def builtin(tmp_path):
    """Two models, and a folder that is none."""
    for name in ("tiny-one", "tiny-two", "other"):
        (tmp_path / "builtin" / name).mkdir(parents=True)
    for name in ("tiny-one", "tiny-two"):
        (tmp_path / "builtin" / name / "config.json").touch()
    return tmp_path / "builtin"


def test_models_that_ship_are_found_by_name(builtin):
    assert find_local("builtin:tiny-two", builtin, "config.json") == builtin / "tiny-two"


@pytest.mark.parametrize("name", ["other", "", "..", "../builtin/tiny-one", "tiny-oen"])
def test_others_are_refused(name, builtin):
    words = "available: builtin:tiny-one, builtin:tiny-two$"
    with pytest.raises(SourceError, match=words) as caught:
        find_local(f"builtin:{name}", builtin, "config.json")
    assert ("did you mean builtin:tiny-one?" in str(caught.value)) == ("tiny-o" in name)


def test_folders_and_files_are_found_and_the_rest_is_not(builtin, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        assert find_local(str(place), builtin, "config.json") == place
    assert find_local(str(tmp_path / "gone"), builtin, "config.json") is None
    assert find_local("owner/name", builtin, "config.json") is None


def test_the_home_folder_has_a_short_name(builtin, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_local("~/builtin", builtin, "config.json") == builtin


def test_a_half_written_artifact_says_so(builtin, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(ArtifactError, match="half-written"):
        find_local(str(tmp_path / "out"), builtin, "config.json")
