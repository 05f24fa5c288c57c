"""Runs sequential quantization on toy models, with a quantizer that notes what it sees."""

from __future__ import annotations

import torch
from toy_blocks import Stack, Task

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.loop import Sequential
from dpq_core.data.sequential.targets import TargetWeight
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.tensor.partition import Layout

BATCHES = 3


class Rounded:
    """Stands for a quantized tensor."""

    def __init__(self, values):
        self.values = values

    def parts(self):
        return {"codes": self.values}

    def decode(self, dtype):
        return self.values.to(dtype)


class Rounding:
    """A quantizer so coarse that later layers feel it; remembers what it saw."""

    def __init__(self, watch=None):
        self.statistics, self.watch = {}, watch

    def quantize(self, name, weight, statistics):
        if self.watch is not None:
            self.watch(name, weight, statistics)
        seen = [statistics.hessian, statistics.row_counts]
        self.statistics[name] = next(x.clone() for x in seen if x is not None)
        scale = weight.std() * (1 + self.statistics[name].mean().abs().clamp(max=1))
        rounded = (weight / scale).round() * scale  # depends on what was seen
        return Rounded(rounded), 0.5

    def restore(self, name, parts):
        return Rounded(parts["codes"])


def make(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


def targets_of(model, **layouts):
    return [
        TargetWeight(
            name=f"{path}.weight",
            shape=tuple(module.weight.shape),
            conv_layout=layouts.get(path, "spatial"),
        )
        for path, module in model.named_modules()
        if LayerInput.of(module)
    ]


def run(folder, kind=Stack, *, quantizer=None, resume=False, targets=None, model=None, **options):
    """Quantize a fresh model; returns the run, the task and the quantizer."""
    model = make(kind) if model is None else model
    task, quantizer = Task(model), quantizer or Rounding()
    store = BlockStore(folder / "out", "fingerprint", resume=resume, overwrite=False)
    work = Sequential(
        task,
        targets_of(model) if targets is None else targets,
        quantizer,
        store,
        options=SequentialOptions(**{"batches": BATCHES, "quick": False, **options}),
    )
    work.run()
    return work, task, quantizer


def results(work):
    """All stored parts, and the weights of the model as it is now."""
    store = work._store
    parts = {name: store.read(name).parts["codes"] for name in store.errors}
    return {**parts, **work._model.state_dict()}


def assert_same(a, b):
    a, b = results(a), results(b)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def seen_by_layer(task, path, batches=BATCHES):
    """The definition: what a layer's statistics are on the model as it is now."""
    module, rows = task.student.get_submodule(path), []
    hook = module.register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    with torch.no_grad():
        for step in range(batches):
            task.forward(task.student, task.train_batch(step))
    hook.remove()
    wanted = LayerInput.of(module)
    if wanted.layout is Layout.EMBEDDING:
        return torch.bincount(torch.cat(rows).flatten(), minlength=wanted.cols).float()
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([part.double() for row in rows for part in wanted.rows(row, 10**9, draw)])
    return x.T @ x / len(x)


class Watched(Rounding):
    """Holds every statistic against the definition, on the model at that very moment."""

    def __init__(self, unchecked=()):
        super().__init__(self.check)
        self.task, self.unchecked = None, unchecked

    def check(self, name, weight, statistics):
        if name.endswith(self.unchecked):
            return
        wanted = seen_by_layer(self.task, name.removesuffix(".weight"))
        found = statistics.row_counts if statistics.hessian is None else statistics.hessian
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def run_watched(tmp_path, kind, task_class=Task, unchecked=(), **options):
    model, quantizer = make(kind), Watched(unchecked)
    task = quantizer.task = task_class(model)
    store = BlockStore(tmp_path / "out", "f", resume=False, overwrite=False)
    chosen = SequentialOptions(batches=BATCHES, quick=False, **options)
    work = Sequential(task, targets_of(model), quantizer, store, options=chosen)
    work.run()
    return work, quantizer


def sources(work):
    return {report.name: report.source for report in work.reports}
