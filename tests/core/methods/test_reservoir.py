"""The reservoir: a weighted sample, drawn down, resumed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.calibrate.dead_codewords.reservoir import Reservoir
from dpq_core.errors import SpecError


def numbered(n: int, d: int = 2, first: int = 0) -> Tensor:
    """Vectors that can be told apart: n, n, ..."""
    return torch.arange(first, first + n).float()[:, None].expand(n, d).contiguous()


def filled(n: int = 100, groups: int = 8, **kwargs: int) -> Reservoir:
    reservoir = Reservoir(**{"seed": 1, **kwargs})
    group = torch.arange(n) % groups
    reservoir.push(numbered(n), group, torch.arange(1, n + 1))
    return reservoir


def test_keeps_all_until_full_then_the_capacity() -> None:
    reservoir = filled(60, capacity=100)
    assert len(reservoir) == 60
    reservoir.push(numbered(60, first=60), torch.zeros(60), torch.ones(60))
    assert len(reservoir) == 100


def test_chance_grows_with_priority() -> None:
    """One of two is kept, with odds 3 : 1."""
    kept = 0
    for seed in range(400):
        reservoir = Reservoir(1, seed=seed)
        reservoir.push(numbered(2), torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
        kept += int(reservoir.draw(1)[1])
    assert 0.68 < kept / 400 < 0.82


def test_order_of_the_stream_does_not_matter() -> None:
    """Of 1000 equal ones, pushed in ten parts, each part keeps about a tenth of the places."""
    reservoir = Reservoir(200, seed=3)
    for part in range(10):
        reservoir.push(numbered(100), torch.full((100,), part), torch.ones(100))
    _, group = reservoir.draw(200)
    counts = torch.bincount(group, minlength=10)
    assert int(counts.sum()) == 200
    assert int(counts.min()) >= 7
    assert int(counts.max()) <= 36


def test_tiny_priorities_are_told_apart() -> None:
    """u^(1/q) would be zero for all of them."""
    reservoir = Reservoir(10, seed=0)
    priority = torch.full((1000,), 1e-12)
    priority[:10] = 1e-6
    reservoir.push(numbered(1000), torch.zeros(1000), priority)
    assert sorted(reservoir.draw(10)[0][:, 0].tolist()) == list(range(10))


def test_useless_priorities_are_passed_over() -> None:
    reservoir = Reservoir(seed=0)
    priority = torch.tensor([0.0, -1.0, math.nan, math.inf, 2.0])
    reservoir.push(numbered(5), torch.arange(5), priority)
    assert reservoir.draw(9)[1].tolist() == [4]


def test_drawn_ones_are_gone() -> None:
    reservoir = filled()
    first, group = reservoir.draw(30)
    rest, _ = reservoir.draw(100)
    assert first.shape == (30, 2)
    assert torch.equal(group, first[:, 0].long() % 8)
    assert sorted([*first[:, 0].tolist(), *rest[:, 0].tolist()]) == list(range(100))
    assert len(reservoir) == 0
    assert reservoir.draw(3)[0].shape == (0, 2)


def test_draw_prefers_high_priority() -> None:
    drawn = [int(filled(seed=seed).draw(1)[0][0, 0]) for seed in range(200)]
    assert 58 < sum(drawn) / 200 < 74  # the mean of n with chance ~ n is 66


def test_only_eligible_groups_are_drawn() -> None:
    eligible = torch.zeros(8, dtype=torch.bool)
    eligible[[2, 5]] = True
    _, group = filled().draw(100, eligible=eligible)
    assert set(group.tolist()) == {2, 5}
    assert len(group) == 25


@pytest.mark.slow
@given(cut=st.integers(0, 6), seed=st.integers(0, 2**63 - 1))
def test_a_resumed_run_draws_the_same(cut: int, seed: int) -> None:
    def run(stop_at: int) -> list[list[float]]:
        reservoir = Reservoir(20, seed=seed)
        drawn = []
        for step in range(6):
            if step == stop_at:
                saved = {name: value.clone() for name, value in reservoir.state().items()}
                reservoir = Reservoir.from_state(saved)
            reservoir.push(numbered(15, first=step * 15), torch.zeros(15), torch.ones(15))
            drawn.append(reservoir.draw(3)[0][:, 0].tolist())
        return drawn

    assert run(cut) == run(99)


def test_misfits_are_refused() -> None:
    reservoir = filled()
    with pytest.raises(SpecError, match=r"of d=2 takes .* not \[3, 4\], \[3\] and \[3\]"):
        reservoir.push(torch.zeros(3, 4), torch.zeros(3), torch.ones(3))
    with pytest.raises(SpecError, match=r"not \[3, 2\], \[2\] and \[3\]"):
        reservoir.push(torch.zeros(3, 2), torch.zeros(2), torch.ones(3))
    with pytest.raises(SpecError, match="at least 1"):
        Reservoir(0, seed=0)
    state = reservoir.state()
    del state["key"]
    with pytest.raises(SpecError, match="a reservoir's state is subvectors, group"):
        Reservoir.from_state(state)
