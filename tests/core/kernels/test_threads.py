"""Threads for compiled loops: every task once, the same bytes, and nobody spins in a job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy_adapter import MLPAdapter

from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.jobs.in_memory import quantize_
from dpq_core.kernels.cpu import openmp
from dpq_core.kernels.cpu.threads import one_torch_thread, spread, thread_count
from dpq_core.methods.quantize import quantize
from dpq_core.run import Run
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.partition import Layout, Partition

MANY = 1 << 24  # inner steps that are worth several threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("scope", [nullcontext, one_torch_thread])
@pytest.mark.parametrize("tasks", [1, 2, 7, 1000])
@pytest.mark.parametrize("steps", [1, 1 << 18, MANY])
def test_every_task_runs_once(scope, tasks: int, steps: int) -> None:
    counts = [0] * tasks

    def run(first: int, last: int) -> None:
        for task in range(first, last):
            counts[task] += 1

    with scope():
        spread(run, tasks, steps)
    assert counts == [1] * tasks


@pytest.mark.parametrize("scope", [nullcontext, one_torch_thread])
def test_an_error_of_any_thread_is_raised(scope) -> None:
    def run(first: int, last: int) -> None:
        if last == 1000:
            raise ValueError("the last piece")

    with scope(), pytest.raises(ValueError, match="the last piece"):
        spread(run, 1000, MANY)
    assert torch.get_num_threads() == 3


def test_torch_has_one_thread_and_compiled_loops_keep_theirs() -> None:
    with one_torch_thread(), one_torch_thread():
        assert torch.get_num_threads() == 1
        assert thread_count(100, MANY) == 3
        assert thread_count(2, MANY) == 2
        assert thread_count(100, 1) == 1
    assert torch.get_num_threads() == 3
    with one_torch_thread(elements=1 << 30):
        assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), one_torch_thread():
        raise KeyError
    assert torch.get_num_threads() == thread_count(100, MANY) == 3


@pytest.mark.slow
def test_threads_do_not_change_a_byte_of_a_tensor() -> None:
    weight = torch.randn(500, 96, generator=torch.Generator().manual_seed(0))
    kmeans = KMeansSpec(iterations=6, tail=1)
    stored = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for spec in (
            QuantSpec(d=4, K=256, permute=True, row_scale=True, kmeans=kmeans),
            QuantSpec(d=2, K=64, scope="subspace", transform="rht", kmeans=kmeans),
        ):
            partition = Partition.of((500, 96), Layout.LINEAR, spec)
            parts = quantize(weight, partition, spec, "w").pq.stored
            stored.append({name: part.numpy().tobytes() for name, part in parts.items()})
    assert stored[0::2] == [stored[0]] * 3
    assert stored[1::2] == [stored[1]] * 3


def waiting_cost() -> float:
    """CPU seconds of this process in the 50 ms after an operation of several threads of torch."""
    torch.ones(1 << 20).sqrt()
    begin = time.process_time()
    time.sleep(0.05)
    return time.process_time() - begin


def assert_nobody_spins() -> None:
    """Unlike its wall time, the CPU time of a process that waits does not depend on others."""
    assert min(waiting_cost() for _ in range(3)) < 1e-3


@pytest.mark.skipif(openmp.team() is None, reason="torch works with another OpenMP than GNU's")
def test_waiting_threads_sleep_and_the_spare_team_ends() -> None:
    waiting_cost()
    before = thread_total()
    with openmp.short_spins():
        inside = thread_total()
        assert_nobody_spins()
        with openmp.short_spins():
            assert thread_total() == inside > before
        assert_nobody_spins()
    for _ in range(100):  # OpenMP's threads end a moment later
        if thread_total() == before:
            return
        time.sleep(0.05)
    raise AssertionError(f"{thread_total()} threads, {before} before")


def thread_total() -> int:
    """Threads of this process, those of OpenMP included."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(openmp.team() is None, reason="torch works with another OpenMP than GNU's")
def test_nobody_spins_while_a_job_runs(tmp_path: Path) -> None:
    calls = []

    def progress(*_: object) -> None:
        assert_nobody_spins()
        calls.append(1)

    spec = QuantSpec(d=4, K=16, kmeans=KMeansSpec(iterations=2, tail=1))
    source = tmp_path / "model.safetensors"
    save_file({"w1": torch.randn(64, 64)}, source)
    options = CompressOptions(probe=False)
    compress(
        MLPAdapter(),
        str(source),
        tmp_path / "out",
        spec,
        options=options,
        run=Run(progress=progress),
    )
    assert calls
    calls.clear()
    quantize_(nn.Sequential(nn.Linear(64, 64)), spec, progress=progress)
    assert calls


def test_without_gnu_openmp_loops_run_on_python_threads(monkeypatch) -> None:
    monkeypatch.setattr(openmp, "team", lambda: None)
    seen = []
    with openmp.short_spins():
        spread(lambda first, last: seen.append((first, last)), 10, MANY)
    assert sorted(seen) == [(i, i + 1) for i in range(10)]
