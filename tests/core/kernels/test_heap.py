"""Free memory that goes back to the operating system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from dpq_core.kernels.cpu import heap

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident() -> int:
    """Pages of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not GLIBC, reason="needs malloc_trim of glibc")
def test_memory_between_small_blocks_that_live_on_is_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(100_000 if number % 2 else 2000) for number in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 2000)
    for block in blocks[1::2]:
        ctypes.memset(block, 1, 100_000)
        library.free(block)
    before = resident()
    heap.give_back()
    after = resident()
    for block in blocks[::2]:
        library.free(block)
    assert before - after > 20_000  # of 24,000 pages between the small blocks


def test_nothing_happens_where_the_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.give_back()
