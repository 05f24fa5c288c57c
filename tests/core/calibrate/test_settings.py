"""The schedule of a calibration."""

from __future__ import annotations

import itertools

import pytest

from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import SpecError


@pytest.mark.parametrize("steps", [8, 10, 37, 100, 999, 5000])
def test_there_are_at_least_sixteen_esteps_and_none_in_the_last_fifth(steps):
    settings = CalibrateSettings()
    due = [step for step in range(steps) if settings.estep_due(step, steps)]
    assert due[0] == 0
    assert len(due) >= min(16, int(0.8 * steps))
    assert max(due) < 0.8 * steps
    assert all(b - a <= 100 for a, b in itertools.pairwise(due))


def test_long_runs_follow_every():
    settings = CalibrateSettings(every=150)
    assert [s for s in range(4000) if settings.estep_due(s, 4000)] == list(range(0, 3200, 150))


def test_the_limit_holds_in_the_second_half():
    settings = CalibrateSettings(limit=0.02)
    assert settings.limit_at(0) == settings.limit_at(0.49) == 1
    assert settings.limit_at(0.5) == settings.limit_at(0.79) == 0.02


def test_the_learning_rate_warms_up_and_falls():
    settings = CalibrateSettings(warmup=0.1)
    rates = [settings.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 <= rates[-1] < 0.02


def test_a_constant_learning_rate():
    settings = CalibrateSettings(warmup=0, schedule="constant")
    assert {settings.lr_at(step, 50) for step in range(50)} == {1.0}


def test_blocks_get_half_the_steps_beside_end_to_end_training():
    settings = CalibrateSettings(steps=100)
    assert settings.block_steps_in("both") == 50
    assert settings.block_steps_in("block") == 100
    assert CalibrateSettings(block_steps=7).block_steps_in("both") == 7


def test_all_mistakes_are_said_at_once():
    with pytest.raises(SpecError) as caught:
        CalibrateSettings(steps=0, mode="all", estep="best", lr=-1, limit=2, betas=(0.9, 1.0))
    message = str(caught.value)
    for part in (
        "steps must be 1 or more",
        "mode must be one of auto, block, end, both",
        "estep must be one of icm+pv, icm, blockdiag, l2, pv, none",
        "lr must be 0 or more",
        "limit must be 0..1",
        "betas must be in [0, 1)",
    ):
        assert part in message
    assert "\n" not in message
