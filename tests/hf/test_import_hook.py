"""Callbacks after an import: before, after, several, and the module is as Python would load it."""

from __future__ import annotations

import importlib
import sys

import pytest

from dpq_hf.import_hook import run_after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that is not imported yet."""
    (tmp_path / "hooked_module.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "hooked_module"
    sys.modules.pop("hooked_module", None)


def test_it_runs_once_the_module_is_executed(module):
    seen = []
    run_after_import(module, lambda: seen.append(sys.modules[module].VALUE))
    assert not seen
    loaded = importlib.import_module(module)
    assert seen == [1]
    assert type(loaded.__loader__).__name__ == "SourceFileLoader"
    assert loaded.__spec__.loader is loaded.__loader__


def test_it_runs_at_once_for_what_is_imported(module):
    importlib.import_module(module)
    seen = []
    run_after_import(module, lambda: seen.append(1))
    assert seen == [1]


def test_two_callbacks_for_one_module_and_one_twice(module):
    """Two adapters may wait for the same library."""
    seen = []

    def first():
        seen.append("first")

    def second():
        seen.append("second")

    before = len(sys.meta_path)
    for callback in (first, second, first):
        run_after_import(module, callback)
    assert len(sys.meta_path) == before + 2
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]
    assert len(sys.meta_path) == before
