"""Runs something right after a module is imported, without importing it before it is needed."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def after_import(target: str, then: Callable[[], None]) -> None:
    """Call ``then`` once the module ``target`` is executed; now, if it is imported already.

    For libraries without entry points, whose tables an adapter has to enter itself in: importing
    them costs seconds, which a command that does not use them should not pay. Harmless when
    repeated with the same arguments.
    """
    if target in sys.modules:
        then()
    elif not any(isinstance(f, _Finder) and f.is_for(target, then) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(target, then))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds only its target, as the finders after it do, and steps back."""

    def __init__(self, target: str, then: Callable[[], None]) -> None:
        self._target, self._then = target, then

    def is_for(self, target: str, then: Callable[[], None]) -> bool:
        return (self._target, self._then) == (target, then)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The ordinary spec with a loader that calls back; None for other modules."""
        if fullname != self._target:
            return None
        sys.meta_path.remove(self)
        spec = self._next(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)
        return spec

    def _next(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        """Ask the next callback for the same module, or Python itself."""
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) and finder._target == fullname:
                return finder.find_spec(fullname, path, target)
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, then: Callable[[], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then()
