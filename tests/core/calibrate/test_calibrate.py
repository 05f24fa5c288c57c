"""The calibration loop on a small regression with a dense teacher."""

from __future__ import annotations

import math
import os
import signal
from functools import cache

import pytest
import torch
from calibration_task import SMALL_SPEC, Memory, SmallRegression
from torch import nn

from dpq_core.calibrate.layers import changing, snapshot
from dpq_core.calibrate.loop import Saving, calibrate
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import AdapterError, ArtifactError, SourceError, SpecError
from dpq_core.run import Run
from dpq_core.spec import PoolSpec

pytestmark = pytest.mark.slow  # whole runs of a job

SELDOM = {"every": 6, "validate_every": 10, "statistics_batches": 2}
"""E-steps and validations so seldom that most of a run is training."""

SHORT = CalibrateSettings(steps=30, mode="end", block_batches=4, **SELDOM)


def run(task: SmallRegression, settings: CalibrateSettings = SHORT, **options):
    return calibrate(task, settings, checkpoint=Memory(task.teacher()), **options)


def loss(task: SmallRegression) -> float:
    with torch.no_grad():
        return sum(float(task.loss(batch)) for batch in task.validation()) / 4


@pytest.mark.parametrize("mode", ["block", "end", "both", "auto"])
def test_it_recovers_what_compressing_lost(mode):
    task = SmallRegression()
    before = loss(task)
    report = run(task, CalibrateSettings(steps=40, mode=mode, block_batches=4, **SELDOM))
    assert report.before == pytest.approx(before)
    assert report.after == pytest.approx(loss(task))
    assert report.recovered == pytest.approx((before - report.after) / before)
    assert report.recovered > 0.6
    assert report.steps == {"block": 80, "end": 40, "both": 80, "auto": 80}[mode]


@pytest.mark.parametrize(
    "changes",
    [
        {"K": 16, "stages": 2},
        {"pool": PoolSpec(method="wkmeans", size=64)},
        {"codebook_dtype": "int8"},
        {"group_scale": True, "permute": True},
        {"transform": "rht"},
        {"orientation": "output"},
        {"row_scale": False, "d": 3},
    ],
    ids=lambda c: "+".join(c),
)
def test_every_stored_form_can_be_calibrated(changes):
    task = SmallRegression(1, spec=SMALL_SPEC.replace(**changes))
    report = run(task)
    assert report.recovered > 0.3
    for module in task.student.modules():
        if hasattr(module, "pq"):
            torch.testing.assert_close(module.pq().decode(), module.decode())


def test_the_result_is_what_will_be_stored():
    """Rounded to the stored dtypes: packing and loading it changes nothing."""
    task = SmallRegression()
    run(task)
    for module in task.student.modules():
        if hasattr(module, "pq"):
            assert torch.equal(module.pq().decode(), module.decode())


def test_the_best_state_is_kept_and_the_first_one_counts():
    """A hopeless learning rate: nothing is better than the student as it came."""
    task = SmallRegression()
    start = snapshot(task.student)
    settings = CalibrateSettings(
        steps=20, mode="end", lr=0.05, estep="none", warm_start=False, clip=0
    )
    report = run(task, settings)
    assert max(v.loss for v in report.validations) > report.before
    assert report.after == report.before
    now = changing(task.student)
    assert all(torch.equal(now[name], value) for name, value in start.items())


def test_it_stops_when_validations_stop_improving():
    task = SmallRegression()
    settings = CalibrateSettings(
        steps=100, mode="end", lr=0.05, patience=3, validate_every=2, estep="none"
    )
    assert run(task, settings).steps == 6


def test_the_same_seed_gives_the_same_student():
    first, second = SmallRegression(), SmallRegression()
    one, two = run(first), run(second)
    assert one.esteps == two.esteps
    now = changing(second.student)
    assert all(torch.equal(now[n], v) for n, v in changing(first.student).items())


class Interrupted(SmallRegression):
    """Ctrl-C in the middle of a step."""

    at = -1

    def train_batch(self, step):
        if step == self.at:
            self.at = -1
            os.kill(os.getpid(), signal.SIGINT)
        return super().train_batch(step)


def twenty_steps(mode):
    return CalibrateSettings(steps=20, mode=mode, block_batches=4, every=5, validate_every=4)


@cache
def uninterrupted(mode):
    """The report of a whole run, and what it leaves in the student."""
    task = SmallRegression()
    return run(task, twenty_steps(mode)), snapshot(task.student)


@pytest.mark.parametrize(("mode", "at"), [("end", 0), ("end", 13), ("both", 3), ("both", 13)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, mode, at):
    settings = twenty_steps(mode)
    expected, values = uninterrupted(mode)
    task = Interrupted()
    task.at = at
    with pytest.raises(KeyboardInterrupt, match=r"state is kept; use resume=True to continue"):
        run(task, settings, saving=Saving(folder=tmp_path / "state"))
    again = Interrupted()
    resumed = run(again, settings, saving=Saving(folder=tmp_path / "state", resume=True))
    assert resumed.steps == expected.steps
    assert resumed.validations == expected.validations
    assert resumed.esteps == expected.esteps
    assert resumed.after == expected.after
    now = changing(again.student)
    assert all(torch.equal(now[name], value) for name, value in values.items())


def test_states_are_saved_on_the_way(tmp_path):
    settings = CalibrateSettings(steps=20, mode="end", save_every=8, **SELDOM)
    saving = Saving(folder=tmp_path / "state")
    expected = run(SmallRegression(), settings, saving=saving)
    again = run(SmallRegression(), settings, saving=Saving(folder=tmp_path / "state", resume=True))
    assert again.validations == expected.validations
    assert again.after == expected.after


@pytest.mark.parametrize("change", ["settings", "identity"])
def test_the_state_of_another_run_is_refused(tmp_path, change):
    identity = ""
    run(SmallRegression(), CalibrateSettings(steps=9, save_every=3), saving=Saving(folder=tmp_path))
    if change == "settings":
        settings = CalibrateSettings(steps=9, save_every=4)
    else:
        settings, identity = CalibrateSettings(steps=9, save_every=3), "other data"
    saving = Saving(folder=tmp_path, resume=True, identity=identity)
    with pytest.raises(ArtifactError, match="is the state of another run") as caught:
        run(SmallRegression(), settings, saving=saving)
    assert "\n" not in str(caught.value)


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ArtifactError, match="not a readable state"):
        run(SmallRegression(), SHORT, saving=Saving(folder=tmp_path, resume=True))


class Poisoned(SmallRegression):
    """One bad batch."""

    def train_batch(self, step):
        batch = super().train_batch(step)
        return {**batch, "y": batch["y"] * math.nan} if step == 30 else batch


def test_a_loss_that_is_not_finite_is_one_line_and_the_best_state_is_kept():
    task = Poisoned()
    before = loss(task)
    settings = CalibrateSettings(steps=60, mode="end", estep="none", validate_every=6)
    with pytest.raises(SpecError, match=r"loss is not finite at .*; lower lr") as caught:
        run(task, settings)
    assert "\n" not in str(caught.value)
    assert loss(task) < 0.7 * before


def test_codes_change_within_the_limit_and_stand_still_at_the_end():
    task = SmallRegression()
    settings = CalibrateSettings(steps=100, mode="end", limit=0.01)
    report = run(task, settings)
    codes = [e for e in report.esteps if e.what == "codes"]
    assert len({e.step for e in codes}) >= 16
    assert max(e.step for e in codes) < 80
    assert codes[0].step == 0
    assert codes[0].changed > 0.01 * codes[0].total
    late = [e for e in codes if e.step >= 50]
    assert late
    assert all(e.changed <= 0.01 * e.total for e in late)
    assert any(e.changed for e in late)


def test_an_estep_that_raises_the_loss_is_taken_back():
    report = run(SmallRegression(), CalibrateSettings(steps=60, mode="end"))
    assert all(e.kept == (e.after <= e.before) for e in report.esteps)
    assert {e.kept for e in report.esteps} == {True, False}


def test_without_esteps_and_warm_start_codes_stand_still():
    task = SmallRegression()
    before = snapshot(task.student)
    settings = CalibrateSettings(steps=30, mode="end", estep="none", warm_start=False, **SELDOM)
    report = run(task, settings)
    assert report.esteps == ()
    assert report.recovered > 0.2
    now = changing(task.student)
    same = {name: torch.equal(now[name], value) for name, value in before.items()}
    assert all(same[name] == name.endswith("codes") for name in same if "codes" in name)
    assert not same["0.up.weight.codebooks"]


def test_the_warm_start_helps_before_the_first_step():
    report = run(SmallRegression(), CalibrateSettings(steps=2, mode="end", estep="none"))
    (start,) = report.esteps
    assert start.what == "codebooks"
    assert start.after < 0.8 * start.before


def test_without_original_weights_only_codewords_are_trained():
    task = SmallRegression()
    report = calibrate(task, SHORT)
    assert all(e.total == 0 for e in report.esteps)
    assert report.recovered > 0.3


def test_progress_says_how_far_it_came():
    seen = []
    task = SmallRegression()
    run(task, CalibrateSettings(steps=20, mode="both"), run=Run(progress=lambda *a: seen.append(a)))
    texts = [text for text, _, _ in seen]
    assert any(text.startswith("block 1 of 2: loss ") for text in texts)
    assert "end to end: loss " in texts[-2]
    assert "% recovered" in texts[-2]
    assert "of codes changed" in texts[-2]
    assert "dead" in texts[-2]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert {total for _, _, total in seen} == {40}


def test_decoding_again_in_the_backward_pass_gives_the_same():
    plain, again = SmallRegression(), SmallRegression()
    settings = {"steps": 6, "mode": "both", "block_batches": 2}
    run(plain, CalibrateSettings(**settings, recompute=False))
    run(again, CalibrateSettings(**settings, recompute=True))
    now = changing(again.student)
    for name, value in changing(plain.student).items():
        torch.testing.assert_close(now[name], value)
    assert all("forward" not in vars(m) for m in again.student.modules())


class Nothing(SmallRegression):
    """A student without anything to train."""

    def __init__(self) -> None:
        super().__init__()
        self.student.requires_grad_(False)


def test_a_frozen_student_is_refused():
    with pytest.raises(SpecError, match="no parameter that can be trained"):
        run(Nothing())


def test_blocks_are_refused_where_there_are_none():
    with pytest.raises(AdapterError, match="Regression has no blocks with a teacher"):
        run(SmallRegression(blockwise=False), CalibrateSettings(steps=5, mode="block"))


def test_another_models_weights_are_refused():
    task = SmallRegression()
    other = Memory(nn.Linear(3, 3))
    with pytest.raises(SourceError, match=r"'0.up.weight' of the artifact has shape \[32, 16\]"):
        calibrate(task, SHORT, checkpoint=other)
