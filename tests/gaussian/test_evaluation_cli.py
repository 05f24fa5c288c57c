"""``dpq eval`` of splat scenes from the command line, and of the scene that ships."""

from __future__ import annotations

import pytest
from cli_runs import dpq
from splat_views import photographed

from dpq_core.run import Run
from dpq_gaussian.evaluation.evaluate import evaluate, origin_of
from dpq_gaussian.options import EvaluateOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """scene.ply with its photographs, scene.dpq, scene.spz."""
    folder = photographed(tmp_path_factory.mktemp("photographed"))
    ply, file = folder / "scene.ply", folder / "scene.dpq"
    assert dpq("compress", "-a", "gaussian", ply, "-o", file).code == 0
    assert dpq("export", "-a", "gaussian", ply, "-o", folder / "scene.spz").code == 0
    return folder


def test_a_file_knows_its_original(folder):
    done = dpq("eval", folder / "scene.dpq", "--limit", "2", "--pixels", "48")
    assert done.code == 0, done.err
    assert "PSNR to the original: dB, mean over 2 views of the rig, 48x48" in done.err
    assert "LPIPS left out" in done.err
    assert "no photographs: quality is fidelity to the original" in done.err
    assert origin_of(str(folder / "scene.dpq")) == str(folder / "scene.ply")


def test_several_files_in_one_table(folder):
    others = [str(folder / name) for name in ("scene.spz", "scene.ply")]
    words = ["eval", folder / "scene.dpq", "--cameras", folder, "--against", *others]
    found = dpq(*words, "--limit", "1", "--json").json
    assert list(found["against"]) == others
    for name in others:
        result = found["against"][name]
        assert result["nbytes"] == (folder / name).stat().st_size
        assert [metric["name"] for metric in result["metrics"]] == [
            metric["name"] for metric in found["result"]["metrics"]
        ]
    shown = dpq(*words).err
    assert "bits per Gaussian (lower is better)" in shown
    assert shown.count("scene.spz") >= 1


def test_what_the_source_was_made_from_is_gone(folder, tmp_path):
    moved = tmp_path / "scene.ply"
    moved.write_bytes((folder / "scene.ply").read_bytes())
    file = tmp_path / "scene.dpq"
    assert dpq("compress", "-a", "gaussian", moved, "-o", file).code == 0
    moved.unlink()
    done = dpq("eval", file)
    assert done.code == 1
    assert "nothing to compare with; give --baseline (the uncompressed" in done.err
    assert "Traceback" not in done.err
    done = dpq("eval", file, "--cameras", folder, "--limit", "1")
    assert done.code == 0
    assert "scene.ply is not on this machine" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cameras", "absent.json"], "absent.json"),
        (["--baseline", "absent.ply"], "absent.ply"),
        (["--against", "absent.spz"], "absent.spz"),
        (["--lpips", "absent.pth"], "no such file of VGG-16 weights"),
    ],
)
def test_what_is_missing_is_one_line(folder, words, message):
    done = dpq("eval", folder / "scene.dpq", *words, "--limit", "1", "--pixels", "16")
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err


def test_the_scene_that_ships_has_its_photographs():
    found = evaluate(
        "builtin:tiny-scene", EvaluateOptions(limit=2, downscale=2.0), Run(device="cpu")
    )
    (psnr,) = (m for m in found.metrics if m.name == "PSNR to the photographs")
    assert "2 of the 13 held-out views of builtin:tiny-scene, 198x148" in psnr.protocol
    assert psnr.value > 27
