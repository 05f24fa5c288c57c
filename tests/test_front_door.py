"""``import dpq`` and the command line are one product: the same words, defaults and results."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import pytest
import torch
from cli_runs import dpq as run_cli
from cli_runs import install_toy, write_mlp
from toy_adapter import EvaluateOptions
from typer.main import get_command

import dpq
from dpq_cli.app import app
from dpq_core.errors import SpecError, UsageError
from dpq_core.jobs.arguments import VERBS
from dpq_core.plugin import options, registry

COMMANDS = {**{verb: verb for verb in VERBS}, "evaluate": "eval"}

ONLY_ON_THE_COMMAND_LINE = {"as_json", "as_csv", "recipe", "tensors", "help"}
"""What is shown is the command line's business; ``recipe`` is a keyword of every verb."""


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def net(tmp_path):
    return str(write_mlp(tmp_path / "net.safetensors"))


@pytest.fixture
def quick():
    return {"adapter": "mlp", "iterations": 1, "probe": False}


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_argument_of_a_verb(verb):
    function = getattr(dpq, verb)
    shown = {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if name not in ("progress", "stream", "adapter_options")  # callbacks of Python alone
    }
    fields = dataclasses.fields(VERBS[verb])
    assert shown.keys() == {f.name for f in fields}
    assert [f.name for f in fields if f.default not in (dataclasses.MISSING, shown[f.name])] == []
    keywords = [f for f in fields if f.name not in ("source", "artifact", "output", "path")]
    text = inspect.getdoc(function)
    assert [f.name for f in keywords if verb != "inspect" and f"    {f.name}: " not in text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_has_the_words_defaults_and_helps_of_python(verb):
    command = get_command(app).commands[COMMANDS[verb]]
    parameters = {p.name: p for p in command.params if p.name not in ONLY_ON_THE_COMMAND_LINE}
    fields = {field.name: field for field in dataclasses.fields(VERBS[verb])}
    assert parameters.keys() == fields.keys()
    for name, field in fields.items():
        parameter = parameters[name]
        assert parameter.help == field.metadata["help"], name
        if field.default is dataclasses.MISSING:
            assert parameter.required, name
        else:
            assert (parameter.default or None) == (field.default or None), name
        if not field.metadata.get("positional"):
            assert f"--{name.replace('_', '-')}" in parameter.opts


def test_every_verb_is_public():
    for verb in (*VERBS, "adapters", "demo", "load", "quantize_", "verify"):
        assert callable(getattr(dpq, verb)), verb
        assert verb in dpq.__all__


def test_compress_writes_the_bytes_of_the_command_line(net, quick, tmp_path):
    report = dpq.compress(net, tmp_path / "python", bits=3, override=("w2=keep",), **quick)
    words = ["--bits", 3, "--override", "w2=keep", "--iterations", 1, "--no-probe", "-a", "mlp"]
    done = run_cli("compress", net, "-o", tmp_path / "shell", *words, "--json")
    assert done.code == 0, done.err
    assert content(tmp_path / "python") == content(tmp_path / "shell")
    again = {**done.json, "artifact": str(tmp_path / "python")}
    mine = json.loads(json.dumps(report.to_json(), default=str))
    assert mine.keys() == again.keys()
    assert mine["nbytes"] == again["nbytes"]
    assert "true bits per weight" in report.table()


@pytest.mark.slow
def test_a_plan_and_a_dry_run_say_the_same(net, quick, tmp_path):
    planned = dpq.plan(net, adapter="mlp", target_size="30KB", iterations=1)
    dry = dpq.compress(net, tmp_path / "out", target_size=30_000, dry_run=True, **quick)
    assert planned.nbytes == dry.nbytes <= 30_000 == planned.budget
    assert not (tmp_path / "out").exists()


def test_evaluate_inspect_verify_load_sample_export(net, quick, tmp_path):
    out = tmp_path / "out"
    dpq.compress(net, out, adapter="mlp", iterations=1)
    found = dpq.evaluate(out, baseline=net, rows=16)
    assert found.result.evaluation.metrics[0].protocol.endswith("16 normal inputs")
    assert found.to_json()["options"] == {"rows": 16}
    assert "power (higher is better)" in found.table()
    assert "size on disk" in str(found.tables()[0])
    assert dpq.inspect(out).to_json()["adapter"] == "mlp"
    assert dpq.verify(out).verified["probe"].startswith("matches")
    assert dpq.load(out)["w1"].dtype == torch.float32
    assert len(dpq.sample(out, count=2).texts) == 2
    made = dpq.export(out, tmp_path / "dense.safetensors")
    assert made.files[0].is_file()


@pytest.mark.slow
def test_a_recipe_is_merged_as_on_the_command_line(net, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nadapter: mlp\nprobe: false\nbits: 4\nset: [permute=false]\niterations: 1\n"
    )
    one = dpq.compress(net, tmp_path / "python", recipe=recipe, d=8, K=16, set=("stages=2",))
    words = ["--recipe", recipe, "--d", 8, "--K", 16, "--set", "stages=2"]
    assert run_cli("compress", net, "-o", tmp_path / "shell", *words).code == 0
    assert content(one.artifact) == content(tmp_path / "shell")
    recipe.write_text("version: 1\nrows: 9\n")
    found = dpq.evaluate(net, adapter="mlp", recipe=recipe)
    assert found.to_json()["options"] == {"rows": 9}
    assert dpq.evaluate(net, adapter="mlp", recipe=recipe, rows=4).options == {"rows": 4}


def test_progress_is_a_callback(net, quick, tmp_path):
    calls = []
    dpq.compress(net, tmp_path / "out", progress=lambda *call: calls.append(call), **quick)
    assert calls[-1][1] == calls[-1][2] > 0


def test_resume_and_overwrite(net, quick, tmp_path):
    out = tmp_path / "out"
    dpq.compress(net, out, **quick)
    with pytest.raises(dpq.ArtifactError, match="exists already"):
        dpq.compress(net, out, **quick)
    dpq.compress(net, out, overwrite=True, **quick)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"row": 3}, "unknown option 'row'; did you mean rows"),
        ({"basline": "x"}, "unknown option 'basline'; did you mean baseline"),
        ({"rows": 0}, "rows=0: must be at least 1"),
    ],
)
def test_a_wrong_keyword_says_the_nearest(net, wrong, message):
    with pytest.raises(SpecError, match=message):
        dpq.evaluate(net, adapter="mlp", **wrong)


def test_a_missing_argument_is_named():
    from dpq_core.jobs.request import request

    with pytest.raises(UsageError, match="output is needed"):
        request(VERBS["compress"], {"source": "x"})


def test_data_are_options_of_the_adapter():
    assert dpq.data.texts("a", "b").options == {"texts": ("a", "b")}
    assert dpq.data.cameras("c").options == {"cameras": "c"}


def test_adapters_say_what_is_wrong_with_them():
    reports = {report.name: report for report in dpq.adapters()}
    assert reports["mlp"].ok
    assert [o.field for o in reports["mlp"].options["evaluate"]] == ["rows"]
    assert dataclasses.fields(EvaluateOptions)[0].name == "rows"


MEANINGS = {
    "adapter": "domain of the source",
    "against": "further files",
    "axes": "axes of the source",
    "baseline": "uncompressed",
    "baseline_count": "compared with the baseline",
    "cameras": "cameras",
    "count": "to draw in all",
    "limit": "N windows|so many cameras",
    "output_axes": "axes of the new file",
    "pixels": "in pixels",
    "reference_stats": "samples are compared with",
    "relative_size": "bytes of the result",
    "sampling_steps": "denoising steps",
    "steps": "[Tt]raining steps",
    "target_size": "Bytes of the whole artifact",
}
"""Words with one meaning, and what every help text about them says."""

GONE = {"reference", "original", "fidelity", "views", "size", "rig_size", "batch", "text"}
GONE |= {"source_coordinates", "coordinates", "denoising_steps", "all_views", "samples_folder"}


def words():
    """Every word of the front door: (where, name, type, help)."""
    for verb, cls in VERBS.items():
        for option in options.describe(cls, required=True):
            yield verb, option.field, option.kind, option.help
    for entry in registry.available():
        if entry.distribution != "dpq":
            continue
        for verb, cls in registry.load(entry.name).options.items():
            for option in options.describe(cls):
                yield f"{entry.name} {verb}", option.field, option.kind, option.help


def test_no_word_of_users_has_two_meanings():
    seen = {where.partition(" ")[0] for where, *_ in words()}
    assert {"llama", "diffusion", "gaussian", "compress"} <= seen
    kinds: dict[str, dict[type, str]] = {}
    for where, name, kind, help_text in words():
        assert name not in GONE, f"{where}: --{name}"
        kinds.setdefault(name, {})[kind] = where
        if name in MEANINGS and name != "cameras":
            assert re.search(MEANINGS[name], help_text), f"{where}: --{name}: {help_text}"
    mixed = {name: found for name, found in kinds.items() if len(found) > 1}
    assert mixed == {}


def test_a_hint_is_an_argument_in_python_and_a_flag_on_the_command_line(net, quick, tmp_path):
    out = tmp_path / "out"
    dpq.compress(net, out, **quick)
    with pytest.raises(dpq.ArtifactError) as caught:
        dpq.compress(net, out, **quick)
    assert str(caught.value).endswith("exists already; use overwrite=True to replace it")
    assert caught.value.hint.options == (("overwrite", True),)
    done = run_cli("compress", net, "-o", out, "-a", "mlp", "--iterations", 1)
    assert done.err.strip().endswith("exists already; use --overwrite to replace it")
    with pytest.raises(SpecError, match="give one of bits, d and target_size"):
        dpq.plan(net, adapter="mlp", bits=2, d=4)
    done = run_cli("plan", net, "-a", "mlp", "--bits", 2, "--d", 4)
    assert "give one of --bits, --d and --target-size" in done.err
