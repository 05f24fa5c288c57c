"""Writing and reading back: contents, sharding, side files, refusals, memory."""

from __future__ import annotations

import itertools
import json
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from artifact_model import SIDE_FILES, make_writer, snapshot, stored_of, tiny_plan, write_tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import dpq_core.artifact
from dpq_core.artifact import MANIFEST_NAME, Artifact, FileEntry, Manifest
from dpq_core.artifact.shards import lay_out
from dpq_core.errors import ArtifactError
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_core.tensor.plan import Plan, TensorPlan
from dpq_core.tensor.pq_tensor import PQTensor


def kept(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> TensorPlan:
    return TensorPlan(name=name, info=TensorInfo(shape, dtype))


@pytest.mark.parametrize("shard_bytes", [1, 60, 130, 2**32])
def test_what_is_written_is_read_by_us_and_by_safetensors(tmp_path: Path, shard_bytes: int) -> None:
    """F3, F11, F12: names, dtypes, shapes and values survive, whatever the shards."""
    artifact = write_tiny(tmp_path / "out", shard_bytes=shard_bytes)
    assert artifact.problems() == []
    assert artifact.names() == tuple(t.name for t in tiny_plan())
    stored = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            stored.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
    for tensor in tiny_plan():
        expected = stored_of(tensor)
        assert artifact.entry(tensor.name).shape == tensor.info.shape
        for name, value in expected.items():
            part = artifact.read_parts(tensor.name)[name[len(tensor.name) + 1 :]]
            assert part.dtype == stored[name].dtype == value.dtype
            assert torch.equal(part, value)
            assert torch.equal(stored.pop(name), value)
        if tensor.partition is None:
            assert torch.equal(artifact.read(tensor.name), expected[tensor.name])
        else:
            parts = {name.rpartition(".")[2]: value for name, value in expected.items()}
            pq = PQTensor.from_parts(tensor.partition, tensor.spec, tensor.info.dtype, parts)
            assert torch.equal(artifact.read_pq(tensor.name).codes, pq.codes)
            assert torch.equal(artifact.read(tensor.name), pq.decode())
    assert not stored
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert artifact.nbytes == sum(path.stat().st_size for path in files)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in SIDE_FILES} == SIDE_FILES


def test_index_is_the_one_of_hugging_face(tmp_path: Path) -> None:
    """F3: file names are relative to the index, total_size counts data."""
    write_tiny(tmp_path / "out", shard_bytes=130, weights={"": "transformer/weights"})
    folder = tmp_path / "out" / "transformer"
    index = json.loads((folder / "weights.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == tiny_plan().nbytes
    assert set(index["weight_map"]) == {n for t in tiny_plan() for n in t.stored()}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="pt") as handle:
            assert name in handle.keys()  # noqa: SIM118


@given(sizes=st.lists(st.integers(0, 40), max_size=12), shard_bytes=st.integers(1, 120))
def test_shards_are_full_but_never_overfull(sizes: list[int], shard_bytes: int) -> None:
    plan = Plan(tuple(kept(f"t{i}", n, dtype=torch.uint8) for i, n in enumerate(sizes)))
    found = lay_out(plan, {"": "model"}, shard_bytes)
    assert [name for shard in found for name in shard.tensors] == [t.name for t in plan]
    for shard in found:
        assert len(shard.header) % 8 == 0
        total = sum(slots[-1].end - slots[0].begin for slots in shard.tensors.values())
        assert total <= shard_bytes or len(shard.tensors) == 1
    for left, right in itertools.pairwise(found):
        first = next(iter(right.tensors.values()))[-1].end
        assert next(reversed(left.tensors.values()))[-1].end + first > shard_bytes


def test_same_input_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    """F10: two runs in two places."""
    write_tiny(tmp_path / "a" / "out")
    write_tiny(tmp_path / "b" / "elsewhere")
    assert snapshot(tmp_path / "a" / "out") == snapshot(tmp_path / "b" / "elsewhere")
    assert str(tmp_path) not in (tmp_path / "a" / "out" / "dpq.json").read_text()


def test_an_empty_plan_is_an_artifact(tmp_path: Path) -> None:
    with make_writer(tmp_path / "out", Plan(())) as writer:
        artifact = writer.finish()
    assert (artifact.names(), artifact.problems()) == ((), [])


def test_manifest_round_trips(tmp_path: Path) -> None:
    found = write_tiny(tmp_path / "out").manifest
    data = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    assert Manifest.from_bytes(data, "here") == found
    assert found.to_bytes() == data
    assert Manifest.from_json(json.loads(data)) == found
    assert found.format_version == 1
    assert found.files["config.json"] == FileEntry(23, found.files["config.json"].sha256)


def test_draft_and_preview_before_the_end(tmp_path: Path) -> None:
    plan = tiny_plan()
    with make_writer(tmp_path / "out", plan, shard_bytes=130) as writer:
        with pytest.raises(ArtifactError, match=r"tensor 'embed\.weight' was not written"):
            writer.preview()
        with pytest.raises(ArtifactError, match=r"tensor 'embed\.weight' was not written"):
            writer.finish()
        for tensor in plan:
            writer.write(tensor.name, stored_of(tensor), 0.5 if tensor.spec else None)
        writer.add_file("config.json", b"{}")
        draft = writer.manifest_draft
        assert [t.relative_error for t in draft.tensors][:3] == [0.5, 0.5, None]
        assert "config.json" in draft.files
        preview = writer.preview()
        assert torch.equal(preview.read("head.weight"), stored_of(plan.tensors[-1])["head.weight"])
        planned = writer.nbytes
        artifact = writer.finish()
    assert artifact.nbytes - (tmp_path / "out" / "dpq.json").stat().st_size >= planned
    with pytest.raises(ArtifactError, match="is finished"):
        make_writer(tmp_path / "out", plan, shard_bytes=130, resume=True).write("mask", {})


def test_side_files_are_copied_not_linked(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"tokens" * 1000)
    (tmp_path / "link.json").symlink_to(tmp_path / "blob")
    with make_writer(tmp_path / "out", Plan(())) as writer:
        writer.add_file("tokenizer/tokenizer.json", tmp_path / "link.json")
        with pytest.raises(ArtifactError, match=r"missing\.json: cannot read \(No such file"):
            writer.add_file("other.json", tmp_path / "missing.json")
        with pytest.raises(ArtifactError, match="cannot read"):
            writer.add_file("third.json", tmp_path)
    with make_writer(tmp_path / "out", Plan(()), resume=True) as writer:
        writer.add_file("tokenizer/tokenizer.json", tmp_path / "link.json")
        writer.finish()
    copy = tmp_path / "out" / "tokenizer" / "tokenizer.json"
    assert not copy.is_symlink()
    assert copy.read_bytes() == b"tokens" * 1000


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a\\b", "C:x", "a\nb", "a\0b", "\ud800",
     "dpq.json", "journal.jsonl", "model.safetensors", "model.safetensors.index.json",
     "model-00001-of-00002.safetensors", "x" * 501],
)  # fmt: skip
def test_unsafe_side_file_names_are_refused(tmp_path: Path, name: str) -> None:
    """F1: the writer refuses what a reader would refuse, and the names of the weights."""
    with (
        make_writer(tmp_path / "out", Plan(())) as writer,
        pytest.raises(ArtifactError, match="file"),
    ):
        writer.add_file(name, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial"]


def test_the_same_side_file_twice(tmp_path: Path) -> None:
    with make_writer(tmp_path / "out", Plan(())) as writer:
        writer.add_file("a", b"1")
        with pytest.raises(ArtifactError, match="'a' is written already"):
            writer.add_file("a", b"2")


def test_what_no_reader_would_accept_is_not_written(tmp_path: Path) -> None:
    """F16, F17, F18: and the order and parts of the plan are kept."""
    plan = tiny_plan()
    name = "embed.weight"
    good = stored_of(plan.tensors[0])

    def broken(part: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**good, f"{name}.{part}": value}

    cases = [
        (name, {}, "parts"),
        (name, {**good, "x": good[f"{name}.codes"]}, "parts"),
        (name, broken("codes", torch.full((3, 3), 255, dtype=torch.uint8)), "a code is 15"),
        (name, broken("codes", torch.zeros(3, 4, dtype=torch.uint8)), "planned was"),
        (name, broken("codes", torch.zeros(3, 3, dtype=torch.int8)), "planned was"),
        (name, broken("codebooks", torch.full((1, 15, 2), torch.nan)), "NaN or infinite"),
        (name, broken("row_scale", torch.full((5,), torch.inf).half()), "NaN or infinite"),
        ("block.0.weight", good, "came instead of 'embed.weight'"),
        ("stranger", good, "came instead of 'embed.weight'"),
    ]
    with make_writer(tmp_path / "out", plan) as writer:
        for wanted, tensors, match in cases:
            with pytest.raises(ArtifactError, match=match) as caught:
                writer.write(wanted, tensors)
            assert "\n" not in str(caught.value)
        for error in (float("nan"), float("inf"), -1.0):
            with pytest.raises(ArtifactError, match="relative error"):
                writer.write(name, good, error)
        writer.write(name, good, 0.25)
        assert dict(writer.done) == {name: 0.25}


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ([kept("a", 1), kept("a", 2)], "same name|called 'a'"),
        ([kept("a", 1, dtype=torch.complex64)], "complex64"),
        ([kept("", 1)], "tensor name"),
        ([kept("a\nb", 1)], "tensor name"),
        ([kept("\ud800", 1)], "tensor name|surrogate|JSON"),
        ([kept("n" * 501, 1)], "tensor name"),
        ([tiny_plan().tensors[0], kept("embed.weight.codes", 3)], "stored tensors would be called"),
    ],
)
def test_plans_that_cannot_be_stored(tmp_path: Path, tensors: list[TensorPlan], match: str) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        make_writer(tmp_path / "out", Plan(tuple(tensors)))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_existing_outputs_are_kept(tmp_path: Path) -> None:
    """Only an artifact is ever replaced, and only when asked."""
    out = tmp_path / "out"
    write_tiny(out)
    before = snapshot(out)
    with pytest.raises(ArtifactError, match="exists already; use overwrite=True"):
        make_writer(out)
    assert snapshot(out) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    write_tiny(tmp_path / "mine")  # an empty folder is in nobody's way
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"!")
    (tmp_path / "file").write_bytes(b"!")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "taken.partial").mkdir()
    (tmp_path / "taken.partial" / "a.jpg").write_bytes(b"!")
    for name, match in (
        ("photos", "not a dpq artifact"),
        ("file", "not a folder"),
        ("link", "not a folder"),
        ("x.partial", "cannot be an output"),
        ("taken", "not of dpq"),
    ):
        for flags in ({"overwrite": True}, {"overwrite": True, "resume": True}):
            with pytest.raises(ArtifactError, match=match):
                make_writer(tmp_path / name, **flags)
    assert (tmp_path / "photos" / "a.jpg").exists()
    assert (tmp_path / "taken.partial" / "a.jpg").exists()
    write_tiny(out, overwrite=True, source="new")
    assert Artifact.open(out).manifest.source == "new"
    assert not list(tmp_path.glob("out.*"))


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"cannot write \(") as caught:
        make_writer(tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="shard_bytes must be positive"):
        make_writer(tmp_path / "out", shard_bytes=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_one_tensor(tmp_path: Path) -> None:
    """512 MiB of plan, 8 MiB per tensor: neither writing nor verifying holds the model.

    Large, because resident memory also moves by tens of megabytes for the allocator's reasons.
    """
    plan = Plan(tuple(kept(f"w{i}", 1024, 2048) for i in range(64)))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    value = torch.ones(1024, 2048)  # not zeros, whose pages would come in only when read
    with make_writer(tmp_path / "out", plan, shard_bytes=200 << 20) as writer:
        before, peak = resident(), 0
        tracemalloc.start()
        for tensor in plan:
            writer.write(tensor.name, {tensor.name: value})
            peak = max(peak, resident() - before)
        artifact = writer.finish()
        artifact.verify()
        peak = max(peak, resident() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 128 << 20
    assert python < 12 << 20


def test_public_names() -> None:
    for name in dpq_core.artifact.__all__:
        assert hasattr(dpq_core.artifact, name)
