"""The store of finished blocks: resumed with the same bytes, damage and strangers refused."""

from __future__ import annotations

import json

import pytest
from toy_sequential import (
    Rounding,
    assert_same,
    run,
)

from dpq_core.block_store import BlockStore
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
    assert task.forwards == 1  # the trace
    assert_same(first, again)


def test_a_store_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ArtifactError, match="belong to another source, spec or calibration") as e:
        BlockStore(tmp_path / "out", "another", resume=True, overwrite=False)
    assert "\n" not in str(e.value)


def test_a_store_is_continued_or_replaced_only_on_request(tmp_path):
    run(tmp_path)
    with pytest.raises(ArtifactError, match="use --resume to continue it or --overwrite"):
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
