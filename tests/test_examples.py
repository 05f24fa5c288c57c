"""Every file in examples/ runs, and examples/README.md lists them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_runner import Step, run_steps
from repo import ROOT

FOLDER = ROOT / "examples"
PYTHON = sorted(FOLDER.glob("*.py"))
SHELL = sorted(FOLDER.glob("*.sh"))
SETTING = "set -euo pipefail"


@pytest.mark.slow
@pytest.mark.usefixtures("short_searches")
@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_steps([Step("python", 1, path.read_text())], tmp_path, monkeypatch)


def steps(script: Path) -> list[Step]:
    """The commands of a shell example, which has nothing but comments beside them."""
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    numbered = {n: line for n, line in enumerate(lines, 1) if line and not line.startswith("#")}
    assert numbered.pop(min(numbered)) == SETTING
    assert [line for line in numbered.values() if not line.startswith("dpq ")] == []
    return [Step("dpq", n, line) for n, line in numbered.items()]


@pytest.mark.slow
@pytest.mark.usefixtures("short_searches")
@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in FOLDER.glob("*.yaml"):
        shutil.copy(recipe, tmp_path)
    run_steps(steps(path), tmp_path, monkeypatch)


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\((\S+?)\)", (FOLDER / "README.md").read_text())
    there = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh", ".yaml")}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_examples_can_be_started(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
