"""``dpq export``: the verb on a toy adapter, and splat scenes through it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from cli_runs import dpq, write_mlp
from plugins import install_plugin
from splat_files import changed, columns, make_scene, write_ply

from dpq_gaussian.formats import read_scene, write_scene

ADAPTERS = """
from dataclasses import dataclass, field

import dpq_gaussian.export as splats
import dpq_gaussian.options as splat_options
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.plugin.results import Export
from dpq_core.errors import SourceError
from toy_adapter import MLPAdapter


@dataclass(frozen=True)
class ExportOptions:
    shout: bool = field(default=False, metadata={"help": "in capitals"})


class Exporting(MLPAdapter):
    name = "toy"
    options = {**MLPAdapter.options, "export": ExportOptions}
    exports = ("txt", "long.txt")

    def export(self, source, to, options, run, out):
        model = self.load(source, run)
        text = " ".join(model)
        out.write_text(f"{to}: {text.upper() if options.shout else text}")
        return Export(files=(out,), notes=("only names are kept",))


class Single(Exporting):
    name = "single"
    exports = ("txt",)


class Mute(MLPAdapter):
    name = "mute"
    exports = ()


class Splats(TensorAdapter):
    name = "splats"
    summary = "splats"
    options = {"export": splat_options.ExportOptions}
    exports = splat_options.EXPORTS

    def open(self, source):
        raise SourceError("no")

    def select(self, name, shape):
        return None

    def export(self, source, to, options, run, out):
        return splats.export(source, to, options, run, out)
"""


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    points = {name.lower(): f"exporting:{name}" for name in ("Splats", "Single", "Mute")}
    points |= {"toy": "exporting:Exporting", "mlp": "toy_adapter:MLPAdapter"}
    install_plugin(
        monkeypatch,
        tmp_path / "site",
        distribution="dpq-exporting",
        points=points,
        modules={"exporting": ADAPTERS},
    )
    monkeypatch.delitem(sys.modules, "exporting", raising=False)


@pytest.fixture
def net(tmp_path):
    return write_mlp(tmp_path / "net.safetensors")


def test_the_suffix_says_the_format(net, tmp_path):
    done = dpq("export", "-a", "toy", net, "-o", tmp_path / "a.txt")
    assert (done.code, done.out) == (0, "")
    assert (tmp_path / "a.txt").read_text() == "txt: b1 w1 w2"
    assert "note: only names are kept" in done.err
    assert "a.txt (txt, 13 B)" in done.err
    assert dpq("export", "-a", "toy", net, "-o", tmp_path / "a.long.txt").code == 0
    assert (tmp_path / "a.long.txt").read_text().startswith("long.txt:")


def test_the_format_can_be_given_and_the_only_one_need_not(net, tmp_path):
    assert dpq("export", "-a", "toy", net, "-o", tmp_path / "a", "--to", "txt").code == 0
    assert dpq("export", "-a", "single", net, "-o", tmp_path / "b").code == 0
    assert (tmp_path / "b").read_text() == (tmp_path / "a").read_text()


def test_json_and_the_adapters_options(net, tmp_path):
    out = tmp_path / "a.txt"
    done = dpq("export", "-a", "toy", net, "-o", out, "--shout", "--json")
    assert done.json == {
        "to": "txt",
        "files": [str(out)],
        "nbytes": 13,
        "notes": ["only names are kept"],
    }
    assert out.read_text() == "txt: B1 W1 W2"
    assert "options of dpq export" in dpq("adapters", "toy").err


def test_an_artifact_needs_no_adapter_name(net, tmp_path):
    made = dpq("compress", "-a", "toy", net, "-o", tmp_path / "out", "--iterations", 1)
    assert made.code == 0
    done = dpq("export", tmp_path / "out", "-o", tmp_path / "a.txt")
    assert done.code == 0, done.err


def test_nothing_is_overwritten_unasked(net, tmp_path):
    out = tmp_path / "a.txt"
    out.write_text("mine")
    done = dpq("export", "-a", "toy", net, "-o", out)
    assert done.code == 1
    assert "exists already; use --overwrite to replace it" in done.err
    assert out.read_text() == "mine"
    assert dpq("export", "-a", "toy", net, "-o", out, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-a", "toy", "--to", "text"], 2, "does not export to 'text'; did you mean txt?"),
        (["-a", "toy", "--to", "ply"], 2, "formats: txt, long.txt"),
        (["-a", "toy"], 2, "does not say which format; give --to with one of txt, long.txt"),
        (["-a", "toy", "--to", "txt", "--loud"], 2, "unknown option --loud"),
        (["-a", "mute", "--to", "txt"], 1, "adapter 'mute' cannot export (see `dpq adapters`)"),
        (["--to", "txt"], 1, "say its domain with --adapter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(net, tmp_path, words, code, message):
    done = dpq("export", net, "-o", tmp_path / "new", *words)
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "new").exists()


def test_adapters_that_export_are_listed():
    found = {a["name"]: a["capabilities"] for a in dpq("adapters", "--json").json}
    assert "export" in found["toy"]
    assert "export" not in found["mute"]


# Splat scenes.


@pytest.fixture
def scene(tmp_path):
    write_scene(make_scene(100), tmp_path / "scene.ply", "ply")
    return tmp_path / "scene.ply"


@pytest.mark.parametrize("to", ["ply", "splat", "spz"])
def test_a_scene_goes_to_every_format_and_back(scene, tmp_path, to):
    there, back = tmp_path / f"there.{to}", tmp_path / "back.ply"
    assert dpq("export", "-a", "splats", scene, "-o", there).code == 0
    assert dpq("export", "-a", "splats", there, "-o", back).code == 0
    found = read_scene(back).scene
    assert np.abs(found.positions - make_scene(100).positions).max() < 1e-3
    assert (scene.read_bytes() == back.read_bytes()) is (to == "ply")


def test_what_is_dropped_is_said(scene, tmp_path):
    done = dpq("export", "-a", "splats", scene, "-o", tmp_path / "a.splat")
    assert "spherical harmonics of degree 3 dropped" in done.err


def test_coordinates(scene, tmp_path):
    raw = tmp_path / "raw.spz"
    assert dpq("export", "-a", "splats", scene, "-o", raw, "--output-axes", "rdf").code == 0
    words = ["--axes", "rdf", "-o", tmp_path / "a.ply"]
    assert dpq("export", "-a", "splats", raw, *words).code == 0
    found = read_scene(tmp_path / "a.ply").scene
    assert np.abs(found.positions - make_scene(100).positions).max() < 1e-3
    done = dpq("export", "-a", "splats", raw, "-o", tmp_path / "b.ply", "--output-axes", "up")
    assert done.code == 2
    assert "unknown coordinates 'up'" in done.err


def test_repair(tmp_path):
    logits = make_scene(100).opacity_logits
    logits[3], logits[4] = np.nan, np.inf  # an infinite opacity means something, NaN does not
    broken = changed(make_scene(100), opacity_logits=logits)
    write_ply(tmp_path / "a.ply", columns(broken))
    done = dpq("export", "-a", "splats", tmp_path / "a.ply", "-o", tmp_path / "b.ply")
    assert done.code == 1
    assert "opacity_logits is NaN or infinite in 1 (first: 3)" in done.err
    assert "export the scene with --repair" in done.err
    assert not (tmp_path / "b.ply").exists()
    words = ["-o", tmp_path / "b.ply", "--repair"]
    done = dpq("export", "-a", "splats", tmp_path / "a.ply", *words)
    assert done.code == 0
    assert "bounded 1 infinite opacities" in done.err
    assert "dropped 1 of 100 Gaussians: unusable values" in done.err
    assert len(read_scene(tmp_path / "b.ply").scene) == 99


def test_sources_that_are_not_there(tmp_path):
    for source, message in [
        ("nothing.ply", "nothing.ply: no such file"),
        ("builtin:nothing", "no builtin model 'nothing'"),
    ]:
        done = dpq("export", "-a", "splats", source, "-o", tmp_path / "a.ply")
        assert done.code == 1
        assert message in done.err
