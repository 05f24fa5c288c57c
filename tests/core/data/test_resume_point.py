"""A resumed run begins where the stopped one was, and runs no batch through a finished block."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from toy_blocks import Block, Stack, UNet
from toy_streamed import assert_equal, quantize

from dpq_core.data.sequential.activations import (
    Activations,
    Unstorable,
    structure_from_json,
    structure_to_json,
)

KILLS = (1, 2, 8, 9, 12, 16, 22, 23)
"""Numbers of tensors: the embedding, seven of each block, the head."""


class Killed(BaseException):
    pass


def kill_at(count):
    """A quantizer that is killed at a given tensor."""
    seen = []

    def watch(*_):
        seen.append(1)
        if len(seen) == count:
            raise Killed

    return watch


class Counted(Stack):
    """Counts the calls of its blocks."""

    class Block(Block):
        calls = 0

        def forward(self, x, mask=None):
            self.calls += 1
            return super().forward(x, mask)

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.__class__ = self.Block


def interrupted(folder, kind, count, **options):
    """Stop a run at a tensor; returns the folder of what it has left."""
    with pytest.raises(Killed):
        quantize(folder, kind, kill=kill_at(count), **options)
    return folder / "out.blocks"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of runs that nobody stops, by kind of model."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        kind: quantize(folder / kind.__name__, kind, streamed=False)[0] for kind in (Stack, UNet)
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", KILLS)
def test_no_batch_runs_through_a_finished_block_again(tmp_path, whole, count, streamed):
    interrupted(tmp_path, Stack, count, streamed=streamed)
    parts, task, stream = quantize(tmp_path, Counted, streamed=streamed)
    assert_equal(parts, whole[Stack])
    finished = Stack.blocks_of[: max(0, (count - 2) // 7)]
    # The head is tried once on one batch of the whole model, after the last block.
    tries = 1 if count <= 22 else 0
    assert [task.student.get_submodule(path).calls for path in finished] == [tries] * len(finished)
    if streamed:
        assert [stream.reads.count(path) for path in finished] == [tries] * len(finished)
    assert list((tmp_path / "out.blocks").glob("inputs-*")) == []


@pytest.mark.parametrize("count", [3, 8, 11])
def test_models_whose_blocks_are_captured_resume_too(tmp_path, whole, count):
    interrupted(tmp_path, UNet, count, streamed=False)
    assert_equal(quantize(tmp_path, UNet, streamed=True)[0], whole[UNet])


def remove(folder):
    shutil.rmtree(folder)


def remove_content(folder):
    (folder / "content.json").unlink()


def rewrite_content(folder):
    (folder / "content.json").write_text(json.dumps({"model": 1, "reference": []}))


def flip(folder):
    path = sorted(folder.glob("model/*"))[1]
    values = bytearray(path.read_bytes())
    values[-9] ^= 1
    path.write_bytes(values)


def truncate(folder):
    path = sorted(folder.glob("*/*"))[-1]
    path.write_bytes(path.read_bytes()[:-4])


def remove_trace(folder):
    (folder.parent / "trace.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [remove, remove_content, rewrite_content, flip, truncate, remove_trace]
)
@pytest.mark.parametrize("count", [12, 23])
def test_what_is_damaged_is_computed_again(tmp_path, whole, damage, count):
    blocks = interrupted(tmp_path, Stack, count, streamed=True)
    (folder,) = blocks.glob("inputs-*")
    damage(folder)
    parts, _, stream = quantize(tmp_path, Stack, streamed=True)
    assert_equal(parts, whole[Stack])
    assert stream.most <= 2


@pytest.mark.parametrize("name", ["save", "discard"])
def test_a_run_that_is_killed_between_its_steps_resumes(tmp_path, whole, monkeypatch, name):
    from dpq_core.data.sequential.resume_point import ResumePoint

    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == (2 if name == "save" else 1):
            raise Killed

    monkeypatch.setattr(ResumePoint, name, stop)
    with pytest.raises(Killed):
        quantize(tmp_path, Stack, streamed=False)
    monkeypatch.undo()
    assert_equal(quantize(tmp_path, Stack, streamed=False)[0], whole[Stack])


def test_a_full_disk_stops_nothing(tmp_path, whole, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Activations, "save", refuse)
    assert_equal(quantize(tmp_path, Stack, streamed=False)[0], whole[Stack])


def test_arguments_of_blocks_survive_on_disk(tmp_path):
    x, odd = torch.randn(3, 4), torch.arange(6).reshape(2, 3).T
    arguments = (
        (x, [x, odd, None]),
        {"mask": x.bfloat16(), "flags": {"a": True, "b": 2.5}, "dtype": torch.float16},
    )
    plain = {"device": torch.device("cpu"), "shape": torch.Size([2, 3]), "name": "n"}
    before, after = Activations(tmp_path / "a", 0), Activations(tmp_path / "b", 10**6)
    before.put(5, (arguments, plain))
    content = json.loads(json.dumps(before.save(tmp_path / "kept")))
    after.restore(tmp_path / "kept", content)
    ((x2, rest), named), plain2 = after.get(5)
    assert plain2 == plain
    assert type(plain2["shape"]) is torch.Size
    assert torch.equal(x2, x)
    assert rest[0] is x2
    assert torch.equal(rest[1], odd)
    assert torch.equal(named["mask"], x.bfloat16())
    assert (named["flags"], named["dtype"]) == ({"a": True, "b": 2.5}, torch.float16)
    with pytest.raises(ValueError, match="unknown"):
        structure_from_json(["unknown", 1])
    assert structure_to_json(None) == ["plain", None]
    after.put(1, ((torch.zeros(2, dtype=torch.complex64),), {}))
    with pytest.raises(Unstorable):
        after.save(tmp_path / "other")
