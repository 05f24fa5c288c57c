"""The revival of dead codewords, and the statistics of their usage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.calibrate.dead_codewords.replacement import (
    DeadRule,
    Replacement,
    aged,
    replace_dead,
    slot_statistics,
    vector_usage,
)
from dpq_core.calibrate.dead_codewords.reservoir import Reservoir


def numbered(n: int, d: int = 2) -> Tensor:
    """Vectors that can be told apart: n, n, ..."""
    return torch.arange(n).float()[:, None].expand(n, d).contiguous()


def filled() -> Reservoir:
    """100 subvectors n, n of group n % 8 with priority n + 1."""
    reservoir = Reservoir(seed=1)
    reservoir.push(numbered(100), torch.arange(100) % 8, torch.arange(1, 101))
    return reservoir


def event(**changes: object) -> Replacement:
    """A pool of 50, 4 codebooks of 16 slots over 8 groups.

    Vectors 0..9 unused for long, slots 0..3 of each codebook unused.
    """
    index = torch.arange(64).view(4, 16) % 40 + 10
    usage = torch.full((4, 16), 5)
    usage[:, :4] = 0
    age = torch.zeros(50, dtype=torch.int64)
    age[:10] = 300 + torch.arange(10)
    arguments = {
        "vectors": -numbered(50),
        "index": index,
        "usage": usage,
        "age": age,
        "reservoir": filled(),
        "groups_per_codebook": 2,
        "progress": 0.5,
        "rule": DeadRule(share=0.1),
        **changes,
    }
    return replace_dead(**arguments)  # type: ignore[arg-type]


def test_dead_vectors_become_subvectors_in_reach_of_their_codebook() -> None:
    result = event(rule=DeadRule(share=0.1, slot_share=0.0))
    assert result.replaced.tolist() == [9, 8, 7, 6, 5]  # the oldest, a tenth of 50
    assert result.index is not None
    used_by = {int(v): (result.index == v).nonzero().tolist() for v in result.replaced}
    for vector, slots in used_by.items():
        ((book, slot),) = slots
        source = result.vectors[vector].mean().round()
        assert int(source) % 8 // 2 == book  # group of the subvector // groups_per_codebook
        assert slot < 4  # unused before
    assert result.age[5:10].tolist() == [0] * 5
    assert result.age[:5].tolist() == [300, 301, 302, 303, 304]
    kept = [v for v in range(50) if v not in result.replaced]
    assert torch.equal(result.vectors[kept], -numbered(50)[kept])


def test_new_vectors_are_noisy_copies() -> None:
    result = event()
    new = result.vectors[result.replaced]
    wrong = new - new.round()
    rms = new.square().mean().sqrt()
    assert 0.2e-3 < float(wrong.square().mean().sqrt() / rms) < 3e-3
    silent = event(rule=DeadRule(share=0.1, noise=0.0))
    assert torch.equal(silent.vectors, silent.vectors.round())


def test_arguments_of_revive_are_left_alone() -> None:
    vectors, index = -numbered(50), torch.arange(64).view(4, 16) % 40 + 10
    age = torch.full((50,), 300)
    usage = torch.zeros(4, 16, dtype=torch.int64)
    event(vectors=vectors, index=index, age=age, usage=usage)
    assert torch.equal(vectors, -numbered(50))
    assert torch.equal(index, torch.arange(64).view(4, 16) % 40 + 10)
    assert age.tolist() == [300] * 50


@pytest.mark.parametrize(("progress", "count"), [(0.0, 5), (0.79, 5), (0.8, 0), (1.0, 0)])
def test_nothing_is_touched_in_the_last_fifth(progress: float, count: int) -> None:
    result = event(progress=progress)
    assert len(result.replaced) == count
    if count == 0:
        assert torch.equal(result.vectors, -numbered(50))
        assert result.index is not None
        assert torch.equal(result.index, torch.arange(64).view(4, 16) % 40 + 10)


def test_at_most_one_percent_by_default() -> None:
    usage = torch.zeros(1, 8, dtype=torch.int64)
    result = event(
        vectors=numbered(500),
        index=torch.zeros(1, 8, dtype=torch.int64),
        usage=usage,
        age=torch.full((500,), 256),
        groups_per_codebook=8,
        rule=None,
    )
    assert len(result.replaced) == 5
    assert len(event(rule=None).replaced) == 1  # 1 % of 50 is half a vector


@pytest.mark.parametrize(("age", "count"), [(255, 0), (256, 5)])
def test_dead_after_256_steps(age: int, count: int) -> None:
    assert len(event(age=torch.full((50,), age)).replaced) == count


def test_used_vectors_are_never_replaced() -> None:
    """Even if an age says so."""
    index = torch.arange(64).view(4, 16) % 50
    used = vector_usage(torch.ones(4, 16, dtype=torch.int64), index, 50)
    assert bool((used > 0).all())
    result = event(
        index=index, usage=torch.ones(4, 16, dtype=torch.int64), age=torch.full((50,), 999)
    )
    assert len(result.replaced) == 0


def test_the_least_used_slots_are_taken() -> None:
    usage = torch.full((4, 16), 5)
    usage[:, 3] = 2
    result = event(usage=usage)
    assert result.index is not None
    taken = [int((result.index == v).view(-1).nonzero()[0]) for v in result.replaced]
    assert any(slot % 16 == 3 for slot in taken)
    assert len(set(taken)) == 5


def test_dead_slots_are_pointed_to_what_their_codebook_lacks() -> None:
    """Without dead vectors: slot 0 of codebook 1 moves to the nearest of a drawn subvector."""
    usage = torch.ones(4, 16, dtype=torch.int64)
    usage[1, 0] = 0
    reservoir = Reservoir(seed=0)
    reservoir.push(torch.tensor([[-33.2, -33.1]]), torch.tensor([3]), torch.ones(1))
    reservoir.push(torch.tensor([[-20.0, -20.0]]), torch.tensor([4]), torch.ones(1))
    result = event(usage=usage, age=torch.zeros(50).long(), reservoir=reservoir)
    assert result.index is not None
    assert int(result.index[1, 0]) == 33
    changed = result.index != torch.arange(64).view(4, 16) % 40 + 10
    assert int(changed.sum()) == 1
    assert len(reservoir) == 1  # that of codebook 2 waits for a use
    assert torch.equal(result.vectors, -numbered(50))


def test_few_dead_slots_are_pointed_elsewhere_per_event() -> None:
    usage = torch.zeros(4, 16, dtype=torch.int64)
    index = torch.arange(64).view(4, 16) % 40 + 10
    rule = DeadRule(slot_share=0.125)
    result = event(usage=usage, index=index, age=torch.zeros(50).long(), rule=rule)
    assert result.index is not None
    assert 1 <= int((result.index != index).sum()) <= 8


def test_plain_codebooks_replace_in_their_own_codebook() -> None:
    usage = torch.ones(4, 16, dtype=torch.int64)
    usage[1, 3] = usage[2, 5] = usage[2, 6] = 0
    age = aged(torch.full((64,), 200), usage.view(-1), 100)
    assert age[[19, 37, 38]].tolist() == [300] * 3
    assert int(age.sum()) == 900
    result = event(
        vectors=torch.zeros(4, 16, 2), index=None, usage=usage, age=age, rule=DeadRule(share=1)
    )
    assert result.vectors.shape == (4, 16, 2)
    assert result.index is None
    assert {19} <= set(result.replaced.tolist()) <= {19, 37, 38}
    for vector in result.replaced.tolist():
        source = result.vectors.view(64, 2)[vector].mean().round()
        assert int(source) % 8 // 2 == vector // 16


def test_an_empty_reservoir_revives_nothing() -> None:
    result = event(reservoir=Reservoir(seed=0))
    assert len(result.replaced) == 0
    assert result.index is not None
    assert torch.equal(result.index, torch.arange(64).view(4, 16) % 40 + 10)


def test_statistics() -> None:
    usage = torch.tensor([[4, 4, 0, 0], [1, 1, 1, 1]])
    index = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 1]])
    assert vector_usage(usage, index, 4).tolist() == [6, 6, 0, 0]
    dead, perplexity = slot_statistics(usage)
    assert dead == 0.25
    assert perplexity == pytest.approx(3.0)  # of 2 and 4


def test_usage_recovers_within_two_e_steps() -> None:
    """docs/algorithms.md#preset-paper, test 11: a tenth of a pool is killed."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8, 4, 400, generator=generator)
    pool = torch.randn(300, 4, generator=generator)
    index = torch.randperm(8 * 64, generator=generator).view(8, 64) % 300
    killed = torch.arange(0, 300, 10)
    pool[killed] = 1e3
    reservoir, age = Reservoir(seed=0), torch.zeros(300, dtype=torch.int64)
    rule = DeadRule(share=0.1, slot_share=0.0)
    dead = []
    for _ in range(3):
        codes, distances = kernels.assign(points, pool[index])
        usage = torch.stack([torch.bincount(row.long(), minlength=64) for row in codes])
        dead.append(int((vector_usage(usage, index, 300)[killed] == 0).sum()))
        group = torch.arange(8)[:, None].expand(8, 400).reshape(-1)
        reservoir.push(points.movedim(1, 2).reshape(-1, 4), group, distances.reshape(-1))
        age = aged(age, vector_usage(usage, index, 300), 256)
        result = replace_dead(
            pool, index, usage, age, reservoir, groups_per_codebook=1, progress=0.1, rule=rule
        )
        assert result.index is not None
        pool, index, age = result.vectors, result.index, result.age
    assert dead[0] == 30
    assert dead[1] <= 3
    assert dead[2] == 0
