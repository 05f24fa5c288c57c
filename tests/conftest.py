"""What holds for every test: threads, seeded numbers, and a word about data that is not there."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is loaded. As many threads as cores in every worker wait for each other so busily
    # that small operations take ten times as long.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // int(workers))))

import hypothesis
import pytest
import searches
import torch
from other_processor import OtherProcessor
from repo import ROOT
from torch import Tensor

DATA = ROOT.parent / "shared" / "data"
"""Files that the repository does not hold, beside the checkout."""

os.environ.pop("COLUMNS", None)  # tables are as wide as in a file, whoever runs the tests

MISSING = "missing data: "
"""How the reasons of tests begin that are skipped for want of such files."""


class TorchRandom:
    """What hypothesis asks of a generator that it seeds for every example."""

    def seed(self, a: int) -> None:
        torch.manual_seed(a)

    def getstate(self) -> Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Tensor) -> None:
        torch.set_rng_state(state)


RANDOM = TorchRandom()
hypothesis.register_random(RANDOM)  # a weak reference: the name keeps it alive


def pytest_configure(config: pytest.Config) -> None:
    """Let workers take files in the order of ``pytest_collection_modifyitems``: slow ones first.

    By default xdist orders files by how many tests they have.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def short_searches() -> Iterator[None]:
    """Let searches for permutations end early."""
    with searches.ended_early():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with OtherProcessor() if os.environ.get("OTHER_PROCESSOR") else nullcontext():
        return (yield)


def needed(item: pytest.Item) -> Iterator[Path]:
    """The files outside of the repository that a test says it needs."""
    for mark in item.iter_markers("needs_data"):
        yield from (DATA / name for name in mark.args)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: let them end together
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        # Files nearest to the root run whole pages of the documentation: they take longest.
        items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))
    for item in items:
        for path in needed(item):
            if not path.exists():
                reason = f"{MISSING}{path.relative_to(ROOT.parent)}"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and tests, which stay: a million objects."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that did not run because data is missing: they pass nothing on the quiet."""
    skipped = {
        report.nodeid: report.longrepr[2].partition(MISSING)[2]
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple) and MISSING in report.longrepr[2]
    }
    if not skipped:
        return
    terminalreporter.section(f"{len(skipped)} tests did not run: data outside of the repository")
    for nodeid, name in sorted(skipped.items()):
        terminalreporter.line(f"{nodeid}: {name}")
    terminalreporter.line("What they guard is tested on small data as well.")
