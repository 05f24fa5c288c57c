"""MkDocs hook: pages that are made while the site is built, and links that lead out of docs/.

The repository's own files are the source: format specifications lie beside the code that they
describe, the changelog at the top, and the options of the command line are asked of its app.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]

SHOWN = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "adapters/dpq_gaussian/codec/FORMAT.md": "format-scenes.md",
    "dpq_core/artifact/FORMAT.md": "format.md",
}
"""Files outside of docs/ -> the pages that show them."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)")
ANCHORED = re.compile(r'^<a id="([^"]+)"></a>\n\n(#+ .+)$', re.MULTILINE)
"""An explicit anchor above a heading, as every Markdown viewer understands it."""

ARGUMENTS = re.compile(r"<!-- arguments of (\w+) -->")

FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_pre_build(config: Any) -> None:
    """Draw the rooms of the engine as they are."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("rooms.py"))], check=True)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / path).read_text() for path, page in SHOWN.items() if _copied(path, files)}
    made["reference/cli.md"] = command_line()
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def _copied(path: str, files: Files) -> bool:
    """Whether a page is a copy of that file; the start page is written for itself."""
    return (ROOT / path).exists() and files.get_file_from_path(SHOWN[path]) is None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages, whatever file of the repository they name; headings keep anchors."""
    home, src = _home(page.file.src_uri), page.file.src_uri
    markdown = ARGUMENTS.sub(lambda match: arguments(match[1]), markdown)
    parts = FENCED.split(ANCHORED.sub(r"\2 {#\1}", markdown))  # text, fenced block, text, ...
    parts[::2] = [_relinked(text, home, src, files) for text in parts[::2]]
    return "".join(parts)


def _home(page: str) -> str:
    """The file of the repository that a page shows; links of made pages are those of a file."""
    if page == "reference/cli.md":
        return "docs/reference/cli.md"
    for path, shown in SHOWN.items():
        if shown == page and not (ROOT / "docs" / page).exists():
            return path
    return f"docs/{page}"


def _relinked(markdown: str, home: str, page: str, files: Files) -> str:
    def new(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target or target.startswith(("mailto:", "#")):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        shown = SHOWN.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(shown) is None:
            return text if text.startswith("`") else f"{text} (`{path}`)"
        there = posixpath.relpath(shown, posixpath.dirname(page) or ".")
        return f"[{text}]({there}{anchor})"

    return LINK.sub(new, markdown)


def command_line() -> str:
    """Every command with its arguments and options, as the Typer app has them."""
    from typer.main import get_command

    from dpq_cli.app import app

    root: Any = get_command(app)
    added = _adapter_options(app)
    lines = [
        "# Command line, all options",
        "",
        "This page is made from the app itself while the site is built. The [guide](../cli.md)",
        "explains how options work together. What an adapter adds to a command stands below the",
        "command's own options; `dpq adapters NAME` shows the same.",
        "",
    ]
    for name, command in root.commands.items():
        lines += [*_command(name, command), *added.get(name, [])]
    return "\n".join(lines)


def arguments(verb: str) -> str:
    """The keyword arguments of a verb in Python, from the class that the command is made from."""
    from dpq_core.jobs.arguments import VERBS

    lines = ["| argument | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(VERBS[verb]):
        about, default = field.metadata, field.default
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`"
        unset = f" (None: {about['unset']})" if about.get("unset") else ""
        lines.append(f"| `{field.name}` | {shown} | {_cell(about['help'] + unset)} |")
    return "\n".join(lines)


def _command(name: str, command: Any) -> list[str]:
    """The section of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = [p.name.upper() for p in arguments]
    lines = [f"## dpq {name}", "", " ".join((command.help or "").split()), ""]
    lines += ["```text", " ".join(["dpq", name, *words, "[OPTIONS]"]), "```", ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{w}` | {_cell(p.help)} |" for w, p in zip(words, arguments, strict=True)]
        lines.append("")
    if options:
        rows = [([*p.opts, *p.secondary_opts], _default(p), p.help) for p in options]
        lines += _table(rows)
    return lines


def _default(param: Any) -> str:
    """The default of an option in words; empty where there is none."""
    if param.required:
        return "required"
    return "" if callable(param.default) else _shown(param.default)


def _shown(value: object) -> str:
    if value is None or value is False or value in ("", [], ()):
        return ""
    return f"`{'on' if value is True else value}`"


def _adapter_options(app: Any) -> dict[str, list[str]]:
    """Command -> tables of what the installed adapters add to it."""
    found: dict[str, list[str]] = {}
    for adapter in _json(app, "adapters", "--json"):
        if not adapter["ok"]:
            raise RuntimeError(f"adapter {adapter['name']}: {adapter['error']}")
        verbs = _json(app, "adapters", adapter["name"], "--json")["options"]
        for verb, options in verbs.items():
            rows = [([o["usage"]], _shown(o["default"]), o["help"]) for o in options]
            command = {"evaluate": "eval"}.get(verb, verb)
            title = f"Added by the adapter `{adapter['name']}`:"
            found.setdefault(command, []).extend([title, "", *_table(rows)])
    return found


def _json(app: Any, *words: str) -> Any:
    """What a command prints on stdout."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, list(words))
    if done.exit_code:
        raise RuntimeError(f"dpq {' '.join(words)}: {done.output}")
    return json.loads(done.stdout)


def _table(rows: Sequence[tuple[Sequence[str], str, str | None]]) -> list[str]:
    lines = [
        f"| {' '.join(f'`{name}`' for name in names)} | {default} | {_cell(text)} |"
        for names, default, text in rows
    ]
    return ["| option | default | meaning |", "|---|---|---|", *lines, ""]


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
