"""``dpq adapters``, ``dpq doctor``, and the top level."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from cli_runs import dpq, dpq_process, install_toy
from plugins import install_plugin

from dpq_core.version import __version__

PACKAGES = os.environ.get("PYTHONPATH")
"""Where the packages under test lie, if they are not those that are installed."""


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


def test_the_list_names_every_adapter():
    done = dpq("adapters")
    assert (done.code, done.out) == (0, "")
    assert "llama" in done.err
    assert "two-layer perceptrons" in done.err
    assert "evaluate" in done.err


def test_json():
    found = {a["name"]: a for a in dpq("adapters", "--json").json}
    assert found["llama"]["ok"]
    assert found["mlp"] == {
        "name": "mlp",
        "distribution": "dpq-mlp",
        "target": "toy_adapter:MLPAdapter",
        "ok": True,
        "error": None,
        "summary": "two-layer perceptrons (w1, b1, w2) in a .safetensors file",
        "capabilities": ["load", "evaluate", "sample", "export", "probe"],
    }


def test_a_broken_one_is_shown_with_its_reason_and_spoils_nothing(monkeypatch, tmp_path):
    install_plugin(
        monkeypatch,
        tmp_path / "bad",
        distribution="dpq-bad",
        points={"bad": "no_such_module:Bad", "mlp": "rival:MLP"},
    )
    done = dpq("adapters")
    assert done.code == 0
    shown = " ".join(done.err.split())
    assert "BROKEN" in shown
    found = {(a["name"], a["distribution"]): a for a in dpq("adapters", "--json").json}
    assert "No module named 'no_such_module'" in found["bad", "dpq-bad"]["error"]
    for claimant in ("dpq-bad", "dpq-mlp"):
        assert "claimed by dpq-bad" in found["mlp", claimant]["error"]
    assert found["llama", "dpq"]["ok"]


def test_one_adapters_options():
    done = dpq("adapters", "mlp")
    assert "--rows INT" in done.err
    assert "256" in done.err
    assert "options of dpq eval" in done.err
    found = dpq("adapters", "mlp", "--json").json
    assert found["options"]["sample"] == [
        {"flag": "--count", "usage": "--count INT", "default": 3, "help": "outputs to show"}
    ]


def test_an_unknown_adapter():
    done = dpq("adapters", "lama")
    assert done.code == 1
    assert done.err.startswith("dpq: error: no adapter 'lama'; did you mean llama?")


def test_doctor():
    found = dpq("doctor", "--json").json
    assert found["dpq"] == __version__
    assert found["libraries"]["torch"]
    assert found["devices"][0] == "cpu"
    assert found["threads"]["torch"] >= 1
    assert found["disk_free"] > 0
    assert all(isinstance(compiled, bool) for compiled in found["kernels"].values())
    assert found["kernels"]
    assert found["look_ups"].partition(";")[0] in {"avx512vbmi", "avx2", "portable"}
    assert {a["name"] for a in found["adapters"]} >= {"llama", "mlp"}


@pytest.mark.slow
def test_doctor_for_people_is_plain_ascii(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = dpq_process("doctor", cwd=tmp_path)
    assert (done.code, done.out) == (0, "")
    assert done.err.isascii()
    for text in ("CPU kernels", "disk here", "adapter llama"):
        assert text in done.err


def test_version():
    assert dpq("--version").out == f"dpq {__version__}\n"


@pytest.mark.slow
def test_help_lists_every_command():
    shown = dpq("--help").out
    for command in ("compress", "eval", "sample", "inspect", "adapters", "demo", "doctor"):
        assert command in shown


@pytest.mark.slow
def test_a_built_in_model_says_which_adapter_it_needs(tmp_path):
    done = dpq("compress", "builtin:tiny-llama", "-o", tmp_path / "out", "--dry-run", "--json")
    assert done.code == 0
    assert any(t["name"].startswith("model.layers.0.") for t in done.json["tensors"])


def test_nobody_ships_that_model(tmp_path):
    done = dpq("compress", "builtin:tiny-lama", "-o", tmp_path / "out")
    assert done.code == 1
    assert "no adapter ships builtin:tiny-lama; there are:" in " ".join(done.err.split())
    assert "builtin:tiny-llama" in done.err


def test_a_new_package_has_everything(tmp_path):
    done = dpq("adapters", "new", "vision-vit", "-o", tmp_path / "new")
    assert done.code == 0, done.err
    assert "pip install -e" in done.err
    files = {p.relative_to(tmp_path / "new").as_posix() for p in (tmp_path / "new").rglob("*.*")}
    assert files == {
        "README.md",
        "pyproject.toml",
        "src/dpq_vision_vit/__init__.py",
        "src/dpq_vision_vit/adapter.py",
        "src/dpq_vision_vit/py.typed",
        "tests/test_adapter.py",
    }
    project = tomllib.loads((tmp_path / "new" / "pyproject.toml").read_text())["project"]
    target = "dpq_vision_vit.adapter:VisionVitAdapter"
    assert project["entry-points"]["dpq.adapters"] == {"vision-vit": target}
    again = dpq("adapters", "new", "vision-vit", "-o", tmp_path / "new")
    assert again.code == 1
    assert "use --overwrite to replace it" in again.err
    assert dpq("adapters", "new", "vision-vit", "-o", tmp_path / "new", "--overwrite").code == 0


@pytest.mark.parametrize("name", ["Vision", "a b", "new", "-x", "1st", "mlp", "../x"])
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    assert dpq("adapters", "new", "-o", tmp_path / "new", "--", name).code == 1
    assert not (tmp_path / "new").exists()
    assert dpq("adapters", "new").code == 2
    assert dpq("adapters", "mlp", name).code == 2


@pytest.mark.slow
def test_a_new_package_passes_its_own_tests_and_the_linter(tmp_path, monkeypatch):
    new = tmp_path / "new"
    dpq("adapters", "new", "vision", "-o", new)
    points = {"vision": "dpq_vision.adapter:VisionAdapter"}
    install_plugin(monkeypatch, tmp_path / "info", distribution="dpq-vision", points=points)
    paths = [new / "src", tmp_path / "info", *filter(None, [PACKAGES])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(command, cwd=new, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    command = [sys.executable, "-m", "ruff", "check", "--select", "E,F,W,I,B,D,UP,RUF,SIM", "."]
    config = ["--config", "lint.pydocstyle.convention='google'", "--line-length", "100"]
    done = subprocess.run([*command, *config], cwd=new, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
