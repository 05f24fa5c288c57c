"""What a calibration says it did: shares, counts and the line of progress."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpq_core.calibrate.report import Assigned, CalibrateReport, note, recovered

STEP = Assigned(
    phase="end to end", step=0, what="codes", before=2.0, after=1.0, kept=True,
    changed=30, total=100, dead=0.25, revived=3,
)  # fmt: skip
TAKEN_BACK = replace(STEP, step=5, kept=False, changed=70, dead=0.5, revived=11)
CODEBOOKS = replace(STEP, step=7, what="codebooks", changed=0, total=0, dead=0.0, revived=0)


def report(*esteps: Assigned, before: float = 4.0, after: float = 2.0, reference: float = 1.0):
    return CalibrateReport(
        loss="distance", before=before, after=after, baseline=reference, steps=8,
        validations=(), esteps=esteps, seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "now", "reference", "share"),
    [
        (4.0, 4.0, 1.0, 0.0),
        (4.0, 2.5, 1.0, 0.5),
        (4.0, 1.0, 1.0, 1.0),
        (4.0, 0.0, 2.0, 2.0),  # better than the model itself
        (1.0, 0.5, 1.0, None),  # compressing had lost nothing
        (1.0, 0.5, 3.0, None),
    ],
)
def test_the_recovered_share_is_of_what_was_lost(before, now, reference, share):
    assert recovered(before, now, reference) == share
    assert report(before=before, after=now, reference=reference).recovered == share


def test_counts_are_of_the_esteps_that_were_kept():
    found = report(STEP, TAKEN_BACK, replace(STEP, step=6, changed=4, revived=2, dead=0.125))
    assert (found.changed, found.revived) == (34, 5)


def test_dead_codewords_are_those_after_the_last_estep_that_counted_and_was_kept():
    assert report(STEP, replace(STEP, dead=0.125), TAKEN_BACK, CODEBOOKS).dead == 0.125
    assert report(TAKEN_BACK, CODEBOOKS).dead == 0.0
    assert report().dead == 0.0


def test_the_line_of_progress_holds_what_is_known():
    assert note("block 1 of 2", 0.123456, None, []) == "block 1 of 2: loss 0.1235"
    assert note("end", 12.0, 0.505, [CODEBOOKS]) == "end: loss 12, 50% recovered"
    assert note("end", 1.5, 0.25, [replace(STEP, changed=1), STEP, CODEBOOKS]) == (
        "end: loss 1.5, 25% recovered, 30.0% of codes changed, 25.0% of codewords dead"
    )
    counted = replace(CODEBOOKS, total=100, changed=50)  # these are no codes
    assert "30.0% of codes changed" in note("end", 1.5, None, [STEP, counted])
    uncounted = replace(STEP, total=0)  # a phase without original weights looks at no codes
    assert note("end", 1.5, None, [STEP, uncounted]).count("30.0% of codes changed") == 1


def test_an_estep_without_counts_has_changed_nothing():
    bare = Assigned(phase="end", step=0, what="codes", before=1.0, after=1.0, kept=True)
    assert (bare.changed, bare.total, bare.dead, bare.revived) == (0, 0, 0.0, 0)
    assert (bare.gradient, bare.perplexity) == (False, 1.0)
