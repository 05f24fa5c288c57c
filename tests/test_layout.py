"""The tree, pyproject.toml and the installed metadata tell the same story."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from importlib.metadata import distribution

import pytest
from repo import ROOT, modules, package_folders, pyproject

MAX_LINES = 300


@pytest.mark.parametrize("folder", ["adapters", "cli", "benchmarks", "tests"])
def test_plain_folders_are_not_packages(folder):
    """``import adapters`` belongs to another project; ours must not exist."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_package_in_the_tree_is_shipped():
    homes = (ROOT, ROOT / "adapters", ROOT / "cli")
    present = {p.parent.name for home in homes for p in home.glob("dpq*/__init__.py")}
    assert present == set(package_folders())


def test_every_shipped_folder_with_modules_is_a_regular_package():
    folders = {path.parent for path in modules().values()}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []


def test_every_package_is_typed():
    untyped = [n for n, folder in package_folders().items() if not (folder / "py.typed").exists()]
    assert untyped == []


def test_installed_metadata_is_current():
    project = pyproject()["project"]
    declared = {
        (group, name, target)
        for group, table in {
            "console_scripts": project["scripts"],
            **project["entry-points"],
        }.items()
        for name, target in table.items()
    }
    installed = {(p.group, p.name, p.value) for p in distribution("dpq").entry_points}
    assert installed == declared, "stale metadata: run pip install -e ."


def test_mypy_checks_every_package():
    assert set(pyproject()["tool"]["mypy"]["packages"]) == set(package_folders())


def test_the_extra_all_holds_every_adapters_extra():
    project = pyproject()["project"]
    (everything,) = project["optional-dependencies"]["all"]
    for adapter in project["entry-points"]["dpq.adapters"]:
        assert adapter in everything.partition("[")[2].rstrip("]").split(",")


def test_files_are_short():
    counts = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in counts.items() if n > MAX_LINES} == {}


def test_gitignore_patterns_with_names_are_anchored():
    """Hatchling obeys .gitignore: ``data/`` would drop a package's data without a word."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    loose = [line for line in lines if line and not line.startswith(("/", "#", "*", "__pycache__"))]
    assert loose == []


def test_ci_script_is_executable_and_runs_the_make_verbs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-2:] == ["make portable", "make test"]


@pytest.mark.parametrize("verb", ["demo", "test", "quick", "portable", "lint", "bench"])
def test_make_verbs_work_without_a_venv(verb):
    """Each verb first makes the venv and installs, from the pinned versions."""
    # Under `make test` the outer make would pass its own flags on.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", "VENV=.venv-that-is-not-there", verb],
        cwd=ROOT,
        env={name: value for name, value in clean.items() if name != "MFLAGS"},
        capture_output=True,
        text=True,
        check=True,
    )
    commands = done.stdout.splitlines()
    assert "-m venv .venv-that-is-not-there" in commands[0]
    assert "pip install --quiet -c constraints.txt -e '.[dev]'" in commands[1]


def test_rooms_that_list_their_files_list_all_of_them():
    for init in package_folders()["dpq_core"].rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        if listed := re.findall(r"^``(\w+)``  ", text, re.M):
            assert sorted(listed) == sorted(p.stem for p in init.parent.glob("*.py") if p != init)
