"""Whatever a command raises becomes one line and an exit code."""

from __future__ import annotations

import errno
import textwrap
from pathlib import Path

import pytest
from cli_runs import dpq, install_toy, write_mlp
from plugins import install_plugin
from toy_adapter import MLPAdapter


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def net(tmp_path) -> Path:
    return write_mlp(tmp_path / "net.safetensors")


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def evaluate(*args: object) -> None:
        raise error

    monkeypatch.setattr(MLPAdapter, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"),
            1,
            "error: disk full: out/model.safetensors; free some space and try again "
            "(dpq compress: with --resume)",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied: x"),
        (KeyboardInterrupt(), 130, "dpq: interrupted"),
        (
            ModuleNotFoundError("No module named 'nothing'", name="nothing"),
            1,
            "error: adapter 'mlp' needs 'nothing', which is not installed: pip install",
        ),
        (
            ZeroDivisionError("a\nb"),
            1,
            "error: ZeroDivisionError: a b (this is a bug in dpq or the adapter; see it with",
        ),
    ],
    ids=["disk-full", "permission", "interrupt", "missing", "bug"],
)
def test_one_line(net, monkeypatch, error, code, message):
    fail_with(monkeypatch, error)
    done = dpq("eval", "-a", "mlp", net)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_debug_shows_the_traceback(net, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("oops"))
    done = dpq("--debug", "eval", "-a", "mlp", net)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("dpq: error: ZeroDivisionError: oops")


def test_a_capability_that_an_adapter_lacks(net, monkeypatch, tmp_path):
    text = """
        from dpq_core.plugin.adapter import TensorAdapter
        from toy_adapter import MLPAdapter

        class Blind(TensorAdapter):
            name = "blind"
            summary = "measures nothing"
            open = MLPAdapter.open
            select = MLPAdapter.select
    """
    install_plugin(
        monkeypatch,
        tmp_path / "more",
        distribution="dpq-blind",
        points={"blind": "blind_plugin:Blind"},
        modules={"blind_plugin": textwrap.dedent(text)},
    )
    done = dpq("eval", "-a", "blind", net)
    assert done.code == 1
    assert "adapter 'blind' cannot evaluate (see `dpq adapters`)" in done.err
