"""Calibration of whole scenes: the loop's contract, bytes, determinism, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from splat_views import take_photographs, visible_scene, write_cameras

from dpq_core.artifact.single_writer import complete, size_of, write
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import SourceError
from dpq_core.jobs.calibrate import CalibrateOptions as LoopOptions
from dpq_core.jobs.calibrate import calibrate_artifact
from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.calibration.task import _THRIFT, SceneTask, calibration
from dpq_gaussian.cameras import held_out, read_cameras
from dpq_gaussian.cameras.photographs import photograph
from dpq_gaussian.codec import Encoded, SceneFile
from dpq_gaussian.evaluation.metrics import psnr
from dpq_gaussian.formats import write_scene
from dpq_gaussian.loading import load_scene
from dpq_gaussian.options import CalibrateOptions, CompressOptions
from dpq_gaussian.rendering import RenderOptions, Splats, render

pytestmark = pytest.mark.slow  # whole runs of a job

RUN = Run(device="cpu")
PQ = {"harmonics": "pq", "harmonics_spec": "d=3,K=16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``scene.ply`` with 33 photographs, and ``raw.dpq``, coarsely compressed."""
    scene = visible_scene()
    write_cameras(tmp_path, 33)
    take_photographs(scene, tmp_path)
    write_scene(scene, tmp_path / "scene.ply", "ply")
    return compressed(tmp_path)


def compressed(folder: Path, **options: Any) -> Path:
    chosen = CompressOptions(**{"quality": 0.2, "preset": "small", **options})
    source, out = str(folder / "scene.ply"), folder / "raw.dpq"
    compress_file(GaussianAdapter(), source, out, overwrite=True, options=chosen, run=RUN)
    return folder


def task_of(folder: Path, *, file: str = "raw.dpq", seed: int = 0, **options: Any) -> SceneTask:
    chosen = CalibrateOptions(cameras=str(folder), **options)
    run = Run(device="cpu", seed=seed)
    return calibration(str(folder / file), str(folder / "scene.ply"), chosen, run)


def calibrated(
    folder: Path, steps: int = 80, out: str = "better.dpq", source: str = "raw.dpq", **options: Any
) -> Any:
    """The report, after ``folder/out`` is written."""
    chosen = LoopOptions(
        settings=CalibrateSettings(steps=steps, lr=1e-4),
        adapter=CalibrateOptions(**{"cameras": str(folder), **options}),
    )
    return calibrate_artifact(GaussianAdapter(), folder / source, folder / out, chosen, RUN)


def held_out_psnr(folder: Path, file: str) -> float:
    scene = load_scene(str(folder / file))
    found = []
    for camera in held_out(read_cameras(folder))[1]:
        drawn = render(scene, camera, RenderOptions(weights=False)).colour.clamp(0, 1)
        found.append(psnr(drawn, photograph(camera, (0, 0, 0))))
    return float(np.mean(found))


class TestTask:
    def test_batches_depend_on_seed_and_step_alone(self, folder: Path) -> None:
        one, same, other = task_of(folder), task_of(folder), task_of(folder, seed=1)
        orders = [
            [tuple(task.train_batch(step)["view"].tolist()) for step in (4, 0, 1, 2, 3)]
            for task in (one, same, other)
        ]
        assert orders[0] == orders[1] != orders[2]

    def test_an_epoch_shows_every_training_view_once(self, folder: Path) -> None:
        task = task_of(folder, batch_size=2)
        shown = [int(i) for step in range(12) for i in task.train_batch(step)["view"]]
        (validation,) = task.validation()
        assert sorted(shown + validation["view"].tolist()) == list(range(28))  # of 33

    def test_the_loss_is_a_mean_over_views(self, folder: Path) -> None:
        task = task_of(folder)
        task.student.eval()
        with torch.no_grad():
            each = [float(task.loss({"view": torch.tensor([i])})) for i in (0, 1, 2)]
            both = float(task.loss({"view": torch.tensor([0, 1, 2])}))
        assert both == pytest.approx(np.mean(each), rel=1e-5)

    def test_what_is_too_large_is_never_the_best(self, folder: Path) -> None:
        task = task_of(folder)
        task.student.eval()
        batch = task.validation()[0]
        with torch.no_grad():
            before = float(task.loss(batch))
            task.student.rate_control.steps += 1
            task.student.color += 5 * torch.randn(
                task.student.color.shape, generator=torch.Generator().manual_seed(0)
            )
            pictures = float(task._pictures(task.student(), batch["view"].tolist()))
            after = float(task.loss(batch))
        assert task.student.encoded(task.student.rounded()).nbytes > task._allowed
        assert before < 1 < after - pictures

    def test_in_training_the_gradient_counts_bytes_and_the_value_does_not(
        self, folder: Path
    ) -> None:
        grads, values = [], []
        for factor in (0.0, 1.0):
            task = task_of(folder)
            task.student.rate_control.value *= factor
            loss = task.loss(task.train_batch(0))
            loss.backward()
            grads.append(task.student.color.grad)
            values.append(loss.item())
        assert values[0] == pytest.approx(values[1])
        difference = (grads[1] - grads[0]).abs()  # type: ignore[operator]
        assert (difference > 0).float().mean() > 0.7

    def test_the_original_is_the_reference(self, folder: Path) -> None:
        with_photographs = task_of(folder)
        student = with_photographs.loss(with_photographs.validation()[0]).item()
        assert 0 < with_photographs.reference_loss() < 0.2 * student
        distilled = task_of(folder, photographs=False)
        assert distilled.reference_loss() == 0
        assert "photographs" in with_photographs.name
        assert "original" in distilled.name

    def test_only_codes_have_an_estep(self, folder: Path) -> None:
        assert not task_of(folder).esteps()
        compressed(folder, **PQ)
        (estep,) = task_of(folder).esteps()
        assert estep.step(1.0, 0.0).total == 3 * len(SceneFile(folder / "raw.dpq"))

    def test_another_scene_is_refused(self, folder: Path) -> None:
        other = Path(folder / "other")
        other.mkdir()
        scene = load_scene(str(folder / "scene.ply")).take(slice(0, 100))
        write_scene(scene, other / "scene.ply", "ply")
        with pytest.raises(SourceError, match=r"was made of another scene than .*other"):
            calibration(str(folder / "raw.dpq"), str(other / "scene.ply"), None, RUN)


class TestWholeRuns:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "steps", "factor"), [({}, 200, 1.1), (PQ, 120, 1.0)], ids=["axes", "pq"]
    )
    def test_held_out_views_improve_and_bytes_do_not_grow(
        self, folder: Path, options: Any, steps: int, factor: float
    ) -> None:
        compressed(folder, **options)
        before = held_out_psnr(folder, "raw.dpq")
        done = calibrated(folder, steps=steps)
        assert held_out_psnr(folder, "better.dpq") > before + 0.3
        assert done.report.after < 0.95 * done.report.before
        assert done.nbytes <= done.nbytes_before
        finer = SceneFile(folder / "better.dpq").parameters
        assert finer == SceneFile(folder / "raw.dpq").parameters.refined(factor)

    @pytest.mark.slow
    def test_pictures_of_the_original_do_as_well(self, folder: Path) -> None:
        before = held_out_psnr(folder, "raw.dpq")
        calibrated(folder, photographs=False)
        assert held_out_psnr(folder, "better.dpq") > before + 0.3

    @pytest.mark.slow
    def test_a_rig_is_set_up_where_no_cameras_are_given(self, folder: Path) -> None:
        done = calibrated(folder, steps=20, cameras="", pixels=32)
        assert done.report.after < done.report.before
        assert done.report.baseline == 0

    def test_the_file_says_what_it_is(self, folder: Path) -> None:
        calibrated(folder, steps=12, finer=1.0)
        raw, better = (SceneFile(folder / n).file.manifest for n in ("raw.dpq", "better.dpq"))
        assert better.source == raw.source
        assert better.items == raw.items
        assert better.parameters == raw.parameters
        assert better.fingerprint != raw.fingerprint
        errors = {a.name: a.errors for a in better.attributes}
        assert errors.keys() == {a.name for a in raw.attributes}
        assert errors != {a.name: a.errors for a in raw.attributes}

    def test_equal_runs_give_equal_bytes_on_any_number_of_threads(self, folder: Path) -> None:
        calibrated(folder, steps=8, out="one.dpq", finer=1.0)
        threads = torch.get_num_threads()
        torch.set_num_threads(2 if threads == 1 else 1)
        try:
            calibrated(folder, steps=8, out="two.dpq", finer=1.0)
        finally:
            torch.set_num_threads(threads)
        contents = {(folder / name).read_bytes() for name in ("one.dpq", "two.dpq")}
        assert len(contents) == 1
        assert (folder / "raw.dpq").read_bytes() not in contents

    def test_a_file_may_be_allowed_to_shrink(self, tmp_path: Path) -> None:
        """Symbols that cost less are taken; the student that came in is already too large."""
        scene = visible_scene(2000)
        write_cameras(tmp_path)
        take_photographs(scene, tmp_path)
        write_scene(scene, tmp_path / "scene.ply", "ply")
        task = task_of(
            compressed(tmp_path, preset="high", quality=0.5), relative_size=0.98, finer=1.0
        )
        task.student.rate_control.steps += 1
        fitted = task.fitted()
        sizes = [task.student.encoded(r).nbytes for r in (task.student.rounded(), fitted)]
        assert 0.9 * sizes[0] < sizes[1] <= task._allowed < 0.985 * sizes[0]
        each = [task.student.encoded(task.student.rounded(t)).nbytes for t in _THRIFT]
        assert sizes[1] == next(size for size in each if size <= task._allowed)
        packed = task.packed()
        assert size_of(packed) <= 0.98 * (tmp_path / "raw.dpq").stat().st_size
        parts = [*packed.whole.values(), *(p for parts in packed.chunked.values() for p in parts)]
        assert sum(map(len, parts)) == sizes[1]

    def test_what_is_calibrated_can_be_calibrated_again(self, folder: Path) -> None:
        first = calibrated(folder, steps=12, finer=1.0)
        assert first.report.after < first.report.before
        again = calibrated(folder, steps=4, source="better.dpq", out="again.dpq")
        assert again.report.before == pytest.approx(first.report.after, rel=1e-5)
        assert again.report.after <= again.report.before

    def test_what_calibration_chose_is_gone_on_from(self, folder: Path) -> None:
        """Only symbols that the encoder chose make place for finer ones."""
        raw = SceneFile(folder / "raw.dpq").parameters
        for steps, factor in ((10, 1.005), (500, 1.25), (1000, 1.5), (9000, 1.5)):
            assert self._begun(folder, steps).parameters == raw.refined(factor)
        assert (
            self._begun(folder, 1000, relative_size=0.8).parameters == raw
        )  # there is enough to shed
        assert self._begun(folder, 1000, relative_size=1.2).parameters == raw.refined(
            1.5 * 1.2**2.5
        )
        calibrated(folder, steps=12, finer=1.0)
        encoded = self._begun(folder, 1000, file="better.dpq")
        assert encoded.parameters == raw
        file = SceneFile(folder / "better.dpq").file
        assert encoded.models == bytes(file.stream("models"))

    def _begun(self, folder: Path, steps: int, **options: Any) -> Encoded:
        task = task_of(folder, **options)
        task.begin(steps)
        return task.student.encoded(task.student.rounded())

    def test_without_steps_the_file_stays_as_it_is(self, folder: Path) -> None:
        task = task_of(folder)
        out = folder / "same.dpq"
        write(out, *complete(task.packed()))
        assert out.read_bytes() == (folder / "raw.dpq").read_bytes()
        task.student.eval()
        (batch,) = task.validation()
        splats = Splats.of(load_scene(str(folder / "raw.dpq")))
        with torch.no_grad():
            wanted = float(task._pictures(splats, batch["view"].tolist()))
            assert float(task.loss(batch)) == pytest.approx(wanted, rel=1e-6)

    def test_a_run_too_short_to_be_of_use_changes_nothing(self, folder: Path) -> None:
        calibrated(folder, steps=1)
        assert (folder / "better.dpq").read_bytes() == (folder / "raw.dpq").read_bytes()


@pytest.mark.slow
def test_the_builtin_needs_no_photographs(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw.dpq", tmp_path / "better.dpq"
    adapter, source = GaussianAdapter(), "builtin:tiny-scene"
    compress_file(adapter, source, raw, options=CompressOptions(preset="small"), run=RUN)
    chosen = LoopOptions(
        settings=CalibrateSettings(steps=9, validate_every=3), adapter=CalibrateOptions(pixels=64)
    )
    done = calibrate_artifact(adapter, raw, out, chosen, RUN)
    assert done.nbytes <= done.nbytes_before
    assert done.report.after <= done.report.before
    assert len(load_scene(str(out))) == len(load_scene(str(raw)))
