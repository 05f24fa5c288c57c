"""Single-file artifacts: golden bytes, reading in parts, hostile files, writing; S1 to S11."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from single_files import tiny_packed
from strategies import changes, damaged

import dpq_core.artifact
from dpq_core.artifact import ArtifactFile, single, single_writer
from dpq_core.artifact.single_manifest import FileManifest
from dpq_core.artifact.single_writer import complete, write
from dpq_core.errors import ArtifactError

GOLDEN = Path(__file__).parents[2] / "golden" / "file-v1" / "tiny.dpq"
FORMAT = Path(dpq_core.artifact.__file__).with_name("FORMAT.md")
GOLDEN_SHA256 = "21a34f7d1b505a32a3013c3edbfb5dcd6d362cd39fbc5b53fd0b431a831d2123"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "tiny.dpq"
    write(out, *complete(tiny_packed()))
    return out


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    body = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    path.write_bytes(struct.pack("<Q", len(body)) + body + data)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest inside a file, as an attacker would."""
    header, data = split(path)
    manifest = json.loads(header["__metadata__"]["manifest"])
    change(manifest)
    header["__metadata__"]["manifest"] = json.dumps(manifest)
    join(path, header, data)


def test_golden_bytes(path: Path) -> None:
    """S1, S2, S3, S7, S10, S11: the file of version 1 is written and read as ever."""
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    assert path.read_bytes() == GOLDEN.read_bytes()
    file = ArtifactFile.open(GOLDEN)
    assert file.manifest == complete(tiny_packed())[0]
    assert bytes(file.stream("models")) == b"models!"


def test_the_safetensors_library_reads_it(path: Path) -> None:
    """S1, S2."""
    with safe_open(path, framework="np") as handle:
        assert list(handle.offset_keys()) == ["index", "models", "place", "tint"]
        assert bytes(handle.get_tensor("place")) == b"\x00\x01\x01\x02\x02\x02"
        assert handle.metadata()["format"] == "dpq"


def test_parts_of_chunks(path: Path) -> None:
    """S6, S7: the last chunk is smaller; every part is where the index says."""
    file = ArtifactFile.open(path)
    assert [file.manifest.chunk_size(k) for k in range(file.manifest.chunks)] == [4, 4, 2]
    assert [bytes(file.part("place", k)) for k in range(3)] == [b"\0", b"\1\1", b"\2\2\2"]
    assert [bytes(file.part("tint", k)) for k in range(3)] == [b"", b"t", b"tt"]
    assert file.nbytes == path.stat().st_size
    assert file.manifest.attribute_bytes(file.manifest.attributes[0]) == 6
    for name, chunk in (("place", 3), ("place", -1), ("models", 0), ("none", 0)):
        with pytest.raises(ArtifactError, match="there is no chunk"):
            file.part(name, chunk)
    with pytest.raises(ArtifactError, match="there is no stream 'x'"):
        file.stream("x")
    file.verify()


def test_manifest_round_trip() -> None:
    """S3, S4, S5."""
    manifest = complete(tiny_packed())[0]
    assert FileManifest.from_text(manifest.to_text(), "m") == manifest


def test_damage_is_found(path: Path) -> None:
    """S8: a flipped bit is seen when its part is read, and by verify."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    file = ArtifactFile.open(path)
    with pytest.raises(ArtifactError, match=r"chunk 2 of 'tint' is damaged \(crc32\)"):
        file.part("tint", 2)
    with pytest.raises(ArtifactError, match="sha256 of stream 'tint' differs"):
        file.verify()


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 300, -1])
def test_truncation_is_one_line(path: Path, keep: int) -> None:
    """S8."""
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError) as caught:
        ArtifactFile.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "future version": (lambda m: m.update(dpq_file=2), "file version 2 is not known"),
    "items": (lambda m: m.update(items=10**12), "items are too many"),
    "more items": (lambda m: m.update(items=50), "index does not fit"),
    "float items": (lambda m: m.update(items=10.0), "not of type int"),
    "no chunks": (lambda m: m.update(chunk_items=0), "chunks of 0 items"),
    "huge chunks": (lambda m: m.update(chunk_items=2**21), "not in 0..1048576"),
    "unknown key": (lambda m: m.update(x=1), "unknown key 'x'"),
    "missing key": (lambda m: m.pop("versions"), "key 'versions' is missing"),
    "overlap": (lambda m: m["streams"]["models"].update(bytes=9), "do not fill the file|must be"),
    "chunked index": (lambda m: m["streams"]["index"].update(chunked=True), "no index"),
    "renamed": (lambda m: m["streams"].update(y=m["streams"].pop("tint")), "do not exist"),
    "not chunked": (lambda m: m["streams"]["tint"].update(chunked=False), "index does not fit"),
    "sha": (lambda m: m["streams"]["tint"].update(sha256="0"), "is no sha256"),
    "two owners": (lambda m: m["attributes"][1].update(streams=["place"]), "another's too"),
    "two names": (lambda m: m["attributes"][1].update(name="place"), "same name"),
    "bad error": (lambda m: m["attributes"][0].update(errors={"rms": -1}), "not a number >= 0"),
    "bad name": (lambda m: m["attributes"][0].update(name="A/b"), "is not a name"),
    "parameters": (lambda m: m.update(parameters=[]), "not of type dict"),
}


@pytest.mark.parametrize("name", EDITS)
def test_hostile_manifests(path: Path, name: str) -> None:
    """S3, S4, S5, S6, S7, S8."""
    change, message = EDITS[name]
    edit(path, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        ArtifactFile.open(path)
    assert "\n" not in str(caught.value)


def test_hostile_headers(path: Path) -> None:
    """S1, S2: offsets, dtypes, other tensors, metadata and lengths must be as they must be."""
    header, data = split(path)
    cases: list[tuple[dict[str, Any] | bytes, str]] = [
        ({**header, "tint": {**header["tint"], "dtype": "I8"}}, "not where it must be"),
        ({**header, "place": {**header["place"], "data_offsets": [0, 6]}}, "not where it must be"),
        ({**header, "extra": header["tint"]}, "not the streams"),
        ({"__metadata__": {"format": "pt"}}, "not a .dpq file"),
        (b'{"__metadata__":{"format":"dpq",', "not valid JSON"),
        (b"[" * 3000, "not a .dpq file"),
    ]
    for changed, message in cases:
        join(path, changed, data)
        with pytest.raises(ArtifactError, match=message):
            ArtifactFile.open(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}" * 10)
    with pytest.raises(ArtifactError, match="over the limit or the file"):
        ArtifactFile.open(path)
    assert not ArtifactFile.is_artifact_file(path)
    assert not ArtifactFile.is_artifact_file("no\0path")


def test_a_bomb_allocates_nothing(path: Path) -> None:
    """S6, S8: promises of 10^12 items cost no memory."""
    edit(path, lambda m: m.update(items=10**12, chunk_items=2**20))
    tracemalloc.start()
    with pytest.raises(ArtifactError):
        ArtifactFile.open(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=changes(3), cut=st.integers(0, 40))
def test_fuzz(path: Path, made: list[tuple[int, int]], cut: int) -> None:
    """S8: any bytes are refused in one line, or give parts that pass their checksums."""
    raw = damaged(GOLDEN.read_bytes(), made)
    path.write_bytes(raw[: len(raw) - cut])
    try:
        file = ArtifactFile.open(path)
        for name in file.manifest.chunked:
            for chunk in range(file.manifest.chunks):
                file.part(name, chunk)
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_many_items_in_few_bytes_get_a_longer_header(tmp_path: Path) -> None:
    """S1, S6."""
    empty = {"place": [b""], "tint": [b""]}
    packed = tiny_packed(items=10**6, chunk_items=2**20, chunked=empty)
    file = write(tmp_path / "x.dpq", *complete(packed))
    assert file.nbytes * 16 >= 10**6
    assert file.manifest.items == 10**6


def test_what_is_in_the_way_stays(path: Path, tmp_path: Path) -> None:
    """S9."""
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="use overwrite=True to replace it"):
        write(path, *complete(tiny_packed()))
    other = tmp_path / "other.txt"
    other.write_text("mine")
    with pytest.raises(ArtifactError, match="not a dpq artifact"):
        write(other, *complete(tiny_packed()), overwrite=True)
    with pytest.raises(ArtifactError, match="not a plain file"):
        write(tmp_path, *complete(tiny_packed()), overwrite=True)
    assert other.read_text() == "mine"
    write(path, *complete(tiny_packed(items=9)), overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """S9: neither after a full disk nor after Ctrl-C; an older file stays as it was."""
    out = tmp_path / "x.dpq"
    write(out, *complete(tiny_packed(items=9)))
    before = out.read_bytes()
    calls = iter(range(100))

    def failing(descriptor: int, data: bytes) -> None:
        if next(calls) == 2:
            raise stop
        os.write(descriptor, data)

    monkeypatch.setattr(single_writer, "write_all", failing)
    expected = ArtifactError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write(out, *complete(tiny_packed()), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.dpq"]
    assert out.read_bytes() == before


def test_every_clause_has_a_test() -> None:
    """And the limits in the text are those of the code."""
    text = FORMAT.read_text()
    named = " ".join(
        p.read_text()
        for p in Path(__file__).parent.glob("test_*.py")
        if "single" in p.name or "entropy" in p.name
    )
    for letter in "SE":
        clauses = re.findall(rf"^- \*\*({letter}\d+)\*\*", text, re.MULTILINE)
        assert clauses == [f"{letter}{n}" for n in range(1, len(clauses) + 1)]
        assert all(re.search(rf"\b{clause}\b", named) for clause in clauses)
    assert single.MAX_HEADER_BYTES == 4 << 20
    assert dataclasses.fields(FileManifest)[0].name == "adapter"
