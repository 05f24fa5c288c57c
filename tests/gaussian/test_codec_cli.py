"""``dpq compress`` and ``dpq inspect`` of splat scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import dpq
from splat_files import make_scene

from dpq_gaussian.formats import write_scene


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    path = tmp_path / "scene.ply"
    write_scene(make_scene(80), path, "ply")
    return path


def test_compress_then_inspect(ply: Path) -> None:
    out = ply.with_suffix(".dpq")
    made = dpq("compress", ply, "-a", "gaussian", "-o", out, "--preset", "small", "--json")
    assert made.code == 0, made.err
    assert made.json["nbytes"] == out.stat().st_size
    names = [a["name"] for a in made.json["attributes"]]
    assert names[1:] == ["positions", "scales", "rotations", "opacity", "color", "harmonics"]
    seen = dpq("inspect", out, "--verify", "--json")
    assert seen.json["verified"] == {"hashes": "match"}
    assert seen.json["bits_per_item"] == pytest.approx(8 * out.stat().st_size / seen.json["items"])
    assert sum(seen.json["streams"].values()) < out.stat().st_size
    table = dpq("inspect", out)
    assert "harmonics" in table.err
    assert "(models, index, header)" in table.err


def test_the_report_is_a_table(ply: Path) -> None:
    out = ply.with_suffix(".dpq")
    made = dpq("compress", ply, "-a", "gaussian", "-o", out)
    assert made.code == 0, made.err
    assert "bytes per item" in made.err
    again = dpq("compress", ply, "-a", "gaussian", "-o", out)
    assert (again.code, "use --overwrite" in again.err) == (1, True)
    assert dpq("compress", ply, "-a", "gaussian", "-o", out, "--overwrite").code == 0


def test_a_dry_run_leaves_nothing(ply: Path) -> None:
    out = ply.with_suffix(".dpq")
    assert "dry run" in dpq("compress", ply, "-a", "gaussian", "-o", out, "--dry-run").err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bits", "2"), "has no weights to set bits"),
        (("--override", "x=keep"), "has no weights to set bits"),
        (("--preset", "huge"), "--preset huge: must be one of small, balanced, high"),
        (("--cameras", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(ply: Path, words: tuple[str, ...], message: str) -> None:
    result = dpq("compress", ply, "-a", "gaussian", "-o", ply.with_suffix(".dpq"), *words)
    assert result.code in (1, 2)
    assert message in " ".join(result.err.split())
    assert sorted(p.name for p in ply.parent.iterdir()) == ["scene.ply"]


def test_a_damaged_file_is_one_line(ply: Path) -> None:
    out = ply.with_suffix(".dpq")
    dpq("compress", ply, "-a", "gaussian", "-o", out)
    raw = bytearray(out.read_bytes())
    raw[-3] ^= 4
    out.write_bytes(raw)
    found = dpq("inspect", out, "--verify")
    assert found.code == 1
    assert "differs" in found.err
    assert json.dumps(found.out) == '""'
