"""Runs the steps of one page of the documentation, one after the other, in this process.

A script: JSON ``[[kind, line, text], ...]`` on the standard input; the working folder is the
reader's. A page pays once for importing torch and the libraries of the models, and not in each of
its blocks. Exits with 1 at the first step that fails, with its traceback on the standard error.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import traceback
import warnings

SHELL = re.compile(r"[|<>&;$`*?\[{~]")
"""What a shell does something about, outside of quotes."""


def run_command(line: str) -> None:
    """One line of a shell block that begins with ``dpq``."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`]*\"", "", line)
    if SHELL.search(unquoted):
        subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)
        return
    from dpq_cli.app import app

    try:
        app(shlex.split(line, comments=True)[1:])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


def run_python(text: str, line: int) -> None:
    """One block as a program of its own: nothing of the blocks before is known to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        program = compile(text, f"<block in line {line}>", "exec")
    exec(program, {"__name__": "__main__"})  # noqa: S102 - the documentation's own text


def main() -> None:
    sys.path.insert(0, "")  # blocks that are files can be imported
    for kind, line, text in json.load(sys.stdin):
        try:
            run_command(text) if kind == "dpq" else run_python(text, line)
        except Exception:
            traceback.print_exc()
            sys.stderr.write(f"block in line {line}: {text}\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
