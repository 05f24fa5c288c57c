"""``dpq calibrate`` on the toy adapter, and shared out to two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from artifact_model import snapshot
from cli_runs import dpq, write_mlp
from plugins import install_plugin

from dpq_core.artifact import Artifact

FAST = ("--steps", 24, "--device", "cpu")


@pytest.fixture(autouse=True)
def installed(monkeypatch, tmp_path):
    """The toy adapter that calibrates, for this process and for new ones."""
    site = tmp_path / "site"
    points = {"mlp": "calibration_adapter:CalibratedMLP"}
    install_plugin(monkeypatch, site, distribution="dpq-mlp", points=points)
    paths = [str(site), str(Path(__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def artifact(tmp_path):
    source = write_mlp(tmp_path / "mlp.safetensors")
    assert dpq("compress", source, "-a", "mlp", "--K", 32, "-o", tmp_path / "in").code == 0
    return tmp_path / "in"


@pytest.mark.slow
def test_it_reports_what_it_did(artifact, tmp_path):
    done = dpq("calibrate", artifact, "-o", tmp_path / "out", *FAST)
    assert done.code == 0
    for part in ("distance", "before", "after", "uncompressed", "recovered", "codes changed"):
        assert part in done.err
    assert done.out == ""
    Artifact.open(tmp_path / "out").verify()


@pytest.mark.slow
def test_json(artifact, tmp_path):
    found = dpq("calibrate", artifact, "-o", tmp_path / "out", *FAST, "--json").json
    assert found["loss"] == "distance"
    assert found["after"] < found["before"]
    expected = (found["before"] - found["after"]) / (found["before"] - found["baseline"])
    assert found["recovered"] == pytest.approx(expected)
    assert found["nbytes"] == Artifact.open(tmp_path / "out").nbytes
    assert found["nbytes_before"] == Artifact.open(artifact).nbytes
    assert found["steps"] == 24
    assert {e["what"] for e in found["esteps"]} == {"codes", "codebooks"}
    assert found["codes_changed"] == sum(e["changed"] for e in found["esteps"] if e["kept"])
    assert found["validations"][0]["step"] == 0


@pytest.mark.slow
def test_options_reach_loop_and_adapter(artifact, tmp_path):
    words = ("--estep", "none", "--every", 3, "--lr", "1e-3", "--batch-size", 8, "--seed", 4)
    found = dpq("calibrate", artifact, "-o", tmp_path / "a", *FAST, *words, "--json").json
    assert {e["what"] for e in found["esteps"]} == {"codebooks"}
    again = dpq("calibrate", artifact, "-o", tmp_path / "b", *FAST, *words[:-1], 5, "--json").json
    assert again["validations"][0] == found["validations"][0]
    assert again["after"] != found["after"]


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(artifact, tmp_path):
    for name in ("a", "b"):
        assert dpq("calibrate", artifact, "-o", tmp_path / name, *FAST).code == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "all"), "mode must be one of auto, block, end, both"),
        (("--mode", "block"), "has no blocks with a teacher"),
        (("--steps", "0"), "steps must be 1 or more"),
        (("--baseline", "nowhere.safetensors"), "nowhere.safetensors: not a .safetensors file"),
    ],
)
def test_mistakes_are_one_line(artifact, tmp_path, words, message):
    done = dpq("calibrate", artifact, "-o", tmp_path / "out", *words)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_a_usage_error(artifact, tmp_path):
    done = dpq("calibrate", artifact, "-o", tmp_path / "out", "--batches", 3)
    assert done.code == 2
    assert "did you mean --batch-size?" in " ".join(done.err.split())


def test_what_is_no_artifact_cannot_be_calibrated(tmp_path):
    source = write_mlp(tmp_path / "mlp.safetensors")
    done = dpq("calibrate", source, "-a", "mlp", "-o", tmp_path / "out")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_and_resume_in_a_process_of_its_own(artifact, tmp_path):
    out = tmp_path / "out"
    words = ["calibrate", artifact, "-o", out, "--steps", "4000", "--device", "cpu"]
    command = [sys.executable, "-m", "dpq_cli", *map(str, words), "--save-every", "5"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    state = tmp_path / "out.calibration" / "state.safetensors"
    while not state.exists() and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "--resume" in err.splitlines()[-1]
    assert not out.exists()


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dpq_cli"]

ACCELERATE = """
import sys
from accelerate import debug_launcher
from dpq_cli.app import app

if __name__ == "__main__":
    debug_launcher(app, args=(sys.argv[1:],), num_processes=2)
"""
"""Accelerate's launcher of CPU processes that needs no MPI, as ``accelerate launch`` does there."""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_give_the_result_of_one(artifact, tmp_path, launcher):
    """Batches are shared out, gradients and statistics added up; only the first one writes."""
    (tmp_path / "launch.py").write_text(ACCELERATE)
    start = {"torchrun": TORCHRUN, "accelerate": ["launch.py"]}[launcher]
    words = [str(word) for word in ("calibrate", artifact, *FAST, "-o")]
    assert dpq(*words, tmp_path / "one").code == 0
    command = [sys.executable, *start, *words, str(tmp_path / "two")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training steps") == 1
    assert "Warning" not in done.stderr
    one, two = Artifact.open(tmp_path / "one"), Artifact.open(tmp_path / "two")
    for name in one.names():
        torch.testing.assert_close(one.read(name), two.read(name), rtol=1e-2, atol=1e-3)
    for name in ("w1", "w2"):
        assert torch.equal(one.read_pq(name).codes, two.read_pq(name).codes)
