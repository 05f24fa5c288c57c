"""The wheel holds what it must and works in an environment that has no checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from repo import ROOT, package_folders, pyproject

pytestmark = pytest.mark.slow

SHIPPED = {".j2", ".py", ".md", ".json", ".safetensors", ".txt", ".typed", ".model"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second environment: dpq from the wheel, its dependencies borrowed from this one."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    paths = ["import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(run(python, "-c", *paths, cwd=home).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # a pure wheel: installing it is unpacking it
    # A plain path line adds a folder but does not run that folder's own .pth files, so the
    # editable dpq of this environment stays unseen; the wheel's folder comes first anyway.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_source_file_is_in_the_wheel(wheel):
    expected = {
        path.relative_to(folder.parent).as_posix()
        for folder in package_folders().values()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert sorted(expected - set(names(wheel))) == []
    assert "dpq_core/artifact/FORMAT.md" in expected


def test_nothing_else_is_in_the_wheel(wheel):
    tops = {name.partition("/")[0] for name in names(wheel)}
    metadata = {top for top in tops if top.endswith(".dist-info")}
    assert tops - metadata == set(package_folders())
    files = [n for n in names(wheel) if not n.endswith(".j2")]  # templates of new adapters
    assert [n for n in files if "test_" in n or "conftest" in n] == []


def test_the_wheel_holds_a_builtin_model(wheel):
    assert any("/builtin/" in n and n.endswith(".safetensors") for n in names(wheel))


def test_the_installed_wheel_is_what_runs(clean_python, tmp_path):
    packages = sorted(package_folders())
    code = f"import {', '.join(packages)}\nfor p in {', '.join(packages)}: print(p.__file__)"
    places = run(clean_python, "-P", "-c", code, cwd=tmp_path).split()
    assert [p for p in places if not Path(p).is_relative_to(clean_python.parent.parent)] == []


def test_the_installed_command_works(clean_python, tmp_path):
    main = "from dpq_cli.app import app; app()"
    assert run(clean_python, "-P", "-c", main, "--version", cwd=tmp_path).startswith("dpq ")
    listed = json.loads(run(clean_python, "-P", "-c", main, "adapters", "--json", cwd=tmp_path))
    declared = sorted(pyproject()["project"]["entry-points"]["dpq.adapters"])
    assert [(a["name"], a["ok"], a["error"]) for a in listed] == [(n, True, None) for n in declared]


def test_the_installed_wheel_compresses_the_builtin_model(clean_python, tmp_path):
    main = "from dpq_cli.app import app; app()"
    words = ["compress", "--adapter", "llama", "builtin:tiny-llama", "--dry-run", "-o", "out"]
    shown = json.loads(run(clean_python, "-P", "-c", main, *words, "--json", cwd=tmp_path))
    assert 2 < shown["bits_per_weight"] < 4
    assert list(tmp_path.iterdir()) == []
