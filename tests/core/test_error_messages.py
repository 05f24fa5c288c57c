"""Errors carry what to change as data: no message below the command line spells a flag."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpq_core.errors import ANY, DPQError, Hint, Interrupted, SpecError

ROOT = Path(__file__).resolve().parents[2]
FLAG = re.compile(r"(?<![\w`-])--[a-z][a-z-]+")
HELP = {"field", "_option", "argument"}
"""Calls whose texts are help: they describe an option of the command line."""

SPELLS_FLAGS = {
    "dpq_core/errors.py",  # turns an argument's name into a flag
    "dpq_core/plugin/options.py",  # likewise
    "dpq_core/jobs/demo.py",  # ends with a command to try
    "adapters/dpq_hf/model_card.py",  # the card shows a command
    "adapters/dpq_llama/hub/artifact_files.py",  # likewise
    "adapters/dpq_diffusion/hub/files.py",  # likewise
}


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """The string constants of a module but for docstrings and help texts."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in HELP:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node
        yield from texts(node)


def flags_in(source: str) -> list[str]:
    return [
        node.value
        for node in texts(ast.parse(source))
        if FLAG.search(node.value) and not node.value.startswith("pip install")
    ]


@pytest.mark.parametrize("package", ["dpq_core", "dpq", "adapters"])
def test_no_message_contains_a_flag(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {
        str(path.relative_to(ROOT)): flags
        for path in modules
        if path.relative_to(ROOT).as_posix() not in SPELLS_FLAGS
        and (flags := flags_in(path.read_text(encoding="utf-8")))
    }
    assert not wrong


def test_the_search_finds_a_flag():
    assert flags_in('raise SpecError(f"{path}: cannot be read; use --overwrite")')
    assert not flags_in('"""What ``--baseline`` takes."""\nx = field(metadata={"help": "--width"})')


def test_an_error_about_an_option_names_it_as_the_door_does():
    error = SpecError("must be 0 or more", option="batch_size", value=-1)
    assert str(error) == "batch_size=-1: must be 0 or more"
    assert error.on_the_command_line() == "--batch-size -1: must be 0 or more"
    error = SpecError(
        "no such folder", Hint.of("give {}", images=ANY), option="data", value=Path("a")
    )
    assert str(error) == "data='a': no such folder; give images"
    assert error.on_the_command_line() == "--data a: no such folder; give --images"
    error = SpecError("needs PyAV", option="mp4")
    assert (str(error), error.on_the_command_line()) == ("mp4: needs PyAV", "--mp4: needs PyAV")


def test_an_error_survives_the_way_between_processes():
    error = DPQError("m", Hint.of("use {}", overwrite=True), option="limit", value=3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "limit=3: m; use overwrite=True"


def test_an_interrupted_run_says_how_to_go_on():
    stop = Interrupted("state is kept", Hint.of("use {} to continue", resume=True))
    assert str(stop) == "state is kept; use resume=True to continue"
    assert stop.on_the_command_line() == "state is kept; use --resume to continue"
