"""Runs the dpq command on the toy adapter, in this process or in a new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins import install_plugin
from safetensors.torch import save_file
from typer.testing import CliRunner

from dpq_cli.app import app

MAIN = "from dpq_cli.app import app; app()"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def install_toy(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    """Install the toy adapter for this process and, through PYTHONPATH, for new ones."""
    points = {"mlp": "toy_adapter:MLPAdapter"}
    install_plugin(monkeypatch, site, distribution="dpq-mlp", points=points)
    paths = [str(site), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def write_mlp(path: Path, hidden: int = 96) -> Path:
    """A perceptron with ``hidden`` units, as the toy adapter reads it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w1": (hidden, 64), "b1": (hidden,), "w2": (40, hidden)}
    save_file({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, path)
    return path


def dpq(*words: object) -> Result:
    """Run the command in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    return Result(done.exit_code, done.stdout, done.stderr)


def dpq_process(*words: object, cwd: Path) -> Result:
    """Run the command in a new process."""
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return Result(done.returncode, done.stdout, done.stderr)
