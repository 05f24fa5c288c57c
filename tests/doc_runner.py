"""Runs what the documentation and the examples show, step by step, in this process.

A page would pay for importing torch and the libraries of the models in a process of its own; here
they are imported once for all pages. Only what a shell does something about is given to one.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from dpq_core.jobs import whole_model
from dpq_core.jobs.compress_report import CompressReport

SHELL = re.compile(r"[|<>&;$`*?\[{~]")
"""What a shell does something about, outside of quotes."""


class Step(NamedTuple):
    """One command, or one Python program, and where it begins."""

    kind: Literal["dpq", "python"]
    line: int
    text: str


def run_command(line: str) -> None:
    """Run a line of a shell block that begins with ``dpq``."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`]*\"", "", line)
    if SHELL.search(unquoted):
        shell = ["bash", "-euo", "pipefail", "-c", line]
        done = subprocess.run(shell, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr}")
        return
    from dpq_cli.app import app

    try:
        app(shlex.split(line, comments=True)[1:])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


def run_python(text: str, line: int) -> None:
    """Run a block as a program of its own: nothing of the blocks before is known to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        program = compile(text, f"<block in line {line}>", "exec")
    exec(program, {"__name__": "__main__"})  # noqa: S102 - the documentation's own text


COMPRESSED: list[tuple[object, CompressReport]] = []
"""Arguments and reports of the compressions that were done in this process."""


def compress_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pages that compress one model in one way share the artifact: its bytes are the same.

    Arguments are read, checked and planned for as ever; only the tensors are not quantized again.
    """
    original = whole_model._compress

    def compress(call: Any, *more: Any) -> CompressReport:
        output = call.arguments.output
        key = dataclasses.replace(call.arguments, output=Path()), call.own
        done = next((report for other, report in COMPRESSED if other == key), None)
        if done is None or call.arguments.calibrates or output.exists():
            report = original(call, *more)
            COMPRESSED.append(
                (key, dataclasses.replace(report, artifact=report.artifact.resolve()))
            )
            return report
        shutil.copytree(done.artifact, output)
        return dataclasses.replace(done, artifact=output)

    monkeypatch.setattr(whole_model, "_compress", compress)


def run_steps(steps: list[Step], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``steps`` in ``folder``, as a reader would; say which one fails.

    Language models read short windows by default: what is tested is that the examples run.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")  # blocks that are files can be imported
    monkeypatch.setattr("dpq_llama.calibration.task._USUAL_CONTEXT", 32)
    compress_once(monkeypatch)
    for kind, line, text in steps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # as in a process of the reader
                run_command(text) if kind == "dpq" else run_python(text, line)
        except Exception as error:
            error.add_note(f"block in line {line}: {text}")
            raise
