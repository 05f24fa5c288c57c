"""Scenes for a number of bytes: on disk what was said, and spent where pictures need it."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from cli_runs import dpq
from splat_files import make_scene

from dpq_core.artifact import ArtifactFile
from dpq_core.errors import AdapterError, SpecError
from dpq_core.jobs.compress_file import compress_file
from dpq_core.plugin.adapter import FileAdapter
from dpq_core.run import Run
from dpq_gaussian import budget as byte_budget
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.cameras.surrounding import near_plane, surrounding_cameras
from dpq_gaussian.codec import decode_scene
from dpq_gaussian.compress import encode_prepared, prepare
from dpq_gaussian.formats import write_scene
from dpq_gaussian.loading import load_scene
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.policy import ATTRIBUTES
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene


def written(folder: Path, scene: Scene) -> Path:
    path = folder / "scene.ply"
    write_scene(scene, path, "ply")
    return path


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    return written(tmp_path, make_scene(1500))


def fitted(ply: Path, budget: int, name: str = "fit.dpq", **options):
    out = ply.with_name(name)
    how = CompressOptions(**options)
    return compress_file(GaussianAdapter(), str(ply), out, options=how, budget=budget)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [27_000, 36_000, 60_000])
def test_the_file_is_as_large_as_was_said_and_never_larger(ply: Path, budget: int) -> None:
    report = fitted(ply, budget)
    size = ply.with_name("fit.dpq").stat().st_size
    assert 0.99 * budget <= size <= budget
    assert (report.nbytes, report.budget) == (size, budget)
    ArtifactFile.open(ply.with_name("fit.dpq")).verify()
    assert len(decode_scene(ply.with_name("fit.dpq"))) == report.manifest.items


@pytest.mark.slow
def test_the_options_in_the_note_give_the_same_bytes(ply: Path) -> None:
    (note,) = [n for n in fitted(ply, 40_000).notes if n.startswith("fitted to 40,000 bytes")]
    factors = tuple(re.findall(r"\S+=\S+", note))
    assert [factor.partition("=")[0] for factor in factors] == list(ATTRIBUTES)
    again = ply.with_name("again.dpq")
    options = CompressOptions(attribute=factors)
    compress_file(GaussianAdapter(), str(ply), again, options=options)
    assert again.read_bytes() == ply.with_name("fit.dpq").read_bytes()


@pytest.mark.slow
def test_more_bytes_are_never_spent_on_coarser_steps(ply: Path) -> None:
    def steps(budget: int) -> list[float]:
        attributes = fitted(ply, budget, f"{budget}.dpq").manifest.attributes
        return [a.spec["steps"][-1] for a in attributes if a.spec]

    assert all(fine < coarse for fine, coarse in zip(steps(60_000), steps(30_000), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degree", "options", "budget"),
    [(0, {}, 20_000), (1, {"preset": "small"}, 24_000), (3, {"harmonics": "pq"}, 110_000)],
    ids=["no harmonics", "another preset", "harmonics without steps"],
)
def test_other_scenes_and_options(tmp_path: Path, degree: int, options: dict, budget: int) -> None:
    ply = written(tmp_path, make_scene(1500, degree=degree))
    report = fitted(ply, budget, **options)
    assert 0.99 * budget <= report.nbytes <= budget


@pytest.mark.parametrize("count", [1, 30])
def test_a_few_gaussians_still_fit(tmp_path: Path, count: int) -> None:
    """Most of such a file is its header: nothing can be said of 1 %, but it is never larger."""
    assert fitted(written(tmp_path, make_scene(count)), 9_000).nbytes <= 9_000


@pytest.mark.slow
def test_a_budget_beyond_all_use_takes_the_finest_steps(ply: Path) -> None:
    report = fitted(ply, 10**9)
    assert report.nbytes < 10**6
    errors = {a.name: a.errors.get("rms", 0.0) for a in report.manifest.attributes}
    assert errors["color"] < 2e-3
    assert errors["harmonics"] < 5e-3  # no symbol is too large to be written


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_writes_nothing(ply: Path) -> None:
    with pytest.raises(SpecError, match=r"5,000 bytes are too few; .* it takes \d\d,\d\d\d"):
        fitted(ply, 5_000)
    assert not ply.with_name("fit.dpq").exists()


def test_an_adapter_need_not_be_able_to(ply: Path) -> None:
    class Unfitting(FileAdapter[CompressOptions]):
        name = "unfitting"
        summary = "has no pack_within"
        open = GaussianAdapter.open
        pack = GaussianAdapter.pack

    with pytest.raises(AdapterError, match="cannot fit a file to a number of bytes"):
        compress_file(Unfitting(), str(ply), ply.with_suffix(".dpq"), budget=30_000)


def test_curves_go_through_their_points_and_on() -> None:
    curve = byte_budget.Curve((0.5, 1.0, 2.0), (100.0, 200.0, 800.0), (4.0, 1.0, 0.5))
    assert [curve.at(f).nbytes for f in curve.factors] == pytest.approx([100, 200, 800], abs=1)
    assert [curve.at(f).cost for f in curve.factors] == pytest.approx([4, 1, 0.5])
    assert curve.at(0.25).cost == pytest.approx(16)
    assert curve.at(4.0).nbytes == pytest.approx(3200, abs=1)
    assert curve.at(math.sqrt(2)).nbytes == pytest.approx(400, abs=1)


def test_bytes_go_where_pictures_need_them() -> None:
    """Of two parts that take as many bytes, that which hurts more gets the finer steps."""
    sizes = tuple(10_000 * f**0.4 for f in byte_budget.LEVELS)

    def curve(hurt: float) -> byte_budget.Curve:
        return byte_budget.Curve(
            byte_budget.LEVELS, sizes, tuple(hurt / f**2 for f in byte_budget.LEVELS)
        )

    found = byte_budget.best_factors({"color": curve(1.0), "opacity": curve(64.0)}, 20_000)
    assert found["opacity"] > 2 * found["color"]
    same = byte_budget.best_factors({"color": curve(1.0), "opacity": curve(1.0)}, 20_000)
    assert 0.8 <= same["opacity"] / same["color"] <= 1.25


@pytest.mark.slow
def test_a_sample_is_runs_of_neighbours_and_tells_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(str(written(tmp_path, make_scene(6000))), CompressOptions(), Run())
    base = CompressOptions().policy()
    whole = encode_prepared(prepared, base)
    monkeypatch.setattr(byte_budget, "SAMPLE", 2048)
    monkeypatch.setattr(byte_budget, "RUN", 256)
    picked = byte_budget.sampled_rows(prepared)
    assert prepared.kept is not None
    assert set(picked) <= set(prepared.kept)
    assert 1500 < len(picked) == len(set(picked)) <= 2048
    assert np.all(np.diff(picked) > 0)
    near = np.isin(whole.order, picked)  # in the order of the file: few borders
    assert int((near[1:] != near[:-1]).sum()) <= 2 * 2048 / 256
    found, fixed = byte_budget.measure_curves(prepared, base)
    for name, (_, streams, _) in byte_budget.PARTS.items():
        nbytes = sum(len(part) for stream in streams for part in whole.chunked[stream])
        assert found[name].at(1.0).nbytes == pytest.approx(nbytes, rel=0.1)
    rest = whole.nbytes - sum(curve.at(1.0).nbytes for curve in found.values())
    assert fixed == pytest.approx(rest, rel=0.5)


@pytest.mark.slow
def test_plan_writes_nothing_and_says_what_compress_stores(ply: Path) -> None:
    before = sorted(ply.parent.iterdir())
    words = [ply, "-a", "gaussian", "--target-size", "36KB", "--json"]
    plan = dpq("plan", *words)
    assert plan.code == 0, plan.err
    assert sorted(ply.parent.iterdir()) == before
    made = dpq("compress", *words, "-o", ply.with_suffix(".dpq"))
    assert made.json["nbytes"] == plan.json["nbytes"] == ply.with_suffix(".dpq").stat().st_size
    assert made.json["budget"] == 36_000
    assert made.json["attributes"] == plan.json["attributes"]
    shown = dpq("plan", ply, "-a", "gaussian", "--preset", "small")
    assert shown.code == 0, shown.err
    assert "nothing is written" in " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-size", "2KB"), "2,000 bytes are too few"),
        (("--target-size", "much"), "size 'much' is not understood"),
        (("--target-size", "9KB", "--d", "4"), "has no weights to set bits"),
        (("--steps", "5"), "has no weights to set bits"),
    ],
)
def test_mistakes_are_one_line(ply: Path, words: tuple[str, ...], message: str) -> None:
    done = dpq("compress", ply, "-a", "gaussian", "-o", ply.with_suffix(".dpq"), *words)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert sorted(p.name for p in ply.parent.iterdir()) == ["scene.ply"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "balanced", "high"])
def test_pictures_are_not_worse_than_a_presets_of_as_many_bytes(
    tmp_path: Path, preset: str
) -> None:
    """Seen by cameras that the planner did not look through."""
    whole = load_scene("builtin:tiny-scene")
    middle = np.median(whole.positions, axis=0)
    nearest = np.argsort(np.linalg.norm(whole.positions - middle, axis=1))[:12_000]
    scene = whole.take(np.sort(nearest))
    ply = written(tmp_path, scene)
    fixed = tmp_path / "preset.dpq"
    options = CompressOptions(preset=preset)
    budget = compress_file(GaussianAdapter(), str(ply), fixed, options=options).nbytes
    assert fitted(ply, budget).nbytes <= budget
    how = dataclasses.replace(RenderOptions(), near=near_plane(scene))
    views = [camera.scaled(0.5) for camera in surrounding_cameras(scene)[2::4]]
    wanted = [render(Splats.of(scene), view, how).colour for view in views]

    def psnr(path: Path) -> float:
        splats = Splats.of(decode_scene(path))
        seen = [render(splats, view, how).colour for view in views]
        errors = [float((a - b).square().mean()) for a, b in zip(seen, wanted, strict=True)]
        return -10 * math.log10(sum(errors) / len(errors))

    assert psnr(tmp_path / "fit.dpq") >= psnr(fixed)
