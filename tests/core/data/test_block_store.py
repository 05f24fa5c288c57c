"""The store of finished blocks: resumed with the same bytes, damage and strangers refused."""

from __future__ import annotations

import json
import os

import pytest
import torch
from toy_sequential import (
    Rounding,
    assert_same,
    run,
)

from dpq_core.data.sequential import block_store
from dpq_core.data.sequential.block_store import BlockStore, FinishedTensor
from dpq_core.errors import ArtifactError


class KilledError(Exception):
    pass


def kill_at(name):
    def watch(now, *_):
        if now == name:
            raise KilledError

    return Rounding(watch)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "name", ["embed", "blocks.0.q", "blocks.0.down", "blocks.1.q", "blocks.2.up", "head"]
)
@pytest.mark.parametrize("store_inputs", [True, False])
def test_a_killed_run_continues_after_the_last_block_with_the_same_bytes(
    tmp_path, name, store_inputs
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, _, _ = run(tmp_path / "a", store_inputs=store_inputs)
    with pytest.raises(KilledError):
        run(tmp_path / "b", quantizer=kill_at(f"{name}.weight"), store_inputs=store_inputs)
    again, _, quantizer = run(tmp_path / "b", resume=True, store_inputs=store_inputs)
    assert_same(whole, again)
    assert contents(tmp_path / "a" / "out.blocks") == contents(tmp_path / "b" / "out.blocks")
    order = list(whole._store.errors)
    block = next(i for i, found in enumerate(order) if found.startswith(name.rpartition(".")[0]))
    if name == "head":
        block = len(order) - 1
    assert list(quantizer.statistics) == order[block:]  # nothing of the blocks before
    assert [report.resumed for report in again.reports].count(False) == sum(
        len(set(tensors) & set(order[block:])) > 0 for tensors in again._store.segments.values()
    )


def test_a_run_killed_while_it_writes_loses_that_block_only(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, _, _ = run(tmp_path / "a")

    def fail(self):
        if len(self.segments) == 3:
            raise KilledError
        write(self)

    write = BlockStore._write_journal
    monkeypatch.setattr(BlockStore, "_write_journal", fail)
    with pytest.raises(KilledError):
        run(tmp_path / "b")
    monkeypatch.undo()
    again, _, quantizer = run(tmp_path / "b", resume=True)
    assert next(iter(quantizer.statistics)) == "blocks.1.q.weight"
    assert_same(whole, again)


def test_a_finished_store_is_resumed_without_a_pass(tmp_path):
    first, _, _ = run(tmp_path)
    again, task, quantizer = run(tmp_path, resume=True)
    assert quantizer.statistics == {}
    assert task.forwards == 0
    assert_same(first, again)


def test_a_store_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ArtifactError, match="belong to another source, spec or calibration") as e:
        BlockStore(tmp_path / "out", "another", resume=True, overwrite=False)
    assert "\n" not in str(e.value)


def test_a_store_is_continued_or_replaced_only_on_request(tmp_path):
    run(tmp_path)
    with pytest.raises(ArtifactError, match="use resume=True to continue it or overwrite=True"):
        BlockStore(tmp_path / "out", "fingerprint", resume=False, overwrite=False)
    store = BlockStore(tmp_path / "out", "another", resume=False, overwrite=True)
    assert store.errors == {}
    assert [path.name for path in store.folder.iterdir()] == ["journal.json"]


def test_a_folder_of_somebody_else_is_not_deleted(tmp_path):
    folder = tmp_path / "out.blocks"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")  # not ours to delete
    with pytest.raises(ArtifactError, match="is not a folder of dpq; move it away"):
        BlockStore(tmp_path / "out", "f", resume=True, overwrite=True)
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "journal.json"),
        (lambda text: text.replace('"journal": 1', '"journal": 9'), "unknown version"),
        (lambda text: text.replace("0.5", '"x"'), "is not of type float"),
        (lambda text: text.replace('"tensors"', '"tensor"'), "is missing"),
    ],
    ids=["cut", "version", "type", "key"],
)
def test_a_damaged_journal_is_refused_in_one_line(tmp_path, change, message):
    run(tmp_path)
    journal = tmp_path / "out.blocks" / "journal.json"
    journal.write_text(change(journal.read_text()))
    with pytest.raises(ArtifactError, match=message) as caught:
        BlockStore(tmp_path / "out", "fingerprint", resume=True, overwrite=False)
    assert "\n" not in str(caught.value)


def test_a_damaged_segment_is_refused_in_one_line(tmp_path):
    run(tmp_path)
    path = tmp_path / "out.blocks" / "segment-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"cannot be read .*delete .* to start over"):
        run(tmp_path, resume=True)


def test_a_segment_with_other_tensors_is_refused(tmp_path):
    run(tmp_path)
    journal = tmp_path / "out.blocks" / "journal.json"
    found = json.loads(journal.read_text())
    tensors = found["segments"][1]["tensors"]
    tensors["elsewhere"] = tensors.pop("blocks.0.q.weight")
    journal.write_text(json.dumps(found))
    with pytest.raises(ArtifactError, match="another tensor 'elsewhere' than this run"):
        run(tmp_path, resume=True)


# -- the store by itself --------------------------------------------------------------------------


def opened(tmp_path, *, resume=False, overwrite=False):
    return BlockStore(tmp_path / "out", "f", resume=resume, overwrite=overwrite)


def tensor(value, error=0.25):
    return FinishedTensor(parts={"codes": torch.full((2, 3), value).T}, relative_error=error)


def test_finished_segments_come_back_in_order(tmp_path):
    store = opened(tmp_path)
    assert (store.segments, store.errors, store.complete) == ({}, {}, False)
    store.finish("a", {"a.q.weight": tensor(1.0), "a.weight": tensor(2.0, error=1)})
    store.finish("empty", {})
    store.finish("b", {"b.weight": tensor(3.0)})
    again = opened(tmp_path, resume=True)
    wanted = {"a": {"a.q.weight": 0.25, "a.weight": 1.0}, "empty": {}, "b": {"b.weight": 0.25}}
    assert store.segments == again.segments == wanted
    assert list(again.segments) == list(wanted)
    assert again.errors == {"a.q.weight": 0.25, "a.weight": 1.0, "b.weight": 0.25}
    for found in (store, again):
        assert not found.complete
        for segment, names in (("a", ["a.q.weight", "a.weight"]), ("empty", [])):
            assert [name for name, _ in found.restored(segment)] == names
        read = found.read("a.weight")  # not the parts of a.q.weight, whose name goes on
        assert list(read.parts) == ["codes"]
        assert torch.equal(read.parts["codes"], torch.full((3, 2), 2.0))
        assert read.relative_error == 1.0
        assert float(found.read("b.weight").parts["codes"][0, 0]) == 3


def test_a_store_is_complete_once_it_is_closed(tmp_path):
    opened(tmp_path).finish("a", {"w": tensor(1.0)})
    store = opened(tmp_path, resume=True)
    assert not store.complete
    store.close()
    assert store.complete
    assert opened(tmp_path, resume=True).complete
    assert not opened(tmp_path, overwrite=True).complete


def test_bytes_are_durable_before_the_journal_names_them(tmp_path, monkeypatch):
    store, seen = opened(tmp_path), []
    sync = os.fsync

    def watched(descriptor):
        journal = (store.folder / "journal.json").read_text()
        status = os.fstat(descriptor)
        for path in store.folder.iterdir():
            if os.path.samestat(path.stat(), status):
                seen.append((path.name, status.st_size > 0, '"w"' in journal))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store.finish("a", {"w": tensor(1.0)})
    assert seen == [
        ("segment-00000.safetensors.partial", True, False),
        ("journal.json.partial", True, False),
    ]
    assert '"w"' in (store.folder / "journal.json").read_text()


@pytest.mark.parametrize("left", [(), ("journal.json.partial",)])
def test_a_store_that_had_only_begun_is_started_over(tmp_path, left):
    (tmp_path / "out.blocks").mkdir()
    for name in left:
        (tmp_path / "out.blocks" / name).write_text("{")
    with pytest.raises(ArtifactError, match="an earlier run was not finished"):
        opened(tmp_path)
    assert opened(tmp_path, resume=True).segments == {}
    assert [path.name for path in (tmp_path / "out.blocks").iterdir()] == ["journal.json"]


def test_a_link_to_a_store_is_not_followed(tmp_path):
    opened(tmp_path).finish("a", {"w": tensor(1.0)})
    (tmp_path / "out.blocks").rename(tmp_path / "elsewhere")
    (tmp_path / "out.blocks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is not a folder of dpq"):
        block_store.discard_blocks(tmp_path / "out")
    assert (tmp_path / "elsewhere" / "journal.json").exists()


def test_discarding_takes_the_whole_store_or_nothing_there(tmp_path):
    block_store.discard_blocks(tmp_path / "out")
    store = opened(tmp_path)
    store.finish("a", {"w": tensor(1.0)})
    block_store.discard_blocks(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_journal_beyond_all_reason_is_not_read(tmp_path, monkeypatch):
    opened(tmp_path)
    size = (tmp_path / "out.blocks" / "journal.json").stat().st_size
    monkeypatch.setattr(block_store, "MAX_JOURNAL_BYTES", size)
    opened(tmp_path, resume=True)
    monkeypatch.setattr(block_store, "MAX_JOURNAL_BYTES", size - 1)
    with pytest.raises(ArtifactError, match=r"is too large; delete .* to start over"):
        opened(tmp_path, resume=True)
