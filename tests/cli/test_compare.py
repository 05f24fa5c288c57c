"""``dpq compare`` on the toy adapter."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from cli_runs import dpq, install_toy, write_mlp
from toy_adapter import MLPAdapter

from dpq_core.jobs.results import Results, fingerprint
from dpq_core.plugin.results import Evaluation, Metric


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def net(tmp_path) -> Path:
    return write_mlp(tmp_path / "net.safetensors")


@pytest.fixture
def models(net, tmp_path) -> list[Path]:
    """Artifacts of 4 and 2 bits."""
    paths = [tmp_path / "four", tmp_path / "two"]
    for path, bits in zip(paths, (4, 2), strict=True):
        words = ("-a", "mlp", "-o", path, "--bits", bits, "--iterations", 1, "--no-probe")
        assert dpq("compress", net, *words).code == 0
    return paths


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The sources that the adapter was asked to measure."""
    sources: list[str] = []
    alone = MLPAdapter.evaluate

    def evaluate(self, source, options, run):
        sources.append(Path(source).name)
        return alone(self, source, options, run)

    monkeypatch.setattr(MLPAdapter, "evaluate", evaluate)
    return sources


def test_one_row_per_model_with_the_baseline_last(net, models):
    done = dpq("compare", *models, "--baseline", net, "--rows", 16)
    assert (done.code, done.out) == (0, "")
    for text in ("four", "two", "net.safetensors", "on disk", "true bits", "power (higher)"):
        assert text in done.err
    assert "power: mean square of the outputs for 16 normal inputs" in done.err
    assert "beaten by" in done.err


def test_json_has_the_sizes_bits_and_memory_of_every_row(net, models):
    report = dpq("compare", *models, "--baseline", net, "--json").json
    four, two, original = report["rows"]
    assert report["baseline"] == original["source"] == str(net)
    assert original["bits_per_weight"] > 32 > four["bits_per_weight"] > two["bits_per_weight"] > 2
    assert four["nbytes"] == sum(path.stat().st_size for path in models[0].iterdir())
    assert original["memory"] == 4 * (96 * 64 + 96 + 40 * 96)
    assert four["metrics"][0]["name"] == "power"


def test_csv_has_the_same_numbers(net, models):
    words = ("compare", *models, "--baseline", net)
    rows = list(csv.DictReader(io.StringIO(dpq(*words, "--csv").out)))
    expected = dpq(*words, "--json").json["rows"]
    assert [row["source"] for row in rows] == [row["source"] for row in expected]
    assert [float(row["power"]) for row in rows] == [r["metrics"][0]["value"] for r in expected]
    assert dpq(*words, "--csv", "--json").code == 2


def test_results_are_read_back_until_something_changes(net, models, counted):
    words = ("compare", *models, "--baseline", net)
    first = dpq(*words, "--json").json
    assert counted == ["four", "two", "net.safetensors"]
    again = dpq(*words)
    assert len(counted) == 3
    assert "read back, not computed again" in again.err
    unlike = {"reused": None}
    rows = dpq(*words, "--json").json["rows"]
    assert [{**r, **unlike} for r in rows] == [{**r, **unlike} for r in first["rows"]]
    os.utime(models[1] / "model.safetensors", ns=(1, 1))
    dpq(*words)
    assert counted[3:] == ["two"]
    dpq(*words, "--rows", 8)
    assert counted[4:] == ["four", "two", "net.safetensors"]
    dpq(*words, "--fresh")
    assert len(counted) == 10


def test_results_can_be_kept_elsewhere(models, counted, tmp_path):
    words = ("compare", *models, "--results", tmp_path / "kept")
    assert dpq(*words).code == 0
    records = list((tmp_path / "kept").iterdir())
    assert len(records) == 4  # metrics and memory of both
    records[0].write_text("{")
    assert dpq(*words).code == 0
    assert not (tmp_path / "cache").exists()


def test_a_model_that_is_larger_and_worse_is_beaten(models, monkeypatch):
    values = {"four": 1.0, "two": 2.0}

    def evaluate(self, source, options, run):
        value = values[Path(source).name]
        loss = Metric(name="loss", value=value, higher_is_better=True, protocol="p")
        slow = Metric(name="decode seconds", value=value, higher_is_better=False, protocol="p")
        return Evaluation(metrics=(loss, slow))

    monkeypatch.setattr(MLPAdapter, "evaluate", evaluate)
    four, two = dpq("compare", *models, "--json").json["rows"]
    assert (four["beaten_by"], two["beaten_by"]) == ([str(models[1])], [])
    values["four"] = 3.0
    rows = dpq("compare", *models, "--fresh", "--json").json["rows"]
    assert [row["beaten_by"] for row in rows] == [[], []]


def test_options_of_the_adapter_come_after_the_models(models):
    done = dpq("compare", models[0], "--rows", 4, models[1])
    assert done.code == 2
    assert "unexpected argument" in done.err
    assert dpq("compare").code == 2


def test_the_speed_needs_an_adapter_that_times(models):
    done = dpq("compare", *models, "--speed")
    assert done.code == 1
    assert "cannot time its models" in done.err
    timed = Metric(name="rows/s", value=9.0, higher_is_better=True, protocol="a clock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLPAdapter, "speed", lambda *_: timed, raising=False)
        rows = dpq("compare", *models, "--speed", "--json").json["rows"]
        assert [row["speed"]["value"] for row in rows] == [9.0, 9.0]
        assert "rows/s: a clock" in dpq("compare", *models, "--speed").err


def test_a_source_that_is_not_here_has_no_fingerprint(tmp_path):
    assert fingerprint("some/hub-id") is None
    assert fingerprint("builtin:x") != fingerprint("builtin:y")
    calls = []
    results = Results(tmp_path / "none")
    assert results.get(None, lambda: calls.append(1) or {"a": 1}) == ({"a": 1}, False)
    assert calls == [1]
    assert not results.folder.exists()


def test_records_say_what_they_depend_on(models, tmp_path):
    dpq("compare", *models, "--results", tmp_path / "kept")
    keys = [json.loads(p.read_text())["key"] for p in (tmp_path / "kept").iterdir()]
    assert {key["what"] for key in keys} == {"evaluate", "memory"}
    assert all(key["adapter"] == "mlp" and key["seed"] == 0 for key in keys)


def test_results_are_computed_where_records_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").write_text("")
    assert Results(tmp_path / "file" / "folder").get({"a": 1}, lambda: {"b": 2}) == (
        {"b": 2},
        False,
    )
    results = Results(tmp_path / "kept")
    assert results.get({"a": 1}, lambda: {"b": 2}) == ({"b": 2}, False)
    assert results.get({"a": 1}, dict) == ({"b": 2}, True)
    [record] = (tmp_path / "kept").iterdir()
    for damage in (b"[1]", b"{", b"\xff\xfe", b'{"version": 2, "result": 3}'):
        record.write_bytes(damage)
        assert results.get({"a": 1}, lambda: {"b": 2}) == ({"b": 2}, False)
    assert results.get({"a": 1}, dict) == ({"b": 2}, True)
