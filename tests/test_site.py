"""The site, and the files that maintainers expect, agree with the code."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import yaml
from repo import ROOT, pyproject
from typer.main import get_command

from dpq_core.version import __version__

PYTHON_PAGE = ROOT / "docs/reference/python.md"


def script(name: str) -> ModuleType:
    """A module of the site's folder."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / f"docs/_site/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook of the site."""
    return script("pages")


@pytest.mark.slow
def test_the_drawing_of_the_rooms_is_current() -> None:
    rooms = script("rooms")
    assert rooms.DRAWING.read_text() == rooms.drawing(), "run docs/_site/rooms.py"
    written = (ROOT / "docs/architecture.md").read_text().split("### Rooms of the engine")[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", written, re.MULTILINE)) == rooms.ROOMS


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([a-z_/]+\.py)`", (ROOT / "docs/architecture.md").read_text())
    missing = {n for n in named if not any((ROOT / top / n).exists() for top in ("", "dpq_core"))}
    assert missing - {"reference.py", "quantize.py"} == set()  # named beside their room


def test_the_command_line_page_has_every_command_and_option(pages: ModuleType) -> None:
    from dpq_cli.app import app

    root: Any = get_command(app)
    sections = re.split(r"^## dpq ", pages.command_line(), flags=re.MULTILINE)[1:]
    by_name = {section.split("\n", 1)[0]: section for section in sections}
    assert set(by_name) == set(root.commands)
    for name, command in root.commands.items():
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert [o for o in options if f"`{o}`" not in by_name[name]] == []
    assert "Added by the adapter `llama`" in by_name["eval"]


def test_the_python_page_has_every_public_name() -> None:
    import dpq

    listed = set(re.findall(r"^::: dpq\.(\w+)", PYTHON_PAGE.read_text(), re.MULTILINE))
    public = {name for name in dpq.__all__ if not name.startswith("_")}
    errors = {name for name in public if name.endswith("Error")}  # shown with their module
    assert public - errors - listed == set()


def test_the_python_page_has_the_arguments_of_every_verb(pages: ModuleType) -> None:
    from dpq_core.jobs.arguments import VERBS

    named = pages.ARGUMENTS.findall(PYTHON_PAGE.read_text())
    assert set(named) == set(VERBS) - {"demo", "inspect"}  # their signatures say all
    table = pages.arguments("compress")
    assert "| `bits` | `None` |" in table
    assert "| `output` | required |" in table


class Pages:
    """Which pages a site has, as the hook asks for it."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def get_file_from_path(self, path: str) -> str | None:
        return path if path in self._names else None


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[x](../dpq_core/artifact/FORMAT.md#f1)", "[x](format.md#f1)"),
        ("[two\nlines](llama.md)", "[two\nlines](llama.md)"),
        ("[README](../README.md)", "[README](index.md)"),
        ("[suite](../benchmarks/suites/kmeans.py)", "suite (`benchmarks/suites/kmeans.py`)"),
        ("[out](https://arxiv.org/abs/2411.12306)", "[out](https://arxiv.org/abs/2411.12306)"),
        ("[here](#part)", "[here](#part)"),
    ],
)
def test_links_lead_to_pages(pages: ModuleType, markdown: str, expected: str) -> None:
    site = Pages("format.md", "llama.md", "index.md")
    assert pages._relinked(markdown, "docs/methods.md", "methods.md", site) == expected


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = "\n".join(page.read_text() for page in tmp_path.rglob("*.html"))
    fetched = r'(?:src|rel="stylesheet" href|rel="preconnect" href)="(https?://[^"]*)"'
    assert re.findall(fetched, built) == []  # nothing is loaded from elsewhere


def test_the_citation_has_the_version_and_the_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == pyproject()["project"]["license"]


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == [__version__, "0.1.0"]


def test_urls_have_one_home() -> None:
    urls = pyproject()["project"]["urls"]
    assert [url for url in urls.values() if not url.startswith(urls["Homepage"])] == []
    site = (ROOT / "mkdocs.yml").read_text()
    assert f"site_url: {urls['Documentation']}/" in site


def test_the_workflow_runs_verbs_that_make_has() -> None:
    verbs = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert set(re.findall(r"make ([a-z]+)", workflow)) - set(verbs) == set()


@pytest.mark.parametrize("folder", [".github/workflows", ".github/ISSUE_TEMPLATE"])
def test_files_of_the_forge_are_yaml(folder: str) -> None:
    paths = sorted((ROOT / folder).glob("*.yml"))
    assert paths
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in paths)


def test_hooks_before_a_commit_use_the_projects_tools() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # one version of each tool
    named = {word for entry in entries for word in entry.split() if word.startswith("tests/")}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
