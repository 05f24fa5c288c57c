"""Every file in examples/ runs, and examples/README.md lists them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repo import ROOT

FOLDER = ROOT / "examples"
PYTHON = sorted(FOLDER.glob("*.py"))
SHELL = sorted(FOLDER.glob("*.sh"))


def run(command: list[str | Path], folder: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_python_examples_run(path: Path, tmp_path: Path) -> None:
    run([sys.executable, "-P", path], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_examples_run(path: Path, tmp_path: Path) -> None:
    for recipe in FOLDER.glob("*.yaml"):
        shutil.copy(recipe, tmp_path)
    run(["bash", path], tmp_path)


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\((\S+?)\)", (FOLDER / "README.md").read_text())
    there = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh", ".yaml")}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_examples_can_be_started(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
