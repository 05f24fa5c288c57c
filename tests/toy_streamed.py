"""Streams the blocks of toy models, and quantizes models streamed or not."""

from __future__ import annotations

import torch
from torch import nn
from toy_blocks import Task
from toy_sequential import BATCHES, Rounding, make, targets_of

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.loop import Sequential
from dpq_core.data.streamed_blocks import StreamedBlocks


class Streamed:
    """Streams the blocks of a model; counts what is read, and how many blocks are in memory."""

    def __init__(self, model):
        self.model, self.reads, self.most = model, [], 0
        self.values = {
            path: {
                f"{path}.{name}": value.detach().clone()
                for name, value in model.get_submodule(path).named_parameters()
            }
            for path in model.blocks_of
        }
        weights = {
            path: {name: nn.Parameter(value.to("meta"), False) for name, value in values.items()}
            for path, values in self.values.items()
        }
        self.blocks = StreamedBlocks(model, weights, self.read)

    def read(self, path):
        self.reads.append(path)
        self.most = max(self.most, self.in_memory() + 1)
        return {name: value.clone() for name, value in self.values[path].items()}

    def in_memory(self):
        blocks = [self.model.get_submodule(path) for path in self.model.blocks_of]
        return sum(any(not p.is_meta for p in block.parameters()) for block in blocks)


def quantize(folder, kind, *, streamed, kill=None, **options):
    """Quantize a fresh model; returns the stored parts, the task and what was streamed."""
    model = make(kind)
    stream = Streamed(model) if streamed else None
    task = Task(model)
    task.streamed = stream.blocks if stream else None
    store = BlockStore(folder / "out", "f", resume=True, overwrite=False)
    chosen = SequentialOptions(**{"batches": BATCHES, "quick": False, **options})
    Sequential(task, targets_of(model), Rounding(kill), store, options=chosen).run()
    return {name: store.read(name).parts["codes"] for name in store.errors}, task, stream


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
