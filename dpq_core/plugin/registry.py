"""The registry of adapters: found by name in installed metadata, and imported one at a time.

A distribution announces an adapter by an entry point of the group ``dpq.adapters``; the in-tree
adapters do the same. Reading the list imports nothing, so a broken plugin spoils only itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from dpq_core.errors import AdapterError, DPQError
from dpq_core.nearest import nearest
from dpq_core.plugin.adapter import Adapter

GROUP = "dpq.adapters"
"""The entry-point group that third parties write in their pyproject; part of the public API."""

CONTRACTS = (1,)
"""Versions of the adapter contract that this dpq knows; adapters say theirs as ``contract``."""


@dataclass(frozen=True, order=True)
class AdapterEntry:
    """One adapter as the installed metadata announces it.

    Attributes:
        name: name of the adapter.
        distribution: the installed distribution that claims the name.
        target: ``module:Class`` that would be imported.
    """

    name: str
    distribution: str
    target: str


def available() -> list[AdapterEntry]:
    """All announced adapters, sorted by name; reads metadata and imports nothing."""
    return sorted(_entry(point) for point in entry_points(group=GROUP))


def load(name: str) -> Adapter:
    """Import the adapter called ``name``, or that has this alias, and make one.

    Raises:
        AdapterError: the name is unknown or claimed twice, a dependency is missing, or the target
            cannot be imported, is not an Adapter of that name, or was written for a version of the
            contract that is not known here.
    """
    return _load(canonical_name(name))


def _load(name: str) -> Adapter:
    """Import the adapter of exactly this name, and make one."""
    point = _only_claim(name)
    entry = _entry(point)
    try:
        with explain_missing(name):
            target = point.load()
    except DPQError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import
        raise AdapterError(f"{_who(entry)} is broken: {_one_line(error)}") from error
    if not (isinstance(target, type) and issubclass(target, Adapter)):
        raise AdapterError(
            f"{_who(entry)} is broken: the target is not a dpq_core.plugin.adapter.Adapter"
        )
    if getattr(target, "name", None) != name:
        raise AdapterError(
            f"{_who(entry)} is broken: its class says name = {getattr(target, 'name', None)!r}"
        )
    if target.contract not in CONTRACTS:
        raise AdapterError(
            f"{_who(entry)} was written for version {target.contract} of the adapter contract; "
            f"this dpq knows {', '.join(map(str, CONTRACTS))}: install a dpq that fits it"
        )
    try:
        return target()
    except Exception as error:
        raise AdapterError(f"{_who(entry)} is broken: {_one_line(error)}") from error


def builtins() -> dict[str, str]:
    """The adapter that ships each built-in model, of all adapters that load."""
    owners: dict[str, str] = {}
    for adapter in _usable():
        owners |= {model: adapter.name for model in adapter.builtins if model not in owners}
    return owners


def recognizing(path: Path) -> list[Adapter]:
    """The adapters that recognize a file or folder as a source of their domain, sorted by name."""
    return [adapter for adapter in _usable() if _recognizes(adapter, path)]


def what_is_recognized() -> str:
    """One line for messages: the files and folders that each adapter recognizes."""
    return "; ".join(f"{a.name}: {a.recognized}" for a in _usable() if a.recognized)


def _recognizes(adapter: Adapter, path: Path) -> bool:
    """Whether an adapter recognizes a source; not where its method fails."""
    try:
        return adapter.recognizes(path)
    except Exception:  # whatever a stranger's method does: a broken plugin spoils only itself
        return False


def canonical_name(name: str) -> str:
    """The name of the adapter that has ``name`` as an alias; any other name as it is."""
    if any(entry.name == name for entry in available()):
        return name
    return next((adapter.name for adapter in _usable() if name in adapter.aliases), name)


def _usable() -> Iterator[Adapter]:
    """The adapters that load, sorted by name."""
    for entry in available():
        try:
            yield _load(entry.name)
        except AdapterError:  # a broken plugin spoils only itself
            continue


@contextmanager
def explain_missing(name: str) -> Iterator[None]:
    """Turn an ImportError in an adapter into an error with the pip command that mends it.

    Raises:
        AdapterError: instead of an ImportError of a module outside the adapter's own package.
    """
    try:
        yield
    except ImportError as error:
        entry = _entry(_only_claim(name))
        packages = {entry.target.partition(":")[0].partition(".")[0], "dpq_core"}
        if error.name is not None and error.name.partition(".")[0] in packages:
            raise
        if isinstance(error, ModuleNotFoundError):
            cause = f"needs {error.name!r}, which is not installed"
        else:
            cause = f"cannot import a dependency ({_one_line(error)})"
        raise AdapterError(f"adapter {name!r} {cause}: {_pip_command(name)}") from error


def _only_claim(name: str) -> EntryPoint:
    claims = sorted(entry_points(group=GROUP, name=name), key=_entry)
    if not claims:
        raise AdapterError(_unknown(name))
    if len(claims) > 1:
        owners = " and ".join(f"{e.distribution} ({e.target})" for e in map(_entry, claims))
        raise AdapterError(
            f"adapter {name!r} is claimed by {owners}; uninstall all but one of them"
        )
    return claims[0]


def _unknown(name: str) -> str:
    names = sorted({entry.name for entry in available()})
    if not names:
        return f"no adapter {name!r}: no adapters are installed; run pip install 'dpq[all]'"
    hint = nearest(name, names, most=3, cutoff=0.5)
    return f"no adapter {name!r}; {hint}installed: {', '.join(names)}"


def _pip_command(name: str) -> str:
    """The pip command that installs the adapter's dependencies, by its extra where it has one."""
    distribution = _only_claim(name).dist
    if distribution is None:
        return "install the adapter's dependencies"
    extras = distribution.metadata.get_all("Provides-Extra") or []
    if name in extras:
        return f"pip install '{distribution.name}[{name}]'"
    return f"pip install --force-reinstall {distribution.name}"


def _entry(point: EntryPoint) -> AdapterEntry:
    owner = point.dist.name if point.dist is not None else "unknown"
    return AdapterEntry(point.name, owner, point.value)


def _who(entry: AdapterEntry) -> str:
    return f"adapter {entry.name!r} of {entry.distribution} ({entry.target})"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
