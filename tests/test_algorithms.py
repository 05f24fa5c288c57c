"""docs/algorithms.md has the anchors that code refers to, and lists the defaults of the code."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from repo import ROOT

from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.spec import QuantSpec

PAGE = ROOT / "docs" / "algorithms.md"


def referring() -> Iterator[Path]:
    """Every file of the repository that may refer to the page."""
    for folder in ("dpq_core", "adapters", "cli", "benchmarks", "docs", "examples", "tests"):
        for suffix in ("*.py", "*.md"):
            yield from (ROOT / folder).rglob(suffix)
    yield from ROOT.glob("*.md")


def anchors() -> list[str]:
    return re.findall(r'<a id="([^"]+)"></a>', PAGE.read_text())


def test_anchors_are_unique_and_plain():
    assert [name for name, count in Counter(anchors()).items() if count > 1] == []
    assert [name for name in anchors() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_every_anchor_that_is_referred_to_exists():
    known, missing = set(anchors()), []
    for path in referring():
        for name in re.findall(r"algorithms\.md#([A-Za-z0-9_-]+)", path.read_text()):
            if name not in known:
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    within = re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())
    assert missing + [name for name in within if name not in known] == []


def test_nothing_refers_to_a_document_that_is_not_here():
    """Numbered sections of it stood in docstrings; no reader of the repository can find them."""
    word = "METHODS"
    pattern = re.compile(rf"\b{word} (section )?[A0-9]")
    files = [*ROOT.rglob("*.py"), *ROOT.rglob("*.md")]
    kept = [path for path in files if not {".venv", "build"} & set(path.relative_to(ROOT).parts)]
    assert [str(path) for path in kept if pattern.search(path.read_text())] == []


def test_listed_defaults_are_those_of_the_code():
    """The table under "All defaults": every field of QuantSpec, and the fields of calibration."""
    table = PAGE.read_text().split('<a id="defaults"></a>')[1].split('<a id="splats"></a>')[0]
    listed = dict(re.findall(r"^\| `([A-Za-z_.]+)` \| ([^|]+) \|", table, re.MULTILINE))
    spec = {}
    for key, value in dataclasses.asdict(QuantSpec()).items():
        nested = value if isinstance(value, dict) else {"": value}
        spec |= {f"{key}.{name}".rstrip("."): inner for name, inner in nested.items()}
    calibration = dataclasses.asdict(CalibrateSettings())
    coded = spec | {f"calibrate.{name}": value for name, value in calibration.items()}
    written = {
        key: str(coded[key]).lower() if isinstance(coded[key], bool) else str(coded[key])
        for key in listed
    }
    assert listed == written
    assert set(spec) <= set(listed)
