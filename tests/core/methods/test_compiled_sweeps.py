"""The compiled sweeps choose what the sweeps written with torch choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_problems import layer
from torch import Tensor

from dpq_core.methods.assignment import assign as module
from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.compiled import MAX_D, CompiledRowChunk
from dpq_core.methods.assignment.sweeps import RowChunk

pytestmark = pytest.mark.portable

SIZES = [
    {"rows": 130, "cols": 36, "d": d, "K": 16, "sharing": sharing, "weighted": True}
    for d, sharing in ((1, 36), (2, 5), (3, 4), (4, 1), (5, 8), (6, 2), (7, 1), (MAX_D, 3))
]


def both(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, Any], **how: Any) -> list[AssignResult]:
    """Assigned by torch, then by the compiled loops."""
    objective, books = layer(**sizes)
    with monkeypatch.context() as patch:
        patch.setattr(module.CompiledRowChunk, "can_do", staticmethod(lambda *_: False))
        plain = assign(objective, books, **how)
    assert CompiledRowChunk.can_do(objective, 1)
    return [plain, assign(objective, books, **how)]


@pytest.mark.parametrize("method", ["ldlq", "icm", "ldlq+icm"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"d{sizes['d']}")
def test_codes_and_errors_agree(
    sizes: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = both(monkeypatch, sizes, method=method, sweeps=2)
    # Two codewords that are as good as each other may change places by rounding.
    assert (plain.codes == compiled.codes).float().mean() > 0.99
    assert compiled.errors == pytest.approx(plain.errors, rel=1e-3)


def test_only_the_codes_that_may_change_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SIZES[3]
    objective, books = layer(**sizes)
    start = assign(objective, books, method="l2").codes
    how = {"method": "icm", "codes": start, "limit": 0.1, "sweeps": 1}
    plain, compiled = both(monkeypatch, sizes, **how)
    changed = (compiled.codes != start).float().mean()
    assert 0 < changed <= 0.1
    assert (plain.codes == compiled.codes).float().mean() > 0.99


def test_rows_are_decided_alike_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not depend on each other: nor does a tile, or the thread that works on it."""
    objective, books = layer(rows=200, cols=24, d=4, K=16)
    whole = assign(objective, books, method="ldlq", sweeps=2).codes
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(assign(objective, books, method="ldlq", sweeps=2).codes, whole)
    finally:
        torch.set_num_threads(threads)


def test_what_the_loops_do_not_know_goes_the_other_way() -> None:
    for changes in ({"d": MAX_D + 1}, {"orientation": "output"}):
        objective, _ = layer(**{"rows": 9, "cols": 18, "d": 3, "K": 4, **changes})
        assert not CompiledRowChunk.can_do(objective, 1)
    assert not CompiledRowChunk.can_do(layer(rows=9, cols=18, d=3, K=4)[0], 2)
    assert issubclass(CompiledRowChunk, RowChunk)


def test_the_residual_is_what_the_codes_leave() -> None:
    objective, books = layer(rows=70, cols=22, d=4, K=8)  # the last group has a pad
    result = assign(objective, books, method="ldlq+icm", sweeps=2)
    wrong: Tensor = objective.core - result.core_hat
    assert objective.error(result.core_hat) == pytest.approx(result.errors[-1], rel=1e-4)
    assert wrong.abs().max() > 0
