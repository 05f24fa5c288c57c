"""FORMAT.md: golden bytes, decoding by the letter of the text, a test for every clause."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifact_model import DATA, snapshot, stored_of, tiny_plan, tiny_plan_2, write_tiny

import dpq_core.artifact
from dpq_core.artifact import FORMAT_VERSION, Artifact, DataEntry, files, manifest, verify
from dpq_core.artifact.entries import data_from_json
from dpq_core.spec import QuantSpec
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition

GOLDEN = Path(__file__).parents[2] / "golden"
FORMAT = Path(dpq_core.artifact.__file__).with_name("FORMAT.md")
VERSIONS = {"dpq": "0", "numpy": "0", "torch": "0"}

# sha256 of every file of tests/golden/v1, so that the folder itself cannot drift.
GOLDEN_V1 = dict(
    line.split()
    for line in """
config.json f68a01c5183a987078f1551e41df128be7273510adba30d0a83cc905e36d13a8
dpq.json 1d7ff999439e5aeffd4d6c56f694ed7198584b970aada098e88d33391bab62a6
model-00001-of-00002.safetensors c3faafb2c030855fcff703bda66225718f75fd05ad75e24b03223c67ba8b69b8
model-00002-of-00002.safetensors 0a75adbc9d3110f8d465b702e03c3ce4765c0a6fcc7bb59ec382a657751c35b7
model.safetensors.index.json 1e4e7e240aafbbf4c59a50eb81adafb90046c42e0b8d36dc52c1be8827fdf6ae
vae /
vae/model.safetensors 6d229884c1268bb0ab32d8da315d0fe52f9147228bd830a37bc9fb28a954940d
""".strip().splitlines()
)

# The same of tests/golden/v2.
GOLDEN_V2 = dict(
    line.split()
    for line in """
config.json f68a01c5183a987078f1551e41df128be7273510adba30d0a83cc905e36d13a8
dpq.json 89f7803269d3fd6283f2f1398d4a774cba82de8e40d02ee987898dbe5dc9322d
model-00001-of-00004.safetensors fbedaf7d680cec16b41126ba9fb04be73e0e8571f82dc0752e14826cff753230
model-00002-of-00004.safetensors a77298e2413b419465ca9820d5171e9037f9054f33065f74dbdd87cf73885cc6
model-00003-of-00004.safetensors 7228e2324ef6e5c5719810571a672aadacfdfe8e5e2a1b19c1c76eeaaf15e452
model-00004-of-00004.safetensors b8c0c8579ea1d44d4ab9baacb1c60cf6c271244ad5e43880194b26a5c768a410
model.safetensors.index.json bb1b488df1252f581ad357a436ba3003d5edb52d19003b10c43b978d39a2fb8a
vae /
vae/model.safetensors 6d229884c1268bb0ab32d8da315d0fe52f9147228bd830a37bc9fb28a954940d
""".strip().splitlines()
)

# The same of tests/golden/v3.
GOLDEN_V3 = GOLDEN_V1 | {
    "dpq.json": "12a61a28031ea4451af5fa71892e5c10f080850228060e6b8979f81cb145eb99"
}

# Data of `block.0.weight`: codebooks F16 [3, 4, 4], row_scale F16 [6], codes U8 [3, 2] of two bits.
LINEAR_HEX = (
    "00bc00bb00ba00b900b800b600b400b0000000300034003600380039003a003b"
    "003c803c003d803d003e803e003f803f004040408040c040004140418041c041"
    "004240428042c042004340438043c04300442044404460448044a044c044e044"
    "003c003d003e003f004080"
    "40e4044e0ee404"
)
# Its decoded value: codewords of codes 0 1 2 3 | 0 1, times the row scales 1, 1.25, ... 2.25.
LINEAR_VALUES = {
    (0, 0): -1.0,  # group 0, code 0, row scale 1
    (1, 0): -0.5 * 1.25,  # code 1
    (3, 3): 0.875 * 1.75,  # code 3, last coordinate
    (0, 4): 2.0,  # group 1 goes on with code 6 mod 4 = 2
    (5, 9): 3.625 * 2.25,  # group 2, code 17 mod 4 = 1; columns 10 and 11 are padding
}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_golden_bytes_are_written_again(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F24, F10: the same tensors give the same files, byte for byte, forever."""
    monkeypatch.setattr(manifest, "library_versions", lambda: VERSIONS)
    plan = {1: tiny_plan, 2: tiny_plan_2, 3: tiny_plan}[version]()
    data = {1: (), 2: (), 3: DATA}[version]
    write_tiny(tmp_path / "out", plan, shard_bytes=260, data=data)
    assert Artifact.open(tmp_path / "out").manifest.format_version == version <= FORMAT_VERSION
    golden = {1: GOLDEN_V1, 2: GOLDEN_V2, 3: GOLDEN_V3}[version]
    assert snapshot(tmp_path / "out") == snapshot(GOLDEN / f"v{version}") == golden


def test_golden_artifact_is_read(tmp_path: Path) -> None:
    """F24: every stored value is the literal one, and decoding gives literal values."""
    artifact = Artifact.open(GOLDEN / "v1")
    assert artifact.problems() == []
    assert artifact.manifest.versions == VERSIONS
    for tensor in tiny_plan():
        for name, value in stored_of(tensor).items():
            part = artifact.read_parts(tensor.name)[name[len(tensor.name) + 1 :]]
            assert torch.equal(part, value)
    weight = artifact.read("block.0.weight")
    assert weight.dtype == torch.bfloat16
    for (row, col), value in LINEAR_VALUES.items():
        assert weight[row, col] == torch.tensor(value).bfloat16()


def test_what_was_read_stands_in_the_manifest() -> None:
    """F30: entries in the order of the jobs; without them the other keys are those of version 1."""
    artifact = Artifact.open(GOLDEN / "v3")
    assert artifact.problems() == []
    assert artifact.manifest.data == DATA
    assert replace(artifact.manifest, data=()) == Artifact.open(GOLDEN / "v1").manifest


def test_a_description_of_data_is_made_to_fit() -> None:
    """F30: one line of at most 256 bytes, whatever an adapter says."""
    for text in ("a\nb\x1b[2J", "é" * 500, '"' * 500, "", "\ud800"):
        entry = DataEntry.of("compress", text, text[:5].encode("utf-8", "replace").decode())
        (read,) = data_from_json([vars(entry)], "data")
        assert read == entry


def test_bytes_of_one_tensor_by_hand() -> None:
    """F11, F17: little-endian values, two-bit codes least significant first, rows byte-aligned."""
    data = (GOLDEN / "v1" / "model-00001-of-00002.safetensors").read_bytes()
    assert bytes.fromhex(LINEAR_HEX) in data
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    start = (
        b'{"__metadata__":{"format":"pt"},"embed.weight.codebooks":{"dtype":"F32","shape":[1,15,2],'
    )
    assert data[8 : 8 + length].startswith(start)
    codes = torch.tensor([[0, 1, 2, 3, 2, 1]])
    assert pack(codes, 2).tolist() == [[0b11_10_01_00, 0b01_10]]
    assert pack(torch.tensor([[5, 6, 1]]), 3).tolist() == [[0b01_110_101, 0b0]]


def number(packed: torch.Tensor, index: int, bits: int) -> int:
    """F17: number ``index`` of a packed row."""
    places = range(index * bits, index * bits + bits)
    return sum((int(packed[i // 8]) >> (i % 8) & 1) << n for n, i in enumerate(places))


def codebooks_by_the_letter(
    weights: int, books: tuple[int, int], spec: QuantSpec, stored: dict[str, torch.Tensor]
) -> torch.Tensor:
    """F16, F25, F26: the codebooks, be they eight bits wide or a pool."""
    C, K = books
    eight = spec.codebook_dtype == "int8"
    if "pool" not in stored:
        codebooks = stored["codebooks"].float()
        return codebooks * stored["codebook_scale"].float()[:, None, None] if eight else codebooks
    N = min(spec.pool.size, C * K) or max(1, min(round(weights / (16 * spec.d**2)), 65536, C * K))
    pool = stored["pool"].float() * (stored["codebook_scale"].float() if eight else 1)
    assert pool.shape == (N, spec.d)
    bits = max(1, math.ceil(math.log2(N))) if spec.pool.packed else 16
    index = [[number(stored["index_map"][c], k, bits) for k in range(K)] for c in range(C)]
    return pool[torch.tensor(index)]


def rotation_by_the_letter(n: int) -> torch.Tensor:
    """F29: Q_n for orders whose factor is 1, Paley I of 12 or 20, or Hartley's."""
    m = n // (n & -n)
    paley = next((q for q in (4 * m, 8 * m) if n % q == 0 and q in (12, 20)), None)
    q = 1 if m == 1 else paley or m
    F = torch.ones(q, q)
    if paley:
        squares = {x * x % (q - 1) for x in range(1, q - 1)}
        for i, j in itertools.product(range(q), range(q)):
            x = (i - j) % (q - 1)
            chi = 0 if x == 0 else 1 if x in squares else -1
            F[i, j] = (i == j) + (0 if i == j == 0 else 1 if i == 0 else -1 if j == 0 else chi)
    elif m > 1:
        t = 2 * math.pi * torch.arange(m)[:, None] * torch.arange(m) / m
        F = t.cos() + t.sin()
    H = [[(-1) ** (a & c).bit_count() for c in range(n // q)] for a in range(n // q)]
    return torch.kron(torch.tensor(H).float(), F) / math.sqrt(n)


def by_the_letter(
    shape: tuple[int, ...], layout: Layout, spec: QuantSpec, stored: dict[str, torch.Tensor]
) -> torch.Tensor:
    """F13 to F19 in plain loops, from the text alone."""
    rows, cols = shape[0], math.prod(shape[1:])
    A, P = (cols, rows) if spec.orientation == "input" else (rows, cols)
    G = -(-A // spec.d)
    if spec.scope == "auto":
        b = math.ceil(math.log2(spec.K))
        v = {"float32": 4, "int8": 1}.get(spec.codebook_dtype, 2)
        B = G * math.ceil(P * b / 8)
        n = min(G, max(1, math.floor(spec.codebook_share * B / (spec.K * spec.d * v))))
        sharing = math.ceil(G / n)
    else:
        sharing = {"tensor": G, "subspace": 1}.get(str(spec.scope)) or math.ceil(
            G / int(spec.scope)
        )
    K = min(spec.K, max(2, sharing * P))
    b = max(1, math.ceil(math.log2(K)))
    C = math.ceil(G / sharing)
    codebooks, packed = codebooks_by_the_letter(rows * cols, (C, K), spec, stored), stored["codes"]
    assert codebooks.shape == (spec.stages * C, K, spec.d)
    assert packed.shape == (spec.stages * G, math.ceil(P * b / 8))
    matrix = torch.zeros(rows, cols)
    for r, c in itertools.product(range(rows), range(cols)):
        a, p = (c, r) if spec.orientation == "input" else (r, c)
        j = a // spec.d
        for s in range(spec.stages):
            code = number(packed[s * G + j], p, b)
            matrix[r, c] += codebooks[s * C + j // sharing, code, a % spec.d]
        if spec.row_scale:
            matrix[r, c] *= float(stored["row_scale"][r])
        if spec.group_scale:
            matrix[r, c] *= float(stored["group_scale"][c // spec.d])
    if spec.permute:
        core, bits = matrix.clone(), max(1, math.ceil(math.log2(cols)))
        for c in range(cols):
            matrix[:, number(stored["permutation"], c, bits)] = core[:, c]
    if spec.transform == "rht":
        signs = [1.0 - 2 * number(stored["signs_in"], i, 1) for i in range(cols)]
        matrix = matrix @ rotation_by_the_letter(cols) * torch.tensor(signs)
        if layout is not Layout.EMBEDDING:
            signs = [1.0 - 2 * number(stored["signs_out"], i, 1) for i in range(rows)]
            matrix = torch.tensor(signs)[:, None] * (rotation_by_the_letter(rows).T @ matrix)
    if layout is Layout.CONV and spec.conv_layout == "channel":
        moved = (shape[0], *shape[2:], shape[1])
        return matrix.reshape(moved).movedim(-1, 1)
    return matrix.reshape(shape)


@pytest.mark.parametrize("version", [1, 2])
def test_decoding_by_the_letter_of_the_golden_artifact(version: int) -> None:
    """F13, F14, F15, F16, F17, F18, F19; F25, F26, F27, F28, F29."""
    artifact = Artifact.open(GOLDEN / f"v{version}")
    for name in artifact.names():
        entry = artifact.entry(name)
        if entry.spec is not None and entry.layout is not None:
            spec = artifact.manifest.specs[entry.spec]
            value = by_the_letter(entry.shape, entry.layout, spec, artifact.read_parts(name))
            near = (
                {"rtol": 1e-5, "atol": 1e-5} if spec.transform == "rht" else {"rtol": 0, "atol": 0}
            )
            torch.testing.assert_close(value.to(entry.torch_dtype), artifact.read(name), **near)


@pytest.mark.parametrize("orientation", ["input", "output"])
@pytest.mark.parametrize("scope", ["auto", "tensor", "subspace", 2])
@pytest.mark.parametrize(("d", "K"), [(1, 2), (3, 5), (4, 256), (7, 300)])
def test_decoding_by_the_letter(orientation: str, scope: str | int, d: int, K: int) -> None:
    """F14, F15, F16: sizes and sharing follow from the text for every scope."""
    from builders import random_pq

    spec = QuantSpec(d=d, K=K, scope=scope, orientation=orientation, codebook_share=0.5)
    pq = random_pq((18, 23), spec, seed=d)
    expected = by_the_letter((18, 23), Layout.LINEAR, spec, pq.parts())
    assert torch.equal(pq.decode(), expected)
    unused = pq.partition.group_bytes * 8 - pq.partition.points * pq.partition.code_bits
    assert int((pq.codes[:, -1].int() >> (8 - unused)).max() if unused else 0) == 0


def test_auto_sharing_in_numbers() -> None:
    """F15: 4096 x 4096 at 2 bits: 1/8 of 4 MiB of codes pays for 256 codebooks of 2 KiB."""
    p = Partition.of((4096, 4096), Layout.LINEAR, QuantSpec(d=4, K=256, codebook_share=1 / 8))
    assert (p.groups, p.groups_per_codebook, p.codebooks) == (1024, 4, 256)


def test_every_clause_has_a_test() -> None:
    """And the tests name no clause that does not exist."""
    clauses = re.findall(r"^- \*\*(F\d+)\*\*", FORMAT.read_text(), re.MULTILINE)
    assert set(clauses) == {f"F{number}" for number in range(1, len(clauses) + 1)}
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_artifact*.py"))
    named = set(re.findall(r"\bF(\d+)\b(?=[,:. ]| to )", tests))
    assert {f"F{number}" for number in named if int(number) < 40} == set(clauses)


def test_the_text_states_the_limits_of_the_code() -> None:
    """F1, F4, F5, F8, F9, F11, F21: numbers in FORMAT.md are those that are enforced."""
    text = re.sub(r"\s+", " ", FORMAT.read_text())
    from dpq_core.artifact import entries, header

    assert (files.MAX_PATH_BYTES, header.MAX_NAME_BYTES) == (500, 500)
    assert f"at most {manifest.MAX_MANIFEST_BYTES >> 20} MiB" in text
    assert f"at most {manifest.MAX_TENSORS:,}" in text
    assert f"at most {entries.MAX_TEXT_BYTES} bytes" in text
    assert f"at most {header.MAX_HEADER_BYTES:,} bytes" in text
    assert f"plus {header.HEADER_BYTES_PER_TENSOR >> 10} KiB per stored tensor" in text
    assert f"at most {header.MAX_RANK} axes" in text
    assert header.MAX_ELEMENTS == 2**62
    assert set(header.DTYPES) == set(re.search(r"Dtypes: ([A-Z0-9_ ]+)\.", text)[1].split())
    listed = re.search(r"configuration \(`([^`]+)`\)", text)
    assert set(listed[1].split()) == verify.LOADED_SUFFIXES
    assert files.PARTIAL_SUFFIX in text
    assert files.JOURNAL_NAME in text


def test_golden_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 50_000
    assert hashlib.sha256(b"opaque").hexdigest() == GOLDEN_V1["vae/model.safetensors"]
