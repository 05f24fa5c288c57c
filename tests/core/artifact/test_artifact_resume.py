"""Interrupted writing: kills at every system call, full disks, torn journals, other runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_model import make_writer, snapshot, stored_of, tiny_plan, write_tiny

from dpq_core.artifact import Artifact, ArtifactWriter, manifest, stream
from dpq_core.artifact.journal import Finished, Journal
from dpq_core.errors import ArtifactError
from dpq_core.tensor.plan import Plan

TESTS = Path(__file__).parents[2]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal every tensor at once."""
    monkeypatch.setattr(stream, "SYNC_SECONDS", 0.0)


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, str]:
    """What an uninterrupted run writes with two shards."""
    write_tiny(tmp_path / "reference", shard_bytes=200)
    return snapshot(tmp_path / "reference")


def write_some(out: Path, count: int, **options) -> ArtifactWriter:
    """Write the first ``count`` tensors and leave, as a stopped run does."""
    plan = tiny_plan()
    with make_writer(out, plan, shard_bytes=200, **options) as writer:
        for index, tensor in enumerate(plan.tensors[:count]):
            writer.write(tensor.name, stored_of(tensor), index / 64 if tensor.spec else None)
    return writer


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize(
    ("mode", "step"), [("eager", 1), ("lazy", 4), ("overwrite", 3), ("fallback", 5)]
)
def test_kill_9_at_every_system_call_then_resume_gives_the_same_bytes(
    tmp_path: Path, mode: str, step: int
) -> None:
    """F10, F21, F22, F23: and what carries the name of the output is a whole artifact."""
    command = [sys.executable, str(TESTS / "artifact_crash.py"), str(tmp_path), mode, str(step)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] > 40
    assert result["kept"] > 10, "resuming never found finished work"


@pytest.mark.parametrize("count", range(9))
def test_a_stopped_run_resumes_where_it_was(tmp_path: Path, reference, count: int) -> None:
    """F23: leaving the context keeps every finished tensor, whatever SYNC_SECONDS is."""
    out = tmp_path / "out"
    write_some(out, count)
    with pytest.raises(ArtifactError, match=r"half-written.*; finish it .*resume=True"):
        Artifact.open(out)
    with make_writer(out, shard_bytes=200, resume=True) as writer:
        assert list(writer.done) == [t.name for t in tiny_plan()][:count]
        assert all(
            error == (index / 64 if tiny_plan().tensors[index].spec else None)
            for index, error in enumerate(writer.done.values())
        )
    write_tiny(out, shard_bytes=200, resume=True)
    assert snapshot(out) == reference


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fail_at", range(0, 20, 2))
def test_full_disk_is_one_line_and_can_be_resumed(
    tmp_path: Path, reference, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    out = tmp_path / "out"
    real, calls = os.write, iter(range(10_000))

    def full(descriptor: int, data) -> int:
        if next(calls) >= fail_at:
            if len(data) > 1:
                real(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.*resume=True") as caught:
            write_tiny(out, shard_bytes=200)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    write_tiny(out, shard_bytes=200, resume=True)
    assert snapshot(out) == reference


@pytest.mark.usefixtures("eager")
def test_full_disk_can_be_retried_in_the_same_process(
    tmp_path: Path, reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that failed half-way is not counted, neither in hash nor in bytes."""
    plan, real = tiny_plan(), os.write
    with make_writer(tmp_path / "out", plan, shard_bytes=200) as writer:
        for index, tensor in enumerate(plan):
            error = index / 64 if tensor.spec else None

            def once(descriptor: int, data) -> int:
                monkeypatch.setattr(os, "write", real)
                real(descriptor, bytes(data)[:3])
                raise OSError(errno.ENOSPC, "No space left on device")

            if tensor.nbytes:
                monkeypatch.setattr(os, "write", once)
                with pytest.raises(ArtifactError, match="No space left"):
                    writer.write(tensor.name, stored_of(tensor), error)
            writer.write(tensor.name, stored_of(tensor), error)
        writer.add_file("config.json", b'{"model_type": "tiny"}\n')
        writer.add_file("vae/model.safetensors", b"opaque")
        writer.finish()
    assert snapshot(tmp_path / "out") == reference


def test_the_journal_never_runs_ahead_of_durable_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: at every append, all bytes that the lines vouch for have seen an fsync."""
    durable: dict[int, int] = {}
    real_sync, real_append, checked = os.fsync, Journal.append, []

    def sync(descriptor: int) -> None:
        real_sync(descriptor)
        status = os.fstat(descriptor)
        durable[status.st_ino] = status.st_size

    def append(self: Journal, lines: list[Finished]) -> None:
        for line in lines:
            file = self.path.parent / line.shard
            assert durable.get(file.stat().st_ino, 0) >= line.end
            checked.append(line.name)
        real_append(self, lines)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Journal, "append", append)
    monkeypatch.setattr(stream, "SYNC_BYTES", 100)
    write_tiny(tmp_path / "out", shard_bytes=200)
    assert checked == [t.name for t in tiny_plan()]


def test_torn_last_line_is_dropped(tmp_path: Path, reference) -> None:
    """F22: a line without its newline was being written when the process died."""
    out, journal = tmp_path / "out", tmp_path / "out.partial" / "journal.jsonl"
    write_some(out, 4)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])
    with make_writer(out, shard_bytes=200, resume=True) as writer:
        assert len(writer.done) == 3
    write_tiny(out, shard_bytes=200, resume=True)
    assert snapshot(out) == reference


def test_torn_first_line_starts_over(tmp_path: Path, reference) -> None:
    out, journal = tmp_path / "out", tmp_path / "out.partial" / "journal.jsonl"
    write_some(out, 4)
    journal.write_bytes(journal.read_bytes()[:20])
    with make_writer(out, shard_bytes=200, resume=True) as writer:
        assert not writer.done
    write_tiny(out, shard_bytes=200, resume=True)
    assert snapshot(out) == reference


def test_changed_data_is_noticed_and_named(tmp_path: Path) -> None:
    """F23: every byte that the journal vouches for is hashed again."""
    out = tmp_path / "out"
    write_some(out, 4)
    shard = next((tmp_path / "out.partial").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tensor 'block\.\d\.\w+' changed since") as caught:
        write_tiny(out, shard_bytes=200, resume=True)
    assert "overwrite=True" in str(caught.value)
    shard.write_bytes(data[:-3])
    with pytest.raises(ArtifactError, match="changed since"):
        write_tiny(out, shard_bytes=200, resume=True)
    shard.unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        write_tiny(out, shard_bytes=200, resume=True)
    write_tiny(out, shard_bytes=200, overwrite=True)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"{}\n", "key 'end' is missing"),
        (b"not json\n", "line 6: not valid JSON"),
        (b'{"name":"x","name":"y"}\n', "duplicate key 'name'"),
        (
            b'{"name":"x","shard":"model.safetensors","end":1,"sha256":"","relative_error":null}\n',
            "does not follow the plan at 'x'",
        ),
    ],
)
def test_damaged_journal_is_refused(tmp_path: Path, line: bytes, match: str) -> None:
    out, journal = tmp_path / "out", tmp_path / "out.partial" / "journal.jsonl"
    write_some(out, 4)
    journal.write_bytes(journal.read_bytes() + line)
    with pytest.raises(ArtifactError, match=match):
        write_tiny(out, shard_bytes=200, resume=True)


@pytest.mark.parametrize("change", [{"fingerprint": "f1"}, {"source": "other"}, {"adapter": "b"}])
def test_another_run_is_not_resumed(tmp_path: Path, change: dict[str, str]) -> None:
    """F23: the identity must be equal."""
    out = tmp_path / "out"
    write_some(out, 3)
    with pytest.raises(ArtifactError, match="belongs to another source or spec"):
        make_writer(out, shard_bytes=200, resume=True, **change)
    with pytest.raises(ArtifactError, match="layout differs"):
        make_writer(out, shard_bytes=100, resume=True)
    with pytest.raises(ArtifactError, match="belongs to another"):
        make_writer(out, Plan(tiny_plan().tensors[:5]), shard_bytes=200, resume=True)


def test_another_library_version_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10: other versions may round otherwise, so the bytes could not be promised."""
    write_some(tmp_path / "out", 3)
    versions = {**manifest.library_versions(), "torch": "9.9"}
    monkeypatch.setattr(manifest, "library_versions", lambda: versions)
    with pytest.raises(ArtifactError, match=r"was begun with torch .*, this is 9\.9"):
        make_writer(tmp_path / "out", shard_bytes=200, resume=True)


def test_a_finished_run_can_be_resumed_again(tmp_path: Path, reference) -> None:
    """So that a loop of `dpq compress --resume` ends well wherever it was killed."""
    out = tmp_path / "out"
    write_tiny(out, shard_bytes=200, resume=True)
    before = (out / "dpq.json").stat().st_mtime_ns
    artifact = write_tiny(out, shard_bytes=200, resume=True)
    assert artifact.problems() == []
    assert (out / "dpq.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="exists already; use overwrite=True"):
        write_tiny(out, shard_bytes=200, resume=True, source="other")
    damaged = bytearray((out / "config.json").read_bytes())
    damaged[3] ^= 1
    (out / "config.json").write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"config\.json: its sha256"):
        write_tiny(out, shard_bytes=200, resume=True)
    write_tiny(out, shard_bytes=200, overwrite=True)
    assert snapshot(out) == reference


def test_unfinished_work_is_neither_lost_nor_read_by_accident(tmp_path: Path) -> None:
    """F21: neither flag given, or the half-written folder given as an artifact."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    write_some(out, 3)
    before = snapshot(partial)
    with pytest.raises(ArtifactError, match="resume=True to continue it or overwrite=True"):
        make_writer(out)
    assert snapshot(partial) == before
    assert Artifact.is_artifact(partial)
    renamed = shutil.copytree(partial, tmp_path / "renamed")
    for folder in (partial, renamed):
        with pytest.raises(ArtifactError, match="half-written"):
            Artifact.open(folder)


def test_files_of_an_earlier_attempt_do_not_stay(tmp_path: Path, reference) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    write_some(out, 3)
    (partial / "deep").mkdir()
    (partial / "deep" / "left.json").write_text("{}")
    write_tiny(out, shard_bytes=200, resume=True)
    assert snapshot(out) == reference


@pytest.mark.skipif(sys.platform == "win32", reason="advisory locks of POSIX")
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_two_writers_exclude_each_other(tmp_path: Path, flag: str) -> None:
    """F23: the second is told so; the first finishes undisturbed."""
    out = tmp_path / "out"
    plan = tiny_plan()
    with make_writer(out, plan) as first:
        for tensor in plan:
            first.write(tensor.name, stored_of(tensor))
            with pytest.raises(ArtifactError, match=r"out\.partial: another dpq is writing here"):
                make_writer(out, **{flag: True})
        first.finish()
    Artifact.open(out).verify()
