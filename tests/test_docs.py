"""The documentation's examples are run, and what it lists is what the code has."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import Block, blocks, commands
from doc_runner import Step, run_steps
from plugins import install_plugin
from repo import ROOT
from typer.main import get_command

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCS = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]

RUNNABLE = ("bash", "python")
SHOWN = ("text", "console", "toml", "json", "yaml", "make", "")

SHELL_ONLY = ("pip ", "git ", "cd ", "python -m venv", "python3 -m venv", ". ", "source ")
"""Commands of a shell block that need a network or change the environment: not run."""


def documented() -> list[Path]:
    return [path for path in DOCS if any(b.language in RUNNABLE for b in blocks(path))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.usefixtures("scripts_on_path", "short_searches")
@pytest.mark.parametrize("path", documented(), ids=relative)
def test_examples_run(path, tmp_path, monkeypatch):
    """The blocks of one file run in order in one empty folder."""
    run_steps(steps(path, tmp_path), tmp_path, monkeypatch)


def steps(path: Path, folder: Path) -> list[Step]:
    """Kind, line and text of all that a page runs; writes the blocks that are files."""
    found = []
    for block in blocks(path):
        if block.not_run:
            continue
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)
        elif block.language == "python":
            found.append(Step("python", block.line, block.text))
        elif block.language == "bash":
            lines = [line for line in commands(block) if is_run(line, block)]
            found += [Step("dpq", block.line, line) for line in lines]
    return found


def is_run(line: str, block: Block) -> bool:
    """Whether a line of a shell block is a ``dpq`` command; the others need no run."""
    if line.startswith("make "):
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert shlex.split(line, comments=True)[1] in targets, line
    elif not line.startswith("dpq "):
        assert line.startswith(SHELL_ONLY), f"line {block.line}: {line!r} is not tested"
    return line.startswith("dpq ")


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_every_block_says_what_it_is(path):
    assert [b.line for b in blocks(path) if b.language not in (*RUNNABLE, *SHOWN)] == []


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.fixture
def scripts_on_path(monkeypatch):
    """Let a shell find ``dpq``."""
    scripts = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", scripts + os.pathsep + os.environ["PATH"])


@pytest.mark.slow
@pytest.mark.usefixtures("scripts_on_path")
def test_the_example_runner_can_fail(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\n1 / 0\n```\n<!-- not run: a joke -->\n```bash\nrm -rf x\n```\n")
    _, shell = blocks(page)
    with pytest.raises(ZeroDivisionError) as caught:
        run_steps(steps(page, tmp_path), tmp_path, monkeypatch)
    assert caught.value.__notes__ == ["block in line 1: 1 / 0\n"]
    with pytest.raises(AssertionError, match="is not tested"):
        is_run(commands(shell)[0], shell)
    assert shell.not_run == "a joke"
    page.write_text("```bash\ndpq --version | grep dpq\ndpq eval none\n```\n")
    with pytest.raises(RuntimeError, match="exit code 1") as caught:
        run_steps(steps(page, tmp_path), tmp_path, monkeypatch)
    assert caught.value.__notes__ == ["block in line 1: dpq eval none"]
    page.write_text("```bash\ndpq --version | grep mango\n```\n")
    with pytest.raises(RuntimeError, match="exit code 1") as caught:
        run_steps(steps(page, tmp_path), tmp_path, monkeypatch)
    assert caught.value.__notes__ == ["block in line 1: dpq --version | grep mango"]


def cli_words() -> dict[str, list[str]]:
    """Command -> its long options, as Typer has them."""
    from dpq_cli.app import app

    root = get_command(app)
    return {
        name: sorted(
            option
            for param in command.params
            for option in (*param.opts, *param.secondary_opts)
            if option.startswith("--")
        )
        for name, command in root.commands.items()  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("command", sorted(cli_words()))
def test_every_command_and_option_is_documented(command):
    """docs/cli.md has a section per command that names every one of its options."""
    sections = re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"dpq {command}\n")]
    words = set(re.findall(r"--[A-Za-z][A-Za-z-]*", section))
    assert sorted(set(cli_words()[command]) - words - {"--help"}) == []


def test_the_documentation_names_no_command_that_is_gone():
    sections = re.findall(r"^## dpq (\S+)$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(cli_words())


def test_the_adapter_guides_example_is_the_tested_one():
    guide = {b.file: b.text for b in blocks(ROOT / "docs" / "adapters.md") if b.file}
    assert guide["dpq_mlp.py"] == (ROOT / "tests" / "toy_adapter.py").read_text()


@pytest.mark.slow
def test_the_adapter_guides_contract_passes(tmp_path, monkeypatch):
    """The guide's files, installed as the guide says, under pytest in a new process."""
    for block in blocks(ROOT / "docs" / "adapters.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    points = {"mlp": "dpq_mlp:MLPAdapter"}
    install_plugin(monkeypatch, tmp_path, distribution="dpq-mlp", points=points)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) == 1
    assert "names no hidden axes" in skipped[0]  # the guide names them in an example of its own
