"""``dpq compress`` on the toy adapter."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runs import MAIN, dpq, install_toy, write_mlp

from dpq_core.artifact import Artifact
from dpq_core.errors import SpecError
from dpq_core.jobs.arguments import PlanArguments
from dpq_core.spec import AssignmentSpec, preset


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def net(tmp_path) -> Path:
    return write_mlp(tmp_path / "net.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_closing_table(net, tmp_path):
    done = dpq("compress", "-a", "mlp", net, "-o", tmp_path / "out", "--iterations", 2)
    assert (done.code, done.out) == (0, "")
    for text in ("w1", "w2", "size before", "size after", "against 16 bits", "against 32 bits"):
        assert text in done.err
    assert "true bits per weight" in done.err
    assert "time" in done.err
    assert "b1" not in done.err  # kept tensors are in `dpq inspect --tensors`


def test_json_is_the_only_thing_on_stdout(net, tmp_path):
    out = tmp_path / "out"
    done = dpq("compress", "-a", "mlp", net, "-o", out, "--iterations", 2, "--json")
    assert done.code == 0
    report = done.json
    on_disk = sum(path.stat().st_size for path in out.iterdir())
    weights = 96 * 64 + 96 + 40 * 96
    assert report["nbytes"] == on_disk == Artifact.open(out).nbytes
    assert report["weights"] == weights
    assert report["bits_per_weight"] == pytest.approx(8 * on_disk / weights)
    assert report["ratio_16_bit"] == pytest.approx(2 * weights / on_disk)
    assert report["ratio_32_bit"] == pytest.approx(4 * weights / on_disk)
    assert [t["name"] for t in report["tensors"]] == list(Artifact.open(out).names())


def test_a_dry_run_says_the_sizes_and_writes_nothing(net, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = dpq("compress", "-a", "mlp", net, "-o", tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert "nothing is written" in done.err
    assert "kept" in done.err
    plan = dpq("compress", "-a", "mlp", net, "-o", tmp_path / "out", "--dry-run", "--json").json
    assert sorted(tmp_path.rglob("*")) == before
    real = dpq(
        "compress", "-a", "mlp", net, "-o", tmp_path / "out", "--iterations=1", "--json"
    ).json
    assert [t["nbytes"] for t in plan["tensors"]] == [t["nbytes"] for t in real["tensors"]]


@pytest.mark.slow
def test_options_reach_the_manifest(net, tmp_path):
    out = tmp_path / "out"
    words = ["--d", 8, "--K", 32, "--scope", 2, "--orientation", "output", "--iterations", 3]
    words += ["--init", "kmeans++", "--no-row-scale", "--seed", 7, "--override", "w2=4"]
    assert dpq("compress", "-a", "mlp", net, "-o", out, *words).code == 0
    first, second = Artifact.open(out).manifest.specs
    assert (first.d, first.K, first.scope, first.orientation) == (8, 32, 2, "output")
    assert (first.kmeans.iterations, first.kmeans.init) == (3, "kmeans++")
    assert (first.row_scale, first.seed) == (False, 7)
    assert (second.d, second.K, second.seed) == (2, 256, 7)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(net, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ["--iterations", 2, "--seed", seed, "--K", 16]
        assert dpq("compress", "-a", "mlp", net, "-o", tmp_path / name, *words).code == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_an_existing_output_needs_overwrite(net, tmp_path):
    words = ["compress", "-a", "mlp", net, "-o", tmp_path / "out", "--iterations", 1]
    assert dpq(*words).code == 0
    refused = dpq(*words)
    assert refused.code == 1
    assert "--overwrite" in refused.err
    assert dpq(*words, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "5"], "bits must be 1, 2, 3 or 4, not 5"),
        (["--bits", "2", "--d", "4"], "give one of --bits, --d and --target-size"),
        (["--d", "99"], "d must be 1..64, not 99"),
        (["--scope", "everyone"], "scope must be auto, tensor, subspace or a number"),
        (["--scope", "1000"], "scope asks for 1000 codebooks"),
        (["--init", "magic"], "init must be one of auto, random, kmeans++"),
        (["--override", "w9=4"], "override 'w9' matches no compressible tensor"),
        (["--override", "w1"], "write PATTERN=keep, PATTERN=4"),
        (["--shard-size", "lots"], "size 'lots' is not understood"),
        (["--device", "warp"], "device 'warp' cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_1(net, tmp_path, words, message):
    done = dpq("compress", "-a", "mlp", net, "-o", tmp_path / "out", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("dpq: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["compress"],
        ["compress", "net"],
        ["compress", "net", "-a", "mlp"],
        ["compress", "net", "-a", "mlp", "-o", "out", "--bits", "two"],
        ["compress", "net", "-a", "mlp", "-o", "out", "--frobnicate"],
        ["frobnicate"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(words):
    done = dpq(*words)
    assert (done.code, done.out) == (2, "")
    assert "Usage: dpq" in done.err


def spec_of(**options):
    return PlanArguments(source="net", **options).spec(data=False)


def test_the_spec_of_the_options():
    assert spec_of() == preset("standard", 2)
    assert spec_of(bits=3, seed=5) == preset("standard", 3).replace(seed=5)
    assert spec_of(d=6, K=64) == preset("standard", 2).replace(d=6, K=64)
    assert spec_of(preset="paper", bits=1) == preset("paper", 1)
    changes = ["stages=2,transform=rht,permute=false", "assignment=icm,assignment.sweeps=5"]
    spec = spec_of(set=tuple(changes))
    assert (spec.stages, spec.transform) == (2, "rht")
    assert spec.assignment == AssignmentSpec(method="icm", sweeps=5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 2, "d": 4}, "each decides d"),
        ({"bits": 1.5, "target_size": "1MB"}, "each decides d"),
        ({"bits": 1.5, "K": 16}, "for the planner to choose"),
        ({"bits": 1.5, "preset": "paper"}, "fixed widths"),
        ({"preset": "slow"}, "is not one of standard"),
        ({"bits": 5}, "bits must be 1, 2, 3 or 4"),
        ({"set": ["stages"]}, "write KEY=VALUE"),
        ({"set": ["stagess=2"]}, "unknown key stagess"),
        ({"set": ["pool.sizes=2"]}, "pool: unknown key sizes"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, text):
    with pytest.raises(SpecError, match=text):
        spec_of(**options)


@pytest.mark.slow
def test_interrupt_keeps_the_work_and_resume_gives_the_same_bytes(tmp_path):
    net = write_mlp(tmp_path / "net.safetensors", hidden=4096)
    words = ["compress", "-a", "mlp", str(net), "--d", "4", "--K", "256", "-o"]
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    many = ["--iterations", "300"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words, str(out), *many],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not partial.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stdout == ""
    lines = stderr.strip().splitlines()
    assert lines == [f"dpq: interrupted; continue with --resume ({partial} is kept)"]
    assert partial.is_dir()
    assert not out.exists()

    half = dpq("eval", out)
    assert half.code == 1
    assert "half-written" in half.err
    assert dpq(*words, out, *many, "--resume").code == 0
    assert dpq(*words, tmp_path / "whole", *many).code == 0
    assert content(out) == content(tmp_path / "whole")
