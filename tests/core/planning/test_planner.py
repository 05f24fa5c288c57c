"""plan_for_budget(): the bytes are the artifact's, the errors those of the sample, rules pin."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from dpq_core.errors import SpecError
from dpq_core.planning.overhead import overhead
from dpq_core.planning.plan import make_plan
from dpq_core.planning.planner import GRID, bytes_of_bits, candidate_specs, plan_for_budget
from dpq_core.planning.predict import curve
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_core.tensor.partition import Layout, Partition

BASE = QuantSpec(scope="tensor", orientation="input")
SPECS = candidate_specs(BASE, ((4, 16), (8, 256), (4, 256), (2, 256), (1, 256)))


class Weights(Checkpoint):
    """Three matrices and what is never compressed; notes what is read."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = {"a": (256, 32), "b": (256, 32), "small": (64, 16), "bias": (64,)}
        self._values = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
        self._values["steps"] = torch.arange(64).view(8, 8)
        self.source, self.side_files, self.fingerprint = "weights", {}, "f"
        self.tensors = {n: TensorInfo(tuple(v.shape), v.dtype) for n, v in self._values.items()}
        self.reads: list[str] = []

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self._values[name]


class Matrices(TensorAdapter):
    name = "matrices"
    summary = "for tests"
    policy: tuple[Override, ...] = ()

    def open(self, source: str) -> Checkpoint:
        return Weights()

    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        return Layout.LINEAR if len(shape) == 2 else None

    def overrides(self, spec: QuantSpec, checkpoint: Checkpoint) -> tuple[Override, ...]:
        return self.policy


def planned(budget, *rules, policy=(), checkpoint=None, specs=SPECS, **options):
    adapter, checkpoint = Matrices(), checkpoint or Weights()
    adapter.policy = policy
    overrides = [Override.parse(rule) for rule in rules]
    return plan_for_budget(checkpoint, adapter, budget, specs, overrides, **options)


def by_name(found):
    return {one.tensor.name: one for one in found.chosen}


def grid_point(one):
    return None if one.tensor.spec is None else (one.tensor.spec.d, one.tensor.spec.K)


def size_at(spec):
    """Bytes of an artifact where every tensor has the same spec."""
    plan = make_plan(Weights(), Matrices(), spec)
    return plan.nbytes + overhead(Weights(), Matrices(), plan)


@functools.cache
def error_of(name, spec):
    """What the sample predicts for one tensor."""
    values = Weights().read(name)
    p = Partition.of(tuple(values.shape), Layout.LINEAR, spec)
    return curve(values, p, spec, name).at(p.K)


SMALLEST, LARGEST = size_at(SPECS[0]), size_at(SPECS[-1])


def test_candidates_are_the_base_at_every_point_of_the_grid():
    found = candidate_specs(BASE)
    assert [(spec.d, spec.K) for spec in found] == list(GRID)
    assert {spec.replace(d=4, K=256) for spec in found} == {BASE.replace(d=4, K=256)}
    bits = [math.log2(K) / d for d, K in GRID]
    assert (min(bits), max(bits)) == (1, 8)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 2.0])
def test_the_budget_holds_every_byte(share):
    budget = SMALLEST + int(share * (LARGEST - SMALLEST))
    found = planned(budget)
    size = found.plan.nbytes + overhead(Weights(), Matrices(), found.plan)
    assert found.nbytes == size <= budget == found.budget
    left = budget - size
    for one in found.chosen:  # no tensor could have had the next better spec
        if one.pinned:
            continue
        for spec in SPECS:
            error = error_of(one.tensor.name, spec)
            more = Override(one.tensor.name, {"d": spec.d, "K": spec.K})
            plan = make_plan(Weights(), Matrices(), spec, [more])
            (other,) = (t for t in plan if t.name == one.tensor.name)
            assert other.nbytes - one.tensor.nbytes > left - 40 or error >= one.error


@pytest.mark.slow
def test_a_byte_too_few_is_refused_before_anything_is_chosen():
    assert planned(SMALLEST).nbytes == SMALLEST
    with pytest.raises(SpecError, match="too small"):
        planned(SMALLEST - 40)
    with pytest.raises(SpecError, match="too small"):
        planned(5)


@pytest.mark.slow
def test_a_longer_manifest_is_paid_from_the_budget():
    """The first choice assumes the manifest of the smallest specs; it is longer for others."""
    for budget in range(LARGEST - 40, LARGEST, 8):
        assert planned(budget, specs=SPECS[::4]).nbytes <= budget
    assert planned(LARGEST).nbytes == LARGEST


@pytest.mark.slow
def test_errors_and_costs_are_those_of_the_sample():
    found = planned((SMALLEST + LARGEST) // 2, sensitivity={"a": 10.0, "elsewhere": 1e9})
    chosen = by_name(found)
    each = 10.0 / Weights().tensors["a"].numel
    for name in ("a", "b", "small"):  # what is not named counts by its weights
        one = chosen[name]
        assert one.error == error_of(name, one.tensor.spec)
        assert one.cost == pytest.approx(one.error * each * one.tensor.info.numel)
        assert not one.pinned
    assert found.cost == pytest.approx(sum(one.cost for one in found.chosen))
    assert found.cost > 0
    assert [one.tensor.name for one in found.chosen] == list(Weights().tensors)


def test_without_data_all_weights_count_alike():
    chosen = by_name(planned((SMALLEST + LARGEST) // 2))
    for one in chosen.values():
        assert one.cost == one.error * one.tensor.info.numel


@pytest.mark.slow
def test_sensitive_tensors_get_the_bytes():
    budget = (SMALLEST + LARGEST) // 2
    for loud, quiet in (("a", "b"), ("b", "a")):
        chosen = by_name(planned(budget, sensitivity={loud: 100.0, quiet: 1.0}))
        assert chosen[loud].tensor.nbytes > chosen[quiet].tensor.nbytes
        assert chosen[loud].error < chosen[quiet].error


def test_what_is_no_weight_is_kept():
    chosen = by_name(planned(LARGEST))
    for name in ("bias", "steps"):  # not selected; not of floating point
        assert grid_point(chosen[name]) is None
        assert (chosen[name].error, chosen[name].cost, chosen[name].pinned) == (0.0, 0.0, True)


def test_rules_pin_and_leave_the_rest_to_the_budget():
    checkpoint = Weights()
    found = planned(LARGEST, "a=d=4,K=16", "small=keep", checkpoint=checkpoint, specs=SPECS)
    chosen = by_name(found)
    assert (grid_point(chosen["a"]), chosen["a"].pinned, chosen["a"].error) == ((4, 16), True, 0.0)
    assert (grid_point(chosen["small"]), chosen["small"].pinned) == (None, True)
    assert (grid_point(chosen["b"]), chosen["b"].pinned) == ((1, 256), False)
    assert checkpoint.reads == ["b"]  # where nothing is to be chosen, nothing is read


def test_a_rule_that_leaves_a_choice_pins_only_what_it_names():
    chosen = by_name(planned(LARGEST, "a=K=16"))
    assert grid_point(chosen["a"]) == (1, 16)
    assert not chosen["a"].pinned


def test_the_policy_of_the_adapter_comes_before_the_rules():
    policy = (Override("*", {"d": 2, "K": 256}), Override("small", None))
    chosen = by_name(planned(LARGEST, "b=d=4,K=16", policy=policy))
    assert [grid_point(chosen[name]) for name in ("a", "b", "small")] == [(2, 256), (4, 16), None]


@pytest.mark.parametrize("pattern", ["nothing*", "bias", "steps"])
def test_a_rule_for_nothing_compressible_is_refused_at_once(pattern):
    checkpoint = Weights()
    with pytest.raises(SpecError, match="matches no compressible tensor") as caught:
        planned(LARGEST, f"{pattern}=keep", checkpoint=checkpoint)
    assert f"'{pattern}'" in str(caught.value)
    assert checkpoint.reads == []


def test_progress_counts_weights():
    seen = []
    planned(LARGEST, progress=lambda *now: seen.append(now))
    total = 2 * 256 * 32 + 64 * 16 + 64 + 64
    done = [0, 256 * 32, 2 * 256 * 32, total - 128, total - 64]
    names = ["a", "b", "small", "bias", "steps"]
    assert seen == [*zip(names, done, [total] * 5, strict=True), ("done", total, total)]


def test_bits_are_of_all_weights_and_never_rounded_up():
    total = sum(info.numel for info in Weights().tensors.values())
    assert bytes_of_bits(Weights(), 8) == total
    assert bytes_of_bits(Weights(), 2.3) == math.floor(2.3 * total / 8) < 2.3 * total / 8
