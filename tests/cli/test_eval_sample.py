"""``dpq eval`` and ``dpq sample`` on the toy adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import dpq, install_toy, write_mlp
from toy_adapter import MLPAdapter

from dpq_core.plugin.results import Evaluation, Metric, Sampling


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def net(tmp_path) -> Path:
    return write_mlp(tmp_path / "net.safetensors")


@pytest.fixture
def out(net, tmp_path) -> Path:
    path = tmp_path / "out"
    assert dpq("compress", "-a", "mlp", net, "-o", path, "--iterations", 2).code == 0
    return path


def test_eval_side_by_side(net, out):
    done = dpq("eval", out, "--baseline", net)
    assert (done.code, done.out) == (0, "")
    assert "power (higher is better)" in done.err
    assert "size on disk" in done.err
    assert "x smaller" in done.err
    assert "power: mean square of the outputs for 256 normal inputs" in done.err


def test_eval_json(net, out):
    found = dpq("eval", out, "--baseline", net, "--json", "--rows", "16").json
    assert (found["adapter"], found["seed"], found["options"]) == ("mlp", 0, {"rows": 16})
    assert found["result"]["nbytes"] == sum(p.stat().st_size for p in out.iterdir())
    assert found["baseline"]["nbytes"] == net.stat().st_size
    (metric,) = found["baseline"]["metrics"]
    assert metric["name"] == "power"
    assert metric["value"] > 0
    assert "16 normal inputs" in metric["protocol"]


def test_others_that_the_adapter_measured_are_columns_of_the_table(net, out, monkeypatch):
    alone = MLPAdapter.evaluate

    def evaluate(self, source, options, run):
        found = alone(self, source, options, run)
        (power,) = found.metrics
        other = Metric(name="power", value=7.5, higher_is_better=True, protocol="guessed")
        more = Metric(name="charm", value=1.0, higher_is_better=True, protocol="felt")
        others = {str(net): Evaluation(metrics=(other, more), notes=("a guess",))}
        return Evaluation(metrics=(power,), notes=("charm is left out",), others=others)

    monkeypatch.setattr(MLPAdapter, "evaluate", evaluate)
    done = dpq("eval", out)
    assert done.code == 0
    assert "7.5" in done.err
    assert "charm (higher is better)" in done.err
    assert f"power of {net}: guessed\n" in done.err
    assert "charm is left out\na guess\n" in done.err
    found = dpq("eval", out, "--json").json
    assert found["result"]["notes"] == ["charm is left out"]
    other = found["against"][str(net)]
    assert other["nbytes"] == net.stat().st_size
    assert [metric["value"] for metric in other["metrics"]] == [7.5, 1.0]


def test_an_uncompressed_source_needs_its_adapter(net, out):
    done = dpq("eval", net)
    assert done.code == 1
    assert "say its domain with --adapter (installed: " in done.err
    assert dpq("eval", net, "--adapter", "mlp").code == 0
    assert dpq("eval", net, "--baseline", out).code == 0


def test_the_artifacts_adapter_wins_over_a_wrong_one(out):
    done = dpq("eval", out, "--adapter", "llama")
    assert done.code == 1
    assert "was made with adapter 'mlp'; drop --adapter llama" in done.err


def test_a_wrong_baseline_fails(out, tmp_path):
    done = dpq("eval", out, "--baseline", tmp_path / "nothing.safetensors")
    assert done.code == 1
    assert "nothing.safetensors: not a .safetensors file" in done.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--row", "3"], 2, "did you mean --rows?"),
        (["--rows", "many"], 2, "is not a whole number"),
        (["--rows", "0"], 2, "--rows 0: must be at least 1"),
        (["more"], 2, "unexpected argument 'more'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistaken_adapter_options_are_usage_errors(out, monkeypatch, words, code, message):
    monkeypatch.setenv("COLUMNS", "200")
    done = dpq("eval", out, *words)
    assert done.code == code
    assert message in done.err
    assert "dpq adapters mlp" in done.err


def test_help_says_where_the_adapters_options_are():
    for command in ("eval", "sample"):
        assert "dpq adapters NAME" in dpq(command, "--help").out


def test_samples_go_to_stdout(out):
    done = dpq("sample", out)
    assert done.code == 0
    assert len(done.out.split("\n\n")) == 3
    assert dpq("sample", out, "--count=1").out.strip() == done.out.split("\n\n")[0]
    assert dpq("sample", out, "--seed", 0).out == done.out
    assert dpq("sample", out, "--seed", 1).out != done.out


def test_texts_are_printed_while_they_are_generated(out, monkeypatch):
    def sample(self, source, options, run, folder):
        shown = run.stream or (lambda *_: None)
        for number, model, piece in self.pieces:
            shown(number, model, piece)
        return Sampling(texts=("one two", "three"))

    monkeypatch.setattr(MLPAdapter, "sample", sample)
    one = [(0, "", "one "), (0, "", "two"), (1, "", "three")]
    monkeypatch.setattr(MLPAdapter, "pieces", one, raising=False)
    assert dpq("sample", out).out == "one two\n\nthree\n"
    two = [(0, "out", "one"), (0, "net", "eins"), (1, "out", "two"), (1, "net", "zwei")]
    monkeypatch.setattr(MLPAdapter, "pieces", two)
    expected = "[out]\none\n\n[net]\neins\n\n[out]\ntwo\n\n[net]\nzwei\n"
    assert dpq("sample", out).out == expected
    assert dpq("sample", out, "--json").json["texts"] == ["one two", "three"]


def test_samples_as_json(out):
    found = dpq("sample", out, "--json", "--count", 2).json
    assert len(found["texts"]) == 2
    assert found["files"] == []
