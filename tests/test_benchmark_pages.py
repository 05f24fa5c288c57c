"""The parts of the pages that scripts in benchmarks/ write are what the records say today."""

from __future__ import annotations

import importlib

import pytest
from repo import ROOT

BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.mark.parametrize(
    ("page", "script", "function"),
    [
        ("peers.md", "peers_tables", "text_of"),
        ("../README.md", "peers_tables", "short_of"),
        ("methods.md", "methods_tables", "text_of"),
    ],
    ids=["peers", "readme", "methods"],
)
def test_a_page_shows_the_records(page, script, function, monkeypatch):
    """Where this fails, ``python benchmarks/SCRIPT.py`` writes the page again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    text = getattr(importlib.import_module(script), function)(RESULTS)
    pages = importlib.import_module("pages")
    path = pages.DOCS / page
    assert pages.with_part(page, f"{script}.py", text) == path.read_text(encoding="utf-8")
