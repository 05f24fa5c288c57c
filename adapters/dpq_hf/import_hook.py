"""A callback that runs right after a module is imported, without importing that module itself."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def run_after_import(module: str, callback: Callable[[], None]) -> None:
    """Call ``callback`` once ``module`` has been executed; now, if it is imported already.

    For libraries without entry points, in whose tables an adapter has to register itself. Importing
    such a library costs seconds, which a command that does not use it should not pay. Repeating
    the call with the same arguments changes nothing.
    """
    if module in sys.modules:
        callback()
    elif not any(isinstance(f, _Finder) and f.serves(module, callback) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(module, callback))


class _Finder(importlib.abc.MetaPathFinder):
    """A finder of one module: it wraps the loader of the other finders, and removes itself."""

    def __init__(self, module: str, callback: Callable[[], None]) -> None:
        self._module, self._callback = module, callback

    def serves(self, module: str, callback: Callable[[], None]) -> bool:
        """Whether this finder was made for that module and callback."""
        return (self._module, self._callback) == (module, callback)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The ordinary spec of the module with a loader that calls back; None for other modules."""
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = self._ordinary_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self._callback)
        return spec

    def _ordinary_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec from the next callback's finder for the same module, or from Python itself."""
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) and finder._module == fullname:
                return finder.find_spec(fullname, path, target)
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


class _CallingLoader(importlib.abc.Loader):
    """A loader that executes a module as another loader does, then calls back."""

    def __init__(self, loader: importlib.abc.Loader, callback: Callable[[], None]) -> None:
        self._loader, self._callback = loader, callback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback()
