"""``dpq inspect`` on an artifact of the toy adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import dpq, install_toy, write_mlp
from toy_adapter import MLPAdapter

from dpq_core.version import __version__


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def out(tmp_path) -> Path:
    path = tmp_path / "out"
    net = write_mlp(tmp_path / "net.safetensors")
    assert dpq("compress", "-a", "mlp", net, "-o", path, "--iterations", 2).code == 0
    return path


def test_summary(out):
    done = dpq("inspect", out)
    assert (done.code, done.out) == (0, "")
    for text in ("mlp", "net.safetensors", "true bits per weight", "d=4 K=256", "2 of 3 tensors"):
        assert text in done.err
    assert f"dpq {__version__}" in done.err


def test_json_counts_every_byte(out):
    found = dpq("inspect", out, "--json").json
    assert found["nbytes"] == sum(p.stat().st_size for p in out.iterdir())
    assert found["bits_per_weight"] == pytest.approx(8 * found["nbytes"] / found["weights"])
    assert {t["name"]: t["spec"] for t in found["tensors"]} == {"w1": 0, "b1": None, "w2": 0}
    assert all(0 < t["relative_error"] < 1 for t in found["tensors"] if t["spec"] is not None)


def test_tensors(out):
    shown = dpq("inspect", out, "--tensors").err
    assert "96x64" in shown
    assert "kept" in shown


def test_verify(out):
    done = dpq("inspect", out, "--verify")
    assert done.code == 0
    assert "verified: hashes match" in done.err
    assert "probe matches (difference 0 of RMS)" in done.err


def test_verify_finds_a_flipped_bit(out):
    weights = out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert dpq("inspect", out).code == 0
    done = dpq("inspect", out, "--verify")
    assert done.code == 1
    assert "model.safetensors" in done.err
    assert done.err.count("\n") == 1


def test_verify_finds_a_loader_that_makes_another_model(out, monkeypatch):
    probe = MLPAdapter.probe
    wrong = lambda *args: {n: 2 * t for n, t in probe(*args).items()}  # noqa: E731
    monkeypatch.setattr(MLPAdapter, "probe", wrong)
    done = dpq("inspect", out, "--verify")
    assert done.code == 1
    assert "the files are whole, but the loaded model differs" in done.err


def test_something_else_is_not_an_artifact(tmp_path):
    done = dpq("inspect", tmp_path)
    assert done.code == 1
    assert "not a dpq artifact" in done.err
