"""Dead codewords during calibration: ageing, revival, state (docs/algorithms.md#dead-codewords)."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq
from calibration_task import SPEC, Memory, Regression
from layer_problems import objective_of

from dpq_core.calibrate.dead_codewords.codewords import Codewords, codes_of, slot_usage
from dpq_core.calibrate.dead_codewords.replacement import slot_statistics
from dpq_core.calibrate.estep import set_codes
from dpq_core.calibrate.layers import quantized_layers, restore, snapshot
from dpq_core.calibrate.loop import calibrate
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.calibrate.steps import MStep
from dpq_core.methods.assignment.objective import Objective
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import PoolSpec
from dpq_core.tensor.packing import pack


def kill(weight: PQWeight, book: int, words: list[int]) -> None:
    """No subvector uses some codewords any more."""
    codes = codes_of(weight)
    line = codes[book]
    line[torch.isin(line, torch.tensor(words, dtype=line.dtype))] = 0
    set_codes(weight, codes)


def one_objective(weight: PQWeight, pq) -> Objective:
    core = torch.randn(pq.core().shape, generator=torch.Generator().manual_seed(3))
    return objective_of(core, torch.eye(core.shape[1]), d=4, row_weight=None)


def words_of(**changes) -> tuple[PQWeight, Codewords, Objective]:
    pq = random_pq((400, 16), SPEC.replace(row_scale=False, K=8, **changes))
    weight = PQWeight.from_pq(pq)
    weight.make_trainable()
    return weight, Codewords(weight, after=200, interval=100, seed=0), one_objective(weight, pq)


def test_codewords_without_codes_are_replaced_when_they_are_old_enough():
    weight, words, objective = words_of()
    kill(weight, 2, [5])
    before = weight.codebooks.detach().clone()
    words.age()
    assert len(words.replace_dead(objective, 0.1).replaced) == 0
    words.age()
    found = words.replace_dead(objective, 0.1)
    assert found.replaced.tolist() == [2 * 8 + 5]
    new = weight.codebooks.detach()
    assert not torch.equal(new[2, 5], before[2, 5])
    targets_of_group = weight.partition.to_subvectors(objective.core)[2].T
    assert float((targets_of_group - new[2, 5]).norm(dim=1).min()) < 0.05
    before[2, 5] = new[2, 5]
    assert torch.equal(new, before)
    words.age()
    assert len(words.replace_dead(objective, 0.1).replaced) == 0


def test_what_is_taken_back_is_as_dead_as_before():
    weight, words, objective = words_of()
    kill(weight, 0, [1])
    words.age()
    words.age()
    state = snapshot(weight)
    assert words.replace_dead(objective, 0.1).replaced.tolist() == [1]
    restore(weight, state)
    words.undo()
    assert words.replace_dead(objective, 0.1).replaced.tolist() == [1]


def test_nothing_is_replaced_in_the_last_fifth():
    weight, words, objective = words_of()
    kill(weight, 0, [1])
    words.age()
    words.age()
    assert len(words.replace_dead(objective, 0.8).replaced) == 0


def test_the_state_of_codewords_can_be_loaded():
    weight, words, objective = words_of()
    kill(weight, 1, [3, 4])
    words.age()
    words.replace_dead(objective, 0.0)
    other = Codewords(weight, after=200, interval=100, seed=9)
    other.load(words.tensors())
    state = snapshot(weight)
    found = []
    for each in (words, other):
        restore(weight, state)
        each.age()
        found.append(each.replace_dead(objective, 0.2).vectors)
    assert torch.equal(*found)
    assert not torch.equal(found[0], state["codebooks"])


def test_a_pools_slots_are_pointed_elsewhere():
    weight, words, objective = words_of(pool=PoolSpec(method="wkmeans", size=12))
    kill(weight, 0, [1, 2, 3])
    before = weight.index_map.clone()
    found = words.replace_dead(objective, 0.0)
    assert not torch.equal(weight.index_map, before)
    torch.testing.assert_close(weight.books(), weight.pool[found.index.long()])


def test_usage_is_counted_by_codebook():
    pq = random_pq((6, 16), SPEC.replace(K=4, stages=2, scope=2))
    weight, p = PQWeight.from_pq(pq), pq.partition
    codes = torch.zeros(p.stages * p.groups, p.points, dtype=torch.int32)
    codes[1] = 1  # of the first codebook: groups 0 and 1 share it
    codes[p.groups + 2] = 3  # stage 1, second codebook
    weight.codes.copy_(pack(codes, p.code_bits))
    assert slot_usage(weight, codes).tolist() == [
        [6, 6, 0, 0],
        [12, 0, 0, 0],
        [12, 0, 0, 0],
        [6, 0, 0, 6],
    ]
    dead, perplexity = slot_statistics(slot_usage(weight, codes))
    assert dead == pytest.approx(10 / 16)
    assert perplexity == pytest.approx((2 + 1 + 1 + 2) / 4)


@pytest.mark.slow
def test_calibration_revives_and_forgets_the_moments(monkeypatch):
    forgotten = []
    original = MStep.forget
    monkeypatch.setattr(
        MStep,
        "forget",
        lambda self, name, rows: (
            forgotten.append((name, rows.tolist())),
            original(self, name, rows),
        ),
    )
    task = Regression()
    layer = quantized_layers(task)[0]
    with torch.no_grad():
        layer.weight.codebooks[0, 7] += 100  # far from everything
    kill(layer.weight, 0, [7])
    settings = CalibrateSettings(steps=60, mode="end", tau_dead=6, estep="icm", warm_start=False)
    report = calibrate(task, settings, checkpoint=Memory(task.teacher()))
    assert report.revived > 0
    assert all(e.step < 48 for e in report.esteps if e.revived)
    assert any(name == "0.up.weight.codebooks" and 7 in rows for name, rows in forgotten)
    assert float(layer.weight.codebooks[0, 7].detach().abs().max()) < 50
