"""benchmarks/compare.py: what counts as better, worse, noise, or not comparable at all."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repo import ROOT

SCRIPT = ROOT / "benchmarks" / "compare.py"
MACHINE = {"cpu": "one", "cores": 2, "load_average": 1.0}


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare"]


def record(results: Any, **changes: Any) -> dict[str, Any]:
    return {"suite": "s", "spec": {"d": 4}, "machine": MACHINE, "results": results, **changes}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("seconds", 10.0, 8.9, "better"),
        ("seconds", 10.0, 11.1, "worse"),
        ("seconds", 10.0, 10.9, "same"),
        ("decode_per_second", 100, 120, "better"),
        ("slowdown", 2.0, 3.0, "worse"),
        ("step_ratio", 1.5, 1.2, "better"),
        ("compress_peak_bytes", 100, 104, "same"),
        ("compress_peak_bytes", 100, 106, "worse"),
        ("nbytes", 10_000, 10_020, "worse"),
        ("bits_per_weight", 2.1, 2.0, "better"),
        ("perplexity", 20.0, 20.05, "same"),
        ("perplexity", 20.0, 19.0, "better"),
        ("bits_per_byte", 1.0, 1.004, "same"),
        ("relative_mse", 0.1, 0.2, "worse"),
        ("held_out_psnr_dB", 30.0, 30.09, "same"),
        ("held_out_psnr_dB", 30.0, 30.2, "better"),
        ("ssim", 0.9, 0.8, "worse"),
        ("ratio", 6.0, 7.0, "better"),
    ],
)
def test_direction_and_default_noise(compare, metric, before, after, verdict) -> None:
    changes, notes = compare.compare([record({metric: before})], [record({metric: after})])
    assert [c.verdict for c in changes] == [verdict]
    assert changes[0].where == f"s d=4 / {metric}"
    assert notes == []


def test_runs_of_one_metric_tell_its_noise(compare) -> None:
    def judged(before, after):
        medians = {"median_seconds": 1.0}  # said once: by the runs
        old, new = ({"seconds": runs, **medians} for runs in (before, after))
        (change,) = compare.compare([record(old)], [record(new)])[0]
        return change.verdict

    assert judged([9.0, 10.0, 12.0], [7.0, 7.5, 8.0]) == "same"  # the range is 3
    assert judged([9.9, 10.0, 10.1], [9.6, 9.7, 9.7]) == "better"
    assert judged([10.0, 10.0, 10.0], [10.1, 10.1, 10.1]) == "same"  # 2 % at least


def test_rows_are_matched_by_what_is_no_metric(compare) -> None:
    rows = [{"bits": 2, "policy": "a", "nbytes": 10}, {"bits": 3, "policy": "a", "nbytes": 20}]
    other = [{"bits": 3, "policy": "a", "nbytes": 15}, {"bits": 4, "policy": "a", "nbytes": 1}]
    (change,) = compare.compare([record({"rows": rows})], [record({"rows": other})])[0]
    assert (change.verdict, change.before, change.after) == ("better", 20, 15)
    assert change.where == "s d=4 / rows / bits=3 policy=a / nbytes"


def test_other_machine_other_spec_and_busy_machine_are_named(compare) -> None:
    results = {"seconds": 1.0, "nbytes": 5}
    other = record({"seconds": 9.0, "nbytes": 4}, machine={**MACHINE, "cpu": "two"})
    changes, notes = compare.compare([record(results)], [other])
    assert [(c.where, c.verdict) for c in changes] == [("s d=4 / nbytes", "better")]
    assert notes == [
        "times and memory not comparable: s d=4 ran on one, 2 cores and on two, 2 cores"
    ]
    changes, notes = compare.compare([record(results)], [record(results, spec={"d": 8})])
    assert (changes, notes) == ([], ["not comparable: suite s, d is 4 and 8"])
    both = [record(results), record(results, suite="t")]
    changes, notes = compare.compare(both, [record(results)])
    assert (len(changes), notes) == (2, ["not in B: t d=4"])
    busy = record(results, machine={**MACHINE, "load_average": 8.0})
    assert compare.compare([record(results)], [busy])[1] == [
        "B was busy, load 8.0 on 2 cores: s d=4"
    ]


def test_the_newest_record_of_a_file_counts_unless_one_is_named(compare, tmp_path, capsys) -> None:
    path = write(tmp_path / "r.jsonl", *(record({"seconds": s}) for s in (1.0, 2.0, 4.0)))
    for a, b, change in [("", ":1", "better"), (":1", ":2", "worse"), (":-2", "", "worse")]:
        assert compare.main([path + a, path + b]) == 0
        assert capsys.readouterr().out.startswith(change)


def test_exit_codes(compare, tmp_path, capsys) -> None:
    good = write(tmp_path / "good.jsonl", record({"seconds": 1.0}))
    bad = write(tmp_path / "bad.jsonl", record({"seconds": 2.0}))
    assert compare.main([good, bad]) == 0
    assert compare.main([good, bad, "--fail"]) == 1
    assert compare.main([bad, good, "--fail"]) == 0
    other = write(tmp_path / "other.jsonl", record({"seconds": 1.0}, suite="t"))
    assert compare.main([good, other, "--fail"]) == 2
    assert "nothing could be compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-thing", "neither a file of records nor a git revision"),
        ("FILE:9", "has 1 records, not one of number 9"),
        ("DAMAGED", "is damaged"),
        ("LACKING", "record 1 lacks machine, results"),
    ],
)
def test_what_cannot_be_read_is_said(compare, tmp_path, capsys, name, message) -> None:
    good = write(tmp_path / "FILE", record({"seconds": 1.0}))
    (tmp_path / "DAMAGED").write_text("{")
    (tmp_path / "LACKING").write_text('{"suite": "s", "spec": {}}\n')
    path = name if name.startswith("no") else str(tmp_path / name)
    with pytest.raises(SystemExit) as caught:
        compare.main([good, path])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_every_record_of_the_repository_can_be_compared(compare, capsys) -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        assert compare.main([str(path), str(path), "--fail"]) == 0
        assert " 0 worse" in capsys.readouterr().out


def test_records_of_a_git_revision(compare, capsys) -> None:
    inside = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True)
    if inside.returncode:
        pytest.skip("not a git checkout")
    assert compare.main(["HEAD", "HEAD"]) == 0
    assert "0 better, 0 worse" in capsys.readouterr().out
