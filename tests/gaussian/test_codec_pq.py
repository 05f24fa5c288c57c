"""Product quantization of the harmonics: bounds, weights, chunks, determinism, hostile files."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import dpq
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_files import changed, make_scene
from strategies import changes, damaged

from dpq_core.artifact import ArtifactFile
from dpq_core.artifact.entropy import stored as entropy_stored
from dpq_core.artifact.entropy import varint
from dpq_core.artifact.entropy.coding import Table
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.jobs.compress_file import compress_file
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.codec import Encoded, SceneFile, codebooks, decode_scene, encode, models
from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.layout import streams_of
from dpq_gaussian.codec.parameters import parameters_from_json, parameters_to_json
from dpq_gaussian.formats import write_scene
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.policy import PQ_SPEC
from dpq_gaussian.scene import Scene

GOLDEN = Path(__file__).parents[1] / "golden" / "gaussian-v1" / "scene-pq.dpq"
GOLDEN_SHA256 = "d5411c6735b3d6adaefdf53dd4aed371d6f38ccf8b78d3b335ff6ee0f92f4dc9"
GOLDEN_VALUES = [0.1881103515625, 0.1846923828125, 0.1171875, 0.062744140625, 0.046630859375]
"""Of its eighth Gaussian, the first four and the last harmonic."""


def options(text: str = "") -> CompressOptions:
    return CompressOptions(harmonics="pq", harmonics_spec=text)


def encoded(scene: Scene, text: str = "", importance: Any = None) -> Encoded:
    seen = np.ones(len(scene), np.float32) if importance is None else importance
    return encode(scene, seen, options(text).policy())


def harmonics(found: Encoded) -> np.ndarray:
    """As decoded, in the order of the source."""
    back = np.concatenate([chunk.sh_rest for chunk in UnwrittenScene(found)])
    return back[np.argsort(found.order)]


def compressed(ply: Path, name: str = "a.dpq", text: str = "") -> Path:
    out = ply.with_name(name)
    compress_file(GaussianAdapter(), str(ply), out, options=options(text))
    return out


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    path = tmp_path / "scene.ply"
    write_scene(make_scene(500), path, "ply")
    return path


@pytest.mark.parametrize("layout", ["channel", "spatial"])
@pytest.mark.parametrize("d", [1, 4, 9, 15, 45])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_as_many_codewords_as_gaussians_lose_nothing(layout: str, d: int, degree: int) -> None:
    """G11: K is clamped to the number of subvectors; what is left is the rounding to float16."""
    scene = make_scene(60, degree=degree)
    plain = KMeansSpec(noise_power=0)
    wanted = dataclasses.replace(PQ_SPEC, d=d, K=65_536, conv_layout=layout, kmeans=plain)
    policy = dataclasses.replace(options().policy(), harmonic_spec=wanted)
    found = encode(scene, np.ones(60, np.float32), policy)
    spec = found.parameters.harmonic_spec
    assert spec is not None
    assert (spec.d, spec.K) == (min(d, 3 * scene.sh_rest.shape[1]), 60)
    assert np.abs(harmonics(found) - scene.sh_rest).max() < 1e-3


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    K=st.integers(2, 40),
    d=st.integers(1, 45),
    degree=st.integers(0, 3),
    scope=st.sampled_from(["subspace", "tensor", "1"]),
    seed=st.integers(0, 99),
)
def test_each_gaussian_gets_its_nearest_codewords(
    K: int, d: int, degree: int, scope: str, seed: int
) -> None:
    """G11: no codeword of the file is nearer; the plain formula gives the decoder's values."""
    scene = make_scene(80, degree=degree, seed=seed)
    found = encoded(scene, f"d={d},K={K},scope={scope}")
    m, spec = scene.sh_rest.shape[1], found.parameters.harmonic_spec
    if not m:
        assert spec is None
        return
    assert spec is not None
    books = models.unpack(found.models, found.parameters, "here")[1]
    back = harmonics(found).reshape(80, -1)
    source = scene.sh_rest.reshape(80, -1)
    groups = -(-3 * m // spec.d)
    sharing = groups if scope != "subspace" else 1
    for group in range(groups):
        place = slice(group * spec.d, min(3 * m, (group + 1) * spec.d))
        width = place.stop - place.start
        distance = np.square(source[:, None, place] - books[group // sharing][:, :width]).sum(2)
        lost = np.square(source[:, place] - back[:, place]).sum(1)
        assert (lost <= distance.min(1) * (1 + 1e-4) + 1e-6).all()


def test_what_is_seen_is_kept_best() -> None:
    """Codebooks follow importance: each half is better off when it is the one that is looked at."""
    scene = make_scene(400)
    errors = []
    for half in (slice(0, 200), slice(200, 400)):
        seen = np.full(400, 0.05, np.float32)
        seen[half] = 1.4
        lost = np.square(harmonics(encoded(scene, "d=15,K=32", seen)) - scene.sh_rest)
        errors.append([lost[:200].mean(), lost[200:].mean()])
    assert errors[0][0] < 0.8 * errors[1][0]
    assert errors[1][1] < 0.8 * errors[0][1]


def test_large_scenes_learn_from_a_weighted_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "_SAMPLE", 100)
    scene, seen = make_scene(1000), np.full(1000, 0.05, np.float32)
    seen[:50] = 3
    rows, weights = codebooks._sampled(seen)
    assert len(rows) <= weights.sum() == 100
    assert weights[rows < 50].sum() > 95
    lost = np.square(harmonics(encoded(scene, "d=45,K=64", seen)) - scene.sh_rest).mean(axis=(1, 2))
    assert lost[:50].mean() < 0.2 * lost[50:].mean()


@pytest.mark.slow
def test_more_codewords_and_subspaces_lose_less() -> None:
    """From 16 codewords to 4,096, which are clamped to one for each Gaussian."""
    scene = make_scene(2000)

    def lost(text: str) -> float:
        return float(np.square(harmonics(encoded(scene, text)) - scene.sh_rest).mean())

    losses = [lost(f"d=15,K={K}") for K in (16, 256, 1024, 4096)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6 < losses[-2]
    assert lost("d=9,K=256") < lost("d=15,K=256") < lost("d=45,K=256")


def test_chunks_decode_alone(ply: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: any chunk equals the slice of the whole."""
    for module in ("compress", "codec.encoding", "codec.decoding", "codec.layout"):
        monkeypatch.setattr(f"dpq_gaussian.{module}.CHUNK", 64)
    path = compressed(ply, text="d=15,K=64")
    whole, file = decode_scene(path), SceneFile(path)
    assert file.chunks > 4
    for index in reversed(range(file.chunks)):
        part = whole.sh_rest[64 * index : 64 * index + 64]
        assert np.array_equal(file.chunk(index).sh_rest, part)


@pytest.mark.slow
def test_equal_scenes_give_equal_bytes(tmp_path: Path) -> None:
    """S10: also with another number of threads, where there is work for them."""
    write_scene(make_scene(6000), tmp_path / "scene.ply", "ply")
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            path = compressed(tmp_path / "scene.ply", f"{count}.dpq", "d=15,K=256")
            found.append(path.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_other_attributes_are_as_with_transform_coding(ply: Path) -> None:
    """The mode changes the harmonics alone; the fingerprint tells the two apart."""
    path = compressed(ply)
    compress_file(GaussianAdapter(), str(ply), ply.with_name("t.dpq"))
    first, second = decode_scene(path).arrays(), decode_scene(ply.with_name("t.dpq")).arrays()
    same = [name for name in first if np.array_equal(first[name], second[name])]
    assert same == [name for name in first if name != "sh_rest"]
    manifests = [ArtifactFile.open(p).manifest for p in (path, ply.with_name("t.dpq"))]
    assert manifests[0].fingerprint != manifests[1].fingerprint
    assert "harmonic_spec" not in manifests[1].parameters
    spec = {a.name: a for a in manifests[0].attributes}["harmonics"].spec
    assert spec == manifests[0].parameters["harmonic_spec"]
    done = KMeansSpec(init="random")  # what was left open is settled
    assert QuantSpec.from_json(spec) == PQ_SPEC.replace(K=manifests[0].items, kmeans=done)


def hostile_specs() -> dict[str, tuple[dict[str, Any], str]]:
    good = PQ_SPEC.to_json()
    return {
        "K": (good | {"K": 1 << 20}, "K must be 2..65536"),
        "d": (good | {"d": 46}, "need d up to that"),
        "d of no number": (good | {"d": True}, "d must be"),
        "huge": (good | {"codebook_share": 10**400}, "harmonic_spec"),
        "unknown key": (good | {"bad\nkey": 1}, "unknown key"),
        "missing key": ({k: v for k, v in good.items() if k != "seed"}, "is missing"),
        "scope": (good | {"scope": 99}, "scope asks for 99 codebooks"),
        "auto": (good | {"scope": "auto"}, "scope of subspace"),
        "row scale": (good | {"row_scale": True}, "need row_scale=false"),
        "dtype": (good | {"codebook_dtype": "float32"}, "need codebook_dtype=float16"),
        "orientation": (good | {"orientation": "output"}, "need orientation=input"),
        "version": (good | {"version": 9}, "version 9 is not known"),
        "kmeans": (good | {"kmeans": 3}, "kmeans"),
        "null": (None, "not of type dict"),
    }


@pytest.mark.parametrize("name", hostile_specs())
def test_a_hostile_spec_is_one_line(name: str) -> None:
    """G11."""
    value, message = hostile_specs()[name]
    data = parameters_to_json(encoded(make_scene(60)).parameters)
    with pytest.raises(ArtifactError, match=message) as caught:
        parameters_from_json(data | {"harmonic_spec": value}, "file")
    assert "\n" not in str(caught.value)


def test_hostile_codebooks_are_one_line() -> None:
    """G11: too few, not finite, codes beyond K, or tables without end."""
    found = encoded(make_scene(60), "d=15,K=16")
    body = zlib.decompress(found.models)
    books = 3 * 16 * 15
    unpack = models.unpack
    nan = b"\0" * books + b"\x7e" * books
    with pytest.raises(ArtifactError, match="codebooks hold NaN or infinite"):
        unpack(zlib.compress(nan + body[2 * books :]), found.parameters, "file")
    with pytest.raises(ArtifactError, match="file: truncated"):
        unpack(zlib.compress(body[:books]), found.parameters, "file")
    spec = found.parameters.harmonic_spec
    assert spec is not None
    smaller = dataclasses.replace(found.parameters, harmonic_spec=spec.replace(K=8))
    halves = np.frombuffer(body[: 2 * books], np.uint8).reshape(2, 3, 16, 15)[:, :, :8]
    with pytest.raises(ArtifactError, match=r"'code0': its symbols are not all in 0\.\.7"):
        unpack(zlib.compress(halves.tobytes() + body[2 * books :]), smaller, "file")


def test_the_tables_of_all_codes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = encoded(make_scene(60), "d=15,K=16")
    monkeypatch.setattr(models, "MAX_LUT_BYTES", 1 << 13)
    with pytest.raises(ArtifactError, match="the tables of all codes are too many"):
        models.unpack(found.models, found.parameters, "file")


def test_look_up_tables_are_bounded_by_the_bytes_that_ask_for_them() -> None:
    """G3: a table of one symbol is four bytes before they are deflated, and 8 kB in memory."""
    found = encoded(make_scene(60), "d=15,K=16")
    body = zlib.decompress(found.models)
    names = models.sequences(found.parameters)
    tables = 2 * 3 * 16 * 15
    one = entropy_stored.from_reader(varint.Reader(body[tables:], "x"), "x")
    constant = Table(symbols=np.zeros(1, np.int32), frequencies=np.array([1 << 12]))
    bomb = entropy_stored.to_bytes(dataclasses.replace(one, tables=(constant,) * 4096))
    hostile = zlib.compress(body[:tables] + bomb * len(names), 9)
    with pytest.raises(ArtifactError, match=r"the tables so far are too many for [0-9,]+ bytes"):
        models.unpack(hostile, found.parameters, "file")


def test_values_that_float16_cannot_hold() -> None:
    scene = make_scene(30)
    large = changed(scene, sh_rest=scene.sh_rest * np.float32(1e30))
    assert np.isfinite(harmonics(encoded(large))).all()
    assert np.array_equal(
        harmonics(encoded(changed(scene, sh_rest=scene.sh_rest * 0))), 0 * scene.sh_rest
    )


@settings(max_examples=40, deadline=None)
@given(made=changes(3))
def test_no_damage_does_more_than_raise(made: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    """G10: flipped bytes are one line, or a scene of the right length."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz-pq.dpq"
    if not path.exists():
        write_scene(make_scene(60), folder / "fuzz-pq.ply", "ply")
        compressed(folder / "fuzz-pq.ply", "fuzz-pq.dpq", "d=15,K=16")
    broken = folder / "damaged-pq.dpq"
    broken.write_bytes(damaged(path.read_bytes(), made))
    try:
        assert len(decode_scene(broken)) == ArtifactFile.open(broken).manifest.items
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_the_golden_file_decodes_as_ever() -> None:
    """G11: a file of codec version 1."""
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    scene = decode_scene(GOLDEN)
    assert len(scene) == 39
    assert scene.sh_rest.reshape(39, 45)[7][[0, 1, 2, 3, 44]].tolist() == GOLDEN_VALUES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harmonics": "vq"}, "harmonics='vq': must be one of transform, pq"),
        (
            {"harmonics_spec": "K=16"},
            "harmonics_spec: is for .*; give harmonics='pq' with it",
        ),
        ({"harmonics": "pq", "harmonics_spec": "K=1"}, "harmonics_spec: spec: K must be 2"),
        ({"harmonics": "pq", "harmonics_spec": "d=46"}, "harmonics_spec: harmonics of 45"),
        ({"harmonics": "pq", "harmonics_spec": "words=2"}, "unknown key words"),
        ({"harmonics": "pq", "harmonics_spec": "row_scale=true"}, "need row_scale=false"),
        ({"harmonics": "pq", "harmonics_spec": "keep"}, "harmonics_spec: write fields"),
        (
            {"harmonics": "pq", "attribute": ("harmonics=2",)},
            "harmonics by pq have no steps",
        ),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CompressOptions(**changes)


def test_the_command_line(ply: Path) -> None:
    out = ply.with_suffix(".dpq")
    words = ("compress", ply, "-a", "gaussian", "-o", out, "--harmonics", "pq")
    made = dpq(*words, "--harmonics-spec", "d=9,K=64", "--json")
    assert made.code == 0, made.err
    file = SceneFile(out)
    assert streams_of(file.parameters)["harmonics"] == tuple(f"code{i}" for i in range(5))
    assert dpq("inspect", out, "--verify", "--json").json["verified"] == {"hashes": "match"}
    bad = dpq(*words, "--harmonics-spec", "K=1", "--overwrite")
    assert bad.code in (1, 2)
    assert "K must be 2..65536" in " ".join(bad.err.split())
