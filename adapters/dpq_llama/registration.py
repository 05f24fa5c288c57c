"""Registers dpq with transformers, without importing transformers before it is needed.

transformers has no entry points for quantizers, so ``import dpq_llama`` has to register. Importing
``transformers.quantizers`` costs two to three seconds, which ``dpq compress`` should not pay; so
where transformers is not loaded yet, an import hook registers at the moment it is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_TARGET = "transformers.quantizers.auto"
"""Holds the tables of quantizers; every ``from_pretrained`` imports it."""

_MARK = " (dpq artifact: import dpq_llama first)"
"""Follows the activation's name in the config of an artifact.

Without ``import dpq_llama`` transformers only warns about the unknown quantization and returns a
model with random weights. An activation that it does not know is an error on every way to a model
class, and its text is ours. Never change it: artifacts carry it.
"""


def marked(activation: str) -> str:
    """The activation's name as artifacts write it."""
    return activation if activation.endswith(_MARK) else activation + _MARK


def unmarked(activation: str) -> str:
    """The inverse of ``marked``: the name that transformers knows."""
    return activation.removesuffix(_MARK)


def register() -> None:
    """Register with transformers now if it is loaded, else as soon as it is. Idempotent."""
    if _TARGET in sys.modules:
        _register_now()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register_now() -> None:
    importlib.import_module("dpq_llama.quantizer")  # enters itself in the tables, once


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds only ``_TARGET``, as the other finders would, and registers once it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The ordinary spec with a loader that registers afterwards; None for other modules."""
        if fullname != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register_now()
