"""Who may import whom, how fast importing is, and that every public name exists."""

from __future__ import annotations

import ast
import importlib
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


ALLOWED = {
    "dpq_core": set(),
    "dpq": {"dpq_core"},
    "dpq_cli": {"dpq", "dpq_core"},
    "dpq_hf": {"dpq_core"},
    "dpq_llama": {"dpq_core", "dpq_hf"},
    "dpq_diffusion": {"dpq_core", "dpq_hf"},
    "dpq_gaussian": {"dpq_core"},
}
"""Package -> the other packages of this project that it may import."""


def wrong_imports(package: str, path: Path) -> set[str]:
    """The dpq packages that ``path`` of ``package`` imports and must not."""
    ours = {name for name in imported(path) if name.partition("_")[0] == "dpq"}
    return ours - {package, *ALLOWED[package]}


@pytest.mark.parametrize("package", sorted(package_folders()))
def test_packages_import_only_what_they_may(package):
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


RECOGNIZE = (
    "from pathlib import Path\nfrom dpq_core.plugin import registry\n"
    f"for source in Path({str(ROOT / 'adapters')!r}).glob('*/builtin/*'): "
    "registry.recognizing(source)"
)
"""Asking every adapter for its kind of source."""

RUN = "from dpq_cli.app import app\ntry: app({words!r})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import dpq_core",
        "import dpq",
        "from dpq_core.plugin import adapter, options, registry",
        RECOGNIZE,
        "import dpq_cli.app",
        RUN.format(words=["--help"]),
        RUN.format(words=["--version"]),
        RUN.format(words=["compress", "--help"]),
        RUN.format(words=["adapters"]),
        RUN.format(words=["adapters", "--json"]),
        RUN.format(words=["adapters", "llama"]),
    ],
    ids=[
        "core",
        "door",
        "contract",
        "recognition",
        "app",
        "help",
        "version",
        "command-help",
        "adapters",
        "json",
        "one",
    ],
)
def test_listing_and_help_load_nothing_heavy(statement):
    assert heavy_after(statement) == ""


@pytest.mark.slow
def test_the_heavy_import_probe_can_fail():
    assert "torch" in heavy_after("import dpq_core.planning.plan").split()


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


ROOMS = (
    "spec",
    "kernels",
    "tensor",
    "artifact",
    "runtime",
    "methods",
    "data",
    "planning",
    "calibrate",
    "plugin",
    "jobs",
)
"""The rooms of the engine; each imports only itself and those before it."""


def modules_needed(path: Path) -> set[str]:
    """The dpq modules that a file imports: at the top, in functions, and for types alone."""
    needed: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            needed |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            needed |= {name if name in modules() else str(node.module) for name in full}
    return {name for name in needed if name.partition(".")[0] in package_folders()}


def room_of(module: str) -> str:
    """The room of a module of the engine; an empty text for the modules that every room uses."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return room if package == "dpq_core" and room in ROOMS else ""


def wrong_rooms(module: str, needed: set[str]) -> set[str]:
    """The modules that one module of the engine imports against the order of the rooms."""
    allowed = {"", *ROOMS[: ROOMS.index(room_of(module)) + 1]} if room_of(module) else {""}
    return {name for name in needed if room_of(name) not in allowed}


def test_every_room_of_the_engine_is_in_the_order():
    engine = package_folders()["dpq_core"]
    assert {path.parent.name for path in engine.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.slow
def test_the_rooms_of_the_engine_import_in_one_direction():
    engine = {name: path for name, path in modules().items() if name.startswith("dpq_core.")}
    wrong = {name: wrong_rooms(name, modules_needed(path)) for name, path in engine.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_room_checker_counts_late_and_type_only_imports(tmp_path):
    path = tmp_path / "module.py"
    late = "def f():\n    from dpq_core.jobs import compress\n"
    path.write_text("if TYPE_CHECKING:\n    from dpq_core.plugin.adapter import Adapter\n" + late)
    needed = modules_needed(path)
    assert needed == {"dpq_core.plugin.adapter", "dpq_core.jobs.compress"}
    assert wrong_rooms("dpq_core.planning.plan", needed) == needed
    assert wrong_rooms("dpq_core.plugin.options", needed) == {"dpq_core.jobs.compress"}
    assert wrong_rooms("dpq_core.errors", needed) == needed


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of two or more modules that import each other, directly or through others.

    Kosaraju's algorithm: a depth-first order of the graph, then a search of the reversed graph.
    """
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            name, needed = stack[-1]
            following = next((n for n in needed if n in graph and n not in seen), None)
            if following is None:
                order.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(sorted(graph[following]))))
    users: dict[str, set[str]] = {name: set() for name in graph}
    for name, needed in graph.items():
        for other in needed & graph.keys():
            users[other].add(name)
    groups: list[set[str]] = []
    placed: set[str] = set()
    for start in reversed(order):
        group, left = set(), [start]
        while left:
            name = left.pop()
            if name not in placed:
                placed.add(name)
                group.add(name)
                left += users[name]
        groups.append(group)
    return [group for group in groups if len(group) > 1]


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    graph = {name: modules_needed(path) - {name} for name, path in modules().items()}
    assert circles(graph) == []


def test_the_circle_finder_can_fail():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [{"b", "c"}]
