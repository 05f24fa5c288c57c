"""``dpq demo`` on the toy adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import dpq, install_toy, write_mlp
from splat_views import photographed
from toy_adapter import MLPAdapter

from dpq_core.jobs import demo
from dpq_core.plugin import registry
from dpq_core.plugin.results import Demo, Sampling
from dpq_gaussian.adapter import GaussianAdapter

WIDTHS = ["original", "4 bits", "2 bits"]


@pytest.fixture
def net(monkeypatch, tmp_path) -> Path:
    install_toy(monkeypatch, tmp_path / "site")
    monkeypatch.setattr(demo, "WIDTHS", (4, 2))
    path = write_mlp(tmp_path / "net.safetensors")
    _demo(monkeypatch, path, evaluate_against={"rows": 8})
    return path


def _demo(monkeypatch, net: Path, **options) -> None:
    monkeypatch.setattr(MLPAdapter, "demo", Demo(source=str(net), **options))
    _only(monkeypatch, "mlp")


def _only(monkeypatch, name: str) -> None:
    """Of the installed adapters, only one has a demo."""
    installed = registry.available
    entries = [entry for entry in installed() if entry.name == name]
    monkeypatch.setattr(registry, "available", lambda: entries)


@pytest.mark.slow
def test_rows_for_the_original_and_every_width(net, tmp_path):
    out = tmp_path / "demo"
    rows = dpq("demo", "-o", out, "--json").json["mlp"]
    assert [row["width"] for row in rows] == WIDTHS
    assert rows[0]["nbytes"] > rows[1]["nbytes"] > rows[2]["nbytes"]
    counts = [row["metrics"][0]["protocol"].split()[-3] for row in rows]
    assert counts == ["256", "8", "8"]  # what is said of compressed models is only for them
    assert all(len(row["texts"]) == 3 for row in rows)
    assert (out / "mlp-2bit" / "dpq.json").is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("mlp-4bit", "mlp-2bit", "codebooks", "power"))


@pytest.mark.slow
def test_options_name_the_folders_of_samples(net, tmp_path, monkeypatch):
    given = []

    def remembering(verb):
        def make(**values):
            given.append((verb, values))
            return MLPAdapter.options[verb]()

        return make

    verbs = {verb: remembering(verb) for verb in ("evaluate", "sample")}
    monkeypatch.setattr(demo, "_options_class", lambda adapter, verb: verbs[verb])
    _demo(
        monkeypatch,
        net,
        evaluate={"folder": Demo.SAMPLES},
        sample_against={"baseline": Demo.ORIGINAL},
    )
    assert dpq("demo", "-o", tmp_path, "--json").code == 0
    original, four, two = (
        str(tmp_path / "samples" / f"mlp-{name}") for name in ("original", "4bit", "2bit")
    )
    assert given == [
        ("sample", {}),
        ("evaluate", {"folder": original}),
        ("sample", {"baseline": original}),
        ("evaluate", {"folder": four}),
        ("sample", {"baseline": original}),
        ("evaluate", {"folder": two}),
    ]


@pytest.mark.slow
def test_an_adapter_with_presets_gets_files(tmp_path, monkeypatch):
    """Both versions, under their presets' names, with the metrics that the demo names."""
    folder = photographed(tmp_path / "scene")
    scene = Demo(
        source=str(folder / "scene.ply"),
        evaluate={"cameras": str(folder)},
        sample={"frames": 2, "width": 32},
        sample_against={"baseline": str(folder / "scene.ply")},
        presets=("high", "small"),
        shown=("PSNR to the original",),
    )
    monkeypatch.setattr(GaussianAdapter, "demo", scene)
    _only(monkeypatch, "gaussian")
    out = tmp_path / "demo"
    rows = dpq("demo", "-o", out, "--json").json["gaussian"]
    assert [row["width"] for row in rows] == ["original", "high", "small"]
    assert rows[0]["nbytes"] == (folder / "scene.ply").stat().st_size
    for row in rows[1:]:
        file = out / f"gaussian-{row['width']}.dpq"
        assert row["nbytes"] == file.stat().st_size
        assert row["ratio"] == rows[0]["nbytes"] / row["nbytes"]
        assert row["files"] == [
            str(out / "samples" / f"gaussian-{row['width']}" / "orbit-before-after.gif")
        ]
    shown = dpq("demo", "-o", out).err
    assert "PSNR to the original: dB" in shown
    assert "SSIM" not in shown


@pytest.mark.slow
def test_samples_of_an_earlier_demo_go(net, tmp_path, monkeypatch):
    def sample(self, source, options, run, out):
        assert list(out.iterdir()) == []
        (out / "made.txt").write_text(source)
        return Sampling(files=(out / "made.txt",))

    monkeypatch.setattr(MLPAdapter, "sample", sample)
    for _ in range(2):
        done = dpq("demo", "-o", tmp_path / "demo")
        assert done.code == 0
    assert f"2 bits: {tmp_path / 'demo' / 'samples' / 'mlp-2bit' / 'made.txt'}" in done.err


def test_an_adapter_without_its_dependencies_is_left_out(net, tmp_path, monkeypatch):
    def sample(self, source, options, run, out):
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setattr(MLPAdapter, "sample", sample)
    done = dpq("demo", "-o", tmp_path)
    assert done.code == 1
    assert "left out mlp: adapter 'mlp' needs 'absent'" in done.err
    assert "no adapter with a demo is installed" in done.err
