"""Who may import whom, how fast importing is, and that every public name exists."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repo import ROOT, modules, package_folders

HEAVY = ("torch", "numba", "transformers", "lm_eval", "faiss", "numpy", "rich.progress")

# Triton exists on Linux machines with a GPU stack only.
OPTIONAL = {"triton"}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import, line {node.lineno}"
            names.add((node.module or "").partition(".")[0])
    return names


def wrong_imports(package: str, path: Path) -> set[str]:
    """The dpq packages that ``path`` of ``package`` imports and must not."""
    ours = {name for name in imported(path) if name.startswith("dpq_")}
    return ours - {package, "dpq_core"}


@pytest.mark.parametrize("package", sorted(package_folders()))
def test_packages_import_only_the_engine_and_themselves(package):
    wrong = {
        str(path): found
        for path in package_folders()[package].rglob("*.py")
        if (found := wrong_imports(package, path))
    }
    assert wrong == {}


def test_the_import_checker_can_fail(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from dpq_llama.adapter import LlamaAdapter\n")
    assert wrong_imports("dpq_core", path) == {"dpq_llama"}
    assert wrong_imports("dpq_cli", path) == {"dpq_llama"}
    assert wrong_imports("dpq_llama", path) == set()
    path.write_text("import dpq_cli.app\n")
    assert wrong_imports("dpq_llama", path) == {"dpq_cli"}


def heavy_after(statement: str) -> str:
    """The heavy modules that are loaded once ``statement`` has run in a new interpreter."""
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


RUN = "from dpq_cli.app import app\ntry: app({words!r})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import dpq_core",
        "import dpq_core.adapter, dpq_core.registry, dpq_core.options, dpq_core.spec",
        "import dpq_cli.app",
        RUN.format(words=["--help"]),
        RUN.format(words=["--version"]),
        RUN.format(words=["compress", "--help"]),
        RUN.format(words=["adapters"]),
        RUN.format(words=["adapters", "--json"]),
        RUN.format(words=["adapters", "llama"]),
    ],
    ids=["core", "contract", "app", "help", "version", "command-help", "adapters", "json", "one"],
)
def test_listing_and_help_load_nothing_heavy(statement):
    assert heavy_after(statement) == ""


def test_the_heavy_import_probe_can_fail():
    assert "torch" in heavy_after("import dpq_core.plan").split()


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_imports_and_its_public_names_exist(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"needs {error.name}")
        raise
    public = getattr(module, "__all__", [])
    assert [n for n in public if not hasattr(module, n)] == []
    assert len(set(public)) == len(public)


def rooms_needed(path: Path) -> set[str]:
    """The names below ``dpq_core`` that a file imports when it runs, not for types alone."""
    needed: set[str] = set()
    left: list[ast.AST] = [ast.parse(path.read_text())]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            left += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "dpq_core":
            needed |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpq_core."):
            needed.add((node.module or "").split(".")[1])
        left += ast.iter_child_nodes(node)
    return needed


def test_the_rooms_of_the_engine_import_in_one_direction():
    """Each one only those above it in the table of docs/architecture.md, and the plumbing."""
    engine = package_folders()["dpq_core"]
    rooms = {path.parent.name: path.parent for path in engine.glob("*/__init__.py")}
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("| room of a method |")[2].partition("\n\n")[0]
    order = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    allowed = {"artifact", "kernels", "runtime"}
    assert set(order) == rooms.keys() - allowed
    for room in order:
        needed = set().union(*map(rooms_needed, rooms[room].glob("*.py"))) & rooms.keys()
        assert needed - {room} <= allowed, room
        allowed.add(room)


def test_the_room_checker_sees_late_imports_and_no_types(tmp_path):
    path = tmp_path / "module.py"
    late = "def f():\n    from dpq_core.pool import size\n    from dpq_core import entropy\n"
    path.write_text("if TYPE_CHECKING:\n    from dpq_core.em import loop\n" + late)
    assert rooms_needed(path) == {"pool", "entropy"}
