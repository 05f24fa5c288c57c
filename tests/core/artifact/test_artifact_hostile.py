"""Damaged and hostile artifacts: each is one line that names the file or tensor, and no more."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_model import ADDED, tiny_plan, tiny_plan_2, write_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpq_core.artifact import Artifact, header, strict_json
from dpq_core.artifact import reader as reader_module
from dpq_core.artifact.files import hash_file
from dpq_core.errors import ArtifactError
from dpq_core.spec import AssignmentSpec

WEIGHTS = "model.safetensors"
DEFAULT_ADDED = {
    key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    for key, value in (ADDED | {"assignment": AssignmentSpec()}).items()
}
Edit = Callable[[Any], Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    write_tiny(folder / "one")
    write_tiny(folder / "many", shard_bytes=130)
    return folder


@pytest.fixture
def one(pristine: Path, tmp_path: Path) -> Path:
    """A copy with one weight file, free to be damaged."""
    return shutil.copytree(pristine / "one", tmp_path / "artifact")


@pytest.fixture
def many(pristine: Path, tmp_path: Path) -> Path:
    """A copy with several weight files."""
    return shutil.copytree(pristine / "many", tmp_path / "artifact")


def edit_manifest(folder: Path, edit: Edit) -> None:
    data = json.loads((folder / "dpq.json").read_bytes())
    edit(data)
    (folder / "dpq.json").write_text(json.dumps(data))


def restamp(folder: Path, name: str = WEIGHTS) -> None:
    """Let the manifest promise what the file is now, as an attacker would."""
    path = folder / name
    entry = {"bytes": path.stat().st_size, "sha256": hash_file(path, lambda count: None)}
    edit_manifest(folder, lambda m: m["files"].__setitem__(name, entry))


def set_header(folder: Path, body: bytes, length: int | None = None, name: str = WEIGHTS) -> None:
    data = (folder / name).read_bytes()
    rest = data[8 + struct.unpack("<Q", data[:8])[0] :]
    prefix = struct.pack("<Q", len(body) if length is None else length)
    (folder / name).write_bytes(prefix + body + rest)
    restamp(folder, name)


def edit_header(folder: Path, edit: Edit) -> None:
    data = (folder / WEIGHTS).read_bytes()
    content = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    edit(content)
    set_header(folder, json.dumps(content).encode())


def patch_data(folder: Path, stored: str, offset: int, value: bytes) -> None:
    """Change bytes of one stored tensor and restamp."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin = json.loads(data[8 : 8 + length])[stored]["data_offsets"][0]
    at = 8 + length + begin + offset
    data[at : at + len(value)] = value
    (folder / WEIGHTS).write_bytes(data)
    restamp(folder)


def refused(folder: Path, *mentions: str) -> str:
    """``Artifact.open`` refuses, in one bounded line, without allocating or reading a tensor."""
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader_module.torch, "empty", None)
            with pytest.raises(ArtifactError) as caught:
                Artifact.open(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 900
    for mention in (str(folder), *mentions):
        assert mention in message, message
    return message


def tensor(name: str, /, **fields: Any) -> Edit:
    """An edit of the manifest: change fields of one tensor."""
    return lambda m: next(t for t in m["tensors"] if t["name"] == name).update(fields)


def spec(index: int, **fields: Any) -> Edit:
    return lambda m: m["specs"][index].update(fields)


def entry(name: str, **fields: Any) -> Edit:
    """An edit of the manifest: change fields of one file."""
    return lambda m: m["files"][name].update(fields)


def weights(value: Any) -> Edit:
    return lambda m: m.update(weights=value)


def read(**fields: Any) -> dict[str, Any]:
    """An entry of ``data``."""
    return {"use": "compress", "description": "text", "fingerprint": "0" * 64} | fields


def data(*entries: Any) -> Edit:
    return lambda m: m.update(format_version=3, data=list(entries))


def listed(name: Any) -> Edit:
    return lambda m: m["files"].__setitem__(name, m["files"]["config.json"])


MANIFEST_EDITS: dict[str, tuple[Edit, str]] = {
    "F24 newer version": (lambda m: m.update(format_version=4), "format version 4 is not known"),
    "F24 data in version 1": (lambda m: m.update(data=[read()]), "unknown key 'data'"),
    "F30 no data": (lambda m: m.update(format_version=3), "version 3 does not suit its specs"),
    "F30 data empty": (data(), "0 entries are not between 1 and 64"),
    "F30 data too many": (data(*[read()] * 65), "65 entries are not between 1 and 64"),
    "F30 data no list": (lambda m: m.update(format_version=3, data={}), "data"),
    "F30 data no object": (data(3), "data: not a JSON object"),
    "F30 data unknown key": (data(read(samples=3)), "unknown key 'samples'"),
    "F30 data missing key": (data({"use": "compress"}), "is missing"),
    "F30 data use": (data(read(use="train")), "use 'train' is not one of compress, calibrate"),
    "F30 data use a list": (data(read(use=[])), "data: use"),
    "F30 data escape": (data(read(description="\x1b[2J")), "data: description"),
    "F30 data empty text": (data(read(description="")), "data: description"),
    "F30 data long text": (data(read(description="é" * 129)), "data: description"),
    "F30 data no sha": (data(read(fingerprint="f0")), "data: fingerprint: 'f0' is no sha256"),
    "F24 newer than needed": (lambda m: m.update(format_version=2), "does not suit its specs"),
    "F24 version 0": (lambda m: m.update(format_version=0), "format version 0"),
    "F5 version as text": (lambda m: m.update(format_version="1"), "format_version"),
    "F5 version true": (lambda m: m.update(format_version=True), "format_version"),
    "F6 version as float": (lambda m: m.update(format_version=1.0), "format_version"),
    "F5 unknown key": (lambda m: m.update(extra=1), "unknown key 'extra'"),
    "F5 missing key": (lambda m: m.pop("specs"), "key 'specs' is missing"),
    "F5 tensors no list": (lambda m: m.update(tensors={}), "tensors"),
    "F5 files no object": (lambda m: m.update(files=[]), "files"),
    "F5 specs null": (lambda m: m.update(specs=None), "specs"),
    "F5 source a number": (lambda m: m.update(source=3), "source"),
    "F5 source with escape": (lambda m: m.update(source="\x1b[2J"), "source"),
    "F5 source with newline": (lambda m: m.update(source="a\nb"), "source"),
    "F5 source lone surrogate": (lambda m: m.update(source="\ud800"), "source"),
    "F5 source too long": (lambda m: m.update(source="x" * 5000), "source"),
    "F5 adapter empty": (lambda m: m.update(adapter=""), "adapter"),
    "F5 versions nested": (lambda m: m.update(versions={"torch": {}}), "versions"),
    "F5 file entry no object": (lambda m: m["files"].update({WEIGHTS: 3}), WEIGHTS),
    "F5 file entry unknown key": (entry(WEIGHTS, mtime=3), "unknown key 'mtime'"),
    "F5 size negative": (entry(WEIGHTS, bytes=-1), "-1 is not in"),
    "F6 size float": (entry(WEIGHTS, bytes=1.5), "1.5 is not of type int"),
    "F5 size huge": (entry(WEIGHTS, bytes=10**4000), "an integer of"),
    "F2 size wrong": (entry(WEIGHTS, bytes=2**60), "the manifest says"),
    "F5 sha too short": (entry(WEIGHTS, sha256="ab"), "is no sha256"),
    "F5 sha upper case": (entry(WEIGHTS, sha256="AB" * 32), "is no sha256"),
    "F5 sha null": (entry(WEIGHTS, sha256=None), WEIGHTS),
    "F1 traversal": (listed("../secret"), "'../secret' is not a plain relative path"),
    "F1 inner traversal": (listed("a/../../secret"), "not a plain relative path"),
    "F1 absolute": (listed("/etc/passwd"), "'/etc/passwd' is not a plain relative path"),
    "F1 backslash": (listed("..\\secret"), "not a plain relative path"),
    "F1 drive": (listed("C:secret"), "not a plain relative path"),
    "F1 current": (listed("./config.json"), "not a plain relative path"),
    "F1 empty segment": (listed("a//b"), "not a plain relative path"),
    "F1 empty name": (listed(""), "file name: ''"),
    "F1 NUL": (listed("a\0b"), "file name"),
    "F1 long": (listed("a" * 501), "file name"),
    "F1 the manifest itself": (listed("dpq.json"), "reserved"),
    "F1 weights": (weights({"": "../model"}), "not a plain relative path"),
    "F2 file missing": (listed("gone.json"), "gone.json: cannot be opened"),
    "F3 no weights": (lambda m: m["files"].pop(WEIGHTS), "lists no weight file"),
    "F3 mixed sets": (listed("model-00001-of-00002.safetensors"), "model-00001-of-00002"),
    "F3 other weights": (weights({"": "other"}), "lists no weight file"),
    "F3 no component": (weights({}), "0 components"),
    "F3 component with a folder": (weights({"a/b": "model"}), "must not hold a folder"),
    "F3 component unnamed beside others": (weights({"": "model", "a": "b"}), "file name: ''"),
    "F3 same weights": (weights({"a": "model", "b": "model"}), "the same weight files"),
    "F3 weights a list": (weights([]), "weights"),
    "F8 tensor of no component": (weights({"a": "model"}), "belongs to no component"),
    "F7 spec unknown key": (spec(0, extra=1), "spec 0: spec: unknown key extra"),
    "F7 spec missing key": (lambda m: m["specs"][0].pop("d"), "key 'd' is missing"),
    "F7 kmeans missing key": (lambda m: m["specs"][0]["kmeans"].pop("tail"), "'tail' is missing"),
    "F7 spec without version": (lambda m: m["specs"][0].pop("version"), "'version' is missing"),
    "F7 spec of the future": (spec(0, version=4), "spec version 4 is not known"),
    "F31 trellis without its fields": (
        spec(0, version=3, **DEFAULT_ADDED, trellis_rate=2.0), "a trellis needs d=2"
    ),
    "F31 trellis in version 2": (
        spec(0, version=2, **DEFAULT_ADDED, trellis_rate=2.0), "unknown key trellis_rate"
    ),
    "F7 spec of another version": (spec(0, version=2), "newer than the spec needs"),
    "F7 newer than it needs to be": (
        spec(0, version=2, **DEFAULT_ADDED), "unknown key",
    ),
    "F7 older than it can be": (spec(0, codebook_dtype="int8"), "is missing"),
    "F24 format older than its specs": (
        spec(0, version=2, **DEFAULT_ADDED | {"stages": 2}), "format version 1 does not suit",
    ),
    "F7 spec no object": (lambda m: m["specs"].__setitem__(0, 4), "spec 0"),
    "F7 d zero": (spec(0, d=0), "d must be"),
    "F7 d huge": (spec(0, d=2**60), "d must be"),
    "F7 d true": (spec(0, d=True), "d must be"),
    "F7 K negative": (spec(0, K=-256), "K must be"),
    "F14 orientation open": (spec(0, orientation="auto"), "must be resolved"),
    "F7 scope a list": (spec(0, scope=[]), "scope must be"),
    "F7 scope too many": (spec(0, scope=1000), "codebooks"),
    "F7 dtype object": (spec(0, codebook_dtype="object"), "codebook_dtype must be"),
    "F7 kmeans a list": (spec(0, kmeans=[1]), "kmeans"),
    "F8 unknown key": (tensor("mask", extra=1), "unknown key 'extra'"),
    "F8 no object": (lambda m: m["tensors"].append(7), "a tensor"),
    "F8 twice": (lambda m: m["tensors"].append(m["tensors"][-1]), "same name"),
    "F8 name empty": (tensor("mask", name=""), "tensor name"),
    "F8 name with newline": (tensor("mask", name="a\nb"), "tensor name"),
    "F8 name a number": (tensor("mask", name=7), "tensor name"),
    "F8 unknown dtype": (tensor("mask", dtype="complex64"), "'mask': unknown dtype 'complex64'"),
    "F8 dtype attribute": (tensor("mask", dtype="__class__"), "unknown dtype"),
    "F8 dtype null": (tensor("mask", dtype=None), "dtype"),
    "F8 layout alone": (tensor("mask", layout="linear"), "layout and spec"),
    "F8 spec alone": (tensor("mask", spec=0), "layout and spec"),
    "F8 unknown layout": (tensor("embed.weight", layout="tree"), "unknown layout 'tree'"),
    "F8 layout a list": (tensor("embed.weight", layout=[]), "layout"),
    "F8 spec out of range": (tensor("embed.weight", spec=3), "spec 3 does not exist"),
    "F8 spec negative": (tensor("embed.weight", spec=-1), "-1 is not in"),
    "F8 quantized integers": (tensor("embed.weight", dtype="int8"), "cannot be int8"),
    "F8 error negative": (tensor("embed.weight", relative_error=-1), "relative_error"),
    "F8 error huge": (tensor("embed.weight", relative_error=10**400), "relative_error"),
    "F8 error text": (tensor("embed.weight", relative_error="0"), "relative_error"),
    "F9 absurd axis": (tensor("head.weight", shape=[2**63, 2]), "not in 0..4611686018427387904"),
    "F9 absurd product": (tensor("head.weight", shape=[2**40, 2**40]), "elements"),
    "F9 absurd but zero": (tensor("head.weight", shape=[0, 2**62, 2**62]), "elements"),
    "F9 absurd 2^60": (tensor("head.weight", shape=[2**60]), "'head.weight'"),
    "F9 absurd quantized": (tensor("embed.weight", shape=[2**30, 2**30]), "'embed.weight"),
    "F9 negative axis": (tensor("head.weight", shape=[-2, -3]), "-2 is not in"),
    "F9 float axis": (tensor("head.weight", shape=[2.0, 3]), "2.0 is not of type int"),
    "F9 true axis": (tensor("head.weight", shape=[True, 6]), "True is not of type int"),
    "F9 rank": (tensor("head.weight", shape=[1] * 17), "17 axes"),
    "F9 shape text": (tensor("head.weight", shape="23"), "shape"),
    "F13 rank for layout": (tensor("embed.weight", shape=[30]), "cannot be viewed as a matrix"),
    "F13 zero for layout": (tensor("embed.weight", shape=[0, 6]), "cannot be viewed as a matrix"),
    "F12 other dtype": (tensor("head.weight", dtype="int32"), "'head.weight' is torch.float32"),
    "F12 other shape": (tensor("head.weight", shape=[3, 2]), "'head.weight' is torch.float32"),
    "F12 tensor missing": (
        lambda m: m["tensors"].append({**m["tensors"][-1], "name": "more"}),
        "tensor 'more' is in no weight file",
    ),
    "F12 tensor extra": (lambda m: m["tensors"].pop(), "'head.weight' is not in the manifest"),
    "F12 stored twice": (
        lambda m: m["tensors"].append({**m["tensors"][-1], "name": "embed.weight.codes"}),
        "two tensors are stored as 'embed.weight.codes'",
    ),
    "F12 without row_scale": (spec(0, row_scale=False), "row_scale' is not in the manifest"),
    "F15 other sharing": (spec(1, scope="tensor"), "'block.0.weight.codebooks' is"),
    "F16 other K": (spec(1, K=5), "'block.0.weight.co"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFEST_EDITS)
def test_hostile_manifest(one: Path, case: str) -> None:
    edit, mention = MANIFEST_EDITS[case]
    edit_manifest(one, edit)
    refused(one, mention)


def slot(name: str, **fields: Any) -> Edit:
    return lambda h: h[name].update(fields)


def extra(**fields: Any) -> Edit:
    """An edit of the header: one more tensor."""
    full = {"dtype": "U8", "shape": [0], "data_offsets": [342, 342], **fields}
    return lambda h: h.update(more=full)


HEADER_EDITS: dict[str, tuple[Edit, str]] = {
    "F11 out of range": (slot("head.weight", data_offsets=[2**60, 2**60 + 24]), "hole"),
    "F11 negative": (slot("head.weight", data_offsets=[-24, 0]), "-24 is not in"),
    "F11 reversed": (slot("head.weight", data_offsets=[342, 318]), "does not fill"),
    "F11 overlap": (slot("head.weight", data_offsets=[310, 334]), "overlaps another"),
    "F11 alias": (slot("head.weight", data_offsets=[0, 24]), "overlap"),
    "F11 one offset": (slot("head.weight", data_offsets=[318]), "not two integers"),
    "F11 offsets text": (slot("head.weight", data_offsets="ab"), "data_offsets"),
    "F11 offsets float": (slot("head.weight", data_offsets=[318.0, 342]), "318.0"),
    "F9 absurd shape": (slot("head.weight", shape=[2**60]), "does not fill the bytes"),
    "F9 negative shape": (slot("head.weight", shape=[-2, -3]), "-2 is not in"),
    "F9 overflow": (slot("head.weight", shape=[2**32, 2**32]), "elements"),
    "F11 unknown dtype": (slot("head.weight", dtype="F31"), "unknown dtype 'F31'"),
    "F11 dtype a list": (slot("head.weight", dtype=["F32"]), "dtype"),
    "F11 unknown field": (slot("head.weight", strides=[1]), "unknown key 'strides'"),
    "F11 no object": (lambda h: h.update(mask=3), "tensor 'mask'"),
    "F11 metadata of others": (lambda h: h["__metadata__"].update(x="y"), "__metadata__"),
    "F11 metadata missing": (lambda h: h.pop("__metadata__"), "__metadata__"),
    "F12 missing": (lambda h: h.pop("empty"), "'empty' is in no weight file"),
    "F12 extra": (extra(), "tensor 'more' is not in the manifest"),
    "F11 name": (lambda h: h.update({"a\nb": h.pop("empty")}), "tensor name"),
    "F11 hole": (lambda h: h.pop("mask"), "leaves a hole"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADER_EDITS)
def test_hostile_header(one: Path, case: str) -> None:
    edit, mention = HEADER_EDITS[case]
    edit_header(one, edit)
    refused(one, mention, "dpq.json" if "no weight file" in mention else WEIGHTS)


RAW_JSON: dict[str, tuple[bytes, str]] = {
    "F6 duplicate key": (b'{"adapter": "a", "adapter": "b"}', "duplicate key 'adapter'"),
    "F6 nested duplicate": (b'{"files": {"a": 1, "a": 2}}', "duplicate key 'a'"),
    "F6 NaN": (b'{"a": NaN}', "NaN is not a JSON number"),
    "F6 Infinity": (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    "F6 1e999": (b'{"a": 1e999}', "'1e999' is not a finite number"),
    "F5 no object": (b"[]", "not a JSON object"),
    "F5 empty": (b"", "not valid JSON"),
    "F5 not UTF-8": (b'{"a": "\xff"}', "not valid JSON"),
    "F5 UTF-16": ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
    "F5 cut": (b'{"a": ', "not valid JSON"),
    "F5 two documents": (b"{}{}", "not valid JSON"),
    "F5 deep": (b'{"a":' + b"[" * 50_000, "too deeply"),
    "F5 long integer": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("case", RAW_JSON)
def test_hostile_json(one: Path, case: str) -> None:
    """The same parser reads manifest, headers and index."""
    body, mention = RAW_JSON[case]
    if body.startswith(b"{"):
        set_header(one, body)
        refused(one, WEIGHTS, mention)
    (one / "dpq.json").write_bytes(body)
    refused(one, "dpq.json", mention)


def test_many_json_values_are_refused_before_parsing(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20: ``[[],[],...`` would take twenty times its size."""
    monkeypatch.setattr(strict_json, "MAX_JSON_VALUES", 1000)
    (one / "dpq.json").write_bytes(b'{"a": [' + b"[]," * 1000 + b"[]]}")
    refused(one, "dpq.json", "more than 1000 JSON values")


def test_giant_files_are_refused_before_reading(one: Path) -> None:
    """F5, F11: sparse files, so that the test itself stays small."""
    os.truncate(one / WEIGHTS, 2**33)
    with (one / WEIGHTS).open("r+b") as file:
        file.write(struct.pack("<Q", 2**32))
    edit_manifest(one, entry(WEIGHTS, bytes=2**33))
    refused(one, WEIGHTS, "a header of 4294967296 bytes is over the limit")
    with (one / WEIGHTS).open("r+b") as file:
        file.write(struct.pack("<Q", 200_000))
    refused(one, WEIGHTS, "a header of 200000 bytes is over the limit")
    with (one / WEIGHTS).open("r+b") as file:
        file.write(struct.pack("<Q", 2**64 - 1))
    refused(one, WEIGHTS, "exceeds the file")
    os.truncate(one / "dpq.json", 2**33)
    refused(one, "dpq.json", "8589934592 bytes are over the limit")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_truncated_weights(one: Path, size: int) -> None:
    """F2, F11: noticed by the size; and by the header, if the manifest was made to agree."""
    os.truncate(one / WEIGHTS, size)
    refused(one, WEIGHTS, f"is {size} bytes, but the manifest says")
    restamp(one)
    refused(one, WEIGHTS)


def test_header_that_does_not_begin_with_a_brace(one: Path) -> None:
    set_header(one, b" {}")
    refused(one, WEIGHTS, "no safetensors header")


def test_links_and_special_files(one: Path, tmp_path: Path) -> None:
    """F2: a link may stay inside, or point into the cache of the hub; nothing else."""
    weights = one / WEIGHTS
    outside = shutil.copy(weights, tmp_path / "outside")
    weights.unlink()
    weights.symlink_to(outside)
    refused(one, WEIGHTS, "leads out of the artifact")
    weights.unlink()
    weights.symlink_to(WEIGHTS)
    refused(one, WEIGHTS, "cannot be opened")
    weights.unlink()
    weights.mkdir()
    refused(one, WEIGHTS, "not a regular file")
    weights.rmdir()
    os.mkfifo(weights)  # to open it would wait for ever
    refused(one, WEIGHTS, "not a regular file")
    weights.unlink()
    shutil.copy(outside, one / ".hidden")
    weights.symlink_to(".hidden")
    Artifact.open(one).verify()
    (one / "vae").rename(tmp_path / "vae")
    (one / "vae").symlink_to(tmp_path / "vae")
    refused(one, "vae/model.safetensors", "leads out of the artifact")
    shutil.move(one / "dpq.json", tmp_path / "dpq.json")
    (one / "dpq.json").symlink_to(tmp_path / "dpq.json")
    refused(one, "dpq.json", "leads out of the artifact")


def test_cache_of_the_hub(one: Path, tmp_path: Path) -> None:
    """F2: ``snapshots/<revision>/`` is made of links into ``blobs/``."""
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / "0123"
    (repo / "blobs").mkdir(parents=True)
    for index, path in enumerate(p for p in sorted(one.rglob("*")) if p.is_file()):
        link = snapshot / path.relative_to(one)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repo / "blobs" / str(index))
        link.symlink_to(repo / "blobs" / str(index))
    Artifact.open(snapshot).verify()


def test_index_of_shards(many: Path) -> None:
    """F3: transformers loads through it, so it may not point elsewhere."""
    name = "model.safetensors.index.json"
    good = json.loads((many / name).read_text())
    for change in (
        lambda i: i["weight_map"].update(mask="../../evil.safetensors"),
        lambda i: i["weight_map"].pop("mask"),
        lambda i: i["metadata"].update(total_size=1),
        lambda i: i.update(extra=1),
    ):
        index = json.loads(json.dumps(good))
        change(index)
        (many / name).write_text(json.dumps(index))
        restamp(many, name)
        refused(many, name, "does not say what the headers")
    (many / name).write_bytes(b'{"a": 1, "a": 2}')
    restamp(many, name)
    refused(many, name, "duplicate key")
    edit_manifest(many, lambda m: m["files"].pop(name))
    refused(many, f"no {name}")


def test_missing_and_doubled_shards(many: Path) -> None:
    """F3, F12."""
    first, second = sorted(many.glob("model-0000[12]-of-*.safetensors"))
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    restamp(many, second.name)
    refused(many, second.name, "is also in model-00001-of")
    second.write_bytes(content)
    restamp(many, second.name)
    second.unlink()
    refused(many, second.name, "cannot be opened")
    edit_manifest(many, lambda m: m["files"].pop(second.name))
    refused(many, "not one complete set", second.name)


def test_missing_things(tmp_path: Path, one: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(one / WEIGHTS, "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not a dpq artifact, it has no dpq.json")
    for path in ("a\0b", "x" * 5000):
        assert not Artifact.is_artifact(path)
        with pytest.raises(ArtifactError):
            Artifact.open(path)
    assert Artifact.is_artifact(one)
    assert not Artifact.is_artifact(tmp_path)


def impossible(value: bytes, stored: str, name: str, mention: str) -> Any:
    return pytest.param(value, stored, name, mention, id=f"{stored}-{mention[:5]}")


@pytest.mark.parametrize(
    ("value", "stored", "name", "mention"),
    [
        impossible(b"\xff", "embed.weight.codes", "embed.weight", "a code is 15"),
        impossible(b"\xff", "block.1.weight.codes", "block.1.weight", "a code is 3"),
        impossible(
            b"\x00\x00\xc0\x7f", "embed.weight.codebooks", "embed.weight", "NaN or infinite"
        ),
        impossible(b"\x00\x7c", "block.1.weight.codebooks", "block.1.weight", "NaN or infinite"),
        impossible(b"\x00\x7e", "block.0.weight.row_scale", "block.0.weight", "NaN or infinite"),
        impossible(b"\x02", "mask", "mask", "a bool is not 0 or 1"),
    ],
)
def test_impossible_values(one: Path, value: bytes, stored: str, name: str, mention: str) -> None:
    """F11, F16, F17, F18: noticed when the tensor is read and by verify, whatever the hashes."""
    patch_data(one, stored, 0, value)
    artifact = Artifact.open(one)
    with pytest.raises(ArtifactError) as caught:
        artifact.read(name)
    for message in (str(caught.value), *artifact.problems()):
        assert message.isprintable()
        assert WEIGHTS in message
        assert repr(name) in message
        assert mention in message
    with pytest.raises(ArtifactError, match=mention):
        artifact.verify()
    for tensor_plan in tiny_plan():
        if tensor_plan.name != name:
            artifact.read(tensor_plan.name)


@pytest.mark.parametrize(
    ("value", "part", "mention"),
    [
        (b"\xff", "pool.weight.index_map", "an index is 7, but the pool has 5"),
        (b"\x03\x00", "conv.weight.index_map", "an index is 3, but the pool has 3"),
        (b"\x00\x7c", "conv.weight.codebook_scale", "NaN or infinite"),
        (b"\x00\x7e", "pool.weight.pool", "NaN or infinite"),
        (b"\x00\x7c", "stages.weight.group_scale", "NaN or infinite"),
        (b"\x11", "pool.weight.permutation", "does not name every column once"),
        (b"\xff", "pool.weight.permutation", "does not name every column once"),
    ],
)
def test_impossible_values_of_version_2(
    tmp_path: Path, value: bytes, part: str, mention: str
) -> None:
    """F25, F26, F27, F28."""
    write_tiny(tmp_path / "two", tiny_plan_2())
    patch_data(tmp_path / "two", part, 0, value)
    with pytest.raises(ArtifactError, match=mention):
        Artifact.open(tmp_path / "two").read(part.rpartition(".")[0])


def test_padding_bits_are_ignored(one: Path) -> None:
    """F17: the last row of embed.weight uses 20 of its 24 bits."""
    before = Artifact.open(one).read("embed.weight")
    packed = Artifact.open(one).read_parts("embed.weight")["codes"]
    patch_data(one, "embed.weight.codes", 2, bytes([int(packed[0, 2]) | 0xF0]))
    assert torch.equal(Artifact.open(one).read("embed.weight"), before)


def test_verify_finds_a_flipped_bit_anywhere(one: Path) -> None:
    """F2: in any listed file; all problems are listed, the first is raised."""
    for name in ("config.json", "vae/model.safetensors", WEIGHTS):
        data = bytearray((one / name).read_bytes())
        data[-1] ^= 4
        (one / name).write_bytes(data)
    found = Artifact.open(one).problems()
    assert len(found) == 3
    assert all("its sha256 is" in line and line.isprintable() for line in found)
    with pytest.raises(ArtifactError, match=r"config\.json: its sha256.*\(and 2 more problems\)"):
        Artifact.open(one).verify()


def test_unlisted_files(one: Path) -> None:
    """F4: documentation is welcome; what a library might load is not."""
    (one / ".git").mkdir()
    for name in ("README.md", "LICENSE", "picture.png", ".gitattributes", ".git/config.json"):
        (one / name).write_text("mine")
    Artifact.open(one).verify()
    for name in ("evil.safetensors", "pytorch_model.bin", "modeling.py", "vae/config.json"):
        (one / name).write_bytes(b"")
        with pytest.raises(ArtifactError, match="is not in the manifest") as caught:
            Artifact.open(one).verify()
        assert str(one / name) in str(caught.value)
        (one / name).unlink()


def test_the_file_changes_after_open(one: Path) -> None:
    artifact = Artifact.open(one)
    os.truncate(one / WEIGHTS, (one / WEIGHTS).stat().st_size - 4)
    with pytest.raises(ArtifactError, match=r"truncated in tensor 'head\.weight'"):
        artifact.read("head.weight")
    assert any("truncated" in line for line in artifact.problems())
    (one / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        artifact.read("mask")
    assert artifact.problems()


def test_wrong_questions(one: Path) -> None:
    artifact = Artifact.open(one)
    with pytest.raises(ArtifactError, match="there is no tensor 'stranger'"):
        artifact.read("stranger")
    with pytest.raises(ArtifactError, match="'mask' is kept dense"):
        artifact.read_pq("mask")


def read_all(folder: Path) -> list[bytes]:
    artifact = Artifact.open(folder)
    artifact.verify()
    return [
        artifact.read(name).reshape(-1).view(torch.uint8).numpy().tobytes()
        for name in artifact.names()
    ]


@pytest.mark.slow
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), cut=st.booleans(), blind=st.booleans())
def test_random_damage(pristine: Path, tmp_path: Path, seed: int, cut: bool, blind: bool) -> None:
    """F20: a random cut, or random flips, give one line or the same contents, never anything else.

    ``blind``: the damage is restamped, so that only structure and values can be noticed.
    """
    dice = random.Random(seed)
    folder = tmp_path / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine / dice.choice(["one", "many"]), folder)
    expected = read_all(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = dice.choice(files)
    data = bytearray(victim.read_bytes())
    if cut:
        del data[dice.randrange(len(data)) :]
    else:
        for _ in range(dice.choice([1, 1, 2, 20])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    victim.write_bytes(data)
    if blind and victim.name != "dpq.json":
        restamp(folder, victim.relative_to(folder).as_posix())
    found: list[bytes] | str
    try:
        found = read_all(folder)
    except ArtifactError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.isprintable()
        assert str(folder) in found
    else:
        assert blind or found == expected


def test_header_limits_are_those_of_safetensors() -> None:
    assert header.MAX_HEADER_BYTES == 100_000_000
