"""The codec of splat scenes: round trips, bounds, chunks, determinism, degenerate scenes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_files import make_scene
from strategies import changes, damaged

import dpq_gaussian.codec
from dpq_core.artifact import ArtifactFile
from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.cameras.surrounding import surrounding_cameras
from dpq_gaussian.codec import SceneFile, decode_scene, encode, iter_chunks, parameters
from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.distortion import measure
from dpq_gaussian.codec.encoding import encode_again
from dpq_gaussian.codec.parameters import parameters_from_json, parameters_to_json
from dpq_gaussian.codec.positions import to_grid
from dpq_gaussian.codec.rotations import quaternions, sorted_axes, turns
from dpq_gaussian.formats import write_scene
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.policy import ATTRIBUTES, CLASSES, PRESETS
from dpq_gaussian.rendering.importance import importance
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.morton import morton_order

pytestmark = pytest.mark.portable

GOLDEN = Path(__file__).parents[1] / "golden" / "gaussian-v1" / "scene.dpq"
GOLDEN_SHA256 = "c07aed1294d3a488f9248aaef6ddebb2e34287a5acf0fd2c2a38bd8aec3c2aa5"
GOLDEN_VALUES = {  # of its eighth Gaussian, the first four
    "positions": [-1.844211, -0.91522, 0.439762],
    "log_scales": [-2.913574, -4.14624, -4.818604],
    "rotations": [0.842413, -0.218147, -0.123513, 0.476966],
    "opacity_logits": [0.352051],
    "sh_dc": [-0.051367, -0.164419, -0.134352],
    "sh_rest": [0.069351, 0.051411, -0.068728, -0.238616],
}
FORMAT = Path(dpq_gaussian.codec.__file__).with_name("FORMAT.md")


def covariances(scene: Scene) -> np.ndarray:
    logs, axes = sorted_axes(scene.log_scales, scene.rotations)
    return np.einsum("nki,nk,nkj->nij", axes, np.exp(2 * logs), axes)


def decoded(encoded) -> Scene:
    parts = list(UnwrittenScene(encoded))
    return Scene(**{k: np.concatenate([p.arrays()[k] for p in parts]) for k in parts[0].arrays()})


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    path = tmp_path / "scene.ply"
    write_scene(make_scene(500), path, "ply")
    return path


def compressed(ply: Path, name: str = "a.dpq", **options) -> Path:
    out = ply.with_name(name)
    compress_file(GaussianAdapter(), str(ply), out, options=CompressOptions(**options))
    return out


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 300),
    degree=st.integers(0, 3),
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 99),
)
def test_errors_stay_within_the_steps(count: int, degree: int, preset: str, seed: int) -> None:
    """G5, G6, G8: half a step of the Gaussian's class, whatever the scene."""
    scene = make_scene(count, degree=degree, seed=seed)
    seen = np.exp(np.random.default_rng(seed).normal(-1, 2, count)).astype(np.float32)
    encoded = encode(scene, seen, PRESETS[preset])
    back, source = decoded(encoded), scene.take(encoded.order)
    assert back.sh_rest.shape == source.sh_rest.shape
    p, classes = encoded.parameters, encoded.classes
    logits = np.abs(back.opacity_logits - np.clip(source.opacity_logits, -9, 9))
    assert (logits <= np.array(p.opacity_units)[classes] / 8192 + 1e-5).all()
    logs = sorted_axes(source.log_scales, source.rotations)[0]
    half = np.array(p.scale_units)[classes] / 8192
    assert (np.abs(back.log_scales - logs) <= half[:, None] + 1e-4).all()
    colors = np.linalg.norm(back.sh_dc - source.sh_dc, axis=1)
    assert (colors <= np.sqrt(3) * np.array(p.color_units)[classes] / 8192 + 1e-4).all()
    moved = np.abs(back.positions.astype(np.float64) - source.positions)
    rounding = np.abs(source.positions).max() * 2.0**-23
    assert moved.max() <= p.cube[3] / 2.0 ** (p.depth_least + 1) * 1.0001 + rounding


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_fine_policy_gives_the_scene_back(degree: int) -> None:
    """G7, G9: covariances and harmonics included, up to small relative errors."""
    scene = make_scene(400, degree=degree)
    policy = PRESETS["high"].refined(dict.fromkeys(ATTRIBUTES, 60.0), 24)
    encoded = encode(scene, np.ones(400, np.float32), policy)
    back, source = decoded(encoded), scene.take(encoded.order)
    before, after = covariances(source), covariances(back)
    sizes = np.linalg.norm(before, axis=(1, 2))
    assert (np.linalg.norm(before - after, axis=(1, 2)) < 0.02 * sizes).all()
    assert np.abs(back.sh_rest - source.sh_rest).max(initial=0) < 0.05
    assert np.abs(back.positions - source.positions).max() < 1e-5 * encoded.parameters.cube[3]


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.5, 4.0])
def test_finer_parameters_lower_every_error_and_are_valid(factor: float) -> None:
    scene = make_scene(300)
    seen = np.ones(len(scene), np.float32)
    coarse = encode(scene, seen, PRESETS["small"])
    finer = coarse.parameters.refined(factor)
    assert parameters_from_json(parameters_to_json(finer), "x") == finer
    edge = dataclasses.replace(
        coarse.parameters, rotation_offsets=(64,) * 8, opacity_units=(1,) * 8
    )
    assert parameters_from_json(parameters_to_json(edge.refined(factor)), "x") == edge.refined(
        factor
    )
    order, classes = coarse.order, coarse.classes
    corner, side = np.array(finer.cube[:3]), finer.cube[3]
    ordered = scene.take(order)
    grid = to_grid(np.ascontiguousarray(ordered.positions), corner, side)
    again = encode_again(ordered, grid, classes, finer, np.zeros((0, 0), np.float32))
    errors = [measure(scene, coarse), measure(ordered, again)]
    if factor == 1.0:
        assert again.models == coarse.models
        assert again.chunked == coarse.chunked
    for name in errors[0]:
        if factor >= 1.5:
            assert errors[1][name]["rms"] < 0.9 * errors[0][name]["rms"], name


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_a_rotation_survives_its_three_symbols(seed: int) -> None:
    """G7: the axes come back to within the grid, up to their signs."""
    generator = np.random.default_rng(seed)
    scales = generator.normal(size=(20, 3)).astype(np.float32)
    logs, axes = sorted_axes(scales, generator.normal(size=(20, 4)).astype(np.float32))
    disc = generator.random(20) < 0.5
    grid, spins = np.full(20, 200.0), np.full(20, 600)
    symbols = turns(axes, disc, grid, spins)
    back = sorted_axes(logs.astype(np.float32), quaternions(symbols, disc, grid, spins))[1]
    assert (np.abs(np.einsum("nki,nki->nk", axes, back)) > 1 - 1e-4).all()


def test_chunks_decode_alone(ply: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: any chunk equals the slice of the whole; so do all in turn."""
    monkeypatch.setattr("dpq_gaussian.compress.CHUNK", 64)  # first: its import copies layout's
    for module in ("encoding", "decoding", "layout"):
        monkeypatch.setattr(f"dpq_gaussian.codec.{module}.CHUNK", 64)
    path = compressed(ply)
    whole, file = decode_scene(path), SceneFile(path)
    assert file.chunks == -(-len(whole) // 64)
    for index in reversed(range(file.chunks)):
        part = whole.take(slice(64 * index, 64 * index + 64))
        for name, array in file.chunk(index).arrays().items():
            assert np.array_equal(array, part.arrays()[name]), name
    assert sum(map(len, iter_chunks(path))) == len(whole)


def test_equal_scenes_give_equal_bytes(ply: Path) -> None:
    """S10: also with another number of threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = compressed(ply, "1.dpq").read_bytes()
        torch.set_num_threads(3)
        second = compressed(ply, "2.dpq").read_bytes()
    finally:
        torch.set_num_threads(threads)
    assert first == second


@pytest.mark.slow
def test_presets_differ_in_size_and_error(ply: Path) -> None:
    """Every preset is smaller and coarser than the next; --quality and --attribute follow."""
    sizes, errors = [], []
    for preset in ("small", "balanced", "high"):
        file = ArtifactFile.open(compressed(ply, f"{preset}.dpq", preset=preset))
        sizes.append(file.nbytes)
        errors.append([a.errors["rms"] for a in file.manifest.attributes if a.errors])
    assert sizes == sorted(sizes)
    assert (np.diff(errors, axis=0) <= 0).all()
    fine = compressed(ply, "f.dpq", attribute=("color=8",))
    coarse = compressed(ply, "c.dpq", quality=0.5)
    assert coarse.stat().st_size < sizes[1] < fine.stat().st_size


def test_positions_can_be_given_bits() -> None:
    scene = make_scene(300)
    policy = CompressOptions(position_bits=20).policy()
    encoded = encode(scene, np.ones(300, np.float32), policy)
    moved = np.abs(
        decoded(encoded).positions.astype(np.float64) - scene.take(encoded.order).positions
    )
    assert moved.max() <= encoded.parameters.cube[3] / 2**20


@pytest.mark.parametrize("kind", ["one", "identical", "huge", "tiny", "line", "far"])
def test_degenerate_scenes(kind: str, tmp_path: Path) -> None:
    """One Gaussian, all in one place, extreme sizes, one far away: coded, and decoded finite."""
    scene = make_scene(1 if kind == "one" else 50)
    arrays = {k: np.array(v) for k, v in scene.arrays().items()}
    if kind == "identical":
        arrays = {k: np.repeat(v[:1], 50, axis=0) for k, v in arrays.items()}
    factor = {"huge": 1e30, "tiny": 1e-30}.get(kind, 1.0)
    arrays["positions"] *= np.float32(factor)
    arrays["log_scales"] += np.float32(np.log(factor))
    if kind == "line":
        arrays["positions"][:, 1:] = 0
    if kind == "far":
        arrays["positions"][0] = 1e6
        arrays["opacity_logits"][:] = 1
    write_scene(Scene(**arrays), tmp_path / "s.ply", "ply")
    out = compressed(tmp_path / "s.ply")
    back = decode_scene(out)
    assert all(np.isfinite(v).all() for v in back.arrays().values())
    if kind == "far":  # the others keep their places
        least = back.positions[back.positions[:, 0] < 1e5]
        source = np.sort(arrays["positions"][1:, 0])
        assert np.abs(np.sort(least[:, 0]) - source).max() < 0.2


def test_values_that_cannot_be_coded(tmp_path: Path) -> None:
    arrays = {k: np.array(v) for k, v in make_scene(5).arrays().items()}
    arrays["rotations"][3] = 0
    write_path = tmp_path / "bad.ply"
    good = tmp_path / "good.ply"
    write_scene(make_scene(5), good, "ply")
    raw = bytearray(good.read_bytes())
    raw[-248:-244] = np.float32(np.nan).tobytes()
    write_path.write_bytes(raw)
    with pytest.raises(SourceError, match="positions is NaN or infinite in 1"):
        compressed(write_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ply", "good.ply"]


def test_invisible_gaussians_are_left_out_and_reported(tmp_path: Path) -> None:
    arrays = {k: np.array(v) for k, v in make_scene(40).arrays().items()}
    arrays["opacity_logits"][:] = 1
    arrays["opacity_logits"][5:9] = -8
    write_scene(Scene(**arrays), tmp_path / "s.ply", "ply")
    report = compress_file(GaussianAdapter(), str(tmp_path / "s.ply"), tmp_path / "s.dpq")
    assert (report.manifest.items, report.manifest.source_items) == (36, 40)
    assert any("4 of 40 Gaussians are never drawn" in note for note in report.notes)
    assert len(decode_scene(tmp_path / "s.dpq")) == 36


def test_dry_run_writes_nothing_and_tells_the_size(ply: Path) -> None:
    out = ply.with_name("dry.dpq")
    dry = compress_file(GaussianAdapter(), str(ply), out, dry_run=True)
    assert not out.exists()
    assert compress_file(GaussianAdapter(), str(ply), out).nbytes == dry.nbytes


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "tiny"},
        {"quality": 0.0},
        {"quality": float("nan")},
        {"attribute": ("colour=2",)},
        {"attribute": ("color=x",)},
        {"position_bits": 40},
    ],
)
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(SpecError, match=r": (must be|write NAME=FACTOR|is )"):
        CompressOptions(**options)


def test_importance_follows_what_is_seen() -> None:
    """Faint Gaussians weigh less; the mean square is one, however little the pictures show."""
    arrays = {k: np.array(v) for k, v in make_scene(200).arrays().items()}
    arrays["opacity_logits"][:] = 3
    arrays["opacity_logits"][:20] = -4
    seen = importance(Scene(**arrays))
    assert seen.shape == (200,)
    assert seen[:20].mean() < 0.5 * seen[20:].mean()
    assert abs(np.square(seen).mean() - 1) < 1e-3
    assert len(surrounding_cameras(Scene(**arrays))) == 24


def test_morton_order_sorts_interleaved_bits() -> None:
    grid = np.random.default_rng(0).integers(0, 2**32, (500, 3), dtype=np.uint32)
    grid[250:] = grid[:250] ^ np.array([0, 0, 1], np.uint32)  # differ in the last bit only

    def key(row: np.ndarray) -> str:
        return "".join("".join(bits) for bits in zip(*(f"{int(v):032b}" for v in row), strict=True))

    expected = sorted(range(500), key=lambda i: key(grid[i]))
    assert morton_order(grid).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(made=changes(3))
def test_no_damage_does_more_than_raise(made: list[tuple[int, int]], tmp_path_factory) -> None:
    """G10: flipped bytes are one line, or a scene of the right length."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.dpq"
    if not path.exists():
        write_scene(make_scene(60), folder / "fuzz.ply", "ply")
        compressed(folder / "fuzz.ply", "fuzz.dpq")
    broken = folder / "damaged.dpq"
    broken.write_bytes(damaged(path.read_bytes(), made))
    try:
        assert len(decode_scene(broken)) == ArtifactFile.open(broken).manifest.items
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_the_golden_file_decodes_as_ever() -> None:
    """G1 to G9: a file of codec version 1."""
    raw = GOLDEN.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == GOLDEN_SHA256
    scene = decode_scene(GOLDEN)
    assert len(scene) == 40
    for name, values in GOLDEN_VALUES.items():
        found = scene.arrays()[name].reshape(40, -1)[7][:4]
        assert np.allclose(found, values, atol=2e-6), name


def test_every_clause_has_a_test_or_a_field() -> None:
    """G2, G3 and G4 are what every round trip goes through; for G11 see test_codec_pq.py,
    for G12 test_codec_outliers.py."""
    clauses = re.findall(r"^- \*\*(G\d+)\*\*", FORMAT.read_text(), re.MULTILINE)
    assert clauses == [f"G{n}" for n in range(1, len(clauses) + 1)]
    named = Path(__file__).read_text()
    assert all(re.search(rf"\b{clause}\b", named) for clause in clauses)
    assert parameters.CODEC_VERSION == 1
    assert CLASSES == 8
    assert Run().seed == 0
